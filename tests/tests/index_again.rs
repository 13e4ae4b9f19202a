//! Interfaces that have the index of others that are gone, while the agent has not heard of it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use remora_proto::v1::target::Target;
use remora_tests::{
    agent::{Options, TestAgent, looking_back, spec},
    fleet::{Fleet, SmallPod},
    node::Node,
    numbered::Number,
    packets::Capture,
    proof, wait,
};

const LIMIT: Duration = Duration::from_secs(30);
/// Pods that come and go together: the agent takes milliseconds for each that it hears of.
const PODS: u16 = 16;
const ROUNDS: u16 = 3;
const PAUSE: Duration = Duration::from_millis(10);

/// Captures a pod with all that is kept of it; how many packets.
fn captured(agent: &TestAgent<'_>, pod: &SmallPod) -> Result<usize> {
    let target = Target::CgroupId(pod.cgroup_id());
    let Ok(state) = agent.capture(looking_back(spec(target), 60)) else {
        return Ok(0);
    };
    let state = agent.stop(&state.id)?;
    proof::law(&state.counts.context("no counts")?)?;
    let capture = Capture::read(&agent.file(&state))?;
    let numbers = capture.frames().filter_map(Number::of_frame);
    let runs: Vec<u16> = numbers.map(|number| number.run).collect();
    ensure!(
        runs.iter().all(|run| *run == pod.run()),
        "pod {} has packets of {:?}: {state:?}",
        pod.run(),
        runs.first()
    );
    Ok(runs.len())
}

#[test]
fn a_pod_has_nothing_of_who_was_behind_its_interfaces_index_before() -> Result<()> {
    let node = Node::new()?;
    let agent = TestAgent::start_with(
        &node,
        Options {
            arguments: vec!["--flow-cutoff".to_owned(), "0".to_owned()],
            ..Options::default()
        },
    )?;
    let fleet = Fleet::new(&node, PAUSE)?;
    let pid = Pid::from_raw(i32::try_from(agent.pid()?)?);
    let runs = |from: u16| (from..from + PODS).collect::<Vec<_>>();
    for round in 0..ROUNDS {
        let pods = fleet.begin(0, &runs(2 * round * PODS))?;
        for pod in &pods {
            wait::until(LIMIT, "packets of each pod", || {
                Ok(captured(&agent, pod)? > 0)
            })?;
        }
        // It hears of all of it at once, while it is asked for the last of them.
        kill(pid, Signal::SIGSTOP)?;
        let replaced = fleet
            .end(pods)
            .and_then(|()| fleet.begin(0, &runs((2 * round + 1) * PODS)));
        kill(pid, Signal::SIGCONT)?;
        let pods = replaced?;
        for pod in pods.iter().rev() {
            captured(&agent, pod)?;
        }
        for pod in &pods {
            wait::until(LIMIT, "packets of each pod that came", || {
                Ok(captured(&agent, pod)? > 0)
            })?;
        }
        fleet.end(pods)?;
    }
    Ok(())
}
