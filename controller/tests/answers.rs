//! What a sender is answered, and what the agent is asked, over the real HTTP and gRPC.

mod support;

use std::time::Duration;

use remora_capture::session::{Destination, Target};
use remora_proto::reason::Reason;
use serde_json::json;
use support::{ANY, Behaviour, FakeAgent, PATIENCE, TestController, alert, request};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;

const C2: &str = r#"
- action: capture
  actionner: remora:capture
  parameters: {duration: 45s, max_packets: 1000, max_bytes: 64MiB, snaplen: 256}
- rule: c2
  match:
    rules: [Outbound Connection to C2 Servers]
    priority: ">=Warning"
    tags: ["network, T1071"]
    output_fields: ["k8s.ns.name!=kube-system"]
    source: syscall
  actions:
    - action: capture
"#;

#[tokio::test]
async fn an_alert_becomes_the_capture_of_its_endpoint() {
    let (controller, agent) = TestController::with_agent(C2, Behaviour::Arm).await;
    let before = jiff::Timestamp::now();
    let body = serde_json::to_vec(&alert("198.51.100.23")).unwrap();
    let traceparent = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [
        "Content-Type: application/json",
        "User-Agent: falcosecurity/falco",
        traceparent,
    ];
    let answer = controller
        .send(&request("POST", "/", &headers, &body))
        .await;

    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.text("decision"), "accepted");
    let received = answer.json()["received_unix_ns"].as_i64().unwrap();
    let after = jiff::Timestamp::now();
    assert!((before.as_nanosecond()..=after.as_nanosecond()).contains(&received.into()));

    let [(raw, start)] = &agent.requests()[..] else {
        panic!("one Start, not {agent:?}")
    };
    assert!(raw.idempotency_key.len() <= 128 && !raw.idempotency_key.is_empty());
    let spec = &start.spec;
    assert_eq!(spec.target, Target::Container("ee97d9c4186f".into()));
    assert_eq!(spec.filter.text(), "host 198.51.100.23 and tcp port 4444");
    assert_eq!(spec.destination, Destination::Store);
    assert_eq!(spec.snaplen.get(), 256);
    assert_eq!(spec.limits.packets.unwrap().get(), 1000);
    assert_eq!(spec.limits.file_bytes.unwrap().get(), 64 << 20);
    assert_eq!(spec.limits.duration.unwrap().as_secs(), 45);
    let trigger = &spec.trigger;
    assert_eq!(trigger.source, "falco");
    assert_eq!(trigger.rule, "Outbound Connection to C2 Servers");
    assert_eq!(trigger.priority, "Critical");
    assert!(trigger.alert.as_bytes() == body, "kept as it came");
    assert_eq!(trigger.requester, "falcosecurity/falco");
    assert_eq!(
        trigger.time,
        Some("2026-11-24T03:00:05.478445995Z".parse().unwrap())
    );
    assert_eq!(trigger.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(spec.labels["namespace"], "shop");
    assert_eq!(spec.labels["pod"], "cart-7d9f8c6b5-x2x4q");
    assert_eq!(spec.labels["rule"], "c2");
    let names: Vec<_> = spec
        .names
        .iter()
        .map(|hint| (hint.address.to_string(), hint.name.as_str()))
        .collect();
    assert!(
        names.contains(&("198.51.100.23".into(), "c2.example")),
        "{names:?}"
    );
    assert!(
        names.contains(&("10.244.1.7".into(), "cart-7d9f8c6b5-x2x4q.shop")),
        "{names:?}"
    );
}

#[tokio::test]
async fn the_same_alert_again_is_answered_with_its_capture() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    let first = controller.post(&alert("198.51.100.23")).await;
    let again = controller
        .post_bytes(
            "/falco",
            &serde_json::to_vec(&alert("198.51.100.23")).unwrap(),
        )
        .await;
    let other = controller.post(&alert("198.51.100.24")).await;

    assert_eq!(
        (again.status, again.text("decision").as_str()),
        (202, "existing")
    );
    assert_eq!(first.text("capture_id"), again.text("capture_id"));
    assert_eq!(other.text("decision"), "accepted");
    assert_ne!(first.text("capture_id"), other.text("capture_id"));
    assert_eq!(agent.captures(), 2);
    let law = controller.law().await;
    assert_eq!((law.accepted, law.existing), (2, 1));
}

