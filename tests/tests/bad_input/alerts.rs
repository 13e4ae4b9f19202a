//! Alerts.

use anyhow::{Context as _, Result};
use remora_tests::{
    agent::TestAgent,
    controller::{self, C2_RULES, TestController, c2_alert},
    http::Request,
    node::{Node, Pod},
    run, wire,
};
use serde_json::{Value, json};

use crate::{Witness, assert_printable, files};

/// An alert with something put in: `path` is a JSON pointer.
fn alert_with(pod: &Pod, path: &str, value: Value) -> Result<Vec<u8>> {
    let mut alert = c2_alert(pod, "198.51.100.23:4444".parse()?, 43812);
    *alert
        .pointer_mut(path)
        .with_context(|| format!("no {path}"))? = value;
    Ok(serde_json::to_vec(&alert)?)
}

#[test]
fn bad_alerts_are_refused_and_start_nothing() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let witness = Witness::start(&agent, &web)?;
    let controller = TestController::start(&agent, C2_RULES)?;
    let whole = serde_json::to_vec(&c2_alert(&web, "198.51.100.23:4444".parse()?, 43812))?;
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!(
            "{{\"rule\":\"Outbound Connection to C2 Servers\",\"output_fields\":{{\"a\":{open}{close}}}}}"
        )
    };
    let mut large = c2_alert(&web, "198.51.100.23:4444".parse()?, 43812);
    large["output"] = json!("x".repeat(1 << 20));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("blank", b" \n".to_vec()),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("1 MiB", serde_json::to_vec(&large)?),
        ("10 000 deep", nested(10_000).into_bytes()),
        ("null", b"null".to_vec()),
        ("a list", b"[]".to_vec()),
        ("no fields", b"{}".to_vec()),
        ("not UTF-8", b"{\"rule\":\"\xff\xfe\"}".to_vec()),
        ("escape sequences", b"\x1b[2J\x1b]0;x\x07".to_vec()),
    ];
    for (case, body) in &cases {
        let answer = controller.post(body)?;
        assert!(
            (400..500).contains(&answer.status),
            "{case}: {} {}",
            answer.status,
            answer.body
        );
        let body = controller::json(&answer)?;
        assert_eq!(body["decision"], "refused", "{case}: {body}");
        assert_printable(case, &answer.body)?;
        assert_printable(case, body["reason"].as_str().context("no reason")?)?;
    }
    let text = Request {
        content_type: "text/plain",
        ..Request::post_json("/", &whole)
    };
    assert_eq!(controller.request(text)?.status, 415);
    assert!(matches!(
        controller
            .request(Request::post_json("/../../etc", &whole))?
            .status,
        400..500
    ));
    assert_printable("the log", &controller.log())?;
    witness.assert_undisturbed(&agent, &node, &web, &api)
}

#[test]
fn odd_values_in_an_alert_are_refused_or_kept_harmlessly() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let before = files(agent.data_dir().parent().context("no parent")?)?;
    let controller = TestController::start(&agent, C2_RULES)?;
    let evil = "a\nb\x1b[31m/../../etc/\u{202e}";
    let id = "/output_fields/container.id";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "an unknown container",
            alert_with(&web, id, json!("ffffffffffff"))?,
        ),
        ("a hostile container", alert_with(&web, id, json!(evil))?),
        ("`<NA>`", alert_with(&web, id, json!("<NA>"))?),
        ("null", alert_with(&web, id, Value::Null)?),
        ("a number", alert_with(&web, id, json!(17))?),
    ];
    // The pid in it is nobody's, so none of them names something on this node.
    for (case, body) in &cases {
        let answer = controller.post(body)?;
        let body = controller::json(&answer)?;
        assert!(
            (400..500).contains(&answer.status),
            "{case}: {} {body}",
            answer.status
        );
        assert_eq!(body["decision"], "refused", "{case}: {body}");
        assert_printable(case, &answer.body)?;
    }
    assert_eq!(agent.list(true)?.len(), 0);

    // Where the target is right the rest may be odd: it is captured, and the text made harmless.
    let odd = [
        ("/output", json!(evil)),
        ("/hostname", json!(evil)),
        ("/output_fields/k8s.pod.name", json!(evil)),
        ("/output_fields/fd.sip.name", json!(evil)),
        ("/output_fields/proc.pid", json!("1234567")),
        ("/output_fields/fd.sport", json!("4444")),
        ("/output_fields/fd.name", json!("<NA>")),
        ("/output_fields/k8s.ns.name", Value::Null),
        ("/tags", json!([evil, evil])),
        ("/uuid", json!("../../../tmp/x")),
    ];
    for (path, value) in odd {
        let answer = controller.post(&alert_with(&web, path, value)?)?;
        let id = controller::capture_id(&answer).with_context(|| path.to_owned())?;
        let state = agent.stop(&id)?;
        let file = agent.file(&state);
        wire::assert_readable(&file).with_context(|| path.to_owned())?;
        // What a terminal gets to see of it.
        assert_printable(path, &run::output(run::command("capinfos").arg(&file))?)?;
        let remora = run::remora_program("remora")?;
        let shown = run::output(run::command(remora).args([
            "--agent",
            &agent.address(),
            "show",
            &state.id,
        ]))?;
        assert_printable(path, &shown)?;
    }
    for name in files(agent.data_dir().parent().context("no parent")?)?.difference(&before) {
        let harmless = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        assert!(harmless, "{name:?}");
    }
    assert_printable("the controller's log", &controller.log())?;
    assert_printable("the agent's log", &agent.tail())?;
    Ok(())
}
