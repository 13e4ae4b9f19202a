//! Filters in the whole of tcpdump's language: a capture with a filter has exactly the packets that
//! `tcpdump -r` finds with it in a capture without one of the same traffic, in the same order.

use std::{net::Ipv6Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use remora_proto::v1;
use remora_tests::{
    agent::{TestAgent, of_pod_filtered},
    beside::{self, All, BEGIN, Beside, END},
    node::{Node, Pod},
    packets::Packet,
    proof, run,
    traffic::{self, Stream},
};

const LIMIT: Duration = Duration::from_secs(20);

/// A filtered capture is what tcpdump finds in the one of all: some packets, and not all.
fn confirm(node: &Node, all: &All, filter: &str, ours: &[Packet], snaplen: usize) -> Result<()> {
    let count = all
        .by_tcpdump(filter, node.directory())
        .and_then(|theirs| all.confirm(ours, &theirs, snaplen))
        .with_context(|| format!("filter `{filter}`"))?;
    println!("{count:6} {filter}");
    ensure!(
        (1..all.count()).contains(&count),
        "`{filter}` takes {count} of {} packets, which proves nothing",
        all.count()
    );
    Ok(())
}

/// Starts a stored capture by the command line; its id.
fn by_command_line(agent: &TestAgent<'_>, pod: &Pod, filter: &str) -> Result<String> {
    let id = run::output(
        run::command(run::remora_program("remora")?)
            .args(["--agent", &agent.address(), "capture", "--store"])
            .arg(format!("cgroup:{}", pod.cgroup().path()))
            .arg("-f")
            .arg(filter),
    )?;
    Ok(id.trim().to_owned())
}

/// None of them can be said by typed terms.
const ON_AN_INTERFACE: &[&str] = &[
    "tcp or arp",
    "not tcp",
    "not port 8080",
    "tcp[tcpflags] & tcp-syn != 0",
    "tcp[tcpflags] & (tcp-rst|tcp-fin) != 0",
    "greater 100",
    "less 80",
    "greater 60000",
    "len > 1500 and len < 20000",
    "portrange 80-9000",
    "udp portrange 9999-10000 or portrange 1-100",
    "ether host 02:00:00:00:02:0b",
    "ether src 02:00:00:00:02:0b and not arp",
    "ether multicast",
    "ether broadcast",
    "ip multicast or ip6 multicast",
    "icmp6 and ip6[40] >= 135",
    "icmp[icmptype] = icmp-unreach or icmp6[icmp6type] = icmp6-destinationunreach",
    "ip[6:2] & 0x1fff != 0",
    "ip[6:2] & 0x2000 != 0",
    "ip6[6] = 44",
    "ip6 proto 44 and ip6[42:2] & 0xfff8 != 0",
    "udp[8:4] = 0x07070707",
    // Far behind the linear part of a packet of 64 KiB.
    "tcp[30000:2] & 1 = 1",
    "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x00010203",
    "src host 10.77.0.10 or dst port 81",
    "(tcp or udp) and not src net 10.77.0.0/28",
    "host 10.77.0.10 and (port 81 or icmp)",
    "ip proto 17 or ip6 proto 17",
    "ip[2:2] > 1000 or ip6[4:2] > 1000",
    // Frames shorter than what is asked for match neither this nor its opposite.
    "ip and not ip[22:2] = 81",
    "ip[22:2] = 81",
    "not ip[22:2] = 81",
    "vlan",
    "not vlan",
    "vlan 100",
    "vlan 100 and udp port 9000",
    "vlan 200 and vlan 100",
    "vlan 200 and vlan and udp[8:2] = 0x0102",
    "vlan 300 and ip6",
    // Loads across both ends of the tag.
    "ether[10:4] & 0xffff = 0x8100",
    "ether[14:4] & 0xfffffff = 0x00640800",
    "ether[13:4] & 0xffff00 = 0x006400",
    "ether[18] = 0x45",
    "ether proto 0x88b5",
    "port 8080 and tcp or vlan 200",
];

/// An Ethernet frame to `to`, with VLAN tags.
fn frame(from: &Pod, to: &Pod, tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mac = |pod: &Pod| [2, 0, 0, 0, 2, pod.ipv4().octets()[3]];
    let mut frame = [mac(to), mac(from)].concat();
    for (protocol, tag) in tags {
        frame.extend(protocol.to_be_bytes());
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Frames with tags, which the kernel keeps beside the bytes, and frames that are cut short.
fn odd_frames(from: &Pod, to: &Pod) -> Vec<Vec<u8>> {
    let udp = [0x23, 0x28, 0x23, 0x28, 0, 12, 0, 0, 1, 2, 3, 4];
    let mut ipv4 = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
    ipv4.extend(from.ipv4().octets());
    ipv4.extend(to.ipv4().octets());
    ipv4.extend(udp);
    let mut ipv6 = vec![0x60, 0, 0, 0, 0, 12, 17, 64];
    ipv6.extend(from.ipv6().octets());
    ipv6.extend(to.ipv6().octets());
    ipv6.extend(udp);
    const TAG: u16 = 0x8100;
    const SERVICE_TAG: u16 = 0x88a8;
    vec![
        frame(from, to, &[(TAG, 100)], 0x0800, &ipv4),
        frame(from, to, &[(TAG, 0x6000 | 300)], 0x86dd, &ipv6),
        frame(from, to, &[(SERVICE_TAG, 200), (TAG, 100)], 0x0800, &ipv4),
        frame(from, to, &[(TAG, 200), (TAG, 100)], 0x0800, &ipv4),
        frame(from, to, &[(TAG, 100)], 0x88b5, &[1, 2, 3]),
        frame(from, to, &[], 0x88b5, &[1, 2, 3]),
        frame(from, to, &[], 0x0800, &ipv4[..22]),
        frame(from, to, &[], 0x86dd, &ipv6[..44]),
    ]
}

#[test]
fn a_pods_filtered_capture_is_what_tcpdump_finds_in_the_one_of_all() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let beside = Beside::start(&agent, &web)?;
    let captures = ON_AN_INTERFACE
        .iter()
        .map(|filter| Ok((*filter, by_command_line(&agent, &web, filter)?)))
        .collect::<Result<Vec<_>>>()?;
    // Of each packet one byte: the filter sees all of it.
    const DEEP: &str = "tcp[tcpflags] & tcp-syn != 0 or udp[3000:4] = 0x07070707 or tcp[20000] = 9";
    let cut = agent.capture(v1::CaptureSpec {
        snaplen: 1,
        ..of_pod_filtered(&web, DEEP)
    })?;

    beside::mark(&node, &web, BEGIN)?;
    traffic::all_kinds(&web, &api)?;
    traffic::frames(web.netns(), "eth0", &odd_frames(&web, &api))?;
    traffic::frames(api.netns(), "eth0", &odd_frames(&api, &web))?;
    beside::mark(&node, &web, END)?;
    beside.wait_for_end()?;

    let stopped = beside::stopped(&agent, captures)?;
    let cut = proof::prove(&agent, &agent.stop(&cut.id)?)?;
    let all = beside.stop()?;
    for (filter, packets) in &stopped {
        confirm(&node, &all, filter, packets, usize::MAX)?;
    }
    confirm(&node, &all, DEEP, &cut.capture.packets, 1)
}

/// As above, for packets that start with the IP header and get an Ethernet header in the file.
const ON_LOOPBACK: &[&str] = &[
    "tcp or icmp",
    "not tcp",
    "tcp[tcpflags] & tcp-syn != 0",
    "tcp[tcpflags] & tcp-push != 0",
    // The length is the frame's: a datagram of 200 bytes in the file is one of 186 at the hook.
    "greater 200",
    "less 199",
    "len = 200",
    "portrange 4000-5001",
    "not port 5001",
    "ip6 or icmp",
    "icmp6[icmp6type] = icmp6-echo",
    "icmp[icmptype] = icmp-echoreply",
    "ip[2:2] > 1000",
    "tcp[20000:4] != 0",
    "udp[4:2] > 100",
    "udp and udp[20] & 1 = 1 or icmp",
    "src host 127.0.0.1 and (port 9000 or icmp)",
    "ip proto 1 or ip6 proto 58",
    "ether proto 0x86dd",
];

#[test]
fn a_filter_says_of_loopback_what_it_says_of_the_file() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let bulk = run::tool("tcpbulk")?;
    let mut receiver = node.spawn(
        web.command(&bulk)
            .args(["receive", "127.0.0.1:5001", "--bytes", "500000"]),
        "receive",
    )?;
    receiver.wait_for("ready", LIMIT)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| web.command(tool))?;
    let beside = Beside::start(&agent, &web)?;
    let captures = ON_LOOPBACK
        .iter()
        .map(|filter| {
            let state = agent.capture(of_pod_filtered(&web, filter))?;
            Ok((*filter, state.id))
        })
        .collect::<Result<Vec<_>>>()?;
    // What packets without an Ethernet header cannot match; no address stands in the synthetic one.
    let blind = ["ether host 00:00:00:00:00:00", "not vlan 7"]
        .map(|filter| agent.capture(of_pod_filtered(&web, filter)));

    let send = |port, size, count| {
        Stream {
            size,
            rate: 5000,
            ..Stream::new([127, 0, 0, 1].into(), port, count)
        }
        .send(|tool| web.command(tool))
    };
    beside::mark(&node, &web, BEGIN)?;
    run::output(
        web.command(&bulk)
            .args(["send", "127.0.0.1:5001", "--bytes", "500000"]),
    )?;
    send(9000, 200, 300)?;
    send(9000, 100, 300)?;
    for address in ["127.0.0.1", "::1"] {
        run::output(web.command("ping").args(["-c", "3", "-i", "0.01", address]))?;
    }
    beside::mark(&node, &web, END)?;
    beside.wait_for_end()?;

    let stopped = beside::stopped(&agent, captures)?;
    for state in blind {
        let proven = proof::prove(&agent, &agent.stop(&state?.id)?)?;
        let on_loopback = proven.capture.frames().filter(|frame| {
            frame.get(26..30) == Some(&[127, 0, 0, 1])
                || frame.get(22..38) == Some(&Ipv6Addr::LOCALHOST.octets())
        });
        assert_eq!(on_loopback.count(), 0);
        let told = |text: &String| text.contains("cannot match and are left out");
        assert!(
            proven.capture.comments.iter().any(told),
            "{:?}",
            proven.capture.comments
        );
    }
    let all = beside.stop()?;
    for (filter, packets) in &stopped {
        confirm(&node, &all, filter, packets, usize::MAX)?;
    }
    Ok(())
}
