//! A storm in the middle of which the controller or the agent is killed: whatever was answered is found
//! again.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_tests::{
    agent::{Options, TestAgent},
    controller::TestController,
    run, wait,
};

use crate::{
    RULES, Scene, law, report,
    senders::{self, Alert, Answer, Sender},
    unlimited,
};

const ALERTS: usize = 400;
const LIMIT: Duration = Duration::from_secs(60);

/// Sends all and calls `meanwhile` when a third is answered.
fn storm<T>(
    scene: &Scene,
    to: std::net::SocketAddr,
    alerts: &[Alert],
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<(Vec<Answer>, T)> {
    let sent = AtomicUsize::new(0);
    let begun = Instant::now();
    let (answers, value) = thread::scope(|scope| -> Result<_> {
        let senders =
            scope.spawn(|| senders::send(scene.node.netns(), to, alerts, Sender::Repeats, &sent));
        wait::until(LIMIT, "a third of the answers", || {
            Ok(sent.load(Ordering::Relaxed) > alerts.len() / 3)
        })?;
        let value = meanwhile()?;
        match senders.join() {
            Ok(answers) => Ok((answers?, value)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    report("storm with a kill", &answers, begun.elapsed());
    Ok((answers, value))
}

#[test]
fn a_controller_that_is_killed_and_started_again_counts_no_alert_twice() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start_with(&scene.node, unlimited())?;
    let mut controller = TestController::start(&agent, RULES)?;
    let alerts = scene.alerts(ALERTS, 3)?;
    let address = controller.address();
    let (answers, _controller) = storm(&scene, address, &alerts, || {
        let status = controller.end_by(Signal::SIGKILL)?;
        ensure!(run::killed_by(status) == Some(Signal::SIGKILL), "{status}");
        TestController::start(&agent, RULES)
    })?;
    for state in agent.list(false)? {
        agent.stop(&state.id)?;
    }
    // The agent has outlived it: its law holds to the alert, and each alert is there once.
    let manifests = law::manifests(&agent)?;
    let counted = law::counted(&agent.metrics()?, law::OF_AGENT)?;
    assert_eq!(manifests.len() as u64, counted["accepted"]);
    assert_eq!(law::joined(&manifests), counted["coalesced"]);
    assert_eq!(counted["accepted"] + counted["coalesced"], ALERTS as u64);
    law::kept(&manifests, &alerts, &answers)?;
    for (digest, times) in law::times(&manifests, &alerts) {
        assert_eq!(times, 1, "of alert {digest}");
    }
    Ok(())
}

#[test]
fn what_an_agent_answered_before_it_was_killed_is_in_a_manifest_of_the_next() -> Result<()> {
    agent_killed(unlimited(), Pinned::No)
}

#[test]
fn captures_that_outlive_their_agent_are_joined_by_the_alerts_after_it() -> Result<()> {
    let options = Options {
        pin: true,
        ..unlimited()
    };
    agent_killed(options, Pinned::Yes)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pinned {
    No,
    Yes,
}

fn agent_killed(options: Options, pinned: Pinned) -> Result<()> {
    let scene = Scene::new()?;
    let mut agent = TestAgent::start_with(&scene.node, options)?;
    let controller = TestController::start(&agent, RULES)?;
    let alerts = scene.alerts(ALERTS, 3)?;
    let (answers, ()) = storm(&scene, controller.address(), &alerts, || {
        let status = agent.end_by(Signal::SIGKILL)?;
        ensure!(run::killed_by(status) == Some(Signal::SIGKILL), "{status}");
        agent.start_again()
    })?;
    for state in agent.list(false)? {
        agent.stop(&state.id)?;
    }
    let manifests = law::manifests(&agent)?;
    law::kept(&manifests, &alerts, &answers)?;
    let undecided = answers.iter().find(|answer| answer.capture.is_none());
    ensure!(undecided.is_none(), "{undecided:?}");
    // One that was accepted and not answered was sent again, to an agent that may not know it.
    let times = law::times(&manifests, &alerts);
    let (lowest, twice) = (
        times.values().min().context("no alert")?,
        times.values().filter(|times| **times > 1).count(),
    );
    ensure!(*lowest >= 1, "an alert is in no manifest");
    println!(
        "{} manifests, {twice} alerts in two of them",
        manifests.len()
    );
    // Nine captures, as many again after the kill, or the same.
    let expected = match pinned {
        Pinned::No => 10..=18,
        Pinned::Yes => 9..=9,
    };
    ensure!(
        expected.contains(&manifests.len()),
        "{} manifests",
        manifests.len()
    );
    Ok(())
}
