//! What a process takes of the machine.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// CPU time and memory of a capturer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// VmRSS at the end of the run, in KiB.
    pub(crate) rss_kib: u64,
}

/// User and system time of a process with all its threads, also those that have ended. (The same
/// sum as utime + stime of proc_pid_stat(5), but in nanoseconds: a run is few ticks long.)
///
/// # Errors
/// It has ended.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.try_into()?))?;
    Ok(clock_gettime(clock)?.into())
}

/// Its resident memory, in KiB. (A BPF ring is mapped twice and counts twice.)
///
/// # Errors
/// It has ended.
pub(crate) fn rss_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse().ok())
        .context("a process without VmRSS")
}
