//! Many pods at once: how soon each is recorded and can be captured. Times are those of a shared machine: they are
//! shown, not asserted.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use remora_proto::v1::target::Target;
use remora_tests::{
    agent::{Options, TestAgent, spec},
    fleet::Fleet,
    node::Node,
    numbered::Number,
    proof, wait,
};

const PODS: u16 = 250;
/// More than have a ring of full size.
const SHARING: u16 = 120;
const LIMIT: Duration = Duration::from_secs(60);

fn attached(agent: &TestAgent<'_>) -> Result<BTreeMap<String, bool>> {
    let taps = agent.status()?.taps.into_iter();
    Ok(taps
        .filter(|tap| tap.interface.starts_with("small-"))
        .map(|tap| (tap.interface.clone(), tap.look_back.is_some()))
        .collect())
}

fn wait_for_all(agent: &TestAgent<'_>, count: u16) -> Result<()> {
    wait::until(LIMIT, "all pods' interfaces", || {
        let attached = attached(agent)?;
        Ok(attached.len() == usize::from(count) && attached.values().all(|recorded| *recorded))
    })
}

fn options() -> Options {
    // A ring of 256 KiB each, and all that they send.
    let arguments = "--look-back-memory 128MiB --look-back-pod 256KiB --flow-cutoff 0";
    Options {
        arguments: arguments.split(' ').map(String::from).collect(),
        ..Options::default()
    }
}

#[test]
fn a_trigger_goes_before_the_other_interfaces_of_a_full_node() -> Result<()> {
    let node = Node::new()?;
    let fleet = Fleet::new(&node, Duration::from_millis(50))?;
    let runs: Vec<u16> = (1..=PODS).collect();
    let pods = fleet.begin(0, &runs)?;
    let begun = Instant::now();
    let agent = TestAgent::start_with(&node, options())?;
    println!("serving after {:?}", begun.elapsed());
    let last = pods.last().context("no pod")?;
    let asked = Instant::now();
    let state = agent.capture(spec(Target::CgroupPath(last.cgroup().path())))?;
    println!(
        "the last of {PODS} pods armed {:?} after that",
        asked.elapsed()
    );
    ensure!(
        state
            .taps
            .iter()
            .any(|tap| tap.interface == Fleet::interface(u32::from(PODS) - 1))
    );
    wait_for_all(&agent, PODS)?;
    println!(
        "all attached and recorded {:?} after the start",
        begun.elapsed()
    );
    wait::until(LIMIT, "a packet", || {
        Ok(agent
            .get(&state.id)?
            .counts
            .is_some_and(|counts| counts.written > 0))
    })?;
    let state = agent.stop(&state.id)?;
    let capture = proof::prove(&agent, &state)?.capture;
    let mut numbers = capture
        .packets
        .iter()
        .filter_map(|packet| Number::of_frame(&packet.data));
    ensure!(numbers.all(|number| number.run == last.run()));

    // A crowd that comes to an agent that is there.
    fleet.end(pods)?;
    wait_for_all(&agent, 0)?;
    let begun = Instant::now();
    let pods = fleet.begin(1000, &runs)?;
    let made = begun.elapsed();
    let last = pods.last().context("no pod")?;
    let asked = Instant::now();
    let state = agent.capture(spec(Target::CgroupPath(last.cgroup().path())))?;
    println!(
        "{PODS} pods made in {made:?}; the last armed {:?} after that",
        asked.elapsed()
    );
    wait_for_all(&agent, PODS)?;
    println!(
        "all attached and recorded {:?} after the last was made",
        begun.elapsed() - made
    );
    agent.stop(&state.id)?;
    fleet.end(pods)
}

#[test]
fn pods_that_come_when_all_memory_is_in_rings_get_their_share_of_it() -> Result<()> {
    let node = Node::new()?;
    let fleet = Fleet::new(&node, Duration::from_millis(50))?;
    // 64 MiB are a MiB for each of some sixty pods.
    let agent = TestAgent::start(&node)?;
    let runs: Vec<u16> = (1..=SHARING).collect();
    let (before, after) = runs.split_at(usize::from(SHARING) / 2);
    let before_them = fleet.begin(0, before)?;
    wait_for_all(&agent, SHARING / 2)?;
    let after_them = fleet.begin(1000, after)?;
    wait_for_all(&agent, SHARING)?;
    fleet.end(before_them)?;
    fleet.end(after_them)
}
