//! `cargo xtask cluster up|down`, and the first process of a node.
//!
//! ```text
//! up ── starts ──▶ keep (a session of its own, holds the lock) ── starts ──▶ cluster
//! down ── SIGTERM ──▶ keep
//! ```
#![forbid(unsafe_code)]

mod keep;
mod place;
mod updown;

use std::path::PathBuf;

use anyhow::Result;
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

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Up => updown::up(),
        Command::Down => updown::down(),
        Command::Keep => keep::keep(),
        Command::Node {
            name,
            address,
            directory,
            programs,
        } => init::run(&directory, &name, &address, &programs),
    }
}