#[tokio::test]
async fn alerts_of_the_same_endpoint_have_one_coalescing_key_and_others_another() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    for (uuid, remote) in [
        ("e7bcd738-6957-4276-af83-2da9c3bb24da", "198.51.100.23"),
        ("aaaaaaaa-6957-4276-af83-2da9c3bb24da", "198.51.100.23"),
        ("bbbbbbbb-6957-4276-af83-2da9c3bb24da", "198.51.100.24"),
    ] {
        let mut alert = alert(remote);
        alert["uuid"] = json!(uuid);
        controller.post(&alert).await;
    }
    let requests = agent.requests();
    let keys: Vec<_> = requests
        .iter()
        .map(|(request, _)| (&request.coalescing_key, &request.idempotency_key))
        .collect();
    assert!(keys[0].0.starts_with("rule-"), "{keys:?}");
    assert_eq!(keys[0].0, keys[1].0);
    assert_ne!(keys[0].0, keys[2].0);
    assert_ne!(keys[0].1, keys[1].1);
}

#[tokio::test]
async fn falcosidekick_is_told_apart_by_its_uuid() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    for uuid in [
        "e7bcd738-6957-4276-af83-2da9c3bb24da",
        "aaaaaaaa-6957-4276-af83-2da9c3bb24da",
    ] {
        let mut alert = alert("198.51.100.23");
        alert["uuid"] = json!(uuid);
        assert_eq!(controller.post(&alert).await.text("decision"), "accepted");
        assert_eq!(controller.post(&alert).await.text("decision"), "existing");
    }
    assert_eq!(agent.captures(), 2);
    assert_eq!(agent.requests()[0].1.spec.trigger.source, "falcosidekick");
}

#[tokio::test]
async fn an_alert_without_a_rule_is_ignored() {
    let (controller, agent) = TestController::with_agent(C2, Behaviour::Arm).await;
    let mut alert = alert("198.51.100.23");
    alert["rule"] = json!("Terminal shell in container");
    let answer = controller.post(&alert).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text("decision"), "ignored");
    assert_eq!(answer.text("reason"), "no rule matches");
    assert!(agent.requests().is_empty());
    assert_eq!(controller.law().await.ignored, 1);
}

#[tokio::test]
async fn a_dry_run_starts_nothing_and_says_so() {
    let rules = ANY.replace("actions:", "dry_run: true\n  actions:");
    let (controller, agent) = TestController::with_agent(&rules, Behaviour::Arm).await;
    let answer = controller.post(&alert("198.51.100.23")).await;
    assert_eq!(
        (answer.status, answer.text("reason").as_str()),
        (200, "rule `any` is a dry run")
    );
    assert!(agent.requests().is_empty());
}

#[tokio::test]
async fn several_captures_of_one_alert_have_an_answer_each() {
    let rules = "
- rule: two
  actions:
    - {action: endpoint, actionner: 'remora:capture'}
    - {action: all, actionner: 'remora:capture', parameters: {traffic: all}}
";
    let (controller, agent) = TestController::with_agent(rules, Behaviour::Arm).await;
    let answer = controller.post(&alert("198.51.100.23")).await;
    let captures = answer.json()["captures"].as_array().unwrap().clone();
    assert_eq!(captures.len(), 2);
    assert_eq!(captures[0]["capture_id"], answer.json()["capture_id"]);
    assert_ne!(captures[0]["capture_id"], captures[1]["capture_id"]);
    let filters: Vec<_> = agent
        .requests()
        .iter()
        .map(|(_, start)| start.spec.filter.to_string())
        .collect();
    assert_eq!(filters, ["host 198.51.100.23 and tcp port 4444", ""]);
    let law = controller.law().await;
    assert_eq!((law.received, law.accepted), (1, 1), "counted by alert");
}

