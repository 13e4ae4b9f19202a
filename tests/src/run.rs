//! Commands and processes: where they run, how long, and that they end.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{self, Signal},
    unistd::{Pid, Uid},
};

use crate::{cgroup::Cgroup, netns::Netns, wait};

/// Longest a short command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Between SIGTERM and SIGKILL.
const TERM_LIMIT: Duration = Duration::from_secs(3);
/// Largest part of a log that an error shows, in bytes.
const LOG_SHOWN: usize = 4000;

/// User and group that the agent runs as.
pub const AGENT_UID: u32 = 65_532;

/// What a process may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rights {
    /// Everything the test has.
    #[default]
    Root,
    /// uid 65532, CAP_BPF and CAP_NET_ADMIN alone, no_new_privs.
    Agent,
    /// uid 65532 and nothing else.
    None,
}

impl Rights {
    /// What setpriv is told, so that the program has them and ends with who started it.
    #[must_use]
    pub fn setpriv(self) -> Vec<String> {
        let mut arguments = vec!["--pdeathsig".to_owned(), "KILL".to_owned()];
        if self != Self::Root {
            let caps = match self {
                Self::Agent => "-all,+bpf,+net_admin",
                Self::Root | Self::None => "-all",
            };
            arguments.extend([
                format!("--reuid={AGENT_UID}"),
                format!("--regid={AGENT_UID}"),
                "--clear-groups".to_owned(),
                "--no-new-privs".to_owned(),
                format!("--inh-caps={caps}"),
                format!("--ambient-caps={caps}"),
                format!("--bounding-set={caps}"),
            ]);
        }
        arguments
    }
}

/// Where and with which rights a process runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    pub netns: Option<&'a Netns>,
    pub cgroup: Option<&'a Cgroup>,
    pub rights: Rights,
}

impl Place<'_> {
    /// A command there. Each step replaces the one before it by exec, so the child's pid is the
    /// program's, and it gets SIGKILL when the thread that started it ends.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        // A name of ours first, for `Command::new`; the rest are its arguments.
        let mut command = Command::new("env");
        if let Some(netns) = self.netns {
            // Not `ip netns exec`: that mounts a new /sys, which hides the cgroup tree.
            command
                .arg("nsenter")
                .arg(format!("--net={}", netns.path().display()))
                .arg("--");
        }
        if let Some(cgroup) = self.cgroup {
            command
                .args(["sh", "-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#])
                .arg(cgroup.directory());
        }
        command.arg("setpriv").args(self.rights.setpriv());
        command.arg("--").arg(program).stdin(Stdio::null());
        command
    }
}

/// A command in the test's own place.
#[must_use]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    Place::default().command(program)
}

/// What a command printed on standard output.
///
/// # Errors
/// It cannot be started, does not end within a minute, or fails: then with what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = finish(command)?;
    ensure!(
        output.status.success(),
        "`{}` failed ({}): {}{}",
        shown(command),
        output.status,
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout),
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, whatever that is.
///
/// # Errors
/// It cannot be started, or does not end within a minute.
pub fn finish(command: &mut Command) -> Result<Output> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start `{}`", shown(command)))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let ended = wait::settled(COMMAND_LIMIT, || child.try_wait().transpose());
    if ended.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let (stdout, stderr) = (
        stdout.join().unwrap_or_default(),
        stderr.join().unwrap_or_default(),
    );
    Ok(Output {
        status: ended
            .with_context(|| format!("`{}`: not within {COMMAND_LIMIT:?}", shown(command)))??,
        stdout,
        stderr,
    })
}

