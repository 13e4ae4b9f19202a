//! Independent readers show what a capture holds: tshark, capinfos, tcpdump.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use remora_proto::v1;
use remora_tests::{
    agent::{TestAgent, of_pod, of_pod_filtered},
    node::{Node, Pod},
    proof, run,
    traffic::{self, Stream},
    wire,
};

const ALERT: &str = r#"{"rule":"Outbound Connection to C2 Servers","output":"umlaut ä, quote \""}"#;

/// A capture with all that a file can tell, of a conversation of `web` with `api`.
fn told(agent: &TestAgent<'_>, web: &Pod, api: &Pod) -> Result<proof::Proven> {
    let name = |address: std::net::IpAddr, name: &str| v1::NameHint {
        address: address.to_string(),
        name: name.into(),
    };
    let spec = v1::CaptureSpec {
        names: vec![
            name(web.ipv4().into(), "web.shop"),
            name(api.ipv4().into(), "api.shop"),
            name(api.ipv6().into(), "api6.shop"),
        ],
        trigger: Some(v1::Trigger {
            source: "falco".into(),
            rule: "Outbound Connection to C2 Servers".into(),
            alert: ALERT.into(),
            ..Default::default()
        }),
        ..of_pod_filtered(web, "tcp port 8080")
    };
    let state = agent.capture(spec)?;
    for at in [
        SocketAddr::from((api.ipv4(), 8080)),
        (api.ipv6(), 8080).into(),
    ] {
        traffic::tcp_exchange(web.netns(), api.netns(), at, 200_000)?;
    }
    proof::prove(agent, &agent.stop(&state.id)?)
}

#[test]
fn tshark_shows_interface_direction_and_packet_ids_without_a_gap() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let proven = told(&agent, &web, &api)?;
    proof::complete(&proven.counts)?;
    let fields = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.packet_id",
        "frame.drop_count",
        "frame.encap_type",
        "eth.src",
    ];
    let rows = wire::tshark_fields(&proven.path, &fields)?;
    assert_eq!(rows.len() as u64, proven.counts.written);
    let first: u64 = rows[0][2].parse().context("no packet id")?;
    for (row, id) in rows.iter().zip(first..) {
        let [
            interface,
            direction,
            packet_id,
            dropped,
            encapsulation,
            source,
        ] = &row[..]
        else {
            anyhow::bail!("{row:?}");
        };
        assert!(interface.contains(web.interface()), "{interface}");
        let mac = format!("02:00:00:00:02:{:02x}", web.ipv4().octets()[3]);
        // Wireshark prints the two bits of the flags: 1 is inbound, 2 outbound.
        let expected = if *source == mac {
            "0x00000002"
        } else {
            "0x00000001"
        };
        assert_eq!(direction, expected, "{row:?}");
        assert_eq!(packet_id, &id.to_string());
        assert!(dropped.is_empty() || dropped == "0", "{dropped}");
        assert_eq!(encapsulation, "1");
    }
    Ok(())
}

#[test]
fn tshark_shows_names_and_capinfos_the_alert_the_filter_and_the_counts() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let proven = told(&agent, &web, &api)?;
    let summary = wire::tshark(&proven.path, &["-N", "n"])?;
    for name in ["web.shop", "api.shop", "api6.shop"] {
        assert!(summary.contains(name), "{name} not in {summary}");
    }
    let capinfos = run::output(run::command("capinfos").arg(&proven.path))?;
    for text in [
        ALERT,
        "tcp port 8080",
        "nanoseconds",
        "Encapsulation = Ethernet",
        "Capture length = 262144",
        "Number of stat entries = 1",
    ] {
        assert!(capinfos.contains(text), "`{text}` not in {capinfos}");
    }
    assert_eq!(wire::capinfos_count(&proven.path)?, proven.counts.written);
    let tcpdump = run::output(run::command("tcpdump").args(["-n", "-r"]).arg(&proven.path))?;
    assert_eq!(tcpdump.lines().count() as u64, proven.counts.written);
    Ok(())
}

#[test]
fn an_empty_capture_is_a_file_that_every_reader_takes() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let state = agent.capture(of_pod_filtered(&web, "udp port 4"))?;
    let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
    assert_eq!(proven.counts.written, 0);
    assert!(
        proven
            .capture
            .interfaces
            .iter()
            .any(|interface| interface.name.contains(web.interface())),
        "the veth is not told, as it had no packet: {:?}",
        proven.capture.interfaces
    );
    Ok(())
}

#[test]
fn a_gso_packet_says_in_a_comment_what_it_is_and_no_other_does() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let proven = told(&agent, &web, &api)?;
    let mut large = 0;
    for packet in &proven.capture.packets {
        if packet.original_len > 1514 {
            large += 1;
            let comment = packet.comments.join(" ");
            assert!(comment.contains("GSO"), "{comment:?}");
        } else if packet.original_len < 1000 {
            assert!(packet.comments.is_empty(), "{:?}", packet.comments);
        }
    }
    assert!(large > 0, "the conversation has no GSO packet");
    Ok(())
}

#[test]
fn a_loopback_packet_reads_as_ethernet_and_its_interface_says_that_this_is_synthetic() -> Result<()>
{
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| web.command(tool))?;
    let state = agent.capture(of_pod(&web))?;
    let stream = Stream {
        rate: 1000,
        ..Stream::new([127, 0, 0, 1].into(), 9000, 20)
    };
    let sent = stream.send(|tool| web.command(tool))?;
    let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
    let rows = wire::tshark_fields(
        &proven.path,
        &[
            "udp.dstport",
            "frame.interface_description",
            "frame.protocols",
        ],
    )?;
    let loopback: Vec<_> = rows.iter().filter(|row| row[0] == "9000").collect();
    assert_eq!(loopback.len() as u64, sent);
    for row in loopback {
        assert!(row[1].to_lowercase().contains("synthetic"), "{row:?}");
        assert!(row[2].starts_with("eth:ethertype:ip:udp"), "{row:?}");
    }
    Ok(())
}

#[test]
fn a_stream_has_the_same_bytes_as_a_file() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let state = agent.capture(of_pod_filtered(&web, "udp port 9000"))?;
    let stream = agent.stream(&state.id)?;
    let packets = Stream {
        rate: 10_000,
        ..Stream::new(api.ipv4(), 9000, 1000)
    };
    packets.send(|tool| web.command(tool))?;
    let last = agent.stop(&state.id)?;
    let (bytes, finished) = stream.read_to_end()?;
    assert_eq!(finished.counts, last.counts);
    assert_eq!(bytes, std::fs::read(agent.file(&last))?);
    Ok(())
}
