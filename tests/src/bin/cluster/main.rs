//! `cargo xtask cluster up|down|demo`, and the first process of a node.
//!
//! ```text
//! up ── starts ──▶ keep (a session of its own, holds the lock) ── starts ──▶ cluster
//! down ── SIGTERM ──▶ keep
//! demo ── up, if none is ──▶ chart, shop, capture ──▶ down, if it was up for the demo
//! ```
#![forbid(unsafe_code)]

mod demo;
mod keep;
mod place;
mod updown;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use remora_tests::cluster::node::init;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster that stays
    Up,
    /// End the cluster that stays, and remove what killed ones have left
    Down,
    /// Install Remora from its chart, capture from a shop of a few pods, and remove it all
    Demo,
    /// Run the cluster until SIGTERM (`up` does this in the background)
    #[command(hide = true)]
    Keep,
    /// Be the first process of a node
    #[command(hide = true)]
    Node {
        #[arg(long)]
        name: String,
        #[arg(long)]
        address: String,
        #[arg(long)]
        directory: PathBuf,
        #[arg(long)]
        programs: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Up => updown::up(),
        Command::Down => updown::down(),
        Command::Demo => return demo::demo(),
        Command::Keep => keep::keep(),
        Command::Node {
            name,
            address,
            directory,
            programs,
        } => init::run(&directory, &name, &address, &programs),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
