//! A rule's plan and an alert, made into the request that starts a capture. Pure.
//!
//! What comes from the alert goes in typed (addresses, ports, ids) or as kept text (the alert
//! itself, in the trigger): an alert cannot write filter text.

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;
use remora_capture::{
    alert::{
        Alert,
        mapping::{self, Endpoint},
    },
    filter::Filter,
    session::{NameHint, SessionSpec, Trigger},
    text::one_line,
};
use remora_proto::v1;
use remora_rules::{ClusterWanted, NoCapture, Plan, Wanted, Whose};
use sha2::{Digest as _, Sha256};

use crate::{
    ingest::Delivery,
    outcome::{Refusal, RefusalCode},
};

/// Longest name kept of a rule or sender, in bytes.
const NAME_MAX: usize = 256;
/// Longest reason of a capture, in bytes.
const REASON_MAX: usize = 1024;
/// Longest name of a Kubernetes object, in bytes (RFC 1123 subdomain).
const KUBERNETES_NAME_MAX: usize = 253;

/// Most that a look-back grows by its alert's age: as long as an agent keeps what it kept of the
/// dead (`--look-back-keep`). An alert that says to be older is taken to be as old as that.
pub const ALERT_AGE_MAX: Duration = Duration::from_secs(120);

/// An alert and how it came.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub alert: &'a Alert,
    pub delivery: &'a Delivery,
    /// What else is to be told of the request, for a person.
    pub note: Option<&'a str>,
}

/// The request that starts the plan's capture.
///
/// # Errors
/// The alert names nothing to capture, or rule and alert together cannot be a capture.
pub fn request(plan: Plan<'_>, source: Source<'_>) -> Result<v1::StartRequest, Refusal> {
    let spec = spec(plan, source)?;
    Ok(v1::StartRequest {
        coalescing_key: coalescing_key(plan, &spec),
        spec: Some((&spec).into()),
        idempotency_key: idempotency_key(plan, source),
    })
}

/// What the plan's capture is in a cluster.
#[derive(Clone, Debug)]
pub struct ClusterTrigger {
    pub whose: Whose,
    pub spec: SessionSpec,
    /// Address and filter for the connection's other end.
    pub other_end: Option<(IpAddr, Filter)>,
    /// The same for each delivery of the alert.
    pub key: String,
    /// The same for each alert for which the same packets would be captured.
    pub coalescing_key: String,
    /// When what is captured happened, as far as the alert tells it.
    pub time: Timestamp,
}

/// The plan's capture by who knows the cluster.
///
/// # Errors
/// As [`request`].
pub fn in_cluster(plan: Plan<'_>, source: Source<'_>) -> Result<ClusterTrigger, Refusal> {
    let ClusterWanted {
        whose,
        wanted,
        other_end,
    } = plan.capture_in_cluster(source.alert).map_err(refusal)?;
    let spec = complete(plan, source, wanted)?;
    Ok(ClusterTrigger {
        whose,
        coalescing_key: coalescing_key(plan, &spec),
        spec,
        other_end,
        key: idempotency_key(plan, source),
        time: source.alert.time.unwrap_or(source.delivery.arrived),
    })
}

fn spec(plan: Plan<'_>, source: Source<'_>) -> Result<SessionSpec, Refusal> {
    let wanted = plan.capture(source.alert).map_err(refusal)?;
    complete(plan, source, wanted)
}

fn complete(plan: Plan<'_>, source: Source<'_>, wanted: Wanted) -> Result<SessionSpec, Refusal> {
    let Source {
        alert, delivery, ..
    } = source;
    let Wanted {
        mut spec,
        mut notes,
    } = wanted;
    notes.extend(source.note.map(str::to_owned));
    spec.look_back = look_back(spec.look_back, alert, delivery.arrived);
    spec.trigger = trigger(plan, source, &notes)?;
    for (label, value) in labels(plan, alert) {
        spec.labels.insert(label.to_owned(), value);
    }
    spec.names = names(alert);
    spec.validate()
        .map_err(|error| invalid(error.to_string()))?;
    Ok(spec)
}