#[tokio::test]
async fn templates_take_this_alerts_values_or_the_fallback_or_are_refused() {
    let rules = "
- action: capture
  actionner: remora:capture
  parameters:
    filter: 'host ${remote.ip} and ${remote.proto?} port ${service.port?}'
    labels: {team: blue}
- rule: falls back
  match: {rules: [Fallback]}
  continue: false
  actions:
    - action: capture
      parameters: {fallback: tcp}
- rule: any
  actions:
    - action: capture
";
    let (controller, agent) = TestController::with_agent(rules, Behaviour::Arm).await;
    assert_eq!(controller.post(&alert("198.51.100.23")).await.status, 202);

    // The one before is not taken from.
    let mut bare = alert("198.51.100.24");
    bare["output_fields"] =
        serde_json::json!({"container.id": "ee97d9c4186f", "fd.sip": "any or tcp"});
    let refused = controller.post(&bare).await;
    assert_eq!(
        (refused.status, &*refused.text("code")),
        (422, "missing_value")
    );
    assert_eq!(
        refused.text("reason"),
        "the alert has no value for `${remote.ip}` that is an address, and the rule has no `fallback`"
    );
    bare["rule"] = "Fallback".into();
    assert_eq!(controller.post(&bare).await.status, 202);
    // IPv6 and no protocol.
    bare["rule"] = "R".into();
    bare["output_fields"]["fd.name"] = "fd00::7:40000->2001:db8::bad:443".into();
    assert_eq!(controller.post(&bare).await.status, 202);

    let requests = agent.requests();
    let filters: Vec<_> = requests
        .iter()
        .map(|(_, start)| start.spec.filter.text())
        .collect();
    assert_eq!(
        filters,
        [
            "host 198.51.100.23 and tcp port 4444",
            "tcp",
            "host 2001:db8::bad and port 443"
        ]
    );
    assert_eq!(requests[0].1.spec.labels["team"], "blue");
    let reasons = [0, 2].map(|n| requests[n].1.spec.trigger.reason.as_str());
    assert_eq!(
        reasons,
        [
            "rule `any`, action `capture`",
            "rule `any`, action `capture`; the alert has no value for `${remote.proto?}`: its term is left out"
        ]
    );
}

#[tokio::test]
async fn what_needs_the_cluster_part_is_refused_and_says_so() {
    let rules = "
- rule: node
  match: {rules: [Node]}
  continue: false
  actions:
    - {action: a, actionner: 'remora:capture', parameters: {scope: node}}
- rule: any
  actions:
    - {action: a, actionner: 'remora:capture', parameters: {scope: deployment}}
";
    let (controller, agent) = TestController::with_agent(rules, Behaviour::Arm).await;
    let mut of_node = alert("198.51.100.23");
    of_node["rule"] = "Node".into();
    assert_eq!(
        controller.post(&of_node).await.text("code"),
        "needs_cluster"
    );
    let refused = controller.post(&alert("198.51.100.23")).await;
    assert_eq!(
        (refused.status, &*refused.text("code")),
        (422, "needs_cluster")
    );
    assert!(
        refused
            .text("reason")
            .starts_with("`scope: deployment` needs the cluster part of Remora"),
        "{refused:?}"
    );
    assert!(agent.requests().is_empty());
}

#[tokio::test]
async fn a_look_back_grows_by_the_alerts_age() {
    let rules = ANY.replace(
        "actionner: remora:capture",
        "actionner: remora:capture\n      parameters: {look_back: 15s}",
    );
    let (controller, agent) = TestController::with_agent(&rules, Behaviour::Arm).await;
    let age = jiff::SignedDuration::from_secs(10);
    let mut late = alert("198.51.100.23");
    late["time"] = (jiff::Timestamp::now() - age).to_string().into();
    assert_eq!(controller.post(&late).await.status, 202);
    let look_back = agent.requests()[0].1.spec.look_back;
    // At most 120 s more than the rule's.
    let bounds = Duration::from_secs(25)..=Duration::from_secs(135);
    assert!(bounds.contains(&look_back), "{look_back:?}");
}

#[tokio::test]
async fn an_agent_that_is_away_is_a_503_that_says_what_to_do_until_it_comes() {
    let controller = TestController::start(ANY).await;
    let answer = controller.post(&alert("198.51.100.23")).await;
    assert_eq!(
        (answer.status, answer.text("code").as_str()),
        (503, "agent_away")
    );
    assert!(
        answer.text("reason").contains("is remora-agent running?"),
        "{answer:?}"
    );

    let agent = FakeAgent::listen(controller.socket(), Behaviour::Arm);
    assert_eq!(
        controller
            .post(&alert("198.51.100.23"))
            .await
            .text("decision"),
        "accepted"
    );

    // Restarted between two alerts: the next one notices nothing.
    drop(agent);
    let _agent = FakeAgent::listen(controller.socket(), Behaviour::Arm);
    assert_eq!(
        controller
            .post(&alert("198.51.100.23"))
            .await
            .text("decision"),
        "accepted"
    );
    let law = controller.law().await;
    assert_eq!((law.accepted, law.refused), (2, 1));
}

