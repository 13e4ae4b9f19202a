//! What a `Capture` asks for, as a capture over several nodes. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use remora_capture::{
    filter::{Filter, Names, compiler},
    session::{CaptureId, Selector, WorkloadKind},
};
use remora_crd::{Capture, Direction, STORE, Selection, WorkloadKind as Kind};
use remora_proto::{
    reason::{Reason, reason_of},
    v1,
};

use super::time;
use crate::{
    api::{Start, access::Caller},
    fleet::Order,
};

/// No agent keeps packets for longer.
const LOOK_BACK_MAX: Duration = Duration::from_secs(24 * 3600);
/// The trigger's source in the captures' manifests.
const SOURCE: &str = "capture-cr";

/// An object's wish, checked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ask {
    pub(super) order: Order,
    /// Before its object was made.
    pub(super) look_back: Duration,
    /// From its start.
    pub(super) duration: Duration,
    pub(super) made: Timestamp,
}

/// It cannot be carried out, whoever tries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// A condition's reason: one word.
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Wrong {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { reason, message }
    }
}

impl Ask {
    /// # Errors
    /// [`Wrong`]: what the schema cannot tell, as the filter's grammar.
    pub(super) fn of(object: &Capture) -> Result<Self, Wrong> {
        let (metadata, spec) = (&object.metadata, &object.spec);
        let absent = |what: &str| Wrong::new("Invalid", format!("its object has no {what}"));
        let namespace = metadata.namespace.as_deref();
        let namespace = namespace.ok_or_else(|| absent("namespace"))?;
        let name = metadata.name.as_deref().ok_or_else(|| absent("name"))?;
        let uid = metadata.uid.as_deref().ok_or_else(|| absent("uid"))?;
        let made = metadata.creation_timestamp.as_ref();
        let made = time::read(made.ok_or_else(|| absent("time"))?);
        let look_back = duration("lookBack", &spec.look_back)?;
        let lasts = duration("limits.duration", &spec.limits.duration)?;
        let positive = |number: Option<i64>| number.and_then(|n| u64::try_from(n).ok());
        // As each agent would, to be told once and before anything begins.
        Filter::compile(&spec.filter, compiler(Names::Refused)).map_err(|error| {
            let pointed = format!("spec.filter: {error}\n{}", error.pointer(&spec.filter));
            Wrong::new("InvalidFilter", pointed)
        })?;
        let request = v1::ClusterStartRequest {
            selector: Some((&selector(&spec.selector, namespace)?).into()),
            fixed: spec.fixed,
            idempotency_key: String::new(),
            spec: Some(v1::CaptureSpec {
                filter: spec.filter.clone(),
                snaplen: u32::try_from(spec.snaplen).unwrap_or(0),
                direction: match spec.direction {
                    Direction::Both => v1::Direction::Unspecified,
                    Direction::Ingress => v1::Direction::Ingress,
                    Direction::Egress => v1::Direction::Egress,
                }
                .into(),
                limits: Some(v1::Limits {
                    packets: positive(spec.limits.packets).unwrap_or(0),
                    file_bytes: positive(spec.limits.file_bytes).unwrap_or(0),
                    duration: prost_types::Duration::try_from(lasts).ok(),
                }),
                destination: v1::Destination::Store.into(),
                sink: match spec.destination.as_str() {
                    STORE => String::new(),
                    sink => sink.to_owned(),
                },
                look_back: prost_types::Duration::try_from(look_back).ok(),
                segment: spec.segment,
                trigger: Some(v1::Trigger {
                    source: SOURCE.to_owned(),
                    reason: spec.reason.clone(),
                    time: Some(prost_types::Timestamp {
                        seconds: made.as_second(),
                        nanos: made.subsec_nanosecond(),
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        };
        // The API server let him write it, and does not say who he is.
        let caller = Caller {
            name: format!("captures.remora.dev/{namespace}/{name}"),
            known: None,
        };
        let start = Start::checked(request, &caller).map_err(|status| {
            let reason = match reason_of(&status) {
                Some(Reason::InvalidFilter) => "InvalidFilter",
                _ => "Invalid",
            };
            Wrong::new(reason, status.message())
        })?;
        Ok(Self {
            order: Order {
                id: CaptureId::derived(made, uid.as_bytes()),
                selector: start.selector,
                fixed: start.fixed,
                spec: start.spec,
            },
            look_back,
            duration: lasts,
            made,
        })
    }

    /// The order at the time that it is carried out: the past is that before the object was made.
    pub(super) fn order_at(&self, now: Timestamp) -> Order {
        let mut order = self.order.clone();
        if !self.look_back.is_zero() {
            let look_back = (self.look_back + since(self.made, now)).min(LOOK_BACK_MAX);
            order.spec.look_back = prost_types::Duration::try_from(look_back).ok();
        }
        order
    }

    /// When nobody waits for its pods any more.
    pub(super) fn gives_up(&self) -> Timestamp {
        self.made
            .checked_add(self.duration)
            .unwrap_or(Timestamp::MAX)
    }
}

/// None if it lies ahead.
pub(super) fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

fn selector(selection: &Selection, namespace: &str) -> Result<Selector, Wrong> {
    let namespace = namespace.to_owned();
    let Selection {
        pod,
        workload,
        service,
        labels,
    } = selection.clone();
    match (pod, workload, service, labels) {
        (Some(pod), None, None, None) => Ok(Selector::Pod {
            namespace,
            name: pod.name,
            container: pod.container,
        }),
        (None, Some(workload), None, None) => Ok(Selector::Workload {
            namespace,
            kind: match workload.kind {
                Kind::Deployment => WorkloadKind::Deployment,
                Kind::StatefulSet => WorkloadKind::StatefulSet,
                Kind::DaemonSet => WorkloadKind::DaemonSet,
                Kind::Job => WorkloadKind::Job,
                Kind::ReplicaSet => WorkloadKind::ReplicaSet,
            },
            name: workload.name,
        }),
        (None, None, Some(name), None) => Ok(Selector::Service { namespace, name }),
        (None, None, None, Some(labels)) => Ok(Selector::Labels { namespace, labels }),
        _ => Err(Wrong::new(
            "Invalid",
            "spec.selector: name exactly one of pod, workload, service and labels",
        )),
    }
}

fn duration(field: &str, text: &str) -> Result<Duration, Wrong> {
    let parsed = text.parse::<SignedDuration>().ok();
    let parsed = parsed.and_then(|duration| Duration::try_from(duration).ok());
    parsed.ok_or_else(|| {
        let message = format!("spec.{field}: write it like `90s` or `1h30m`");
        Wrong::new("Invalid", message)
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::captures) fn object(spec: serde_json::Value) -> Capture {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "remora.dev/v1alpha1",
            "kind": "Capture",
            "metadata": {
                "namespace": "shop", "name": "cart-tls", "generation": 3,
                "uid": "0b9c5a4e-6a0b-4c1e-9a57-2f4c2f0f6a11",
                "creationTimestamp": "2026-11-24T03:00:00Z",
            },
            "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn an_object_is_the_same_capture_for_every_controller() {
        let object = object(serde_json::json!({
            "selector": {"workload": {"kind": "Deployment", "name": "cart"}},
            "filter": "tcp port 443", "lookBack": "30s", "segment": true, "direction": "Ingress",
            "limits": {"duration": "1m30s", "packets": 100}, "reason": "INC-4711", "snaplen": 96,
        }));
        let ask = Ask::of(&object).unwrap();
        assert_eq!(Ask::of(&object), Ok(ask.clone()));
        assert_eq!(ask.order.selector.to_string(), "deploy/cart");
        assert_eq!((ask.look_back.as_secs(), ask.duration.as_secs()), (30, 90));
        let spec = &ask.order.spec;
        assert_eq!(
            (spec.filter.as_str(), spec.snaplen, spec.segment),
            ("tcp port 443", 96, true)
        );
        assert_eq!(spec.direction(), v1::Direction::Ingress);
        assert_eq!(spec.limits.as_ref().unwrap().packets, 100);
        let trigger = spec.trigger.as_ref().unwrap();
        assert_eq!(trigger.requester, "captures.remora.dev/shop/cart-tls");
        assert_eq!(
            (trigger.source.as_str(), trigger.reason.as_str()),
            (SOURCE, "INC-4711")
        );
        // The later it starts, the further it reaches back.
        let later = ask.order_at(ask.made + SignedDuration::from_secs(7));
        assert_eq!(later.spec.look_back.unwrap().seconds, 37);
        assert_eq!(ask.gives_up(), ask.made + SignedDuration::from_secs(90));
    }

    #[test]
    fn what_the_schema_cannot_tell_is_said() {
        let cases = [
            (
                serde_json::json!({"selector": {"pod": {"name": "a"}}, "filter": "tcp prot 80"}),
                "InvalidFilter",
                "prot",
            ),
            (
                serde_json::json!({"selector": {}}),
                "Invalid",
                "exactly one",
            ),
            (
                serde_json::json!({"selector": {"service": "a"}, "lookBack": "soon"}),
                "Invalid",
                "lookBack",
            ),
        ];
        for (spec, reason, told) in cases {
            let wrong = Ask::of(&object(spec)).unwrap_err();
            assert_eq!(wrong.reason, reason, "{wrong:?}");
            assert!(wrong.message.contains(told), "{wrong:?}");
        }
    }
}
