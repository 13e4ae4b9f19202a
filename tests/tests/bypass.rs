//! Packets that another's program puts into a pod past the node's end of its veth, as Cilium's routing does.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use remora_proto::v1;
use remora_tests::{
    agent::{TestAgent, looking_back, of_pod_filtered, recorded},
    bpf::ForeignTcx,
    netns::Netns,
    node::{Node, Pod},
    numbered::{Number, Numbers},
    packets::{Capture, Direction},
    proof,
    traffic::{self, Sink, Stream},
};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// To this one past the veth, to the other as packets go.
const PAST: u16 = 9000;
const ALONG: u16 = 9001;
/// Few enough that the flow cutoff leaves none out.
const PACKETS: u64 = 150;

struct Bed {
    web: Pod,
    outside: Netns,
    _sinks: [Sink; 3],
}

impl Bed {
    fn new(node: &Node) -> Result<Self> {
        let web = node.pod("web")?;
        let outside = node.outside("net", OUTSIDE)?;
        let sinks = [
            traffic::sink(PAST, node.directory(), |tool| web.command(tool))?,
            traffic::sink(ALONG, node.directory(), |tool| web.command(tool))?,
            traffic::sink(PAST, node.directory(), |tool| outside.command(tool))?,
        ];
        Ok(Self {
            web,
            outside,
            _sinks: sinks,
        })
    }

    fn redirect(&self, node: &Node) -> Result<ForeignTcx> {
        ForeignTcx::attach_redirect(node.netns(), "up-net", PAST, self.web.interface())
    }

    fn received(&self, run: u16, port: u16) -> Result<()> {
        let stream = stream(run, self.web.ipv4(), port);
        stream.send(|tool| self.outside.command(tool))?;
        Ok(())
    }

    fn sent(&self, run: u16, to: Ipv4Addr) -> Result<()> {
        stream(run, to, PAST).send(|tool| self.web.command(tool))?;
        Ok(())
    }
}

fn stream(run: u16, to: Ipv4Addr, port: u16) -> Stream {
    Stream {
        run,
        rate: 20_000,
        ..Stream::new(to, port, PACKETS)
    }
}

/// Packets of a run: how many different ones, how many in all, and which way they all go.
fn of(capture: &Capture, run: u16) -> (u64, u64, Option<Direction>) {
    let packets = capture
        .packets
        .iter()
        .filter(|packet| Number::of_frame(&packet.data).is_some_and(|number| number.run == run));
    let mut directions = packets.clone().map(|packet| packet.direction);
    let first = directions.next().flatten();
    let one = directions.all(|direction| direction == first);
    let distinct = Numbers::collect(run, capture.frames()).distinct();
    (distinct, packets.count() as u64, first.filter(|_| one))
}

#[test]
fn what_comes_in_past_the_veth_is_captured_too_and_nothing_twice() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node)?;
    let _redirect = bed.redirect(&node)?;
    let agent = TestAgent::start(&node)?;
    recorded(&agent, &[&bed.web])?;
    // The first look does not know yet that this node has such a program; later ones do.
    for round in [10, 20] {
        let [before, sent_before, past, along, sent, local] = [1, 2, 3, 4, 5, 6].map(|n| round + n);
        bed.received(before, PAST)?;
        bed.sent(sent_before, OUTSIDE)?;
        let spec = of_pod_filtered(&bed.web, "udp");
        let state = agent.capture(looking_back(spec, 60))?;
        bed.received(past, PAST)?;
        bed.received(along, ALONG)?;
        bed.sent(sent, OUTSIDE)?;
        bed.sent(local, Ipv4Addr::LOCALHOST)?;
        let state = agent.stop(&state.id)?;
        let capture = proof::prove(&agent, &state)?.capture;
        let [into, out] = [Direction::Inbound, Direction::Outbound]
            .map(|direction| (PACKETS, PACKETS, Some(direction)));
        assert_eq!(of(&capture, past), into, "past the veth");
        assert_eq!(of(&capture, along), into, "along the veth");
        assert_eq!(of(&capture, local), into, "loopback");
        assert_eq!(of(&capture, sent), out);
        assert_eq!(of(&capture, sent_before), out);
        assert_eq!(of(&capture, before).1, 0, "no hook saw it");
        let told = capture.comments.join("\n");
        assert!(told.contains("come into it past"), "{told}");
        assert!(!state.message.contains("past its"), "{}", state.message);
    }
    assert_eq!(agent.list(true)?.len(), 2, "what was begun wrongly is gone");
    Ok(())
}

