//! Real network namespaces, veths, cgroups and processes that clean up behind themselves.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use remora_agent::target::CgroupRoot;

/// How long anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Gives the calling thread an empty network namespace: the node of the test.
///
/// `false`, with the reason printed, when this user may not.
pub(crate) fn enter_own_node() -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root for network namespaces and cgroups");
        return Ok(false);
    }
    unshare(CloneFlags::CLONE_NEWNET).context("failed to make a network namespace")?;
    ip(&["link", "set", "lo", "up"])?;
    Ok(true)
}

pub(crate) fn ip(args: &[&str]) -> Result<()> {
    run(Command::new("ip").args(args)).map(drop)
}

/// Runs many `ip` commands, one a line, in one process.
pub(crate) fn ip_batch(commands: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("ip")?;
    child
        .stdin
        .take()
        .context("stdin")?
        .write_all(commands.as_bytes())?;
    ensure!(child.wait()?.success(), "ip -batch failed");
    Ok(())
}

/// Runs to the end and gives standard output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("failed to start {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{stdout}{stderr}",
        output.status
    );
    Ok(stdout)
}

/// A name that no other test, and no other run, uses.
pub(crate) fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{:x}-{count:x}", std::process::id())
}

/// A process that sleeps until it is dropped.
pub(crate) struct Sleeper(Child);

impl Sleeper {
    /// In the network namespace of the calling thread.
    pub(crate) fn here() -> Result<Self> {
        Self::start(&mut Command::new("sh"))
    }

    /// In a network namespace of its own.
    pub(crate) fn in_own_netns() -> Result<Self> {
        Self::start(Command::new("unshare").args(["--net", "sh"]))
    }

    /// In the network namespace of another.
    pub(crate) fn beside(other: &Sleeper) -> Result<Self> {
        Self::start(Command::new("nsenter").args([&other.netns(), "sh"]))
    }

    /// In a network namespace made from inside that of another.
    pub(crate) fn nested_in(other: &Sleeper) -> Result<Self> {
        Self::start(Command::new("nsenter").args([&other.netns(), "unshare", "--net", "sh"]))
    }

    /// Once the line is read, the namespaces are in place.
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .args(["-c", "echo ready; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {command:?}"))?;
        let stdout = child.stdout.take().context("stdout")?;
        let sleeper = Self(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "{command:?} said {line:?}");
        Ok(sleeper)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Runs a command in the process's network namespace.
    pub(crate) fn run(&self, command: &[&str]) -> Result<()> {
        run(Command::new("nsenter").arg(self.netns()).args(command)).map(drop)
    }

    fn netns(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.pid())
    }

    /// Makes a veth `name` here whose other end is in the process's network namespace.
    pub(crate) fn add_veth(&self, name: &str) -> Result<()> {
        let pid = self.pid().to_string();
        let peer = format!("p-{name}");
        ip(&[
            "link", "add", name, "type", "veth", "peer", "name", &peer, "netns", &pid,
        ])
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // Fails only if it has ended; then waiting is right, too.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cgroup with a unique name under the root. Goes after the processes that are declared later.
pub(crate) struct TestCgroup {
    mount: PathBuf,
    pub(crate) path: String,
}

impl TestCgroup {
    pub(crate) fn new() -> Result<Self> {
        let mount = CgroupRoot::find()?.mount().to_owned();
        let path = format!("/{}", unique("remora-target-"));
        fs::create_dir(mount.join(&path[1..]))?;
        Ok(Self { mount, path })
    }

    fn directory(&self) -> PathBuf {
        self.mount.join(&self.path[1..])
    }

    /// Makes cgroups below.
    ///
    /// # Returns
    /// Its path from the root.
    pub(crate) fn make(&self, below: &str) -> Result<String> {
        fs::create_dir_all(self.directory().join(below))?;
        Ok(format!("{}/{below}", self.path))
    }

    /// Puts a process into this cgroup (`""`) or one below.
    pub(crate) fn put(&self, sleeper: &Sleeper, below: &str) -> Result<()> {
        self.put_pid(sleeper.pid(), below)
    }

    pub(crate) fn put_pid(&self, pid: u32, below: &str) -> Result<()> {
        fs::write(
            self.directory().join(below).join("cgroup.procs"),
            pid.to_string(),
        )
        .with_context(|| format!("failed to put {pid} into {}/{below}", self.path))
    }

    /// Puts a process into the root cgroup.
    pub(crate) fn put_into_root(&self, sleeper: &Sleeper) -> Result<()> {
        Ok(fs::write(
            self.mount.join("cgroup.procs"),
            sleeper.pid().to_string(),
        )?)
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let removed = wait_for(|| Ok(remove_tree(&self.directory()).is_ok().then_some(())));
        if let Err(error) = removed {
            eprintln!("{} is left behind: {error:#}", self.path);
        }
    }
}

fn remove_tree(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("nothing within {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The test binary, at a place that any user may run it from.
pub(crate) fn public_copy_of_this_program() -> Result<(tempfile::TempDir, PathBuf)> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let copy = directory.path().join("program");
    fs::copy(std::env::current_exe()?, &copy)?;
    Ok((directory, copy))
}

/// `setpriv` and its arguments that give a program the rights of the agent, and no others.
pub(crate) fn with_the_agent_s_rights() -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=65532",
        "--regid=65532",
        "--clear-groups",
        "--inh-caps=-all,+bpf,+net_admin",
        "--ambient-caps=-all,+bpf,+net_admin",
        "--bounding-set=-all,+bpf,+net_admin",
        "--no-new-privs",
    ]);
    command
}

/// This process has the agent's rights and no others.
pub(crate) fn assert_the_agent_s_rights() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    for line in [
        "CapEff:\t0000008000001000",
        "NoNewPrivs:\t1",
        "Uid:\t65532\t65532\t65532\t65532",
    ] {
        ensure!(status.contains(line), "no {line:?} in:\n{status}");
    }
    Ok(())
}
