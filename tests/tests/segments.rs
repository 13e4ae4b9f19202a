//! `--segment`: super-packets written as the wire would have carried them.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use remora_agent_common::record::CAPLEN_MAX;
use remora_proto::v1;
use remora_tests::{
    agent::{TestAgent, of_pod_filtered},
    node::Node,
    packets::Packet,
    proof, run, traffic, veth, wire,
};

const PORT: u16 = 8080;
/// Bytes of an Ethernet frame on a wire with an MTU of 1500.
const FRAME_MAX: u32 = 1514;
/// What Wireshark calls a checksum that is wrong: `tcp.checksum.status`, `udp.checksum.status`.
const BAD: &str = "ip.checksum.status == 0 || tcp.checksum.status == 0 || udp.checksum.status == 0";
const CHECKED: [&str; 6] = [
    "-o",
    "ip.check_checksum:TRUE",
    "-o",
    "tcp.check_checksum:TRUE",
    "-o",
    "udp.check_checksum:TRUE",
];

#[test]
fn tshark_finds_no_error_in_segments_and_counts_are_of_packets() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let spec = of_pod_filtered(&web, "tcp port 8080");
    let whole = agent.capture(spec.clone())?;
    let cut = agent.capture(v1::CaptureSpec {
        segment: true,
        ..spec
    })?;
    for at in [
        SocketAddr::from((api.ipv4(), PORT)),
        (api.ipv6(), PORT).into(),
    ] {
        traffic::tcp_exchange(web.netns(), api.netns(), at, 500_000)?;
    }
    let whole = proof::prove(&agent, &agent.stop(&whole.id)?)?;
    let state = agent.stop(&cut.id)?;
    let counts = state.counts.unwrap_or_default();
    let files = state.files.unwrap_or_default();
    proof::law(&counts)?;
    proof::complete(&counts)?;
    let path = agent.file(&state);
    let capture = wire::readable(&path)?;
    println!("{counts:?}, {files:?}");

    ensure!(counts.written == whole.counts.written, "other packets");
    ensure!(files.blocks == capture.packets.len() as u64 && files.blocks > counts.written);
    ensure!(agent.sidecar(&state.id)?.file.blocks == files.blocks);
    ensure!(capture.statistics_sum().delivered == counts.written);
    // Each packet's segments have its id, one after the other.
    let mut ids: Vec<_> = capture.packets.iter().map(|packet| packet.id).collect();
    ids.dedup();
    ensure!(ids.len() as u64 == counts.written);
    for packet in &capture.packets {
        ensure!(
            packet.original_len <= FRAME_MAX && packet.data.len() as u32 == packet.original_len
        );
    }
    // As many bytes of TCP as in the whole packets, and nothing that Wireshark calls wrong.
    let payload = |path, arguments: &[&str]| -> Result<u64> {
        let mut command = run::command("tshark");
        command.args(["-n", "-r"]).arg(path).args(arguments);
        command.args(["-T", "fields", "-e", "tcp.len"]);
        let lengths = run::output(&mut command)?;
        lengths
            .lines()
            .map(|line| line.parse::<u64>().context("no length"))
            .sum()
    };
    ensure!(payload(&path, &[])? == payload(&whole.path, &[])?);
    let bad = wire::tshark(&path, &[&CHECKED[..], &["-n", "-Y", BAD]].concat())?;
    ensure!(bad.is_empty(), "wrong checksums: {bad}");
    // The same question finds them where they were left to the card.
    let unfilled = wire::tshark(&whole.path, &[&CHECKED[..], &["-n", "-Y", BAD]].concat())?;
    ensure!(!unfilled.is_empty(), "the test asks nothing");
    let analysis = "tcp.analysis.retransmission || tcp.analysis.out_of_order || \
                    tcp.analysis.lost_segment || _ws.malformed";
    let wrong = wire::tshark(&path, &["-n", "-Y", analysis])?;
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}

