//! Many small pods that come and go by the batch: a network namespace, a veth, a cgroup with a
//! container's in it, and one process that sends numbered packets, without addresses or bridge. A pod
//! of a seat always has the seat's names, ifindex and address.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{cgroup::Cgroup, name, netns::Netns, node::Node, run, wait};

/// ifindex of the first seat's veth.
const IFINDEX: u32 = 5000;
/// Group of the first batch's veths: a group of interfaces is deleted at once.
const GROUP: u32 = 7000;
/// How long the kernel may take to free a seat's cgroup.
const FREE: Duration = Duration::from_secs(10);

/// Seats for pods, on a node.
#[derive(Debug)]
pub struct Fleet<'a> {
    node: &'a Node,
    prefix: String,
    tool: PathBuf,
    /// Between two packets of a pod, in milliseconds.
    pause: u64,
}

/// A pod, ended when dropped; its veth goes with [`Fleet::end`].
#[derive(Debug)]
pub struct SmallPod {
    process: Child,
    _container: Cgroup,
    cgroup: Cgroup,
    seat: u32,
    run: u16,
    cgroup_id: u64,
}

impl SmallPod {
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Of its cgroup.
    #[must_use]
    pub fn cgroup_id(&self) -> u64 {
        self.cgroup_id
    }

    #[must_use]
    pub fn seat(&self) -> u32 {
        self.seat
    }

    /// Stands in each of its packets.
    #[must_use]
    pub fn run(&self) -> u16 {
        self.run
    }
}

impl Drop for SmallPod {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl<'a> Fleet<'a> {
    /// # Errors
    /// The pods' tool is not built.
    pub fn new(node: &'a Node, pause: Duration) -> Result<Self> {
        Ok(Self {
            node,
            prefix: name::unique(),
            tool: run::tool("podlet")?,
            pause: u64::try_from(pause.as_millis())?,
        })
    }

    /// Name of the host end of a seat's veth.
    #[must_use]
    pub fn interface(seat: u32) -> String {
        format!("small-{seat}")
    }

    fn netns(&self, seat: u32) -> String {
        format!("{}-{seat}", self.prefix)
    }

    /// A pod in each of the seats from `first` on, one for each number; their processes are there before
    /// the veths.
    ///
    /// # Errors
    /// A seat is taken, or the kernel refuses.
    pub fn begin(&self, first: u32, runs: &[u16]) -> Result<Vec<SmallPod>> {
        let seats = || (first..).zip(runs);
        let netns = seats().map(|(seat, _)| format!("netns add {}", self.netns(seat)));
        self.ip(None, netns.collect())?;
        let pods = seats().map(|(seat, run)| self.pod(seat, *run));
        let pods = pods.collect::<Result<Vec<_>>>()?;
        let veths = seats().map(|(seat, _)| {
            let interface = Self::interface(seat);
            format!(
                "link add {interface} index {} group {} type veth peer name eth0 netns {}\nlink set \
                 {interface} up",
                IFINDEX + seat,
                GROUP + first,
                self.netns(seat)
            )
        });
        self.ip(Some(self.node.netns()), veths.collect())?;
        Ok(pods)
    }

    /// Ends pods that began together.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn end(&self, mut pods: Vec<SmallPod>) -> Result<()> {
        let Some(first) = pods.first().map(|pod| pod.seat) else {
            return Ok(());
        };
        for pod in &mut pods {
            pod.process.kill()?;
        }
        let seats: Vec<u32> = pods.iter().map(|pod| pod.seat).collect();
        drop(pods);
        let veths = vec![format!("link del group {}", GROUP + first)];
        self.ip(Some(self.node.netns()), veths)?;
        let netns = seats
            .iter()
            .map(|&seat| format!("netns del {}", self.netns(seat)));
        self.ip(None, netns.collect())
    }

    fn pod(&self, seat: u32, run: u16) -> Result<SmallPod> {
        let [_, _, high, low] = seat.to_be_bytes();
        let cgroup = wait::until_some(FREE, "the seat's cgroup", || {
            Ok(self.node.cgroup().child(&format!("small-{seat}")).ok())
        })?;
        let container = cgroup.child(&format!("{seat:064x}"))?;
        let process = std::process::Command::new(&self.tool)
            .arg("--netns")
            .arg(Path::new("/run/netns").join(self.netns(seat)))
            .arg("--cgroup")
            .arg(container.directory())
            .args(["--from", &Ipv4Addr::new(10, 99, high, low).to_string()])
            .args(["--pause", &self.pause.to_string()])
            .args(["--run", &run.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .context("failed to start a pod's process")?;
        Ok(SmallPod {
            process,
            cgroup_id: cgroup.id()?,
            _container: container,
            cgroup,
            seat,
            run,
        })
    }

    /// Lines of `ip -batch` there. In a namespace `ip` has mounts of its own: those of namespaces that
    /// it makes would not be seen by others.
    fn ip(&self, netns: Option<&Netns>, lines: Vec<String>) -> Result<()> {
        let path = self.node.directory().join("batch");
        fs::write(&path, lines.join("\n"))?;
        let mut ip = run::command("ip");
        if let Some(netns) = netns {
            ip.args(["-n", netns.name()]);
        }
        run::output(ip.arg("-batch").arg(&path))?;
        Ok(())
    }
}

impl Drop for Fleet<'_> {
    /// What a failed test left.
    fn drop(&mut self) {
        let Ok(names) = fs::read_dir("/run/netns") else {
            return;
        };
        for name in names.flatten() {
            let name = name.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("{}-", self.prefix)) {
                let _ = run::output(run::command("ip").args(["netns", "del", &name]));
            }
        }
    }
}
