//! Privacy levels of namespaces: what may not be taken is in no file, whatever way it is asked for.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use remora_proto::v1::{self, target::Target};
use remora_tests::{
    agent::{Options, TestAgent, looking_back, spec},
    apiserver::{ApiServer, Kind},
    kubelet::{Class, Driver, KubePod},
    netns::Netns,
    node::Node,
    packets::Capture,
    proof,
    traffic::{self, Stream},
    veth::{self, End},
    wait,
};
use serde_json::json;
use tonic::Code;

/// The look behind the veths takes a thousandth of a core: a long look is followed by a longer pause.
const LIMIT: Duration = Duration::from_secs(120);
/// Starts each numbered payload.
const MARKER: &[u8] = b"RMRT";
const PACKETS: u64 = 50;
/// Of a frame of Ethernet, IPv4 and UDP.
const HEADERS: usize = 42;
const WHOLE: usize = 400;

struct Bed<'a> {
    node: &'a Node,
    server: ApiServer,
    agent: TestAgent<'a>,
}

impl<'a> Bed<'a> {
    fn new(node: &'a Node, namespaces: &[(&str, Option<&str>)]) -> Result<Self> {
        let server = ApiServer::start(node.netns())?;
        for (name, level) in namespaces {
            label(&server, name, *level);
        }
        let kubeconfig = server.kubeconfig(node.directory())?;
        let mut arguments = vec!["--kubeconfig".into(), kubeconfig.display().to_string()];
        arguments.extend(["--flow-cutoff".to_owned(), "0".to_owned()]);
        let options = Options {
            arguments,
            ..Options::default()
        };
        let agent = TestAgent::start_with(node, options)?;
        Ok(Self {
            node,
            server,
            agent,
        })
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<KubePod> {
        let layout = (Driver::Cgroupfs, Class::BestEffort);
        let pod = KubePod::new(self.node, layout, (namespace, name), &["main", "side"])?;
        self.server.put(Kind::Pod, pod.object());
        Ok(pod)
    }

    fn wait_for_mode(&self, pod: &KubePod, wanted: v1::LookBackMode) -> Result<()> {
        let there = wait::until(LIMIT, "the look-back mode", || {
            let taps = self.agent.status()?.taps;
            let mut taps = taps.iter();
            let tap = taps.find(|tap| tap.interface == pod.pod().interface());
            let ring = tap.and_then(|tap| tap.look_back);
            Ok(ring.is_some_and(|ring| ring.mode() == wanted))
        });
        there.with_context(|| format!("{:?}\n{}", self.agent.status(), self.agent.tail()))
    }

    /// Starts it as soon as it can be: before the API server has told of the pod, it may not.
    fn capture(&self, spec: &v1::CaptureSpec) -> Result<v1::CaptureState> {
        let mut refusal = None;
        wait::until_some(LIMIT, "a capture", || {
            match self.agent.capture(spec.clone()) {
                Ok(state) => Ok(Some(state)),
                Err(error) => {
                    refusal = Some(error);
                    Ok(None)
                }
            }
        })
        .with_context(|| format!("{refusal:?}"))
    }

    fn file(&self, state: &v1::CaptureState) -> Result<(v1::CaptureState, Capture, Vec<u8>)> {
        let state = self.agent.stop(&state.id)?;
        let proven = proof::prove(&self.agent, &state)?;
        Ok((state, proven.capture, fs::read(proven.path)?))
    }
}

fn label(server: &ApiServer, name: &str, level: Option<&str>) {
    let labels = level.map(|level| json!({"remora.dev/privacy": level}));
    server.put(
        Kind::Namespace,
        json!({"metadata": {"name": name, "labels": labels}}),
    );
}

fn named(namespace: &str, name: &str, container: &str) -> Target {
    Target::Pod(v1::Pod {
        namespace: namespace.into(),
        name: name.into(),
        container: container.into(),
        ..v1::Pod::default()
    })
}

fn markers(bytes: &[u8]) -> usize {
    let windows = bytes.windows(MARKER.len());
    windows.filter(|at| *at == MARKER).count()
}

fn send(from: &KubePod, container: &str, to: Ipv4Addr) -> Result<()> {
    let stream = Stream {
        size: WHOLE,
        ..Stream::new(to, 9000, PACKETS)
    };
    stream.send(|tool| from.command(container, tool))?;
    Ok(())
}

fn udp(target: Target) -> v1::CaptureSpec {
    v1::CaptureSpec {
        filter: "udp port 9000".into(),
        ..spec(target)
    }
}

#[test]
fn payload_of_a_namespace_of_headers_is_in_no_file_whatever_names_its_pod() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, &[("bank", Some("headers")), ("shop", None)])?;
    let (bank, shop) = (bed.pod("bank", "vault")?, bed.pod("shop", "cart")?);
    let (bank, shop) = (&bank, &shop);
    bed.wait_for_mode(bank, v1::LookBackMode::Headers)?;
    bed.wait_for_mode(shop, v1::LookBackMode::Payload)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| shop.command("main", tool))?;
    let _own = traffic::sink(9000, node.directory(), |tool| bank.command("main", tool))?;
    let pod = bank.pod();
    let targets = [
        named("bank", "vault", ""),
        named("bank", "vault", "side"),
        Target::ContainerId(bank.container_id("main").to_owned()),
        Target::CgroupPath(pod.cgroup().path()),
        Target::CgroupPath(bank.cgroup("side").path()),
        Target::Pid(pod.pid()),
        Target::Interface(pod.interface().to_owned()),
        // All pods' packets pass it.
        Target::Interface("br0".to_owned()),
        // It holds the pods.
        Target::CgroupPath(format!("{}/kubepods", node.cgroup().path())),
    ];
    let mut running = Vec::new();
    for target in &targets {
        running.push(bed.capture(&udp(target.clone()))?);
    }
    let other = bed.capture(&udp(named("shop", "cart", "")))?;
    send(bank, "side", shop.pod().ipv4())?;
    // Its loopback, which the cgroup programs take.
    send(bank, "side", pod.ipv4())?;
    // The node's own address, by way of its bridge.
    let IpAddr::V4(gateway) = node.address() else {
        bail!("no address")
    };
    send(bank, "side", gateway)?;
    let at = SocketAddr::from((shop.pod().ipv4(), 8080));
    traffic::tcp_exchange(pod.netns(), shop.pod().netns(), at, 100_000)?;

    for (target, state) in targets.iter().zip(running) {
        let (state, capture, bytes) = bed.file(&state)?;
        assert_eq!(markers(&bytes), 0, "{target:?}");
        ensure!(
            capture.packets.len() as u64 >= PACKETS,
            "{target:?}: {} packets",
            capture.packets.len()
        );
        for packet in &capture.packets {
            assert_eq!(packet.data.len(), HEADERS, "{target:?}");
            assert_eq!(packet.original_len as usize, WHOLE, "{target:?}");
        }
        let told = capture
            .comments
            .iter()
            .any(|c| c.contains("cut after their transport headers"));
        assert!(told, "{target:?}: {:?}", capture.comments);
        assert!(!state.message.contains("payload"), "{state:?}");
    }
    // The other end is in a namespace of payload: its own capture has all of it.
    let (_, capture, bytes) = bed.file(&other)?;
    assert_eq!(markers(&bytes) as u64, PACKETS);
    assert_eq!(capture.packets[0].data.len(), WHOLE);

    // What look-back kept is no more.
    let state = bed.capture(&looking_back(udp(named("bank", "vault", "")), 60))?;
    let (_, capture, bytes) = bed.file(&state)?;
    assert_eq!(markers(&bytes), 0);
    // To the other pod, and to the node: of its loopback nothing is kept.
    assert_eq!(capture.packets.len() as u64, 2 * PACKETS);
    // TCP headers with their options, and no byte of payload.
    let tcp = v1::CaptureSpec {
        filter: "tcp port 8080".into(),
        ..spec(named("bank", "vault", ""))
    };
    let state = bed.capture(&tcp)?;
    traffic::tcp_exchange(pod.netns(), shop.pod().netns(), at, 100_000)?;
    let (_, capture, _) = bed.file(&state)?;
    for packet in &capture.packets {
        let offset = 34 + usize::from(packet.data[46] >> 4) * 4;
        assert_eq!(packet.data.len(), offset);
    }
    ensure!(
        capture
            .packets
            .iter()
            .any(|packet| packet.original_len > 1000)
    );
    Ok(())
}

