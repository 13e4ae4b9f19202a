//! Two paths that differ in nothing but who looks at them.

use std::{fmt, net::Ipv4Addr, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use remora_tests::{
    name,
    node::{Node, Pod},
    run,
    traffic::{self, Sender, Sink, Stream},
    veth::{self, End},
};

/// The generator's CPU, with the whole way of a packet.
const TRAFFIC_CPU: &str = "0";
/// Everything else's: this program's and what it starts.
const CAPTURE_CPU: usize = 1;
/// Before the generator's and the capturer's peers of the machine.
const TRAFFIC_NICE: &str = "-15";
const CAPTURE_NICE: &str = "-10";
pub(crate) const PORT: u16 = 9000;
const TWIN_NODE: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const TWIN_POD: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 10);
/// Both paths know their neighbours after it.
const WARM_UP: Duration = Duration::from_millis(100);

/// What one path's packets, or MiBs, took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub(crate) sent: u64,
    /// Nanoseconds of a packet, over all system calls of 64, or of a MiB: median, lower quartile.
    pub(crate) median_ns: f64,
    pub(crate) p25_ns: f64,
}

/// One run of the generator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) captured: Path,
    pub(crate) twin: Path,
}

/// Which way the packets go. It makes a difference to the peer: a packet that leaves an interface
/// is cloned for each socket of a packet reader before its filter runs, one that comes in is not
/// (`dev_queue_xmit_nit` and `deliver_skb`, net/core/dev.c, v6.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Way {
    /// From the node to the pod: out of the captured interface.
    In,
    /// From the pod to the node: into the captured interface.
    Out,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::In => "into the pod",
            Self::Out => "out of the pod",
        }
    }
}

/// What is sent on both paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Frames of so many bytes, without FCS.
    Udp { way: Way, size: usize },
    /// TCP into the pod, in super-packets of up to 64 KiB.
    Bulk,
}

impl Load {
    /// UDP into the pod.
    pub(crate) const fn udp(size: usize) -> Self {
        let way = Way::In;
        Self::Udp { way, size }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp { way, size } => write!(f, "{size} B, {}", way.name()),
            Self::Bulk => f.write_str("TCP bulk with GSO, into the pod"),
        }
    }
}

/// The bed.
#[derive(Debug)]
pub(crate) struct Bed {
    // Dropped in this order.
    _sinks: [Sink; 3],
    pod: Pod,
    other: Pod,
    node: Node,
    twin: Node,
    /// Of the pod's sink: those of the nodes' have the same name.
    _logs: tempfile::TempDir,
}

impl Bed {
    /// Lays both paths and moves this program, with all that it will start, to the capturer's CPU.
    ///
    /// # Errors
    /// Not root, or one CPU only.
    pub(crate) fn lay() -> Result<Self> {
        run::require_root()?;
        let mut cpus = CpuSet::new();
        cpus.set(CAPTURE_CPU)?;
        sched_setaffinity(Pid::from_raw(0), &cpus).context(
            "the benchmark takes two CPUs: the generator's 0, and 1 for whoever captures",
        )?;
        let me = std::process::id().to_string();
        run::output(run::command("renice").args(["-n", CAPTURE_NICE, "-p", &me]))?;

        let (node, twin) = (Node::new()?, Node::new()?);
        let (pod, other) = (node.pod("subject")?, node.pod("other")?);
        let bridge = "br0";
        veth::lay(
            &End {
                netns: twin.netns(),
                interface: pod.interface(),
                mac: [2, 0, 0, 0, 5, 1],
                ipv4: None,
                ipv6: None,
            },
            &End {
                netns: pod.netns(),
                interface: "eth1",
                mac: [2, 0, 0, 0, 6, 1],
                ipv4: Some((TWIN_POD, 24)),
                ipv6: None,
            },
        )?;
        let netns = twin.netns();
        netns.ip(&format!("link set {} master {bridge}", pod.interface()))?;
        // One address and one route, as the other node has.
        netns.ip(&format!("addr del {}/24 dev {bridge}", twin.address()))?;
        netns.ip(&format!("addr add {TWIN_NODE}/24 dev {bridge}"))?;
        let logs = name::directory()?;
        let sink = |node: &Node| traffic::sink(PORT, node.directory(), |tool| node.command(tool));
        let pods_sink = traffic::sink(PORT, logs.path(), |tool| pod.command(tool))?;
        let bed = Self {
            _sinks: [sink(&node)?, sink(&twin)?, pods_sink],
            pod,
            other,
            node,
            twin,
            _logs: logs,
        };
        for way in [Way::In, Way::Out] {
            bed.run(Load::Udp { way, size: 64 }, WARM_UP)?;
        }
        Ok(bed)
    }

