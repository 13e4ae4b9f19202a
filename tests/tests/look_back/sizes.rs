//! How large the rings are, how far they reach, and what says so.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use remora_tests::{
    agent::{TestAgent, looking_back, of_pod_filtered, recorded},
    node::{Node, Pod},
    proof,
    traffic::{self, Stream},
    wait,
};

use crate::{FILTER, LIMIT, options, parted, sequences};

/// The account of a capture that asks for more than the ring has, and what the status and the metric say.
#[test]
fn a_look_back_beyond_the_ring_says_how_far_it_reaches() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let pod = ["--flow-cutoff", "0", "--look-back-pod", "145KiB"];
    let agent = TestAgent::start_with(&node, options(&pod))?;
    recorded(&agent, &[&web])?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    // Two rings of it, in two seconds.
    let stream = Stream {
        size: 1400,
        rate: 100,
        ..Stream::new(api.ipv4(), 9000, 200)
    };
    stream.send(|tool| web.command(tool))?;
    // Before, and right after: it reaches as far as the ring did in between.
    let before = reach(&agent, &web)?;
    let state = agent.capture(looking_back(of_pod_filtered(&web, FILTER), 60))?;
    let state = agent.stop(&state.id)?;
    let proven = proof::prove(&agent, &state)?;
    let (past, _) = parted(&proven.capture)?;
    let sequences = sequences(past);
    assert_eq!(sequences.last(), Some(&199));
    assert!(sequences.is_sorted() && sequences[0] > 20, "{sequences:?}");

    let told = state.message.split("it reaches ").nth(1);
    let told = told.and_then(|told| told.split_once(" s back, 60.0 s were asked for"));
    let (told, _) = told.with_context(|| state.message.clone())?;
    let told = Duration::from_secs_f64(told.parse()?);
    let span = past.last().context("none")?.time - past.first().context("none")?.time;
    // The message has tenths of a second, and what was sent before the oldest packet is overwritten.
    let tenth = Duration::from_millis(100);
    assert!(
        told + tenth >= span.max(before),
        "{told:?} told, {before:?} and {span:?} found"
    );
    assert!(
        before + tenth >= span,
        "the status says {before:?}, packets {span:?}"
    );
    Ok(())
}

/// How far the pod's ring reaches back, as the status says; the metric agrees.
fn reach(agent: &TestAgent<'_>, pod: &Pod) -> Result<Duration> {
    let of_status = || -> Result<Duration> {
        let taps = agent.status()?.taps;
        let tap = taps.iter().find(|tap| tap.interface == pod.interface());
        let ring = tap.and_then(|tap| tap.look_back).context("no ring")?;
        Ok(Duration::from_millis(ring.reach_ms))
    };
    let before = of_status()?;
    let metrics = agent.metrics()?;
    let after = of_status()?;
    let line = metrics
        .lines()
        .find(|line| {
            line.starts_with("remora_look_back_reach_seconds") && line.contains(pod.interface())
        })
        .with_context(|| metrics.clone())?;
    let value = line.rsplit(' ').next().context("no value")?;
    let told = Duration::from_secs_f64(value.parse()?);
    ensure!(
        (before..=after).contains(&told),
        "{before:?}, {line}, {after:?}"
    );
    Ok(after)
}

#[test]
fn memory_for_less_than_one_pod_is_refused_and_for_one_is_enough() -> Result<()> {
    let node = Node::new()?;
    // A page takes 144 KiB, and two rings lie ready.
    for (memory, pod, refused) in [
        ("100KiB", "1MiB", "too few for one pod's look-back ring"),
        ("300KiB", "1MiB", "use 442752 or more"),
        ("64MiB", "100KiB", "100KiB a pod"),
    ] {
        let arguments = ["--look-back-memory", memory, "--look-back-pod", pod];
        let agent = TestAgent::start_with(&node, options(&arguments));
        let error = format!("{:?}", agent.err().context("it started")?);
        let refused = refused.replace("100KiB", "102400 bytes");
        assert!(error.contains(&refused), "{error}");
    }
    let web = node.pod("web")?;
    let agent = TestAgent::start_with(&node, options(&["--look-back-memory", "433KiB"]))?;
    recorded(&agent, &[&web])?;
    // A second one has no room, and the first keeps its own.
    let api = node.pod("api")?;
    wait::until(LIMIT, "the second pod's tap", || {
        Ok(agent.status()?.taps.len() == 2)
    })?;
    let state = agent.capture(looking_back(of_pod_filtered(&api, FILTER), 5))?;
    let state = agent.stop(&state.id)?;
    assert!(
        state.message.contains("nothing was recorded"),
        "{}",
        state.message
    );
    recorded(&agent, &[&web])
}

/// The size of the pod's ring, once it is another one than `before`.
fn size_beside(agent: &TestAgent<'_>, pod: &Pod, before: u64) -> Result<u64> {
    wait::until_some(LIMIT, "a ring of another size", || {
        let taps = agent.status()?.taps;
        let tap = taps.iter().find(|tap| tap.interface == pod.interface());
        let bytes = tap.and_then(|tap| tap.look_back).map(|ring| ring.bytes);
        Ok(bytes.filter(|bytes| *bytes != before))
    })
}

#[test]
fn a_ring_shrinks_for_pods_that_come_grows_when_they_go_and_forgets_nothing_meanwhile() -> Result<()>
{
    /// Memory of a page, in bytes.
    const PAGE: u64 = 147_584;
    /// Two rings lie ready beside those of the pods, and copies take what is left.
    const MEMORY: u64 = 17 * PAGE;
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let memory = MEMORY.to_string();
    let arguments = ["--flow-cutoff", "0", "--look-back-memory", &memory];
    let agent = TestAgent::start_with(&node, options(&arguments))?;
    recorded(&agent, &[&web, &api])?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    // The first was made when there was one.
    wait::until(LIMIT, "its share of two", || {
        Ok(size_beside(&agent, &web, 0)? == 4 * PAGE)
    })?;
    let stream = Stream {
        rate: 50,
        ..Stream::new(api.ipv4(), 9000, 0)
    };
    let sender = stream.send_until_stopped(node.directory(), |tool| web.command(tool))?;
    // All that the ring has had, without a gap, and more than before.
    let mut had = 0;
    let mut looks_back = |what: &str| -> Result<()> {
        wait::until(LIMIT, "new packets", || {
            let state = agent.capture(looking_back(of_pod_filtered(&web, FILTER), 600))?;
            let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
            let (past, _) = parted(&proven.capture)?;
            let all = sequences(&proven.capture.packets);
            // At the very first there may be none yet, which is not more either.
            ensure!(
                all.first().is_none_or(|first| *first == 0)
                    && all.windows(2).all(|two| two[0] + 1 == two[1]),
                "{what}: {past} from before; {}",
                state.message,
                past = past.len()
            );
            let is_more = past.len() > had;
            had = had.max(past.len());
            Ok(is_more)
        })
    };
    looks_back("two pods")?;
    let others = [node.pod("one")?, node.pod("two")?];
    assert_eq!(size_beside(&agent, &web, 4 * PAGE)?, 2 * PAGE);
    recorded(&agent, &[&others[0], &others[1]])?;
    looks_back("four pods")?;
    // For less than the double, as when the first of them goes, it is not made anew.
    drop(others);
    assert_eq!(size_beside(&agent, &web, 2 * PAGE)?, 4 * PAGE);
    looks_back("two pods again")?;
    sender.stop()?;
    Ok(())
}
