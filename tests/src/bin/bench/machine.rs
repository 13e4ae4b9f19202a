//! Where and when it was measured.

use std::{fmt, fs};

use anyhow::{Context as _, Result};
use remora_tests::run;

use crate::peer::Tool;

/// The machine and the sources.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) date: jiff::Timestamp,
    /// Abbreviated, with "-dirty" when the sources differ from it; empty outside a checkout.
    pub(crate) commit: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) kernel: String,
    /// Versions of the capturers that it is compared with.
    pub(crate) peers: Vec<String>,
    /// Runnable processes, mean of the last minute, when it began.
    pub(crate) load_before: f64,
}

impl Machine {
    /// # Errors
    /// A peer is not installed, or there is no /proc.
    pub(crate) fn look() -> Result<Self> {
        let cpu = fs::read_to_string("/proc/cpuinfo")?
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown", |(_, name)| name.trim())
            .to_owned();
        // Root looks at a checkout that is somebody else's.
        let commit = run::output(run::command("git").args([
            "-c",
            "safe.directory=*",
            "describe",
            "--always",
            "--dirty",
            "--exclude=*",
        ]));
        Ok(Self {
            date: jiff::Timestamp::now(),
            commit: commit.unwrap_or_default().trim().to_owned(),
            cpu,
            cpus: std::thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            peers: [Tool::Tcpdump, Tool::Dumpcap, Tool::Tshark]
                .into_iter()
                .map(Tool::version)
                .collect::<Result<_>>()?,
            load_before: load()?,
        })
    }

    pub(crate) fn date_for_files(&self) -> impl fmt::Display {
        self.date.strftime("%Y-%m-%dT%H-%M-%SZ")
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} × {}, kernel {}, commit {}, load {:.2}",
            self.date.strftime("%Y-%m-%d %H:%M UTC"),
            self.cpus,
            self.cpu,
            self.kernel,
            self.commit,
            self.load_before
        )
    }
}

/// Runnable processes, mean of the last minute.
///
/// # Errors
/// There is no /proc.
pub(crate) fn load() -> Result<f64> {
    fs::read_to_string("/proc/loadavg")?
        .split(' ')
        .next()
        .and_then(|load| load.parse().ok())
        .context("no load in /proc/loadavg")
}