fn refusal(error: NoCapture) -> Refusal {
    let code = match error {
        NoCapture::Target(_) | NoCapture::NoPod => RefusalCode::NoTarget,
        NoCapture::NeedsCluster { .. } => RefusalCode::NeedsCluster,
        NoCapture::NoValue(_) => RefusalCode::MissingValue,
        NoCapture::Filter { .. } | NoCapture::Spec(_) => RefusalCode::InvalidSpec,
    };
    Refusal::new(code, error.to_string())
}

/// The rule counts from the alert's own time, the agent from now: the alert's age on the way here
/// comes on top. A clock that is ahead of ours makes an alert no younger than now.
fn look_back(wanted: Duration, alert: &Alert, arrived: Timestamp) -> Duration {
    if wanted.is_zero() {
        return wanted;
    }
    let age = alert.time.map(|time| arrived.duration_since(time));
    let age = age.and_then(|age| Duration::try_from(age).ok());
    wanted.saturating_add(age.unwrap_or_default().min(ALERT_AGE_MAX))
}

fn invalid(reason: String) -> Refusal {
    Refusal::new(RefusalCode::InvalidSpec, reason)
}

fn trigger(plan: Plan<'_>, source: Source<'_>, notes: &[String]) -> Result<Trigger, Refusal> {
    let Source {
        alert, delivery, ..
    } = source;
    let kept = String::from_utf8(delivery.alert.clone());
    Ok(Trigger {
        source: sender(source).to_owned(),
        rule: one_line(&alert.rule, NAME_MAX),
        priority: alert.priority.map(|p| p.to_string()).unwrap_or_default(),
        alert: kept.map_err(|_bytes| invalid("the alert is not UTF-8".to_owned()))?,
        requester: one_line(&delivery.requester, NAME_MAX),
        reason: reason(plan, notes),
        time: alert.time,
        trace_id: trace_id(&delivery.traceparent)
            .or(alert.trace_id.as_deref().filter(|id| is_trace_id(id)))
            .unwrap_or_default()
            .to_owned(),
    })
}

/// Which program the alert comes from, at first hand.
fn sender(source: Source<'_>) -> &'static str {
    match (&source.delivery.action, &source.alert.uuid) {
        (Some(_), _) => "falco-talon",
        // Only Falcosidekick gives its events an id.
        (None, Some(_)) => "falcosidekick",
        (None, None) => "falco",
    }
}

/// The rule and its action, and how the filter is another than the rule's text says.
fn reason(plan: Plan<'_>, notes: &[String]) -> String {
    let [rule, action] = [&plan.rule.name, &plan.action.name].map(|name| one_line(name, NAME_MAX));
    let reason = format!("rule `{rule}`, action `{action}`");
    let parts: Vec<_> = std::iter::once(&reason).chain(notes).cloned().collect();
    one_line(&parts.join("; "), REASON_MAX)
}

/// The trace id of a W3C `traceparent`: `00-<32 hex digits>-…`.
fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let version = parts.next()?;
    let id = parts.next()?;
    (version.len() == 2 && is_trace_id(id)).then_some(id)
}

/// 32 lower-case hex digits, not all zero (W3C Trace Context, 3.2.2.3).
fn is_trace_id(id: &str) -> bool {
    id.len() == 32
        && id
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        && id.bytes().any(|b| b != b'0')
}

/// What captures are searched by.
fn labels(plan: Plan<'_>, alert: &Alert) -> impl Iterator<Item = (&'static str, String)> {
    let name = |key| alert.field(key).filter(|name| is_kubernetes_name(name));
    let node = alert
        .hostname
        .as_deref()
        .filter(|name| is_kubernetes_name(name));
    [
        ("namespace", name("k8s.ns.name")),
        ("pod", name("k8s.pod.name")),
        ("node", node),
    ]
    .into_iter()
    .filter_map(|(label, value)| Some((label, value?.to_owned())))
    .chain([("rule", one_line(&plan.rule.name, NAME_MAX))])
}

