//! How much look-back keeps of whom: payload, headers, nothing.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use remora_agent_common::look_back::PAGE_VALUE;
use remora_proto::v1;
use remora_tests::{
    agent::{Options, TestAgent, looking_back, of_pod_filtered},
    bpf::Objects,
    cgroup,
    node::{Node, Pod},
    packets::Capture,
    proof, run,
    traffic::{self, Stream},
    wait,
};

const LIMIT: Duration = Duration::from_secs(20);
/// The look behind the veths takes a thousandth of a core: a long look is followed by a longer pause.
const MODE_LIMIT: Duration = Duration::from_secs(120);
/// Starts each numbered payload.
const MARKER: &[u8] = b"RMRT";
const PACKETS: u64 = 50;
/// A page is returned by value; a build without optimization copies it several times.
const STACK: usize = 16 << 20;

fn started<'a>(node: &'a Node, arguments: &[&str]) -> Result<TestAgent<'a>> {
    let all = ["--flow-cutoff", "0"];
    let options = Options {
        arguments: all
            .iter()
            .chain(arguments)
            .map(ToString::to_string)
            .collect(),
        ..Options::default()
    };
    TestAgent::start_with(node, options)
}

fn mode(agent: &TestAgent<'_>, pod: &Pod) -> Result<Option<v1::LookBackMode>> {
    let taps = agent.status()?.taps;
    let tap = taps.iter().find(|tap| tap.interface == pod.interface());
    Ok(tap.and_then(|tap| tap.look_back).map(|ring| ring.mode()))
}

fn wait_for_mode(agent: &TestAgent<'_>, pod: &Pod, wanted: v1::LookBackMode) -> Result<()> {
    let there = wait::until(MODE_LIMIT, "the look-back mode", || {
        Ok(mode(agent, pod)? == Some(wanted))
    });
    there.with_context(|| format!("{:?}\n{}", agent.status(), agent.tail()))
}

fn send(from: &Pod, to: &Pod, port: u16) -> Result<()> {
    let stream = Stream {
        size: 400,
        ..Stream::new(to.ipv4(), port, PACKETS)
    };
    stream.send(|tool| from.command(tool))?;
    Ok(())
}

fn past(agent: &TestAgent<'_>, pod: &Pod, filter: &str) -> Result<(v1::CaptureState, Capture)> {
    let state = agent.capture(looking_back(of_pod_filtered(pod, filter), 60))?;
    let state = agent.stop(&state.id)?;
    let capture = proof::prove(agent, &state)?.capture;
    Ok((state, capture))
}

