//! Filters become machine code while packets pass.

use std::time::Duration;

use anyhow::{Context as _, Result};
use remora_capture::filter::{Filter, Names, compiler};
use remora_proto::v1;
use remora_tests::{
    agent::{TestAgent, of_pod_filtered},
    node::{Node, Pod},
    numbered::Numbers,
    proof,
    traffic::{self, Stream},
    wait,
};

const LIMIT: Duration = Duration::from_secs(20);
/// The pod's interface, and its cgroup.
const TAPS: u64 = 2;

/// With the filter's programs, if terms cannot say it.
fn spec(pod: &Pod, text: &str) -> Result<v1::CaptureSpec> {
    let filter = Filter::compile(text, compiler(Names::LookedUp))?;
    Ok(v1::CaptureSpec {
        programs: filter.meaning().programs().map(Into::into),
        ..of_pod_filtered(pod, text)
    })
}

fn metric(agent: &TestAgent<'_>, name: &str) -> Result<u64> {
    let metrics = agent.metrics()?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.context("no such metric")?.trim().parse()?)
}

/// Programs that the agent has made since its start.
fn loaded(agent: &TestAgent<'_>) -> Result<u64> {
    metric(agent, "remora_filter_programs_loaded_total ")
}

#[test]
fn nothing_is_missed_or_doubled_while_programs_are_swapped_a_thousand_times() -> Result<()> {
    const SWAPS: u64 = 1000;
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let watched = agent.capture(spec(&web, "udp[2:2] = 9000")?)?;
    wait::until(LIMIT, "the taps' programs", || Ok(loaded(&agent)? >= TAPS))?;
    let sender = Stream::new(api.ipv4(), 9000, 0)
        .send_until_stopped(node.directory(), |tool| web.command(tool))?;
    agent.wait_state(&watched.id, "traffic", |state| {
        state.counts.is_some_and(|counts| counts.written > 0)
    })?;
    let mut round = 0;
    // Each round changes the sessions twice; a change may be made into a program with the next.
    while loaded(&agent)? < TAPS + SWAPS {
        // One that takes all of it, one that takes none, one that takes some; terms among them.
        let others = ["udp port 9000", "tcp", "udp[2:2] = 1", "udp[20] & 1 = 0"];
        let other = others[round % others.len()];
        let state = agent.capture(spec(&web, other)?)?;
        agent.wait_state(&state.id, "packets", |state| {
            let seen = |counts: v1::Counts| counts.seen > 0;
            state.counts.is_some_and(seen)
        })?;
        agent.stop(&state.id)?;
        round += 1;
    }
    let sent = sender.stop()?;
    let swaps = loaded(&agent)?;
    assert_eq!(metric(&agent, "remora_filter_programs_refused_total ")?, 0);
    let state = agent.stop(&watched.id)?;
    let counts = state.counts.context("counts")?;
    proof::law(&counts)?;
    let file = proof::prove_file(&agent.file(&state), &counts)?;
    let numbers = Numbers::collect(1, file.frames());
    println!(
        "{swaps} programs, {sent} packets sent, {} in the file",
        counts.written
    );
    // Every packet was matched once; what found no room was counted.
    assert_eq!(counts.matched, sent);
    assert_eq!(numbers.duplicates() + numbers.foreign, 0);
    assert_eq!(numbers.distinct(), counts.written);
    assert_eq!(numbers.missing_count(sent), sent - counts.written);
    Ok(())
}
