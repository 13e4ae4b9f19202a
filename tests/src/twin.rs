//! What generators on two paths that are alike have in common.

use std::{fs::File, net::SocketAddrV4, path::Path, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns},
    unistd::Pid,
};
use serde_json::{Value, json};

/// Longest run, in seconds: each step of it is remembered.
const SECONDS_MAX: f64 = 60.0;

/// The two paths, and how long they are used in turn.
#[derive(clap::Args, Debug)]
pub struct Paths {
    /// Where the first path leads: address and port
    pub first: SocketAddrV4,
    /// Where its twin leads
    pub twin: SocketAddrV4,
    /// Network namespace the first path starts in, like /run/netns/NAME
    #[arg(long, value_name = "FILE")]
    pub first_netns: PathBuf,
    /// Network namespace its twin starts in
    #[arg(long, value_name = "FILE")]
    pub twin_netns: PathBuf,
    /// How long, in all
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Run on this CPU
    #[arg(long, default_value_t = 0)]
    pub cpu: usize,
}

impl Paths {
    /// Moves the program to its CPU.
    ///
    /// # Errors
    /// There is no such CPU, or the time is out of range.
    pub fn prepare(&self) -> Result<()> {
        ensure!(
            self.seconds > 0.0 && self.seconds <= SECONDS_MAX,
            "--seconds must be above 0 and at most {SECONDS_MAX}"
        );
        let mut cpus = CpuSet::new();
        cpus.set(self.cpu)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)
            .with_context(|| format!("cannot run on CPU {}", self.cpu))
    }
}

/// Moves the thread into a network namespace. What it opens there stays there.
///
/// # Errors
/// There is none of that name, or no right to enter.
pub fn enter(netns: &Path) -> Result<()> {
    let file = File::open(netns).with_context(|| format!("no namespace {}", netns.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter {}", netns.display()))
}

/// What is said of a path: how much was sent, and the median and lower quartile of what its `steps`
/// took, in nanoseconds for each of the `parts` of a step.
///
/// # Errors
/// There was no step.
pub fn told(sent: u64, mut steps: Vec<u64>, parts: f64) -> Result<Value> {
    steps.sort_unstable();
    let quantile = |part: f64| -> Result<f64> {
        let at = (steps.len() as f64 * part) as usize;
        let step = steps.get(at).context("not one whole step was made")?;
        Ok(*step as f64 / parts)
    };
    Ok(json!({
        "sent": sent,
        "median_ns": quantile(0.5)?,
        "p25_ns": quantile(0.25)?,
    }))
}
