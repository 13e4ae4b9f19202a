//! A node with pods, as a bridge CNI would make it.

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use anyhow::Result;

use crate::{
    cgroup::Cgroup,
    host::Host,
    name,
    netns::Netns,
    run::{Place, Proc, Rights},
    veth::{self, End},
    wait,
};

const BRIDGE: &str = "br0";
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// How long a pod's process may take to be in its place.
const STARTED: Duration = Duration::from_secs(10);
/// First host number of a pod.
const FIRST_POD: u8 = 10;

/// A namespace with a bridge for pods, forwarding, and a cgroup tree. Many of them can stand
/// beside each other with the same addresses.
#[derive(Debug)]
pub struct Node {
    // Dropped in this order: pods' cgroups are below this one.
    cgroup: Cgroup,
    netns: Netns,
    directory: tempfile::TempDir,
    next: AtomicU8,
}

impl Node {
    /// # Errors
    /// Not root, or the kernel lacks bridges.
    pub fn new() -> Result<Self> {
        let netns = Netns::new("node")?;
        netns.sysctl("net.ipv4.ip_forward", "1")?;
        netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        netns.ip(&format!(
            "link add {BRIDGE} address 02:00:00:00:00:01 type bridge"
        ))?;
        netns.ip(&format!("addr add {GATEWAY4}/24 dev {BRIDGE}"))?;
        netns.ip(&format!("-6 addr add {GATEWAY6}/64 dev {BRIDGE} nodad"))?;
        netns.ip(&format!("link set {BRIDGE} up"))?;
        Ok(Self {
            cgroup: Cgroup::new(&name::unique())?,
            netns,
            directory: name::directory()?,
            next: AtomicU8::new(0),
        })
    }

    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// For logs and files of the test.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The node's own address on the pods' bridge.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        GATEWAY4.into()
    }

    /// A command on the node.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.netns.command(program)
    }

    /// A process on the node.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, command: &mut Command, name: &str) -> Result<Proc> {
        Proc::spawn(command, self.directory(), name)
    }

    /// A pod on the bridge, with a process in it that only waits, as a pause container does.
    ///
    /// # Errors
    /// The name is taken or has more than 10 characters.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.pod_in(name, self.cgroup.child(name)?, |id| id.to_owned())
    }

    /// The same in a cgroup that is there. `directory`: the name of a container's cgroup, by its id.
    ///
    /// # Errors
    /// As [`Node::pod`].
    pub fn pod_in(
        &self,
        name: &str,
        cgroup: Cgroup,
        directory: impl Fn(&str) -> String,
    ) -> Result<Pod> {
        let number = FIRST_POD + self.next.fetch_add(1, Ordering::Relaxed);
        let netns = Netns::new(name)?;
        let interface = format!("veth-{name}");
        let ipv4 = Ipv4Addr::new(10, 77, 0, number);
        let ipv6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into());
        veth::lay(
            &End {
                netns: &self.netns,
                interface: &interface,
                mac: [2, 0, 0, 0, 1, number],
                ipv4: None,
                ipv6: None,
            },
            &End {
                netns: &netns,
                interface: "eth0",
                mac: [2, 0, 0, 0, 2, number],
                ipv4: Some((ipv4, 24)),
                ipv6: Some((ipv6, 64)),
            },
        )?;
        self.netns
            .ip(&format!("link set {interface} master {BRIDGE}"))?;
        netns.ip(&format!("route add default via {GATEWAY4}"))?;
        netns.ip(&format!("-6 route add default via {GATEWAY6}"))?;

        let container_id = container_id(&cgroup)?;
        let container = cgroup.child(&directory(&container_id))?;
        let place = Place {
            netns: Some(&netns),
            cgroup: Some(&container),
            ..Default::default()
        };
        let pause = Proc::spawn(
            place.command("sleep").arg("infinity"),
            self.directory(),
            &format!("pause-{name}"),
        )?;
        // It goes into the namespace and the cgroup by itself, and then becomes this.
        let comm = format!("/proc/{}/comm", pause.pid());
        wait::until(STARTED, "the pod's process in its place", || {
            Ok(fs::read_to_string(&comm)?.trim_end() == "sleep")
        })?;
        Ok(Pod {
            pause,
            container,
            cgroup,
            netns,
            interface,
            ipv4,
            ipv6,
            container_id,
        })
    }

    /// A host beyond the bridge, behind a router port of the node: "the internet".
    ///
    /// # Errors
    /// The address ends in .1 (the node's own) or the name is taken.
    pub fn outside(&self, name: &str, address: Ipv4Addr) -> Result<Netns> {
        let netns = Netns::new(name)?;
        let [a, b, c, host] = address.octets();
        let router = Ipv4Addr::new(a, b, c, 1);
        veth::lay(
            &End {
                netns: &self.netns,
                interface: &format!("up-{name}"),
                mac: [2, 0, 0, 0, 3, host],
                ipv4: Some((router, 24)),
                ipv6: None,
            },
            &End {
                netns: &netns,
                interface: "eth0",
                mac: [2, 0, 0, 0, 4, host],
                ipv4: Some((address, 24)),
                ipv6: None,
            },
        )?;
        netns.ip(&format!("route add default via {router}"))?;
        Ok(netns)
    }
}

impl Host for Node {
    fn name(&self) -> &str {
        "node-a"
    }

    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn place(&self, rights: Rights, program: &OsStr) -> Command {
        Place {
            netns: Some(&self.netns),
            cgroup: None,
            rights,
        }
        .command(program)
    }
}

/// 64 hex digits, as container runtimes name a container; unique by the cgroup's path.
fn container_id(cgroup: &Cgroup) -> Result<String> {
    let mut id = format!("{:016x}", cgroup.id()?.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for byte in cgroup.path().bytes() {
        id.push_str(&format!("{byte:02x}"));
    }
    id.truncate(64);
    Ok(format!("{id:0<64}"))
}

/// A pod: a network namespace with `eth0`, a cgroup, and one container's cgroup in it.
#[derive(Debug)]
pub struct Pod {
    // Dropped in this order.
    pause: Proc,
    container: Cgroup,
    cgroup: Cgroup,
    netns: Netns,
    interface: String,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
    container_id: String,
}

impl Pod {
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The pod's cgroup; its container's is below.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Name of the host end of its veth, in the node's namespace.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.ipv4
    }

    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        self.ipv6
    }

    /// 64 hex digits.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// Pid of the process that only waits.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pause.pid()
    }

    /// A command in the pod's namespace and container.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Place {
            netns: Some(&self.netns),
            cgroup: Some(&self.container),
            rights: Rights::Root,
        }
        .command(program)
    }
}