#[test]
fn a_capture_during_which_packets_begin_to_come_past_says_how_many_it_has_not() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node)?;
    let agent = TestAgent::start(&node)?;
    let first = agent.capture(of_pod_filtered(&bed.web, "udp"))?;
    bed.received(1, PAST)?;
    let _redirect = bed.redirect(&node)?;
    bed.received(2, PAST)?;
    // In the way of the one that runs, and says so.
    let second = agent.capture(of_pod_filtered(&bed.web, "udp"))?;
    bed.received(3, PAST)?;
    bed.sent(4, OUTSIDE)?;
    let expected = [
        (&first, [PACKETS, 0, 0, PACKETS]),
        (&second, [0, 0, 0, PACKETS]),
    ];
    for (capture, expected) in expected {
        let state = agent.stop(&capture.id)?;
        let told = format!("{} packets had come into the target past its", 2 * PACKETS);
        assert!(state.message.contains(&told), "{}", state.message);
        assert_eq!(state.phase(), v1::Phase::Finished);
        let capture = proof::prove(&agent, &state)?.capture;
        let each = [1, 2, 3, 4].map(|run| of(&capture, run).1);
        assert_eq!(each, expected);
    }
    // Nobody captures it any more: the next one does it right.
    let third = agent.capture(of_pod_filtered(&bed.web, "udp"))?;
    bed.received(5, PAST)?;
    let capture = proof::prove(&agent, &agent.stop(&third.id)?)?.capture;
    assert_eq!(of(&capture, 5).1, PACKETS);
    Ok(())
}

/// A pod that a netkit device leads to instead of its veth: its address, or `None` on a kernel that has none.
fn behind_netkit(node: &Node, pod: &Pod) -> Result<Option<Ipv4Addr>> {
    let (gateway, address) = (Ipv4Addr::new(10, 78, 0, 1), Ipv4Addr::new(10, 78, 0, 2));
    match node.netns().ip("link add nk-web type netkit") {
        Err(error) if format!("{error:#}").contains("Unknown device type") => return Ok(None),
        made => made?,
    };
    let devices = node.netns().ip("-o link show type netkit")?;
    // `7: nk0@nk-web: <…`
    let other = devices.lines().find_map(|line| {
        let name = line.split(": ").nth(1)?.split('@').next()?;
        (name != "nk-web").then(|| name.to_owned())
    });
    let other = other.context("netkit devices come in pairs")?;
    node.netns().ip(&format!("link del {}", pod.interface()))?;
    let within = pod.netns().name();
    node.netns()
        .ip(&format!("link set {other} netns {within} name eth0"))?;
    for (netns, device, own, across) in [
        (node.netns(), "nk-web", gateway, address),
        (pod.netns(), "eth0", address, gateway),
    ] {
        netns.ip(&format!("addr add {own}/32 dev {device}"))?;
        netns.ip(&format!("link set {device} up"))?;
        netns.ip(&format!("route add {across}/32 dev {device} scope link"))?;
    }
    Ok(Some(address))
}

#[test]
fn a_pod_behind_netkit_is_captured_at_its_sockets() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let Some(address) = behind_netkit(&node, &web)? else {
        println!("skipped: this kernel has no netkit (CONFIG_NETKIT)");
        return Ok(());
    };
    let _sinks = [
        traffic::sink(PAST, node.directory(), |tool| web.command(tool))?,
        traffic::sink(PAST, node.directory(), |tool| node.command(tool))?,
    ];
    let agent = TestAgent::start(&node)?;
    let state = agent.capture(of_pod_filtered(&web, "udp"))?;
    stream(1, address, PAST).send(|tool| node.command(tool))?;
    stream(2, Ipv4Addr::new(10, 78, 0, 1), PAST).send(|tool| web.command(tool))?;
    let state = agent.stop(&state.id)?;
    let capture = proof::prove(&agent, &state)?.capture;
    assert_eq!(
        of(&capture, 1),
        (PACKETS, PACKETS, Some(Direction::Inbound))
    );
    assert_eq!(
        of(&capture, 2),
        (PACKETS, PACKETS, Some(Direction::Outbound))
    );
    let told = capture.comments.join("\n");
    assert!(told.contains("netkit"), "{told}");
    Ok(())
}