#[tokio::test]
async fn an_agent_that_dies_under_a_call_is_asked_again_by_the_same_key() {
    let slow = Behaviour::Slow(PATIENCE);
    let (controller, agent) = TestController::with_agent(ANY, slow).await;
    let body = alert("198.51.100.23");
    let restart = async {
        agent.asked().await;
        let key = agent.requests()[0].0.idempotency_key.clone();
        drop(agent);
        (FakeAgent::listen(controller.socket(), Behaviour::Arm), key)
    };
    let (answer, (agent, key)) = tokio::join!(controller.post(&body), restart);
    // The second try meets either nobody yet or the agent that is back.
    match answer.status {
        202 => assert_eq!(agent.requests()[0].0.idempotency_key, key),
        503 => assert_eq!(answer.text("code"), "agent_away"),
        other => panic!("{other}: {answer:?}"),
    }
    assert_eq!(controller.post(&body).await.status, 202);
    assert_eq!(agent.captures(), 1);
    controller.law().await;
}

#[tokio::test]
async fn each_refusal_of_the_agent_has_its_status_and_reason() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    let cases = [
        (
            Code::ResourceExhausted,
            Some(Reason::SessionLimit),
            429,
            "session_limit",
        ),
        (
            Code::ResourceExhausted,
            Some(Reason::QuotaExceeded),
            429,
            "quota_exceeded",
        ),
        (Code::ResourceExhausted, None, 429, "session_limit"),
        (
            Code::NotFound,
            Some(Reason::TargetNotFound),
            409,
            "target_not_found",
        ),
        (
            Code::InvalidArgument,
            Some(Reason::InvalidFilter),
            422,
            "invalid_filter",
        ),
        (
            Code::Unimplemented,
            Some(Reason::Unimplemented),
            422,
            "unimplemented",
        ),
        (Code::Unavailable, Some(Reason::Draining), 503, "draining"),
        (
            Code::PermissionDenied,
            Some(Reason::PermissionDenied),
            503,
            "permission_denied",
        ),
        (Code::Unavailable, None, 503, "agent_away"),
        (Code::DataLoss, None, 503, "agent_failed"),
    ];
    for (code, reason, status, word) in cases {
        agent.behave(Behaviour::Refuse(
            code,
            reason,
            "no room: \u{1b}[31m\u{202e}stop one",
        ));
        let answer = controller.post(&alert("198.51.100.23")).await;
        assert_eq!(
            (answer.status, answer.text("code").as_str()),
            (status, word),
            "{code:?}"
        );
        let text = answer.text("reason");
        assert!(text.contains("stop one"), "{text}");
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
        let metric = format!("remora_controller_refusals_total{{code=\"{word}\"}}");
        assert!(controller.metric(&metric).await > 0);
    }
    assert_eq!(controller.law().await.refused, cases.len() as u64);
}

#[tokio::test]
async fn an_answer_that_is_none_is_refused() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Garbage).await;
    let answer = controller.post(&alert("198.51.100.23")).await;
    assert_eq!(
        (answer.status, answer.text("code").as_str()),
        (503, "agent_failed")
    );
    assert!(!answer.text("reason").contains('\u{1b}'));
    agent.behave(Behaviour::Break);
    let answer = controller.post(&alert("198.51.100.24")).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(controller.law().await.refused, 2);
}

