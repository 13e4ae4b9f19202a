//! Storms of alerts: each is accepted, coalesced or refused with a reason, and found again; captures that
//! run already lose nothing.

mod hostile;
mod killed;
mod law;
mod senders;

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::AtomicUsize,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use remora_tests::{
    agent::{Options, TestAgent, of_pod_filtered},
    controller::TestController,
    http::Request,
    latency,
    node::{Node, Pod},
    numbered::Numbers,
    proof,
    traffic::{self, Sink, Stream},
    veth,
};

use senders::{Alert, Answer, Sender};

const PORT: u16 = 9000;
const FILTER: &str = "udp port 9000";
const ALERTS: usize = 1000;

/// One rule, and endpoints each of which is a capture of its own.
const RULES: &str = r#"
- action: Capture C2 endpoint
  actionner: remora:capture
  parameters:
    duration: 120s
- rule: C2 traffic
  match:
    rules: [Outbound Connection to C2 Servers]
  actions:
    - action: Capture C2 endpoint
"#;

/// A node with three pods.
struct Scene {
    pods: [Pod; 3],
    _sink: Sink,
    node: Node,
}

impl Scene {
    fn new() -> Result<Self> {
        let node = Node::new()?;
        let pods = [node.pod("web")?, node.pod("api")?, node.pod("db")?];
        let sink = traffic::sink(PORT, node.directory(), |tool| pods[1].command(tool))?;
        Ok(Self {
            pods,
            _sink: sink,
            node,
        })
    }

    /// Alerts of all pods, each of some of `endpoints`.
    fn alerts(&self, count: usize, endpoints: usize) -> Result<Vec<Alert>> {
        (0..count)
            .map(|number| {
                let pod = &self.pods[number % self.pods.len()];
                let endpoint = (number / self.pods.len()) % endpoints;
                Alert::new(pod, remote(endpoint)?, number)
            })
            .collect()
    }
}

fn remote(number: usize) -> Result<SocketAddr> {
    let host = u8::try_from(1 + number % 250)?;
    Ok((Ipv4Addr::new(198, 51, 100, host), 4444).into())
}

/// An agent whose rates refuse nobody.
fn unlimited() -> Options {
    let off = ["--rate-node", "--rate-namespace", "--rate-rule"];
    Options {
        arguments: off.iter().map(|flag| format!("{flag}=off")).collect(),
        ..Options::default()
    }
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().split(' ').next());
    Ok(number.context("no VmRSS")?.parse()?)
}

fn report(what: &str, answers: &[Answer], took: Duration) {
    let times: Vec<_> = answers.iter().map(|answer| answer.took).collect();
    let at = |share| latency::quantile(&times, share).as_secs_f64() * 1e3;
    println!(
        "{what}: {} alerts in {:.2} s, answered p50 {:.1} ms, p99 {:.1} ms, at most {:.1} ms: {:?}",
        answers.len(),
        took.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0),
        law::decisions(answers)
    );
}

fn metrics(controller: &TestController<'_>) -> Result<String> {
    Ok(controller.request(Request::get("/metrics"))?.body)
}

#[test]
fn of_a_thousand_alerts_each_is_accounted_for_and_running_captures_lose_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start(&scene.node)?;
    let controller = TestController::start(&agent, RULES)?;
    let [web, api, _] = &scene.pods;
    // Before the storm.
    let never_there = veth::receive_dropped(scene.node.netns(), web.interface())?;
    let running = agent.capture(of_pod_filtered(web, FILTER))?.id;
    let stream = Stream {
        rate: 5000,
        ..Stream::new(api.ipv4(), PORT, 0)
    };
    let sender = stream.send_until_stopped(scene.node.directory(), |tool| web.command(tool))?;
    let before = [resident(agent.pid()?)?, resident(controller.pid())?];

    // More endpoints than the rule's rate has room for, and each tenth alert twice.
    let mut alerts = scene.alerts(ALERTS, 10)?;
    for number in (0..ALERTS).step_by(10) {
        alerts.push(alerts[number].clone());
    }
    let begun = Instant::now();
    let answers = senders::send(
        scene.node.netns(),
        controller.address(),
        &alerts,
        Sender::Once,
        &AtomicUsize::new(0),
    )?;
    let took = begun.elapsed();
    let after = [resident(agent.pid()?)?, resident(controller.pid())?];
    report("storm", &answers, took);
    for (who, before, after) in [
        ("agent", before[0], after[0]),
        ("controller", before[1], after[1]),
    ] {
        let more = after.saturating_sub(before);
        println!("{who}: {before} KiB resident before, {more} KiB more after");
    }

    let sent = sender.stop()?;
    let never_there = veth::receive_dropped(scene.node.netns(), web.interface())? - never_there;
    let proven = proof::prove(&agent, &agent.stop(&running)?)?;
    proof::complete(&proven.counts)?;
    let frames = proven.capture.packets.iter().map(|p| p.data.as_slice());
    let numbers = Numbers::collect(1, frames);
    assert_eq!((numbers.foreign, numbers.duplicates()), (0, 0));
    assert_eq!(numbers.missing_count(sent), never_there);
    println!("{sent} packets of a capture that ran, none lost");

    assert_law(&agent, &controller, &alerts, &answers, 1)?;
    let decisions = law::decisions(&answers);
    // The default rate of a rule; what is filled up meanwhile comes on top.
    ensure!(decisions["accepted"] >= 16, "{decisions:?}");
    ensure!(decisions["coalesced"] > 100, "{decisions:?}");
    ensure!(decisions["existing"] > 0, "{decisions:?}");
    // One rule in one namespace: whichever of their rates is used up first.
    let rates = ["refused rule_rate", "refused namespace_rate"];
    ensure!(
        rates.iter().any(|rate| decisions.contains_key(*rate)),
        "{decisions:?}"
    );
    for answer in &answers {
        let expected = match (&answer.capture, answer.is_passing()) {
            (Some(_), _) => 202,
            (None, false) => 429,
            // The machine is so busy that the agent did not answer in time.
            (None, true) => 503,
        };
        assert_eq!(answer.status, expected, "{answer:?}");
    }
    Ok(())
}

