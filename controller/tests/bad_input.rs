//! Requests that no good sender makes: a clear refusal each, counted, and nothing started.

mod support;

use serde_json::{Value, json};
use support::{ANY, Behaviour, TestController, alert, request};

const JSON: &str = "Content-Type: application/json";

/// Posts and checks what holds for every refusal.
async fn refused(controller: &TestController, request: &[u8], status: u16, code: &str) -> String {
    let answer = controller.send(request).await;
    assert_eq!(
        (answer.status, answer.text("code").as_str()),
        (status, code),
        "{answer:?}"
    );
    let reason = answer.text("reason");
    assert!(
        !reason.is_empty() && !reason.chars().any(char::is_control),
        "{reason:?}"
    );
    reason
}

#[tokio::test]
async fn a_body_that_is_no_alert_is_refused() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    let whole = serde_json::to_vec(&alert("198.51.100.23")).unwrap();
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b" \n".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"alert\"".to_vec(),
        b"{}".to_vec(),
        b"\x1b[2J\xff\xfe".to_vec(),
        whole[..whole.len() / 2].to_vec(),
        [&whole[..], b"{}"].concat(),
        "[".repeat(10_000).into_bytes(),
        "{\"output_fields\":".repeat(3_000).into_bytes(),
        [
            b"{\"rule\":\"R\",\"output_fields\":{\"a\":",
            "[".repeat(10_000).as_bytes(),
            "]".repeat(10_000).as_bytes(),
            b"}}",
        ]
        .concat(),
    ];
    for body in &bodies {
        refused(
            &controller,
            &request("POST", "/", &[JSON], body),
            400,
            "invalid_alert",
        )
        .await;
    }
    assert!(agent.requests().is_empty());
    assert_eq!(controller.law().await.refused, bodies.len() as u64);
}