#[tokio::test]
async fn a_slow_agent_costs_a_second_and_no_more() {
    let slow = Behaviour::Slow(PATIENCE);
    let (controller, _agent) = TestController::with_agent(ANY, slow).await;
    let start = std::time::Instant::now();
    let answer = controller.post(&alert("198.51.100.23")).await;
    let took = start.elapsed();
    assert_eq!(
        (answer.status, answer.text("code").as_str()),
        (503, "agent_timeout")
    );
    assert!((900..2000).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test]
async fn a_sender_that_leaves_is_counted_with_what_became_of_its_alert() {
    let slow = Behaviour::Slow(std::time::Duration::from_millis(200));
    let (controller, agent) = TestController::with_agent(ANY, slow).await;
    let body = serde_json::to_vec(&alert("198.51.100.23")).unwrap();
    let whole = request("POST", "/", &["Content-Type: application/json"], &body);
    // One leaves after its alert, one in the middle of it.
    let mut stream = TcpStream::connect(controller.address).await.unwrap();
    stream.write_all(&whole).await.unwrap();
    agent.asked().await;
    drop(stream);
    let mut stream = TcpStream::connect(controller.address).await.unwrap();
    stream.write_all(&whole[..whole.len() - 10]).await.unwrap();
    let received = async {
        while controller
            .metric("remora_controller_alerts_received_total")
            .await
            < 2
        {}
    };
    tokio::time::timeout(PATIENCE, received).await.unwrap();
    drop(stream);
    let law = controller.law().await;
    assert_eq!((law.received, law.accepted, law.refused), (2, 1, 1));
    assert_eq!(
        controller
            .metric("remora_controller_refusals_total{code=\"sender_gone\"}")
            .await,
        1
    );
}

#[tokio::test]
async fn what_came_before_the_end_is_answered_and_health_says_when_it_is_ending() {
    let slow = Behaviour::Slow(std::time::Duration::from_millis(300));
    let (mut controller, agent) = TestController::with_agent(ANY, slow).await;
    assert_eq!(controller.get("/healthz").await.status, 200);

    // Kept open from before the end.
    let mut kept = TcpStream::connect(controller.address).await.unwrap();
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: test\r\n")
        .await
        .unwrap();
    let body = serde_json::to_vec(&alert("198.51.100.23")).unwrap();
    let mut stream = TcpStream::connect(controller.address).await.unwrap();
    let post = request("POST", "/", &["Content-Type: application/json"], &body);
    stream.write_all(&post).await.unwrap();
    agent.asked().await;

    controller.stop();
    let closed = async { while TcpStream::connect(controller.address).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, closed)
        .await
        .expect("takes no new connection");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    kept.write_all(b"\r\n").await.unwrap();
    let mut answer = String::new();
    kept.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(
        controller.wait().await,
        remora_controller::app::Drained::Whole
    );
}

/// What the real Falcosidekick sent, byte for byte (tests/fixtures/README.md).
#[tokio::test]
async fn recorded_requests_of_the_real_falcosidekick_each_have_an_answer() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/falcosidekick-webhook"
    );
    let mut posts = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "http") {
            continue;
        }
        posts += 1;
        let answer = controller.send(&std::fs::read(&path).unwrap()).await;
        // Without a container and a process there is nothing to capture.
        let (status, decision) = (answer.status, answer.text("decision"));
        match decision.as_str() {
            "accepted" => assert_eq!(status, 202),
            "refused" => assert_eq!((status, answer.text("code").as_str()), (422, "no_target")),
            _ => panic!("{path:?}: {answer:?}"),
        }
    }
    let law = controller.law().await;
    assert_eq!(law.received, posts);
    assert!(posts >= 18 && law.accepted >= 15, "{law:?}");
    for (_, start) in agent.requests() {
        assert_eq!(start.spec.trigger.source, "falcosidekick");
    }
}

/// The same event in each of CloudEvents' modes is the same capture; another id is another.
#[tokio::test]
async fn cloudevents_are_taken_in_both_modes() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    let alert = alert("198.51.100.23");
    let body = serde_json::to_vec(&alert).unwrap();
    let binary = [
        "Content-Type: application/json",
        "ce-specversion: 1.0",
        "ce-type: falco.rule.output.v1",
        "ce-source: falco.org",
        "ce-id: 1",
    ];
    let first = controller.send(&request("POST", "/", &binary, &body)).await;
    assert_eq!(first.status, 202, "{first:?}");
    let structured = |id: &str| {
        let event = serde_json::json!({
            "specversion": "1.0", "type": "falco.rule.output.v1", "source": "falco.org", "id": id,
            "datacontenttype": "application/json", "data": alert,
        });
        let headers = ["Content-Type: application/cloudevents+json"];
        request(
            "POST",
            "/falco",
            &headers,
            &serde_json::to_vec(&event).unwrap(),
        )
    };
    let again = controller.send(&structured("1")).await;
    assert_eq!(again.text("decision"), "existing");
    assert_eq!(again.text("capture_id"), first.text("capture_id"));
    let other = controller.send(&structured("2")).await;
    assert_eq!(other.text("decision"), "accepted");
    for (_, start) in agent.requests() {
        let kept: serde_json::Value = serde_json::from_str(&start.spec.trigger.alert).unwrap();
        assert_eq!(kept, alert, "the alert alone, without its envelope");
    }
    let batch = ["Content-Type: application/cloudevents-batch+json"];
    let refused = controller.send(&request("POST", "/", &batch, b"[]")).await;
    assert_eq!(refused.status, 415);
    let empty = ["Content-Type: application/cloudevents+json"];
    let refused = controller.send(&request("POST", "/", &empty, b"{}")).await;
    assert_eq!(
        (refused.status, &*refused.text("code")),
        (400, "invalid_alert")
    );
    assert_eq!(controller.law().await.received, 5);
}
