//! What became of an alert, in the audit log before the sender reads it.
//!
//! Arming waits for no disk: the log is written between the agent's answer and ours. A log that is known to
//! fail lets no capture begin.

use std::net::SocketAddr;

use remora_capture::{
    alert::Alert,
    audit::{Decision, Entry},
};
use remora_proto::tls::Peer;

use super::Shared;
use crate::{
    audit::AuditError,
    ingest::{Delivery, Handled},
    outcome::{Outcome, Refusal, RefusalCode},
    talon::Way,
};

/// Handles an alert of `sender`, and accounts for it.
pub(super) async fn handle(shared: &Shared, delivery: Delivery, sender: &Peer) -> Handled {
    let about = About::new(&delivery, sender);
    if shared.audit.is_failing() {
        // Whether it still does: the entry says what happens if it does.
        let refused = about.entry(Decision::Refused, "", "the audit log could not be written");
        if let Err(error) = shared.audit.record(refused).await {
            return unrecorded(&error, None);
        }
    }
    let handled = shared.ingest.handle(delivery).await;
    for outcome in outcomes(&handled) {
        let (decision, capture, reason) = match outcome {
            Outcome::Ignored(_) => continue,
            Outcome::Accepted(id) => (Decision::Allowed, id.to_string(), about.rule.clone()),
            Outcome::Coalesced(id) | Outcome::Existing(id) => {
                (Decision::Coalesced, id.to_string(), about.rule.clone())
            }
            Outcome::Refused(refusal) => {
                let reason = format!("{}: {}", refusal.code.as_str(), refusal.reason);
                (Decision::Refused, String::new(), reason)
            }
        };
        let entry = about.entry(decision, &capture, &reason);
        if let Err(error) = shared.audit.record(entry).await {
            let capture = Some(capture).filter(|capture| !capture.is_empty());
            return unrecorded(&error, capture.as_deref());
        }
    }
    handled
}

/// Accounts for an alert that was refused before it was read.
pub(super) async fn refused(shared: &Shared, refusal: &Refusal, sender: &Peer) {
    let reason = format!("{}: {}", refusal.code.as_str(), refusal.reason);
    let about = About {
        who: who(sender),
        address: sender.address,
        namespaces: Vec::new(),
        target: String::new(),
        rule: String::new(),
    };
    // It is refused all the same; that the log cannot be written is logged by its writer.
    let _unrecorded = shared
        .audit
        .record(about.entry(Decision::Refused, "", &reason))
        .await;
}

fn outcomes(handled: &Handled) -> &[Outcome] {
    match &handled.captures[..] {
        [] => std::slice::from_ref(&handled.outcome),
        several => several,
    }
}

fn unrecorded(error: &AuditError, capture: Option<&str>) -> Handled {
    let mut reason = error.to_string();
    if let Some(capture) = capture {
        tracing::error!(%error, capture, "a capture that began is not in the audit log");
        reason = format!("capture {capture} had begun; {reason}");
    }
    Outcome::Refused(Refusal::new(RefusalCode::Audit, reason)).into()
}

/// What the log says of an alert, whatever becomes of it.
struct About {
    who: String,
    address: SocketAddr,
    namespaces: Vec<String>,
    target: String,
    rule: String,
}

impl About {
    fn new(delivery: &Delivery, sender: &Peer) -> Self {
        // What cannot be read is refused by who handles it.
        let alert = Alert::from_json(&delivery.alert).ok();
        let field = |key| alert.as_ref().and_then(|alert| alert.field(key));
        let pod = field("k8s.pod.name").map(|name| format!("pod/{name}"));
        let container = field("container.id").map(|id| format!("container:{id}"));
        Self {
            who: match &delivery.action {
                // Its signature has proved the key.
                Some(action) if action.way == Way::Lambda => delivery.requester.clone(),
                _ => who(sender),
            },
            address: sender.address,
            namespaces: field("k8s.ns.name")
                .map(str::to_owned)
                .into_iter()
                .collect(),
            target: pod.or(container).unwrap_or_default(),
            rule: alert
                .as_ref()
                .map(|alert| format!("rule {}", alert.rule))
                .unwrap_or_default(),
        }
    }

    fn entry(&self, decision: Decision, capture: &str, reason: &str) -> Entry {
        Entry {
            address: self.address.to_string(),
            namespaces: self.namespaces.clone(),
            target: self.target.clone(),
            capture: capture.to_owned(),
            reason: reason.to_owned(),
            ..Entry::new("alert", decision, &self.who)
        }
    }
}

fn who(sender: &Peer) -> String {
    match &sender.name {
        Some(name) => name.to_string(),
        None => "a sender of alerts".to_owned(),
    }
}
