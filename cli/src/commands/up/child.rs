//! A program that `remora up` runs: its lines are shown with its name before them.

use std::{
    ffi::OsString,
    os::unix::process::{CommandExt as _, parent_id},
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    process::{self, Command},
    task::JoinHandle,
    time::timeout,
};

use crate::terminal;

/// Longest line that is shown as one, in bytes.
const LINE_MAX: u64 = 4096;

/// Started, and ended at the latest when this program ends.
#[derive(Debug)]
pub(super) struct Child {
    name: &'static str,
    process: process::Child,
    lines: [Option<JoinHandle<()>>; 2],
}

impl Child {
    pub(super) fn start(
        name: &'static str,
        program: &Path,
        words: &[String],
    ) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("where is this program?")?;
        let mut process = Command::new(own)
            .args(["with-parent", &std::process::id().to_string()])
            .arg(program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        let lines = [
            process
                .stdout
                .take()
                .map(|pipe| tokio::spawn(show(name, pipe))),
            process
                .stderr
                .take()
                .map(|pipe| tokio::spawn(show(name, pipe))),
        ];
        Ok(Self {
            name,
            process,
            lines,
        })
    }

    /// # Errors
    /// It has ended.
    pub(super) fn still_runs(&mut self) -> anyhow::Result<()> {
        match self.process.try_wait()? {
            Some(status) => Err(self.surprise(status)),
            None => Ok(()),
        }
    }

    /// Until it ends by itself.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        match self.process.wait().await {
            Ok(status) => self.surprise(status),
            Err(error) => error.into(),
        }
    }

    fn surprise(&self, status: ExitStatus) -> anyhow::Error {
        anyhow!("the {} ended ({status}); its lines say why", self.name)
    }

    /// Ends it in order and shows its last lines.
    ///
    /// # Errors
    /// It does not end well, or in time.
    pub(super) async fn stop(&mut self, limit: Duration) -> anyhow::Result<()> {
        let name = self.name;
        // Without an id it was seen to end, which was told.
        let Some(id) = self.process.id() else {
            self.last_lines().await;
            return Ok(());
        };
        let pid = Pid::from_raw(i32::try_from(id)?);
        kill(pid, Signal::SIGTERM).with_context(|| format!("the {name} cannot be told to end"))?;
        let ended = timeout(limit, self.process.wait()).await;
        let Ok(status) = ended else {
            self.kill().await;
            return Err(anyhow!(
                "the {name} did not end within {limit:?} and was killed"
            ));
        };
        self.last_lines().await;
        let status = status?;
        match status.success() {
            true => Ok(()),
            false => Err(self.surprise(status)),
        }
    }

    /// Ends it at once.
    pub(super) async fn kill(&mut self) {
        let _ended_before = self.process.kill().await;
    }

    async fn last_lines(&mut self) {
        for lines in &mut self.lines {
            if let Some(lines) = lines.take() {
                let _never_panics = lines.await;
            }
        }
    }
}

/// Shows lines until the pipe's end.
async fn show(name: &'static str, pipe: impl AsyncRead + Unpin) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut some = (&mut pipe).take(LINE_MAX);
        match some.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                terminal::note(&format!("{name}: {}", text.trim_end()));
            }
        }
    }
}

/// Becomes the program of `words`, which gets SIGTERM when `parent` ends.
///
/// # Errors
/// It cannot be started, or the parent has ended before.
pub(crate) fn run_with_parent(parent: u32, words: &[OsString]) -> anyhow::Result<super::Outcome> {
    prctl::set_pdeathsig(Signal::SIGTERM).context("failed to ask for the parent's end")?;
    if parent_id() != parent {
        return Ok(super::Outcome::Faulty);
    }
    let (program, words) = words.split_first().context("no program")?;
    let failed = std::process::Command::new(program).args(words).exec();
    Err(failed).with_context(|| format!("{} cannot be started", Path::new(program).display()))
}