#[test]
fn a_namespace_of_none_is_refused_and_nothing_of_it_recorded() -> Result<()> {
    let node = Node::new()?;
    // Who mistypes the label means to protect something.
    let bed = Bed::new(&node, &[("bank", Some("None")), ("shop", None)])?;
    let (bank, shop) = (bed.pod("bank", "vault")?, bed.pod("shop", "cart")?);
    bed.wait_for_mode(&shop, v1::LookBackMode::Payload)?;
    bed.wait_for_mode(&bank, v1::LookBackMode::Off)?;
    for target in [
        named("bank", "vault", ""),
        named("bank", "vault", "main"),
        Target::ContainerId(bank.container_id("main").to_owned()),
        Target::CgroupPath(bank.pod().cgroup().path()),
        Target::Interface(bank.pod().interface().to_owned()),
        Target::Interface("br0".to_owned()),
    ] {
        for spec in [spec(target.clone()), looking_back(spec(target.clone()), 30)] {
            let error = bed.agent.capture(spec).err().context("it started")?;
            assert_eq!(error.code(), Code::PermissionDenied, "{target:?}: {error}");
            assert!(error.message().contains("privacy level `none`"), "{error}");
        }
    }
    // What is no pod's is nobody's secret.
    let tools = node.cgroup().child("tools")?;
    let state = bed.agent.capture(spec(Target::CgroupPath(tools.path())))?;
    bed.agent.stop(&state.id)?;
    Ok(())
}

