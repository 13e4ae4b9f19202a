//! A capture ends by itself, exactly where its limits say.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};
use remora_proto::v1;
use remora_tests::{
    agent::{TestAgent, of_pod_filtered},
    node::Node,
    numbered::Numbers,
    packets::Capture,
    proof, run,
    traffic::{self, Stream},
};

const FILTER: &str = "udp port 9000";
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_packet_limit_takes_the_first_packets_and_counts_the_others() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    for packets in [1, 100, 4999] {
        let limits = v1::Limits {
            packets,
            ..Default::default()
        };
        let spec = v1::CaptureSpec {
            limits: Some(limits),
            ..of_pod_filtered(&web, FILTER)
        };
        let state = agent.capture(spec)?;
        // As fast as it goes: many packets are on their way when the limit is reached.
        Stream::new(api.ipv4(), 9000, 5000).send(|tool| web.command(tool))?;
        let state = agent.wait_final(&state.id, LIMIT)?;
        assert_eq!(state.stop_reason(), v1::StopReason::Packets);
        let proven = proof::prove(&agent, &state)?;
        assert_eq!(proven.counts.written, packets);
        let numbers = Numbers::collect(1, proven.capture.frames());
        assert_eq!(numbers.missing(packets), []);
    }
    Ok(())
}

#[test]
fn a_file_never_outgrows_its_limit_and_comes_close_to_it() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    for (file_bytes, size) in [(20_000, 64), (100_000, 1400), (1_000_000, 333)] {
        let limits = v1::Limits {
            file_bytes,
            ..Default::default()
        };
        let spec = v1::CaptureSpec {
            limits: Some(limits),
            ..of_pod_filtered(&web, FILTER)
        };
        let state = agent.capture(spec)?;
        let stream = Stream {
            size,
            ..Stream::new(api.ipv4(), 9000, 8000)
        };
        stream.send(|tool| web.command(tool))?;
        let state = agent.wait_final(&state.id, LIMIT)?;
        assert_eq!(state.stop_reason(), v1::StopReason::FileBytes);
        let proven = proof::prove(&agent, &state)?;
        let len = std::fs::metadata(&proven.path)?.len();
        println!(
            "limit {file_bytes}, file {len}, {} packets",
            proven.counts.written
        );
        assert!(len <= file_bytes, "{len} bytes, limit {file_bytes}");
        // The kernel counts each block at its largest, and room is kept for the closing one.
        assert!(len * 10 > file_bytes * 8, "{len} bytes, limit {file_bytes}");
    }
    Ok(())
}

#[test]
fn a_duration_ends_in_the_kernel_and_no_packet_is_later() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let stream = Stream {
        rate: 20_000,
        ..Stream::new(api.ipv4(), 9000, 0)
    };
    let sender = stream.send_until_stopped(node.directory(), |tool| web.command(tool))?;
    let duration = Duration::from_millis(300);
    let limits = v1::Limits {
        duration: Some(prost_types::Duration {
            seconds: 0,
            nanos: 300_000_000,
        }),
        ..Default::default()
    };
    let spec = v1::CaptureSpec {
        limits: Some(limits),
        ..of_pod_filtered(&web, FILTER)
    };
    let state = agent.capture(spec)?;
    let state = agent.wait_final(&state.id, LIMIT)?;
    sender.stop()?;
    assert_eq!(state.stop_reason(), v1::StopReason::Duration);
    let proven = proof::prove(&agent, &state)?;
    let packets = &proven.capture.packets;
    let first = packets.first().context("no packets")?.time;
    let last = packets.last().context("no packets")?.time;
    assert!(last - first <= duration, "{:?}", last - first);
    // The stream never paused: but for the machine's own stalls the window is full.
    assert!(last - first > duration / 2, "{:?}", last - first);
    Ok(())
}

#[test]
fn sixty_four_captures_run_and_a_sixty_fifth_is_refused_with_the_limit() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let ids = (0..64)
        .map(|_| Ok(agent.capture(of_pod_filtered(&web, FILTER))?.id))
        .collect::<Result<Vec<_>>>()?;
    let refusal = agent.capture(of_pod_filtered(&web, FILTER)).unwrap_err();
    assert_eq!(refusal.code(), tonic::Code::ResourceExhausted);
    assert_eq!(
        refusal
            .metadata()
            .get("remora-reason")
            .context("no reason")?,
        "session_limit"
    );
    assert!(refusal.message().contains("64"), "{}", refusal.message());
    assert_eq!(agent.status()?.sessions_running, 64);

    let stream = Stream {
        rate: 5000,
        ..Stream::new(api.ipv4(), 9000, 1000)
    };
    let sent = stream.send(|tool| web.command(tool))?;
    for id in &ids {
        let state = agent.stop(id)?;
        let counts = state.counts.context("no counts")?;
        proof::law(&counts)?;
        assert_eq!((counts.matched, counts.written), (sent, sent), "{counts:?}");
        let packets = Capture::read(&agent.file(&state))?.packets.len() as u64;
        assert_eq!(packets, sent, "capture {id}");
    }
    // A slot is free again.
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    agent.stop(&state.id)?;
    Ok(())
}

#[test]
fn a_pod_that_goes_ends_its_capture_with_what_it_had() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    let stream = Stream {
        rate: 20_000,
        ..Stream::new(api.ipv4(), 9000, 1000)
    };
    let sent = stream.send(|tool| web.command(tool))?;
    drop(web);
    let state = agent.wait_final(&state.id, LIMIT)?;
    assert_eq!(
        state.stop_reason(),
        v1::StopReason::TargetGone,
        "{}",
        state.message
    );
    let proven = proof::prove(&agent, &state)?;
    assert_eq!(
        Numbers::collect(1, proven.capture.frames()).missing(sent),
        []
    );
    Ok(())
}

#[test]
fn two_agents_on_a_node_do_not_disturb_each_other() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let (one, mut other) = (TestAgent::start(&node)?, TestAgent::start(&node)?);
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let of_one = one.capture(of_pod_filtered(&web, FILTER))?;
    let of_other = other.capture(of_pod_filtered(&web, FILTER))?;
    let stream = |run| Stream {
        run,
        rate: 20_000,
        ..Stream::new(api.ipv4(), 9000, 2000)
    };
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(|| stream(1).send(|tool| web.command(tool)));
        sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let proven = proof::prove(&other, &other.stop(&of_other.id)?)?;
    assert_eq!(
        Numbers::collect(1, proven.capture.frames()).missing(sent),
        []
    );
    let killed = other.end_by(nix::sys::signal::Signal::SIGKILL)?;
    assert!(run::killed_by(killed).is_some());
    let more = stream(2).send(|tool| web.command(tool))?;
    let proven = proof::prove(&one, &one.stop(&of_one.id)?)?;
    assert_eq!(
        Numbers::collect(1, proven.capture.frames()).missing(sent),
        []
    );
    assert_eq!(
        Numbers::collect(2, proven.capture.frames()).missing(more),
        []
    );
    Ok(())
}
