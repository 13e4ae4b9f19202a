//! A storm: every alert has its answer, and memory stays what it was.

mod support;

use std::sync::Arc;

use futures_util::future::join_all;
use remora_controller::{
    agent::Agent,
    ingest::{Delivery, IN_FLIGHT_MAX, Ingest},
    outcome::{Outcome, RefusalCode},
};
use remora_proto::client::AgentAddress;
use remora_rules::Rules;
use support::{ANY, Behaviour, FakeAgent, PATIENCE, TestController, alert};
use tokio::{sync::watch, task::JoinSet};

/// Resident memory of this process (controller, fake agent and clients together), in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_alerts_at_once_are_all_accounted_for() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    controller.post(&alert("192.0.2.1")).await;
    let before = resident_kib();
    let controller = Arc::new(controller);
    let mut posts = JoinSet::new();
    for n in 0..1000_u32 {
        let controller = controller.clone();
        // Each tenth is the one before it, sent again.
        let remote = format!("10.9.{}.{}", n / 250, (n - u32::from(n % 10 == 9)) % 250);
        posts.spawn(async move { controller.post(&alert(&remote)).await });
    }
    let answers = posts.join_all().await;
    let grown = resident_kib().saturating_sub(before);

    let count = |status| answers.iter().filter(|a| a.status == status).count() as u64;
    assert_eq!(count(202) + count(503), 1000);
    let law = controller.law().await;
    assert_eq!(law.received, 1001);
    assert_eq!(law.accepted + law.existing, count(202) + 1);
    assert_eq!(law.refused, count(503));
    // A loaded machine may miss the deadline: then the capture runs and the answer says it may.
    let refused = |code: &str| {
        answers
            .iter()
            .filter(|a| a.status == 503 && a.text("code") == code)
            .count() as u64
    };
    let late = refused("agent_timeout");
    assert_eq!(refused("busy") + late, count(503));
    let captures = agent.captures() as u64;
    assert!(
        (law.accepted..=law.accepted + late).contains(&captures),
        "{captures}, {law:?}"
    );
    assert!(grown < 64 * 1024, "{grown} KiB");
}

#[tokio::test]
async fn more_than_can_be_handled_at_once_are_refused_as_busy_not_queued() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let _agent = FakeAgent::listen(socket.clone(), Behaviour::Slow(PATIENCE));
    let rules = Rules::parse([("any", ANY)]).unwrap();
    let ingest = Ingest::new(
        watch::channel(Arc::new(rules)).1,
        Agent::new(AgentAddress::Unix(socket)).unwrap(),
    );
    let deliveries = (0..IN_FLIGHT_MAX + 50).map(|n| {
        let remote = format!("10.9.{}.{}", n / 250, n % 250);
        let delivery = Delivery {
            alert: serde_json::to_vec(&alert(&remote)).unwrap(),
            requester: String::new(),
            traceparent: String::new(),
            arrived: jiff::Timestamp::now(),
            event_id: None,
            action: None,
        };
        ingest.handle(delivery)
    });
    // Polled one after the other before any is done: the first take all the room.
    let codes: Vec<_> = join_all(deliveries)
        .await
        .into_iter()
        .map(|handled| match handled.outcome {
            Outcome::Refused(refusal) => refusal.code,
            other => panic!("{other:?}"),
        })
        .collect();
    let (first, rest) = codes.split_at(IN_FLIGHT_MAX);
    assert!(
        first.iter().all(|code| *code == RefusalCode::AgentTimeout),
        "{first:?}"
    );
    assert!(
        rest.iter().all(|code| *code == RefusalCode::Busy),
        "{rest:?}"
    );
}
