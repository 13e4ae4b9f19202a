//! A flood takes its own share of a ring that nobody reads, and no other capture's.

use anyhow::Result;
use nix::sys::signal::Signal;
use remora_tests::{
    agent::{Options, TestAgent, of_pod_filtered},
    node::{Node, Pod},
    numbered::Numbers,
    proof::{self, Proven},
    traffic::{self, Stream},
    veth,
};

const FLOOD: u16 = 1;
const QUIET: u16 = 2;
/// Fewer than what a sixteenth of the ring holds: the share of one of two.
const QUIET_PACKETS: u64 = 200;
/// More than the whole ring holds.
const FLOOD_PACKETS: u64 = 20_000;

fn agent(node: &Node) -> Result<TestAgent<'_>> {
    let options = Options {
        ring_size: "1MiB".into(),
        ..Options::default()
    };
    TestAgent::start_with(node, options)
}

/// Floods from `web`, and beside that from `quiet` a packet now and then, while nobody reads the ring;
/// how many of each were sent.
fn flood_beside(
    agent: &mut TestAgent<'_>,
    [web, quiet, api]: [&Pod; 3],
    port: u16,
) -> Result<[u64; 2]> {
    let flood = |count| Stream {
        run: FLOOD,
        ..Stream::new(api.ipv4(), 9000, count)
    };
    // The ring's reader is a thread of the agent.
    agent.process()?.signal(Signal::SIGSTOP)?;
    let first = flood(FLOOD_PACKETS).send(|tool| web.command(tool))?;
    let sender = Stream { run: 3, ..flood(0) };
    let directory = agent.node().directory();
    let sender = sender.send_until_stopped(directory, |tool| web.command(tool))?;
    let stream = Stream {
        run: QUIET,
        rate: 1000,
        ..Stream::new(api.ipv4(), port, QUIET_PACKETS)
    };
    let sent = stream.send(|tool| quiet.command(tool))?;
    let more = sender.stop()?;
    agent.process()?.signal(Signal::SIGCONT)?;
    Ok([first + more, sent])
}

/// Nothing of the quiet one is lost, most of the flood is, and all of that is counted.
fn held_apart(flood: &Proven, quiet: &Proven, sent: u64, never_there: u64) -> Result<()> {
    println!("flood: {:?}\nquiet: {:?}", flood.counts, quiet.counts);
    assert!(flood.counts.lost > FLOOD_PACKETS / 2, "no flood");
    assert_eq!(flood.missing(), flood.counts.lost);
    proof::complete(&quiet.counts)?;
    let numbers = Numbers::collect(QUIET, quiet.capture.frames());
    assert_eq!(numbers.duplicates(), 0);
    assert_eq!(numbers.missing_count(sent), never_there);
    Ok(())
}

#[test]
fn a_flood_that_nobody_reads_costs_another_pods_capture_no_packet() -> Result<()> {
    let node = Node::new()?;
    let (web, db, api) = (node.pod("web")?, node.pod("db")?, node.pod("api")?);
    let mut agent = agent(&node)?;
    let _sinks =
        [9000, 9001].map(|port| traffic::sink(port, node.directory(), |tool| api.command(tool)));
    let flood = agent.capture(of_pod_filtered(&web, "udp port 9000"))?;
    let quiet = agent.capture(of_pod_filtered(&db, "udp port 9001"))?;
    let [flooded, sent] = flood_beside(&mut agent, [&web, &db, &api], 9001)?;
    let quiet = proof::prove(&agent, &agent.stop(&quiet.id)?)?;
    let flood = proof::prove(&agent, &agent.stop(&flood.id)?)?;
    let never_there = veth::receive_dropped(node.netns(), web.interface())?;
    assert_eq!(flood.counts.matched, flooded - never_there);
    let never_there = veth::receive_dropped(node.netns(), db.interface())?;
    held_apart(&flood, &quiet, sent, never_there)
}

#[test]
fn of_one_pods_packets_a_narrow_capture_has_all_where_a_wide_one_has_lost_them() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let mut agent = agent(&node)?;
    let _sinks =
        [9000, 9001].map(|port| traffic::sink(port, node.directory(), |tool| api.command(tool)));
    let wide = agent.capture(of_pod_filtered(&web, "udp"))?;
    let narrow = agent.capture(of_pod_filtered(&web, "udp port 9001"))?;
    let [flooded, sent] = flood_beside(&mut agent, [&web, &web, &api], 9001)?;
    let narrow = proof::prove(&agent, &agent.stop(&narrow.id)?)?;
    let wide = proof::prove(&agent, &agent.stop(&wide.id)?)?;
    let never_there = veth::receive_dropped(node.netns(), web.interface())?;
    assert_eq!(wide.counts.matched, flooded + sent - never_there);
    // How many of these were the flood's is not told.
    let of_narrow = sent - narrow.counts.matched;
    assert!(of_narrow <= never_there, "{of_narrow} are nowhere");
    held_apart(&wide, &narrow, sent, of_narrow)
}

/// What is left of a loss is told before the session's next packet, also when it is its share's.
#[test]
fn what_was_lost_beyond_a_share_is_told_in_the_file() -> Result<()> {
    let node = Node::new()?;
    let (web, db, api) = (node.pod("web")?, node.pod("db")?, node.pod("api")?);
    let mut agent = agent(&node)?;
    let _sinks =
        [9000, 9001].map(|port| traffic::sink(port, node.directory(), |tool| api.command(tool)));
    let flood = agent.capture(of_pod_filtered(&web, "udp port 9000"))?;
    let quiet = agent.capture(of_pod_filtered(&db, "udp port 9001"))?;
    flood_beside(&mut agent, [&web, &db, &api], 9001)?;
    // On each CPU, that both tell theirs.
    let cpus = std::thread::available_parallelism()?.get();
    let of_cpu = |cpu: usize| u16::try_from(4 + cpu);
    for cpu in 0..cpus {
        let last = Stream {
            run: of_cpu(cpu)?,
            rate: 1000,
            cpu: Some(cpu),
            ..Stream::new(api.ipv4(), 9000, 20)
        };
        last.send(|tool| web.command(tool))?;
    }
    let flood = proof::prove(&agent, &agent.stop(&flood.id)?)?;
    proof::complete(&agent.stop(&quiet.id)?.counts.unwrap_or_default())?;
    let told: u64 = flood.capture.packets.iter().map(|p| p.dropped).sum();
    assert_eq!(told, flood.counts.lost, "{:?}", flood.counts);
    for cpu in 0..cpus {
        let last = Numbers::collect(of_cpu(cpu)?, flood.capture.frames());
        assert_eq!(last.duplicates(), 0);
    }
    Ok(())
}
