//! A rule's plan and an alert, made into the request that starts a capture. Pure.
//!
//! What comes from the alert goes in typed (addresses, ports, ids) or as kept text (the alert
//! itself, in the trigger): an alert cannot write filter text.

use remora_capture::{
    alert::{
        Alert,
        mapping::{self, Endpoint},
    },
    filter::{Filter, Names, compiler},
    session::{NameHint, SessionSpec, Trigger},
    text::one_line,
};
use remora_proto::v1;
use sha2::{Digest as _, Sha256};

use crate::{
    ingest::Delivery,
    outcome::{Refusal, RefusalCode},
    rules::Plan,
};

/// Longest name kept of a rule or sender, in bytes.
const NAME_MAX: usize = 256;
/// Longest name of a Kubernetes object, in bytes (RFC 1123 subdomain).
const KUBERNETES_NAME_MAX: usize = 253;

/// An alert and how it came.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub alert: &'a Alert,
    pub delivery: &'a Delivery,
}

/// The request that starts the plan's capture.
///
/// # Errors
/// The alert names nothing to capture, or rule and alert together cannot be a capture.
pub fn request(plan: Plan<'_>, source: Source<'_>) -> Result<v1::StartRequest, Refusal> {
    let spec = spec(plan, source)?;
    Ok(v1::StartRequest {
        spec: Some((&spec).into()),
        idempotency_key: idempotency_key(plan, source.alert),
    })
}

fn spec(plan: Plan<'_>, source: Source<'_>) -> Result<SessionSpec, Refusal> {
    let Source { alert, .. } = source;
    let capture = &plan.action.capture;
    let target = mapping::target(alert)
        .map_err(|error| Refusal::new(RefusalCode::NoTarget, error.to_string()))?;
    let mut spec = SessionSpec::new(target);
    spec.filter = filter(
        &capture.filter,
        &mapping::terms(alert, capture.scope).to_string(),
    )?;
    spec.limits = capture.limits;
    spec.snaplen = capture.snaplen;
    spec.look_back = capture.look_back;
    spec.trigger = trigger(plan, source)?;
    for (label, value) in labels(plan, alert) {
        spec.labels.insert(label.to_owned(), value);
    }
    spec.names = names(alert);
    spec.validate()
        .map_err(|error| invalid(error.to_string()))?;
    Ok(spec)
}

/// The rule's filter and the alert's terms, both of which must match.
fn filter(rule: &Filter, terms: &str) -> Result<Filter, Refusal> {
    // An alert does not wait for a name service: rules have addresses.
    let both = Filter::parse(terms)
        .and_then(|terms| Filter::compile(&rule.both(&terms), compiler(Names::Refused)));
    both.map_err(|error| {
        invalid(format!(
            "the rule's filter `{rule}` and the alert's `{terms}`: {error}"
        ))
    })
}

fn invalid(reason: String) -> Refusal {
    Refusal::new(RefusalCode::InvalidSpec, reason)
}

fn trigger(plan: Plan<'_>, source: Source<'_>) -> Result<Trigger, Refusal> {
    let Source { alert, delivery } = source;
    let kept = String::from_utf8(delivery.alert.clone());
    Ok(Trigger {
        // Only Falcosidekick gives its events an id.
        source: if alert.uuid.is_some() {
            "falcosidekick"
        } else {
            "falco"
        }
        .to_owned(),
        rule: one_line(&alert.rule, NAME_MAX),
        priority: alert.priority.map(|p| p.to_string()).unwrap_or_default(),
        alert: kept.map_err(|_bytes| invalid("the alert is not UTF-8".to_owned()))?,
        requester: one_line(&delivery.requester, NAME_MAX),
        reason: format!(
            "rule `{}`, action `{}`",
            one_line(&plan.rule.name, NAME_MAX),
            one_line(&plan.action.name, NAME_MAX)
        ),
        time: alert.time,
        trace_id: trace_id(&delivery.traceparent)
            .or(alert.trace_id.as_deref().filter(|id| is_trace_id(id)))
            .unwrap_or_default()
            .to_owned(),
    })
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

/// The same for each delivery of an alert, another for each capture of it: Falcosidekick's id, or
/// else what makes the alert the one it is, and the rule and action that want the capture.
fn idempotency_key(plan: Plan<'_>, alert: &Alert) -> String {
    let time = alert.time.map(|time| time.to_string()).unwrap_or_default();
    let container = alert.field("container.id").unwrap_or_default();
    let identity = match &alert.uuid {
        Some(uuid) => ["uuid", uuid, "", "", ""],
        None => ["content", &alert.rule, &time, &alert.output, container],
    };
    let mut hash = Sha256::new();
    for part in identity
        .into_iter()
        .chain([&*plan.rule.name, &*plan.action.name])
    {
        // With its length, so that no two lists of parts are the same bytes.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("alert-{digest}")
}