#[test]
fn a_level_that_gets_stricter_holds_for_what_is_running() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, &[("bank", None), ("shop", None)])?;
    let (bank, shop) = (bed.pod("bank", "vault")?, bed.pod("shop", "cart")?);
    bed.wait_for_mode(&bank, v1::LookBackMode::Payload)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| shop.command("main", tool))?;
    let state = bed.capture(&udp(named("bank", "vault", "")))?;
    send(&bank, "main", shop.pod().ipv4())?;
    label(&bed.server, "bank", Some("headers"));
    wait::until(LIMIT, "the word of the new level", || {
        Ok(bed
            .agent
            .get(&state.id)?
            .message
            .contains("privacy level `headers`"))
    })?;
    bed.wait_for_mode(&bank, v1::LookBackMode::Headers)?;
    send(&bank, "main", shop.pod().ipv4())?;
    label(&bed.server, "bank", Some("none"));
    let ended = bed.agent.wait_final(&state.id, LIMIT)?;
    assert!(ended.message.contains("privacy level `none`"), "{ended:?}");
    bed.wait_for_mode(&bank, v1::LookBackMode::Off)?;
    let proven = proof::prove(&bed.agent, &ended)?;
    let lens: Vec<_> = proven
        .capture
        .packets
        .iter()
        .map(|p| p.data.len())
        .collect();
    let mut expected = vec![WHOLE; PACKETS as usize];
    expected.extend(vec![HEADERS; PACKETS as usize]);
    assert_eq!(lens, expected);

    // And back again.
    label(&bed.server, "bank", None);
    let state = bed.capture(&udp(named("bank", "vault", "")))?;
    send(&bank, "main", shop.pod().ipv4())?;
    let (_, capture, bytes) = bed.file(&state)?;
    assert_eq!(markers(&bytes) as u64, PACKETS);
    assert_eq!(capture.packets.len() as u64, PACKETS);
    Ok(())
}

#[test]
fn a_node_behind_a_veth_is_captured_unless_a_private_pod_is_on_it() -> Result<()> {
    let node = Node::new()?;
    let outside = Netns::new("outside")?;
    let gateway = Ipv4Addr::new(198, 51, 100, 1);
    veth::lay(
        &End {
            netns: node.netns(),
            interface: "eth0",
            mac: [2, 0, 0, 0, 3, 1],
            ipv4: Some((Ipv4Addr::new(198, 51, 100, 2), 24)),
            ipv6: None,
        },
        &End {
            netns: &outside,
            interface: "node",
            mac: [2, 0, 0, 0, 3, 2],
            ipv4: Some((gateway, 24)),
            ipv6: None,
        },
    )?;
    let bed = Bed::new(&node, &[("bank", Some("none")), ("shop", None)])?;
    let shop = bed.pod("shop", "cart")?;
    bed.wait_for_mode(&shop, v1::LookBackMode::Payload)?;
    let targets = [
        Target::CgroupPath("/".to_owned()),
        Target::Interface("eth0".to_owned()),
    ];
    // A namespace of that level is in the cluster, and no pod of it here.
    let whole = bed.capture(&udp(targets[0].clone()))?;
    let running = bed.capture(&udp(targets[1].clone()))?;
    send(&shop, "main", gateway)?;
    let (_, _, bytes) = bed.file(&whole)?;
    assert_eq!(markers(&bytes) as u64, PACKETS);

    let bank = bed.pod("bank", "vault")?;
    let ended = bed.agent.wait_final(&running.id, LIMIT)?;
    assert!(ended.message.contains("privacy level `none`"), "{ended:?}");
    proof::prove(&bed.agent, &ended)?;
    for target in &targets {
        let error = bed.agent.capture(spec(target.clone())).err();
        let error = error.context("it started")?;
        assert_eq!(error.code(), Code::PermissionDenied, "{target:?}: {error}");
    }
    bed.server.delete(Kind::Pod, "bank", &bank.name);
    drop(bank);
    let state = bed.capture(&udp(targets[0].clone()))?;
    bed.agent.stop(&state.id)?;
    Ok(())
}
