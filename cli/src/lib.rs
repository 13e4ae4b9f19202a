//! The command line: a client of one agent that feels like tcpdump.
//!
//! - [`args`], [`spec`]: what the user said, and the capture that it means (pure).
//! - [`commands`]: one module a command.
//! - [`follow`]: a capture's stream into an output, with signals and faults.
//! - [`output`], [`blocks`]: the file or pipe; whole pcapng blocks only.
//! - [`evidence`]: read for verification, and packed into an archive.
//! - [`render`], [`failure`], [`terminal`]: what the user sees.
//!
//! Text from the agent is escaped before a terminal sees it. Exit code 0: done, also when a signal
//! ended a capture; 1: it failed, with the reason on stderr; 2: the command line is not one;
//! 3: `verify` found nothing wrong, but not all is proved.
#![forbid(unsafe_code)]

mod args;
mod blocks;
mod commands;
mod evidence;
mod failure;
mod follow;
mod output;
mod place;
mod render;
mod signals;
mod spec;
mod terminal;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

/// Exit code of `verify` when nothing is wrong, but not all is proved.
const PARTLY_PROVED: u8 = 3;

/// Parses the process's arguments, does what they say, and tells the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let args = args::Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime
        .context("no asynchronous runtime")
        .and_then(|runtime| runtime.block_on(commands::run(args)));
    match result {
        Ok(commands::Outcome::Done) => ExitCode::SUCCESS,
        Ok(commands::Outcome::Faulty) => ExitCode::FAILURE,
        Ok(commands::Outcome::Partly) => ExitCode::from(PARTLY_PROVED),
        Err(error) => {
            terminal::error(&error);
            ExitCode::FAILURE
        }
    }
}