/// Sequence number and bytes of payload that a frame of TCP had on the wire: over IPv4, or IPv6 with nothing
/// before it but the header of a jumbogram.
fn tcp(packet: &Packet) -> Result<(u32, u32)> {
    let frame = packet.data.as_slice();
    let byte = |at: usize| frame.get(at).copied().context("a short frame");
    let tcp = match [byte(12)?, byte(13)?] {
        [0x08, 0x00] => 14 + usize::from(byte(14)? & 0xf) * 4,
        _ if byte(20)? == 0 => 14 + 40 + 8,
        _ => 14 + 40,
    };
    let headers = tcp + usize::from(byte(tcp + 12)? >> 4) * 4;
    let sequence = frame.get(tcp + 4..tcp + 8).context("a short frame")?;
    Ok((
        u32::from_be_bytes(sequence.try_into()?),
        packet.original_len - u32::try_from(headers)?,
    ))
}

/// BIG TCP: longer than any length field of IP, and than the largest record.
#[test]
fn a_packet_of_more_than_64_kib_is_cut_and_says_how_long_it_was() -> Result<()> {
    const GSO_MAX: u32 = 180_000;
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    for (netns, interface) in [
        (web.netns(), "eth0"),
        (node.netns(), web.interface()),
        (node.netns(), api.interface()),
        (api.netns(), "eth0"),
    ] {
        veth::allow_big_tcp(netns, interface, GSO_MAX)?;
    }
    let agent = TestAgent::start(&node)?;
    for (at, filter) in [
        (SocketAddr::from((api.ipv4(), PORT)), "tcp port 8080"),
        // Between IPv6 and TCP is an option with the length, beyond which `tcp` does not look.
        (
            SocketAddr::from((api.ipv6(), PORT)),
            "ip6[6] == 6 or ip6[40] == 6",
        ),
    ] {
        let captures = [false, true].map(|segment| {
            agent.capture(v1::CaptureSpec {
                segment,
                ..of_pod_filtered(&web, filter)
            })
        });
        let [whole, cut] = captures;
        traffic::tcp_exchange(web.netns(), api.netns(), at, 8_000_000)?;
        let whole = proof::prove(&agent, &agent.stop(&whole?.id)?)?;
        proof::complete(&whole.counts)?;
        let packets = &whole.capture.packets;
        let longest = packets.iter().map(|packet| packet.original_len).max();
        ensure!(
            longest > Some(CAPLEN_MAX),
            "{filter}: the longest has {longest:?} bytes"
        );
        let mut payloads = BTreeMap::<_, (u32, u32)>::new();
        for packet in packets {
            let len = packet.data.len() as u32;
            ensure!(
                len == packet.original_len.min(CAPLEN_MAX),
                "{len} of {}",
                packet.original_len
            );
            payloads.insert(packet.id, tcp(packet)?);
        }

        // Its segments have the wire's lengths, and nothing where the record ended.
        let state = agent.stop(&cut?.id)?;
        let counts = state.counts.unwrap_or_default();
        proof::law(&counts)?;
        proof::complete(&counts)?;
        let path = agent.file(&state);
        let mut cut_payloads = BTreeMap::<_, (u32, u32)>::new();
        let mut missing = 0;
        for packet in wire::readable(&path)?.packets {
            ensure!(packet.original_len <= FRAME_MAX, "{}", packet.original_len);
            missing += packet.original_len - packet.data.len() as u32;
            let (sequence, payload) = tcp(&packet)?;
            let (first, sum) = cut_payloads.entry(packet.id).or_insert((sequence, 0));
            ensure!(first.wrapping_add(*sum) == sequence, "out of order");
            *sum += payload;
        }
        ensure!(cut_payloads == payloads, "{filter}: other segments");
        ensure!(missing > 0, "{filter}: all was captured");
        let bad = wire::tshark(&path, &[&CHECKED[..], &["-n", "-Y", BAD]].concat())?;
        ensure!(bad.is_empty(), "{filter}: wrong checksums: {bad}");
    }
    Ok(())
}

#[test]
fn a_file_limit_and_segments_exclude_each_other() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let refused = agent.capture(v1::CaptureSpec {
        segment: true,
        limits: Some(v1::Limits {
            file_bytes: 1 << 20,
            ..Default::default()
        }),
        ..of_pod_filtered(&web, "tcp")
    });
    let error = refused.err().context("taken")?;
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(error.message().contains("-c"), "{error}");
    Ok(())
}
