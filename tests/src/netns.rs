//! Network namespaces.

use std::{
    fs::File,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::{name, run};

/// A named network namespace with its loopback up; gone when dropped (its processes keep it alive
/// until they end).
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
}

impl Netns {
    /// # Errors
    /// Not root, or the name is taken.
    pub fn new(suffix: &str) -> Result<Self> {
        run::require_root()?;
        let name = format!("{}-{suffix}", name::unique());
        let path = Path::new("/run/netns").join(&name);
        // Before it is there: a Ctrl-C also ends the program that makes it, maybe after it was made.
        let netns = Self { name, path };
        run::output(run::command("ip").args(["netns", "add", &netns.name]))?;
        // No duplicate address detection: an address serves at once.
        netns.sysctl("net.ipv6.conf.all.accept_dad", "0")?;
        netns.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `ip <words>` here.
    ///
    /// # Errors
    /// What ip says.
    pub fn ip(&self, words: &str) -> Result<String> {
        run::output(
            run::command("ip")
                .args(["-n", &self.name])
                .args(words.split(' ')),
        )
    }

    /// A command here.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> std::process::Command {
        run::Place {
            netns: Some(self),
            ..Default::default()
        }
        .command(program)
    }

    /// Sets a sysctl of this namespace.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        let value = value.to_owned();
        self.enter(move || {
            std::fs::write(&path, value)
                .with_context(|| format!("failed to set {}", path.display()))
        })
    }

    /// Runs `f` on a thread in this namespace: sockets that it makes stay here.
    ///
    /// # Errors
    /// The thread cannot enter, or `f` fails.
    ///
    /// # Panics
    /// When `f` does.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        enter(&self.path, f)
    }
}

/// Runs `f` on a thread in the network namespace that a file stands for.
///
/// # Errors
/// As [`Netns::enter`].
///
/// # Panics
/// When `f` does.
pub fn enter<T: Send>(path: &Path, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(path).with_context(|| format!("no namespace {}", path.display()))?;
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET)
                .map_err(|error| anyhow!("failed to enter the namespace: {error}"))?;
            f()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = run::output(run::command("ip").args(["netns", "del", &self.name]));
    }
}
