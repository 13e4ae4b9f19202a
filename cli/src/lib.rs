//! The command line, one binary with three names ([`program`]): `remora`, a client of one agent that
//! feels like tcpdump; `kubectl remora`, the same for a cluster; `remoradump`, Wireshark's way to both.
//!
//! - [`args`], [`options`], [`spec`]: what the user said, and the capture that it means (pure).
//! - [`commands`]: one module a command.
//! - [`kube`]: the commands of `kubectl remora`; nothing else knows Kubernetes.
//! - [`extcap`]: what Wireshark asks, made into a command line.
//! - [`follow`]: a capture's stream into an output, with signals and faults.
//! - [`output`], [`blocks`]: the file or pipe; whole pcapng blocks only.
//! - [`evidence`]: read for verification, and packed into an archive.
//! - [`render`], [`failure`], [`terminal`], [`shell`]: what the user sees.
//!
//! Text from the agent is escaped before a terminal sees it. Exit code 0: done, also when a signal
//! ended a capture; 1: it failed, with the reason on stderr; 2: the command line is not one;
//! 3: `verify` found nothing wrong, but not all is proved; a capture over a cluster lacks a part.
#![forbid(unsafe_code)]

mod args;
mod blocks;
mod commands;
mod evidence;
mod extcap;
mod failure;
mod follow;
#[cfg(feature = "kubernetes")]
mod kube;
mod options;
mod output;
mod place;
mod program;
mod render;
mod shell;
mod signals;
mod spec;
mod terminal;
mod timestamp;

pub use evidence::read_archive;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use tokio::task::LocalSet;

use commands::Outcome;
use extcap::{Asked, ExtcapArgs};
use program::Program;

/// Exit code of `verify` when nothing is wrong, but not all is proved, and of a capture that lacks a
/// part.
const PARTLY: u8 = 3;

/// Parses the process's arguments, does what they say, and tells the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    let program = Program::called(&mut words);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime
        .context("no asynchronous runtime")
        .and_then(|runtime| LocalSet::new().block_on(&runtime, run(program, words)));
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Faulty) => ExitCode::FAILURE,
        Ok(Outcome::Partly) => ExitCode::from(PARTLY),
        Err(error) => {
            terminal::error(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(program: Program, words: Vec<OsString>) -> anyhow::Result<Outcome> {
    match program {
        Program::Remora => match args::Args::parse_from(words) {
            args::Args {
                command: args::Command::Extcap { words },
                ..
            } => answer_wireshark(words).await,
            args => commands::run(args).await,
        },
        Program::Kubectl => kubectl(words).await,
        Program::Extcap => answer_wireshark(words.into_iter().skip(1)).await,
    }
}

#[cfg(feature = "kubernetes")]
async fn kubectl(words: Vec<OsString>) -> anyhow::Result<Outcome> {
    kube::run(kube::KubeArgs::parse_from(words)).await
}

#[cfg(not(feature = "kubernetes"))]
async fn kubectl(_words: Vec<OsString>) -> anyhow::Result<Outcome> {
    anyhow::bail!("this program was built without Kubernetes (cargo feature `kubernetes`)")
}

/// Does what Wireshark asks; a capture becomes that of another command line.
async fn answer_wireshark(words: impl IntoIterator<Item = OsString>) -> anyhow::Result<Outcome> {
    let words = std::iter::once(extcap::NAME.into()).chain(words);
    let args = ExtcapArgs::parse_from(words);
    let result = match extcap::run(&args) {
        Ok(Asked::Nothing(outcome)) => return Ok(outcome),
        Ok(Asked::Capture(words)) => capture_for_wireshark(words).await,
        Err(error) => Err(error),
    };
    if result.is_err() {
        extcap::release(args.fifo());
    }
    result
}

async fn capture_for_wireshark(mut words: Vec<OsString>) -> anyhow::Result<Outcome> {
    match Program::called(&mut words) {
        #[cfg(feature = "kubernetes")]
        Program::Kubectl => kube::run(kube::KubeArgs::try_parse_from(words)?).await,
        _ => commands::run(args::Args::try_parse_from(words)?).await,
    }
}
