//! What the suites share: small rule files and an alert.

mod decisions;
mod files;

use remora_capture::alert::Alert;
use serde_json::json;

use super::*;

fn rules(text: &str) -> Rules {
    Rules::parse([("rules.yaml", text)]).unwrap()
}

fn error(text: &str) -> String {
    let error = Rules::parse([("rules.yaml", text)])
        .expect_err(text)
        .to_string();
    assert!(!error.chars().any(char::is_control), "{error:?}");
    error
}

/// A rule with this `match:` block.
fn matching(block: &str) -> String {
    format!(
        "- rule: r\n  match: {{{block}}}\n  actions: [{{action: a, actionner: 'remora:capture'}}]\n"
    )
}

/// A rule with these parameters.
fn with(parameters: &str) -> String {
    format!(
        "- rule: r\n  actions:\n  - action: a\n    actionner: remora:capture\n    parameters: {{{parameters}}}\n"
    )
}

fn parameters(text: &str) -> CaptureParameters {
    rules(&with(text)).rules[0].actions[0].capture.clone()
}

fn alert(value: &serde_json::Value) -> Alert {
    Alert::from_json(&serde_json::to_vec(value).unwrap()).unwrap()
}

fn c2() -> serde_json::Value {
    json!({
        "output": "c2", "priority": "Critical", "rule": "Outbound Connection to C2 Servers",
        "time": "2026-11-24T03:00:05.478445995Z", "source": "syscall",
        "tags": ["network", "T1071", "NIST_800-53_AC-3"],
        "output_fields": {
            "k8s.ns.name": "shop", "fd.sport": 4444, "proc.tty": 34816, "evt.time": 1795489205478445995_u64,
            "fd.is_server": false, "proc.cmdline": "xmrig -o c2.example:4444", "k8s.pod.name": null,
            "proc.aname[2]": "event-generator", "proc.pid": "1234567", "user.loginuid": -1,
        },
    })
}

fn matches(block: &str, value: &serde_json::Value) -> bool {
    matches!(
        decide(&rules(&matching(block)), &alert(value)),
        Decision::Capture(_)
    )
}