#[tokio::test]
async fn a_body_over_64_kib_is_refused_whether_it_says_so_or_not() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    let mut large = alert("198.51.100.23");
    large["output"] = json!("x".repeat(1 << 20));
    let body = serde_json::to_vec(&large).unwrap();
    refused(
        &controller,
        &request("POST", "/", &[JSON], &body),
        413,
        "too_large",
    )
    .await;

    let chunked = [
        "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n",
        JSON,
        "\r\n\r\n",
    ]
    .concat();
    let chunk = format!("{:x}\r\n", body.len());
    let request = [
        chunked.as_bytes(),
        chunk.as_bytes(),
        &body,
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    refused(&controller, &request, 413, "too_large").await;
    assert!(agent.requests().is_empty());
    assert_eq!(controller.law().await.refused, 2);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_refused_after_a_while() {
    let (controller, _agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    let head = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n";
    let request = format!("{head}{JSON}\r\n\r\n{{\"rule\"");
    let start = std::time::Instant::now();
    refused(&controller, request.as_bytes(), 408, "slow_body").await;
    assert!(start.elapsed() >= remora_controller::http::BODY_TIMEOUT);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_no_request() {
    let (controller, _agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    let large = format!("X: {}", "x".repeat(64 * 1024));
    let many: Vec<_> = (0..200).map(|n| format!("X-{n}: x")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    for headers in [&[large.as_str()][..], &many] {
        let answer = controller.send(&request("POST", "/", headers, b"{}")).await;
        assert_eq!(answer.status, 431, "{answer:?}");
    }
    assert_eq!(controller.law().await.received, 0);
}

#[tokio::test]
async fn an_alert_just_within_the_limit_is_taken() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    let mut large = alert("198.51.100.23");
    let room = remora_controller::http::BODY_MAX - serde_json::to_vec(&large).unwrap().len();
    let output = large["output"].as_str().unwrap().to_owned();
    large["output"] = json!(output + &"x".repeat(room));
    let body = serde_json::to_vec(&large).unwrap();
    assert_eq!(body.len(), remora_controller::http::BODY_MAX);
    assert_eq!(
        controller.post_bytes("/", &body).await.text("decision"),
        "accepted"
    );
    assert!(
        agent.requests()[0].1.spec.trigger.alert.as_bytes() == body,
        "kept as it came"
    );
}

#[tokio::test]
async fn what_is_not_json_is_told_what_to_set() {
    let (controller, _agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    let body = serde_json::to_vec(&alert("198.51.100.23")).unwrap();
    for content_type in [
        &["Content-Type: text/plain"][..],
        &[],
        &["Content-Type: \u{80}"],
    ] {
        let request = request("POST", "/", content_type, &body);
        let reason = refused(&controller, &request, 415, "not_json").await;
        assert!(reason.contains("json_output: true"), "{reason}");
    }
    let gzip = request("POST", "/", &[JSON, "Content-Encoding: gzip"], &body);
    refused(&controller, &gzip, 415, "not_json").await;
    // What the README's curl sends, and Falcosidekick.
    for (method, content_type) in [
        ("POST", "Content-Type: application/x-www-form-urlencoded"),
        ("POST", "content-type: Application/JSON; charset=utf-8"),
        ("PUT", JSON),
    ] {
        let answer = controller
            .send(&request(method, "/", &[content_type], &body))
            .await;
        assert_eq!(answer.status, 202, "{content_type}: {answer:?}");
    }
}

#[tokio::test]
async fn a_web_page_cannot_post_alerts() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    let body = serde_json::to_vec(&alert("198.51.100.23")).unwrap();
    for header in [
        "Origin: https://evil.example",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
    ] {
        let request = request("POST", "/", &[JSON, header], &body);
        refused(&controller, &request, 403, "from_browser").await;
    }
    assert!(agent.requests().is_empty());
}

#[tokio::test]
async fn other_methods_and_paths_are_no_alerts() {
    let (controller, _agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    assert_eq!(controller.get("/").await.status, 405);
    assert_eq!(controller.get("/falco/../etc/passwd").await.status, 404);
    assert_eq!(controller.post_bytes("/metrics", b"{}").await.status, 405);
    assert_eq!(controller.law().await.received, 0);
}

#[tokio::test]
async fn an_alert_that_names_no_target_is_refused() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    for id in [
        json!(null),
        json!(""),
        json!("<NA>"),
        json!("host"),
        json!("../../etc"),
        json!({}),
    ] {
        let mut alert = alert("198.51.100.23");
        alert["output_fields"]["container.id"] = id.clone();
        for pid in [
            json!(null),
            json!("<NA>"),
            json!(0),
            json!(-1),
            json!("../self"),
            json!(1e30),
        ] {
            alert["output_fields"]["proc.pid"] = pid.clone();
            let answer = controller.post(&alert).await;
            assert_eq!(answer.status, 422, "{id} {pid}: {answer:?}");
            assert_eq!(answer.text("code"), "no_target");
        }
    }
    assert!(agent.requests().is_empty());
}

#[tokio::test]
async fn odd_values_are_taken_as_falco_means_them() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    let mut odd = alert("198.51.100.23");
    odd["output_fields"]["fd.sport"] = json!("4444");
    odd["output_fields"]["proc.pid"] = json!("1234567");
    odd["output_fields"]["k8s.ns.name"] = Value::Null;
    odd["output_fields"]["k8s.pod.name"] = json!("<NA>");
    odd["tags"] = Value::Null;
    assert_eq!(controller.post(&odd).await.text("decision"), "accepted");
    let spec = &agent.requests()[0].1.spec;
    assert_eq!(spec.filter.text(), "host 198.51.100.23 and tcp port 4444");
    assert!(!spec.labels.contains_key("namespace") && !spec.labels.contains_key("pod"));
}

#[tokio::test]
async fn hostile_names_go_nowhere_but_into_the_kept_alert() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    let hostile = "x\n\u{1b}[2J/../../etc/\u{202e}passwd or host 0.0.0.0/0";
    let fields = [
        "fd.sip.name",
        "k8s.ns.name",
        "k8s.pod.name",
        "proc.name",
        "fd.l4proto",
        "fd.type",
        "evt.type",
    ];
    let mut body = alert("198.51.100.23");
    body["rule"] = json!(hostile);
    body["hostname"] = json!(hostile);
    for field in fields {
        body["output_fields"][field] = json!(hostile);
    }
    let answer = controller.post(&body).await;
    assert_eq!(answer.text("decision"), "accepted", "{answer:?}");
    let spec = &agent.requests()[0].1.spec;
    assert!(
        spec.filter.text().starts_with("host 198.51.100.23"),
        "{}",
        spec.filter
    );
    assert!(!spec.filter.text().contains("0.0.0.0"));
    for (key, value) in &spec.labels {
        assert!(
            !value.contains(['\n', '\u{1b}', '\u{202e}', '/']),
            "{key}={value:?}"
        );
    }
    for hint in &spec.names {
        assert!(!hint.name.contains("passwd"), "{hint:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_no_address_never_becomes_filter_text() {
    let (controller, agent) = TestController::with_agent(ANY, Behaviour::Arm).await;
    for value in [
        "1.2.3.4 or tcp",
        "0/0",
        "../..",
        "${fd.sip}",
        "",
        "<NA>",
        "1.2.3.4\nor",
    ] {
        let mut alert = alert("198.51.100.23");
        alert["output_fields"]["fd.sip"] = json!(value);
        alert["output_fields"]["fd.name"] = json!(value);
        alert["output_fields"]["fd.sport"] = json!(value);
        alert["uuid"] = Value::Null;
        controller.post(&alert).await;
    }
    for (_, start) in agent.requests() {
        let text = start.spec.filter.text();
        assert!(["", "tcp"].contains(&text), "{text:?}");
    }
    controller.law().await;
}
