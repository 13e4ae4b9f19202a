//! A node: a network namespace on the [`Lan`], and namespaces for mounts, processes and the host
//! name, in which containerd and kubelet run.
//!
//! ```text
//!   this process ── unshare ── init (pid 1 of the node: `cluster node`) ── containerd, kubelet
//!                                                └── shims ── pods
//! ```
//! The cgroups of its pods are below one of the node's own: `/<name>/kubepods/…`, in each hierarchy.

mod cgroups;
mod files;
pub mod init;

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    access::{Access, node_user},
    lan::{self, Lan},
    programs,
};
use crate::{
    host::Host,
    name,
    netns::Netns,
    run::{self, Place, Proc, Rights},
    wait,
};

use self::{
    cgroups::NodeCgroups,
    files::{Files, NodeFacts},
};

/// How long containerd and kubelet may take to start.
const START_LIMIT: Duration = Duration::from_secs(60);
/// The part of kubelet's log that an error shows, in bytes.
const LOG_SHOWN: usize = 3000;

/// A node of a cluster; gone, with all that its containers are, when dropped.
#[derive(Debug)]
pub struct ClusterNode {
    // Dropped in this order.
    unshare: Proc,
    cgroups: NodeCgroups,
    netns: Netns,
    name: String,
    number: u8,
    /// Pid of its first process in our namespace; 0 until it is known.
    init: u32,
    files: Files,
}

impl ClusterNode {
    /// Starts it, and does not wait.
    pub(super) fn begin(
        lan: &Lan,
        number: u8,
        name: &str,
        access: &Access,
        directory: &Path,
    ) -> Result<Self> {
        let netns = Netns::new(name)?;
        lan.connect(&netns, number)?;
        let cgroups = NodeCgroups::new(&format!("{}-{name}", name::unique()))?;
        let inside = format!("https://{}", lan::API);
        let facts = NodeFacts {
            address: lan::address(number),
            pods: lan::pods(number),
            cgroup: cgroups.path(),
            kubeconfig: access.kubeconfig(&node_user(name), &inside, directory)?,
            authority: access.authority().certificate(),
        };
        let files = Files::write(&directory.join(name), &facts)?;
        let place = Place {
            netns: Some(&netns),
            cgroup: Some(cgroups.of_init()),
            rights: Rights::Root,
        };
        let mut unshare = place.command("unshare");
        unshare
            .args(["--mount", "--uts", "--pid", "--fork", "--kill-child=KILL"])
            .args(["--mount-proc", "--"])
            .arg(run::tool("cluster")?)
            .args(["node", "--name", name, "--address"])
            .arg(lan::address(number).to_string())
            .arg("--directory")
            .arg(files.directory())
            .arg("--programs")
            .arg(programs::directory()?);
        let unshare = Proc::spawn(&mut unshare, directory, name)?;
        Ok(Self {
            unshare,
            cgroups,
            netns,
            name: name.to_owned(),
            number,
            init: 0,
            files,
        })
    }

    /// Waits until kubelet runs, and gives the node its images.
    pub(super) fn finish(&mut self, images: &[PathBuf]) -> Result<()> {
        self.unshare
            .wait_for(init::READY, START_LIMIT)
            .with_context(|| self.log_tail())?;
        let pids = self.cgroups.of_init().processes()?;
        let first = pids.into_iter().find(|&pid| is_first(pid));
        self.init = first.context("the node has no first process")?;
        images.iter().try_for_each(|image| self.import(image))
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace: where pods' veths have their host ends.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    #[must_use]
    pub fn address(&self) -> std::net::Ipv4Addr {
        lan::address(self.number)
    }

    /// The cgroup2 directory that its pods' cgroups are in.
    #[must_use]
    pub fn kubepods(&self) -> PathBuf {
        self.cgroups.directory().join("kubepods")
    }

    /// Path from the cgroup2 root of what kubelet calls the root: "/remora-test-1-0-node-a".
    #[must_use]
    pub fn cgroup_root(&self) -> String {
        self.cgroups.path()
    }

    /// containerd's socket.
    #[must_use]
    pub fn containerd(&self) -> PathBuf {
        self.files.containerd_socket()
    }

    /// Adds the images of an OCI archive to those that its pods can have.
    ///
    /// # Errors
    /// It is none.
    pub fn import(&self, archive: &Path) -> Result<()> {
        import(&self.containerd(), archive).with_context(|| self.name.clone())
    }

    /// A command on the node, in all its namespaces: as a shell on that machine. A process
    /// stands before it ([`Proc::spawn_behind`]).
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.place(Rights::Root, program.as_ref())
    }

    /// A file or directory of the node's file system, by its absolute path there.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.init).into()
    }

    /// For files and logs of the node's.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.files.directory()
    }

    /// The end of what its programs said.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let mut text = self.unshare.tail();
        for log in [self.files.containerd_log(), self.files.kubelet_log()] {
            let said = fs::read(&log).unwrap_or_default();
            let said = String::from_utf8_lossy(&said).into_owned();
            let start = said.ceil_char_boundary(said.len().saturating_sub(LOG_SHOWN));
            text += &format!("\n{}:\n{}", log.display(), &said[start..]);
        }
        text
    }
}

impl Host for ClusterNode {
    fn name(&self) -> &str {
        &self.name
    }

    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn directory(&self) -> &Path {
        self.files.directory()
    }

    fn place(&self, rights: Rights, program: &OsStr) -> Command {
        let mut command = run::command("nsenter");
        command
            .arg(format!("--target={}", self.init))
            .args(["--mount", "--uts", "--pid", "--net", "--", "setpriv"])
            .args(rights.setpriv())
            .arg("--")
            .arg(program);
        command
    }

    fn start(&self, command: &mut Command, directory: &Path, name: &str) -> Result<Proc> {
        Proc::spawn_behind(command, directory, name)
    }
}

/// Adds the images of an OCI archive to those that pods can have, by the socket of their node's
/// containerd.
///
/// # Errors
/// It is none.
pub fn import(containerd: &Path, archive: &Path) -> Result<()> {
    let mut ctr = run::command(programs::program("ctr")?);
    ctr.arg("--address").arg(containerd);
    // The namespace in which the CRI looks.
    ctr.args(["--namespace", "k8s.io", "images", "import"]);
    run::output(ctr.arg(archive))
        .map(drop)
        .with_context(|| format!("containerd does not take {}", archive.display()))
}

/// Is it the first process of a pid namespace?
fn is_first(pid: u32) -> bool {
    // proc_pid_status(5): "NSpid: 4321 1", outermost first.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let pids: Vec<&str> = inner.unwrap_or_default().split_whitespace().collect();
    pids.len() > 1 && pids.last() == Some(&"1")
}

/// Waits until a socket is listened at.
fn listened(socket: &Path, limit: Duration) -> Result<()> {
    let what = format!("somebody at {}", socket.display());
    wait::until(limit, &what, || {
        Ok(std::os::unix::net::UnixStream::connect(socket).is_ok())
    })
}