fn drain(pipe: Option<impl std::io::Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// The command without the steps that lead to it.
fn shown(command: &Command) -> String {
    let arguments: Vec<_> = command
        .get_args()
        .map(|argument| argument.to_string_lossy())
        .collect();
    let start = arguments
        .iter()
        .position(|argument| argument == "setpriv")
        .and_then(|at| {
            arguments[at..]
                .iter()
                .position(|a| a == "--")
                .map(|n| at + n + 1)
        })
        .unwrap_or(0);
    arguments[start..].join(" ")
}

/// A process with a log of what it prints; ended when dropped.
#[derive(Debug)]
pub struct Proc {
    child: Child,
    /// The process that the child stands before, if it does: signals go there.
    behind: Option<u32>,
    name: String,
    log: PathBuf,
}

impl Proc {
    /// Starts a command; both its outputs go to `<directory>/<name>.log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(command: &mut Command, directory: &Path, name: &str) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file =
            File::create(&log).with_context(|| format!("failed to make {}", log.display()))?;
        let child = command
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("failed to start `{}`", shown(command)))?;
        Ok(Self {
            child,
            behind: None,
            name: name.to_owned(),
            log,
        })
    }

    /// Starts a command that starts another and waits for it (`nsenter --pid`): that one is meant.
    ///
    /// # Errors
    /// It cannot be started, or ends before it has started the other.
    pub fn spawn_behind(command: &mut Command, directory: &Path, name: &str) -> Result<Self> {
        let mut process = Self::spawn(command, directory, name)?;
        let before = process.child.id();
        let behind = wait::until_some(COMMAND_LIMIT, "the process behind it", || {
            if let Some(status) = process.ended()? {
                bail!("{name} ended ({status})");
            }
            child_of(before)
        });
        process.behind = Some(behind.with_context(|| process.tail())?);
        Ok(process)
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.behind.unwrap_or(self.child.id())
    }

    /// All that it printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it has printed `text`.
    ///
    /// # Errors
    /// It ended, or did not print it in time; with its log.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let what = format!("`{text}` of {}", self.name);
        wait::until(limit, &what, || {
            if self.log().contains(text) {
                return Ok(true);
            }
            if let Some(status) = self.child.try_wait()? {
                ensure!(self.log().contains(text), "{} ended ({status})", self.name);
                return Ok(true);
            }
            Ok(false)
        })
        .with_context(|| self.tail())
    }

    /// Its exit status if it has ended.
    ///
    /// # Errors
    /// The kernel does not know the child.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It did not end in time; with its log.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait::until_some(limit, &what, || Ok(self.child.try_wait()?)).with_context(|| self.tail())
    }

    /// Waits until it ends by itself, and well.
    ///
    /// # Errors
    /// It did not, or failed; with its log.
    pub fn wait_success(&mut self, limit: Duration) -> Result<String> {
        let status = self.wait(limit)?;
        if !status.success() {
            bail!("{} failed ({status}): {}", self.name, self.tail());
        }
        Ok(self.log())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        signal::kill(pid, signal).with_context(|| format!("failed to signal {}", self.name))
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Errors
    /// It had ended before, or does not end in time.
    pub fn end_by(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait(limit)
    }

    /// The end of its log, for an error.
    #[must_use]
    pub fn tail(&self) -> String {
        let log = self.log();
        let start = log.ceil_char_boundary(log.len().saturating_sub(LOG_SHOWN));
        format!("log of {}:\n{}", self.name, &log[start..])
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // A stopped process takes SIGTERM only after it goes on.
        let _ = self.signal(Signal::SIGTERM);
        let _ = self.signal(Signal::SIGCONT);
        if wait::settled(TERM_LIMIT, || self.child.try_wait().transpose()).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A child of a process.
fn child_of(parent: u32) -> Result<Option<u32>> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let of = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if of.is_some_and(|of| of.trim() == parent.to_string()) {
            return Ok(entry.file_name().to_str().and_then(|pid| pid.parse().ok()));
        }
    }
    Ok(None)
}

/// Ended by this signal.
#[must_use]
pub fn killed_by(status: ExitStatus) -> Option<Signal> {
    status
        .signal()
        .and_then(|signal| Signal::try_from(signal).ok())
}

/// One of this package's own tools (`udpgen`, …), wherever the running program was built.
///
/// # Errors
/// It was not built.
pub fn tool(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    // A test is target/<profile>/deps/<test>, a tool target/<profile>/<tool>.
    exe.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("`{name}` is not built; `cargo build -p remora-tests` does it"))
}

/// One of Remora's programs, in `$REMORA_BIN_DIR`.
///
/// # Errors
/// The variable is not set, or the program is not there.
pub fn remora_program(name: &str) -> Result<PathBuf> {
    let directory = std::env::var_os("REMORA_BIN_DIR").context(
        "REMORA_BIN_DIR is not set; run these tests by `cargo xtask test`, or build by \
         `cargo xtask build` and set it to target/release",
    )?;
    let path = Path::new(&directory).join(name);
    let path = path
        .canonicalize()
        .with_context(|| format!("no {}; `cargo xtask build` makes it", path.display()))?;
    Ok(path)
}

/// Test beds are made of kernel objects, which takes root.
///
/// # Errors
/// The process is not root.
pub fn require_root() -> Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "these tests make network namespaces and load programs: run them as root, by \
         `cargo xtask test` (it uses sudo)"
    );
    Ok(())
}
