//! The built `remora`, run with deadlines.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use remora_proto::client::AgentAddress;

/// Nothing that a test waits for takes longer, unless it never comes.
const DEADLINE: Duration = Duration::from_secs(30);

/// The command, told its agent and nothing of the tester's own environment.
pub(crate) fn remora(agent: &AgentAddress, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remora"));
    command
        .args(words)
        .env_clear()
        .env("REMORA_AGENT", agent.to_string());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// A run whose output is read as it comes.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    stderr: String,
    stdout: Option<thread::JoinHandle<Vec<u8>>>,
}

impl Running {
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        if let Some(stderr) = child.stderr.take() {
            thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let _not_awaited = sender.send(line);
                }
            });
        }
        let stdout = child.stdout.take().map(|mut stdout| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                stdout.read_to_end(&mut bytes).unwrap();
                bytes
            })
        });
        Self {
            child,
            lines,
            stderr: String::new(),
            stdout,
        }
    }

    /// Waits for a line of standard error that has `part`.
    pub(crate) fn await_line(&mut self, part: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .lines
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("no `{part}` in: {}", self.stderr));
            self.stderr += &format!("{line}\n");
            if line.contains(part) {
                return;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    pub(crate) fn end(mut self) -> Ended {
        await_condition("the end of remora", || {
            self.child.try_wait().unwrap().is_some()
        });
        let code = self.child.wait().unwrap().code();
        let stdout = self
            .stdout
            .take()
            .map_or_else(Vec::new, |reader| reader.join().unwrap());
        let rest: String = self.lines.iter().map(|line| line + "\n").collect();
        Ended {
            code,
            stdout,
            stderr: std::mem::take(&mut self.stderr) + &rest,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ended_already = self.child.wait();
    }
}

pub(crate) fn run(agent: &AgentAddress, words: &[&str]) -> Ended {
    Running::spawn(remora(agent, words)).end()
}

/// Waits until `condition` holds.
pub(crate) fn await_condition(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `path` has `len` bytes.
pub(crate) fn await_len(path: &Path, len: usize) {
    await_condition("the file's length", || {
        path.metadata()
            .is_ok_and(|metadata| metadata.len() == len as u64)
    });
}