/// How often the marker is in the memory of all rings that the agent holds.
fn markers_in_rings(agent: &TestAgent<'_>) -> Result<(usize, usize)> {
    thread::scope(|scope| {
        thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || find_markers(agent))?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn find_markers(agent: &TestAgent<'_>) -> Result<(usize, usize)> {
    let (mut rings, mut markers) = (0, 0);
    for id in Objects::of_process(agent.pid()?)?.maps {
        let data = MapData::from_id(id)?;
        if data.info()?.value_size() as usize != PAGE_VALUE {
            continue;
        }
        let map = Map::Array(data);
        let ring = Array::<_, [u8; PAGE_VALUE]>::try_from(map)?;
        rings += 1;
        for page in ring.iter() {
            markers += page?
                .windows(MARKER.len())
                .filter(|at| *at == MARKER)
                .count();
        }
    }
    Ok((rings, markers))
}

/// Bytes of an Ethernet frame up to the end of its TCP or UDP header, over IPv4.
fn headers(frame: &[u8]) -> Option<usize> {
    let ip = 14 + usize::from(frame.get(14)? & 0xf) * 4;
    Some(match frame.get(23)? {
        6 => ip + usize::from(frame.get(ip + 12)? >> 4) * 4,
        _ => ip + 8,
    })
}

#[test]
fn payload_of_a_pod_recorded_by_its_headers_is_never_in_a_ring() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let rules = [
        "--look-back-rule",
        "*/web=headers",
        "--look-back-rule",
        "*/api=off",
    ];
    let agent = started(&node, &rules)?;
    wait_for_mode(&agent, &web, v1::LookBackMode::Headers)?;
    wait_for_mode(&agent, &api, v1::LookBackMode::Off)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    send(&web, &api, 9000)?;
    let at = std::net::SocketAddr::from((api.ipv4(), 8080));
    traffic::tcp_exchange(web.netns(), api.netns(), at, 100_000)?;
    let (rings, markers) = markers_in_rings(&agent)?;
    ensure!(rings > 0 && markers == 0, "{markers} in {rings} rings");

    let (state, capture) = past(&agent, &web, "udp port 9000")?;
    assert_eq!(capture.packets.len() as u64, PACKETS);
    for packet in &capture.packets {
        assert_eq!((packet.data.len(), packet.original_len), (42, 400));
        assert!(packet.comments[0].starts_with("look-back; headers only"));
    }
    assert!(
        state.message.contains("by their headers alone"),
        "{state:?}"
    );

    let (_, capture) = past(&agent, &web, "tcp and len > 100")?;
    ensure!(!capture.packets.is_empty());
    for packet in &capture.packets {
        assert_eq!(Some(packet.data.len()), headers(&packet.data));
        assert!(packet.original_len > 100);
    }

    // What asks for headers has its verdict; what asks for payload gets what libpcap says of the
    // file: nothing, and the user is told why.
    let (state, capture) = past(&agent, &web, "udp[8:4] = 0x524d5254")?;
    assert!(capture.packets.is_empty());
    assert!(state.message.contains("takes none of them"), "{state:?}");
    let (state, _) = past(&agent, &web, "udp")?;
    let file = agent.file(&state);
    let tcpdump = |filter: &str| {
        let mut tcpdump = run::command("tcpdump");
        tcpdump.args(["-nr"]).arg(&file).arg(filter);
        run::output(&mut tcpdump).map(|text| text.lines().count() as u64)
    };
    assert_eq!(tcpdump("udp[8:4] = 0x524d5254")?, 0);
    assert_eq!(tcpdump("udp dst port 9000 and len = 400")?, PACKETS);

    // Of a pod that is off there is nothing.
    let (state, capture) = past(&agent, &api, "udp")?;
    assert!(capture.packets.is_empty() && state.message.contains("nothing was recorded"));
    let shown = run::output(run::command(run::remora_program("remora")?).args([
        "--agent",
        &agent.address(),
        "status",
    ]))?;
    assert!(shown.contains("veth-api: off"), "{shown}");
    assert!(shown.contains("veth-web: headers, "), "{shown}");
    Ok(())
}

#[test]
fn nobody_is_recorded_with_payload_before_it_is_known_who_it_is() -> Result<()> {
    let node = Node::new()?;
    let api = node.pod("api")?;
    let agent = started(&node, &["--look-back-rule", "*/secret=headers"])?;
    wait_for_mode(&agent, &api, v1::LookBackMode::Payload)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    // Known after a second: a busy machine may need longer to send, and then takes another pod.
    let mut pods = (0..10).map(|number| node.pod(&format!("web{number}")));
    let web = loop {
        let web = pods.next().context("ten pods were known too soon")??;
        wait::until(
            LIMIT,
            "the pod's ring",
            || Ok(mode(&agent, &web)?.is_some()),
        )?;
        send(&api, &web, 9001)?;
        if mode(&agent, &web)? == Some(v1::LookBackMode::Headers) {
            break web;
        }
    };
    wait_for_mode(&agent, &web, v1::LookBackMode::Payload)?;
    send(&api, &web, 9002)?;
    // The control of the test above: here it is found.
    ensure!(markers_in_rings(&agent)?.1 > 0);
    let (_, capture) = past(&agent, &web, "udp dst portrange 9001-9002")?;
    let lens: Vec<usize> = capture.packets.iter().map(|p| p.data.len()).collect();
    let mut expected = vec![42; PACKETS as usize];
    expected.extend(vec![400; PACKETS as usize]);
    assert_eq!(lens, expected);

    let api_was = mode(&agent, &api)?;
    let secret = node.pod("secret")?;
    wait::until(MODE_LIMIT, "its names", || {
        let taps = agent.status()?.taps;
        let mut taps = taps.iter();
        Ok(taps.any(|tap| tap.description.contains(secret.container_id())))
    })?;
    wait::pace(Duration::from_secs(3))?;
    assert_eq!(mode(&agent, &secret)?, Some(v1::LookBackMode::Headers));
    assert_eq!(mode(&agent, &api)?, api_was);
    Ok(())
}

#[test]
fn who_turns_out_to_be_private_leaves_nothing_of_what_was_kept_before() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    // The rule is for a cgroup that does not exist yet.
    let rules = [
        "--look-back-rule",
        "*/web/private=headers",
        "--look-back-rule",
        "*/api=headers",
    ];
    let agent = started(&node, &rules)?;
    wait_for_mode(&agent, &web, v1::LookBackMode::Payload)?;
    wait_for_mode(&agent, &api, v1::LookBackMode::Headers)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    send(&web, &api, 9000)?;
    ensure!(markers_in_rings(&agent)?.1 >= PACKETS as usize);
    let private = web.cgroup().child("private")?;
    fs::write(
        private.directory().join("cgroup.procs"),
        web.pid().to_string(),
    )?;
    wait_for_mode(&agent, &web, v1::LookBackMode::Headers)?;
    wait::until(LIMIT, "rings without payload", || {
        Ok(markers_in_rings(&agent)?.1 == 0)
    })?;
    let (_, capture) = past(&agent, &web, "udp port 9000")?;
    assert!(capture.packets.is_empty(), "{:?}", capture.packets);
    Ok(())
}

#[test]
fn a_tool_of_the_node_behind_a_veth_has_the_node_s_mode() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    // As who sets a network up: in the node's own cgroup, in the pod's network.
    let tool = node.spawn(web.netns().command("sleep").arg("600"), "tool")?;
    fs::write(cgroup::root()?.join("cgroup.procs"), tool.pid().to_string())?;
    let agent = started(&node, &["--look-back-rule", "*/secret=headers"])?;
    wait_for_mode(&agent, &web, v1::LookBackMode::Payload)
}

#[test]
fn a_node_s_mode_is_its_pods() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    for (name, wanted) in [
        ("headers", v1::LookBackMode::Headers),
        ("off", v1::LookBackMode::Off),
        ("payload", v1::LookBackMode::Payload),
    ] {
        let agent = started(&node, &["--look-back-mode", name])?;
        wait_for_mode(&agent, &web, wanted)?;
    }
    for wrong in [
        ["--look-back-mode", "some"],
        ["--look-back-rule", "*=some"],
        ["--look-back-rule", "web"],
    ] {
        let error = format!("{:?}", started(&node, &wrong).err().context("it started")?);
        ensure!(error.contains("the agent ended"), "{error}");
    }
    Ok(())
}
