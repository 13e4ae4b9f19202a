//! `kubectl remora capture`, as a user runs it.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use remora_tests::{
    cluster::kubectl::Kubectl,
    packets::{Capture, Packet},
    run::Proc,
    wait, wire,
};

const LIMIT: Duration = Duration::from_secs(40);
/// What it says once all agents that it reached are armed.
const ARMED: &str = "capturing on ";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A capture that runs, into a file.
pub(crate) struct Capturing {
    process: Proc,
    file: PathBuf,
}

/// One that has ended.
pub(crate) struct Captured {
    pub(crate) capture: Capture,
    /// What it told the user.
    pub(crate) told: String,
}

impl Capturing {
    /// Starts one with the words after `kubectl remora capture`; from then on all packets are in it.
    /// Controllers and agents learn of objects by watches: while one does not know them yet, it is
    /// asked again.
    pub(crate) fn start(user: &Kubectl, directory: &Path, words: &[&str]) -> Result<Self> {
        let mut last = String::new();
        let started = wait::until_some(LIMIT, "a capture without a missing part", || {
            let mut capturing = Self::spawn(user, directory, words)?;
            match capturing.process.wait_for(ARMED, LIMIT) {
                Ok(()) if !capturing.log().contains("missing: ") => return Ok(Some(capturing)),
                Ok(()) => last = capturing.log(),
                Err(error) => last = format!("{error:#}"),
            }
            // The last: Kubernetes takes all pods of a node for unready that it has not heard of for a while.
            let passes = [
                "there is no",
                "missing: ",
                "no controller of Remora is ready",
            ];
            if passes.iter().any(|text| last.contains(text)) {
                return Ok(None);
            }
            bail!("{last}")
        });
        started.with_context(|| last)
    }

    /// Runs one to its own end.
    pub(crate) fn to_end(user: &Kubectl, directory: &Path, words: &[&str]) -> Result<Captured> {
        let mut capturing = Self::spawn(user, directory, words)?;
        let status = capturing.process.wait(LIMIT)?;
        ensure!(status.success(), "{status}: {}", capturing.log());
        capturing.ended()
    }

    fn spawn(user: &Kubectl, directory: &Path, words: &[&str]) -> Result<Self> {
        let name = format!("capture-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let file = directory.join(format!("{name}.pcapng"));
        let mut command = user.remora()?;
        command.arg("capture").args(words).arg("-w").arg(&file);
        let process = Proc::spawn(&mut command, directory, &name)?;
        Ok(Self { process, file })
    }

    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until the file has what `wanted` looks for.
    pub(crate) fn wait_for(&mut self, what: &str, wanted: impl Fn(&Capture) -> bool) -> Result<()> {
        let waited = wait::until(LIMIT, what, || {
            if let Some(status) = self.process.ended()? {
                bail!("it ended ({status})");
            }
            // It may be in the middle of a packet.
            Ok(Capture::read(&self.file).is_ok_and(|capture| wanted(&capture)))
        });
        waited.with_context(|| self.process.tail())
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn stop(mut self) -> Result<Captured> {
        let status = self.process.end_by(Signal::SIGINT, LIMIT)?;
        ensure!(status.success(), "{status}: {}", self.log());
        self.ended()
    }

    fn ended(&self) -> Result<Captured> {
        wire::assert_readable(&self.file)?;
        Ok(Captured {
            capture: Capture::read(&self.file)?,
            told: self.log(),
        })
    }
}

impl Captured {
    /// The packets of the interfaces whose name is `owner/…`.
    pub(crate) fn of(&self, owner: &str) -> Vec<Packet> {
        let interfaces = &self.capture.interfaces;
        let is_of = |packet: &&Packet| {
            let interface = interfaces.get(packet.interface as usize);
            interface.is_some_and(|interface| is_of(&interface.name, owner))
        };
        self.capture.packets.iter().filter(is_of).cloned().collect()
    }
}

/// An interface's name says whose it is.
pub(crate) fn is_of(interface: &str, owner: &str) -> bool {
    let rest = interface.strip_prefix(owner);
    rest.is_some_and(|rest| rest.starts_with('/'))
}