    /// Where the capture is.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// The one interface that is captured.
    pub(crate) fn interface(&self) -> &str {
        self.pod.interface()
    }

    /// The pod that is captured.
    pub(crate) fn pod(&self) -> &Pod {
        &self.pod
    }

    /// A pod on the same node without traffic.
    pub(crate) fn other(&self) -> &Pod {
        &self.other
    }

    /// Sends on both paths in turn.
    ///
    /// # Errors
    /// The generator fails.
    pub(crate) fn run(&self, load: Load, length: Duration) -> Result<Sample> {
        let mut command = match load {
            Load::Udp { way, size } => {
                let mut command = self.generator("udptwin", way)?;
                command.args(["--size", &size.to_string()]);
                command
            }
            Load::Bulk => {
                let mut command = self.generator("tcptwin", Way::In)?;
                command.arg("--receiver-netns").arg(self.pod.netns().path());
                command
            }
        };
        command.args(["--seconds", &length.as_secs_f64().to_string()]);
        let text = run::output(&mut command)?;
        let value: serde_json::Value = serde_json::from_str(text.trim())
            .with_context(|| format!("the generator printed {text}"))?;
        let path = |name: &str| -> Result<Path> {
            let path = &value[name];
            let found = || {
                Some(Path {
                    sent: path["sent"].as_u64()?,
                    median_ns: path["median_ns"].as_f64()?,
                    p25_ns: path["p25_ns"].as_f64()?,
                })
            };
            found().with_context(|| format!("the generator printed {text}"))
        };
        Ok(Sample {
            captured: path("first")?,
            twin: path("twin")?,
        })
    }

    /// A tool that sends on both paths.
    fn generator(&self, tool: &str, way: Way) -> Result<Command> {
        let (mut command, ends, netns) = match way {
            Way::In => (
                self.node.command("nice"),
                [self.pod.ipv4().into(), TWIN_POD.into()],
                [self.node.netns(), self.twin.netns()],
            ),
            Way::Out => (
                self.pod.command("nice"),
                [self.node.address(), TWIN_NODE.into()],
                [self.pod.netns(), self.pod.netns()],
            ),
        };
        command
            .args(["-n", TRAFFIC_NICE])
            .arg(run::tool(tool)?)
            .args(ends.map(|end| format!("{end}:{PORT}")))
            .arg("--first-netns")
            .arg(netns[0].path())
            .arg("--twin-netns")
            .arg(netns[1].path())
            .args(["--cpu", TRAFFIC_CPU]);
        Ok(command)
    }

    /// How many veths the node has: those that the agent must know.
    ///
    /// # Errors
    /// ip fails.
    pub(crate) fn veths(&self) -> Result<usize> {
        let links = self.node.netns().ip("-o link show type veth")?;
        Ok(links.lines().count())
    }

    /// Sends from the node to a pod, on one CPU, until it is stopped; a rate of 0 is as fast as it
    /// goes.
    ///
    /// # Errors
    /// The generator does not start.
    pub(crate) fn send(&self, to: &Pod, cpu: u16, size: usize, rate: u64) -> Result<Sender> {
        let stream = Stream {
            size,
            rate,
            run: cpu,
            ..Stream::new(to.ipv4(), PORT, 0)
        };
        stream.send_until_stopped(self.node.directory(), |tool| {
            let mut command = self.node.command("nice");
            command
                .args(["-n", TRAFFIC_NICE, "taskset", "-c", &cpu.to_string()])
                .arg(tool);
            command
        })
    }
}
