//! What is to be done for an object next. Pure.
//!
//! ```text
//! made ─hold─▶ Pending ─start─▶ Capturing ─look, look, …─▶ Draining ─look─▶ Finished
//!                 └─ nobody to capture until its time is over, or wrong ─▶ Failed
//! deleted: stop, look until no packet is taken, let go        over for its ttl: remove
//! ```

use std::time::Duration;

use jiff::Timestamp;
use remora_crd::{Capture, FINALIZER};
use remora_proto::v1;

use super::{ask::Ask, time};

/// What is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, until it changes or this time comes.
    Rest(Option<Timestamp>),
    /// Its deletion is to wait for its end.
    Hold,
    /// Start it on its pods' nodes.
    Start,
    /// It was to end before it began.
    Never,
    /// Ask its nodes how it goes.
    Look,
    /// End it, then look.
    Stop,
    /// Nothing is taken any more: its deletion may go on.
    LetGo,
    /// It was over for long enough.
    Remove,
}

impl Step {
    pub(super) fn of(object: &Capture, now: Timestamp) -> Self {
        let metadata = &object.metadata;
        let is_leaving = metadata.deletion_timestamp.is_some();
        let finalizers = metadata.finalizers.as_deref().unwrap_or_default();
        let is_held = finalizers.iter().any(|name| name == FINALIZER);
        if is_leaving && !is_held {
            return Self::Rest(None);
        }
        let status = object.status.as_ref();
        let phase = status.and_then(|status| status.phase);
        if phase.is_some_and(remora_crd::CapturePhase::is_final) {
            return match (is_leaving, removal(object)) {
                (true, _) => Self::LetGo,
                (false, Some(at)) if at <= now => Self::Remove,
                (false, at) => Self::Rest(at),
            };
        }
        let has_begun = status.is_some_and(|status| !status.capture.is_empty());
        match (has_begun, is_leaving, is_held) {
            (true, true, _) => Self::Stop,
            (false, true, _) => Self::LetGo,
            (_, false, false) => Self::Hold,
            (true, false, true) if object.spec.stop => Self::Stop,
            (false, false, true) if object.spec.stop => Self::Never,
            (true, false, true) => Self::Look,
            (false, false, true) => Self::Start,
        }
    }
}

/// When a capture that is over is removed.
fn removal(object: &Capture) -> Option<Timestamp> {
    let seconds = u64::try_from(object.spec.ttl_seconds_after_finished?).ok()?;
    let over = object.status.as_ref()?.completion_time.as_ref()?;
    time::read(over)
        .checked_add(Duration::from_secs(seconds))
        .ok()
}

/// How long a part is to last from its own start on, if that is longer than it was told: as long as the
/// object says, from the capture's start on. `None` also for one without an end.
pub(super) fn lengthened(
    ask: &Ask,
    started: Timestamp,
    part: &v1::CaptureState,
) -> Option<Duration> {
    /// An agent's answer is rounded.
    const MORE: Duration = Duration::from_secs(1);
    let limits = part.spec.as_ref()?.limits.as_ref()?;
    let told = Duration::try_from(limits.duration?).ok()?;
    let own = part.started?;
    let own = Timestamp::new(own.seconds, own.nanos).ok()?;
    let until = started.checked_add(ask.duration).ok()?;
    let wanted = super::ask::since(own, until);
    (!told.is_zero() && wanted > told.saturating_add(MORE)).then_some(wanted)
}

/// A node that is silent at this time, long after it should have ended, has nothing of it any more
/// that anybody could wait for.
pub(super) fn is_given_up(ask: &Ask, started: Timestamp, now: Timestamp) -> bool {
    /// An agent that was away comes back in that time.
    const PATIENCE: Duration = Duration::from_secs(120);
    super::ask::since(started, now) > ask.duration.saturating_add(PATIENCE)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::ask::tests::object, *};

    fn made(metadata: Value, spec: Value, status: Value) -> Capture {
        let mut object =
            serde_json::to_value(object(json!({"selector": {"service": "cart"}}))).unwrap();
        let merge = |into: &mut Value, from: Value| {
            for (key, value) in from.as_object().unwrap() {
                into[key] = value.clone();
            }
        };
        merge(&mut object["metadata"], metadata);
        merge(&mut object["spec"], spec);
        if status != Value::Null {
            object["status"] = status;
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_part_that_joined_ends_with_the_rest() {
        let part = |started, seconds| v1::CaptureState {
            started: Some(prost_types::Timestamp {
                seconds: started,
                nanos: 0,
            }),
            spec: Some(v1::CaptureSpec {
                limits: Some(v1::Limits {
                    duration: Some(prost_types::Duration { seconds, nanos: 0 }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let spec = json!({"selector": {"service": "cart"}, "limits": {"duration": "100s"}});
        let ask = Ask::of(&object(spec)).unwrap();
        let began = Timestamp::from_second(1000).unwrap();
        let cases = [
            (1000, 60, Some(100)),
            (1000, 100, None),
            // One that is told to last longer is never shortened.
            (1000, 200, None),
            (1040, 60, None),
            (1040, 20, Some(60)),
            (1040, 0, None),
        ];
        for (started, lasts, wanted) in cases {
            let lengthened = lengthened(&ask, began, &part(started, lasts));
            assert_eq!(lengthened.map(|d| d.as_secs()), wanted, "{started} {lasts}");
        }
    }

    #[test]
    fn each_state_has_its_step() {
        let now: Timestamp = "2026-11-24T04:00:00Z".parse().unwrap();
        let held = || json!({"finalizers": ["other", FINALIZER]});
        let leaving =
            || json!({"finalizers": [FINALIZER], "deletionTimestamp": "2026-11-24T03:30:00Z"});
        let none = || json!({});
        let running = || json!({"phase": "Capturing", "capture": "01ARZ3NDEKTSV4RRFFQ69G5FAV"});
        let over = || json!({"phase": "Finished", "capture": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "completionTime": "2026-11-24T03:59:00Z"});
        let at = |text: &str| Some(text.parse().unwrap());
        let cases = [
            (none(), none(), Value::Null, Step::Hold),
            (
                json!({"deletionTimestamp": "2026-11-24T03:30:00Z"}),
                none(),
                Value::Null,
                Step::Rest(None),
            ),
            (leaving(), none(), Value::Null, Step::LetGo),
            (held(), none(), Value::Null, Step::Start),
            (held(), none(), json!({"phase": "Pending"}), Step::Start),
            (held(), json!({"stop": true}), Value::Null, Step::Never),
            (held(), none(), running(), Step::Look),
            (none(), none(), running(), Step::Hold),
            (held(), json!({"stop": true}), running(), Step::Stop),
            (leaving(), none(), running(), Step::Stop),
            (
                held(),
                none(),
                json!({"phase": "Draining", "capture": "x"}),
                Step::Look,
            ),
            (held(), none(), over(), Step::Rest(None)),
            (
                held(),
                json!({"ttlSecondsAfterFinished": 60}),
                over(),
                Step::Remove,
            ),
            (
                held(),
                json!({"ttlSecondsAfterFinished": 61}),
                over(),
                Step::Rest(at("2026-11-24T04:00:01Z")),
            ),
            (
                leaving(),
                json!({"ttlSecondsAfterFinished": 0}),
                over(),
                Step::LetGo,
            ),
            (leaving(), none(), json!({"phase": "Failed"}), Step::LetGo),
        ];
        for (metadata, spec, status, step) in cases {
            let object = made(metadata, spec, status);
            assert_eq!(Step::of(&object, now), step, "{object:?}");
        }
    }
}