/// Lower-case letters, digits, `-` and `.`: what an alert says beyond that is no name.
fn is_kubernetes_name(name: &str) -> bool {
    (1..=KUBERNETES_NAME_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
}

/// Names for the file: the remote ends that Falco resolved, and the pod's own address.
fn names(alert: &Alert) -> Vec<NameHint> {
    let own = || {
        let Endpoint { own, .. } = mapping::endpoint(alert)?;
        let pod = alert.field("k8s.pod.name")?;
        let namespace = alert.field("k8s.ns.name")?;
        Some(NameHint {
            address: own?,
            name: format!("{pod}.{namespace}"),
        })
    };
    mapping::names(alert)
        .into_iter()
        .chain(own().filter(NameHint::is_usable))
        .collect()
}

/// The same for each delivery of an alert, another for each capture of it: the sender's key of the
/// call, or Falcosidekick's id, or its envelope's, or else what makes the alert the one it is, and the rule and action
/// that want the capture.
fn idempotency_key(plan: Plan<'_>, source: Source<'_>) -> String {
    let Source {
        alert, delivery, ..
    } = source;
    let time = alert.time.map(|time| time.to_string()).unwrap_or_default();
    let container = alert.field("container.id").unwrap_or_default();
    let call = delivery.action.as_ref().map(|action| &*action.key);
    let call = call.filter(|key| !key.is_empty());
    let identity = match (call, &alert.uuid, &delivery.event_id) {
        (Some(call), _, _) => ["call", call, "", "", ""],
        (None, Some(uuid), _) => ["uuid", uuid, "", "", ""],
        (None, None, Some(id)) => ["event", id, "", "", ""],
        (None, None, None) => ["content", &alert.rule, &time, &alert.output, container],
    };
    let names = [&*plan.rule.name, &*plan.action.name];
    format!("alert-{}", digest(identity.into_iter().chain(names)))
}

/// The same for each alert for which this rule and action would have the same packets captured: the
/// endpoint is in the filter, if the rule asks for it. An agent joins what has the same key, the same
/// target and the same filter ([`SessionSpec::takes_what`]), so the key says whose capture it is: no
/// other rule's, nor a person's.
fn coalescing_key(plan: Plan<'_>, spec: &SessionSpec) -> String {
    let [rule, action] = [&*plan.rule.name, &*plan.action.name];
    let (target, filter) = (spec.target.to_string(), spec.filter.text());
    format!("rule-{}", digest([rule, action, &target, filter]))
}

/// In hexadecimal digits.
fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // With its length, so that no two lists of parts are the same bytes.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let bytes = hash.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_back_counts_from_the_alerts_own_time() {
        let arrived: Timestamp = "2026-11-24T03:00:10.5Z".parse().unwrap();
        for (time, wanted, expected_ms) in [
            ("2026-11-24T03:00:10.5Z", 15, 15_000),
            ("2026-11-24T03:00:05.25Z", 15, 20_250),
            ("2026-11-24T04:00:05.25+01:00", 15, 20_250),
            // The sender's clock is ahead.
            ("2026-11-24T03:00:20Z", 15, 15_000),
            // Older than anything that is kept.
            ("2026-11-23T03:00:00Z", 15, 135_000),
            ("1970-01-01T00:00:00Z", 15, 135_000),
            // The rule wants none.
            ("2026-11-24T03:00:05Z", 0, 0),
        ] {
            let json = format!(r#"{{"rule": "r", "time": "{time}"}}"#);
            let alert = Alert::from_json(json.as_bytes()).unwrap();
            let found = look_back(Duration::from_secs(wanted), &alert, arrived);
            assert_eq!(found, Duration::from_millis(expected_ms), "{time}");
        }
        let timeless = Alert::from_json(br#"{"rule": "r"}"#).unwrap();
        let wanted = Duration::from_secs(15);
        assert_eq!(look_back(wanted, &timeless, arrived), wanted);
        assert_eq!(look_back(Duration::MAX, &timeless, arrived), Duration::MAX);
    }
}