/// Ends all captures; then all that is told of the alerts is the same. `others`: captures that no alert
/// began.
fn assert_law(
    agent: &TestAgent<'_>,
    controller: &TestController<'_>,
    alerts: &[Alert],
    answers: &[Answer],
    others: u64,
) -> Result<()> {
    for state in agent.list(false)? {
        agent.stop(&state.id)?;
    }
    let manifests = law::manifests(agent)?;
    let decisions = law::decisions(answers);
    let told = |decision: &str| decisions.get(decision).copied().unwrap_or_default();
    let by_controller = law::counted(&metrics(controller)?, law::OF_CONTROLLER)?;
    let by_agent = law::counted(&agent.metrics()?, law::OF_AGENT)?;
    for decision in ["accepted", "coalesced", "existing"] {
        assert_eq!(by_controller[decision], told(decision), "{decision}");
    }
    let sum: u64 = by_controller.values().sum();
    assert_eq!(sum, alerts.len() as u64);
    assert_eq!(manifests.len() as u64, by_agent["accepted"]);
    assert_eq!(law::joined(&manifests), by_agent["coalesced"]);
    law::kept(&manifests, alerts, answers)?;
    // What the agent answered too late, for its caller, it has all the same.
    let late = answers.iter().filter(|answer| answer.is_passing());
    let late: BTreeSet<_> = late.map(|a| alerts[a.alert].digest()).collect();
    for (decision, more) in [("accepted", others), ("coalesced", 0), ("existing", 0)] {
        let (told, by_agent) = (told(decision) + more, by_agent[decision]);
        ensure!(
            (told..=told + late.len() as u64).contains(&by_agent),
            "{decision}: {told} told, {by_agent} by the agent, {} late",
            late.len()
        );
    }
    // A repeated alert is in one manifest, once.
    let settled = answers.iter().filter(|answer| answer.capture.is_some());
    let settled: BTreeSet<_> = settled.map(|a| alerts[a.alert].digest()).collect();
    for (digest, times) in law::times(&manifests, alerts) {
        let expected = usize::from(settled.contains(&digest));
        ensure!(
            times == expected || (times == 1 && late.contains(&digest)),
            "{times} times, not {expected}: {digest}"
        );
    }
    for (id, manifest) in &manifests {
        if manifest.amendments.is_empty() {
            continue;
        }
        let lasts = manifest.limits.duration.context("no duration")?;
        ensure!(lasts > Duration::from_secs(120), "{id} lasts {lasts:?}");
    }
    Ok(())
}

#[test]
fn the_same_packets_are_one_capture_and_others_are_others() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start_with(&scene.node, unlimited())?;
    let controller = TestController::start(&agent, RULES)?;
    // Three pods with two endpoints each.
    let alerts = scene.alerts(60, 2)?;
    let begun = Instant::now();
    let answers = senders::send(
        scene.node.netns(),
        controller.address(),
        &alerts,
        Sender::Repeats,
        &AtomicUsize::new(0),
    )?;
    report("six captures", &answers, begun.elapsed());
    let captures: BTreeSet<_> = answers.iter().filter_map(|a| a.capture.as_ref()).collect();
    assert_eq!(captures.len(), 6);
    let counted = law::counted(&agent.metrics()?, law::OF_AGENT)?;
    assert_eq!((counted["accepted"], counted["coalesced"]), (6, 54));
    // An alert after the end of its capture begins another.
    let first = answers[0].capture.clone().context("no capture")?;
    agent.stop(&first)?;
    let late = [Alert::new(&scene.pods[0], remote(0)?, 1000)?];
    let late = senders::send(
        scene.node.netns(),
        controller.address(),
        &late,
        Sender::Repeats,
        &AtomicUsize::new(0),
    )?;
    ensure!(late[0].capture.as_ref() != Some(&first), "{late:?}");
    let counted = law::counted(&agent.metrics()?, law::OF_AGENT)?;
    assert_eq!(counted["accepted"], 7);
    Ok(())
}
