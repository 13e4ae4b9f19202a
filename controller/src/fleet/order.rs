//! What is asked of each agent for one capture over several nodes. Pure.

use std::time::Duration;

use jiff::Timestamp;
use remora_capture::session::{CaptureId, Part, Selector};
use remora_proto::v1;

use crate::cluster::index::Member;

/// How much of a pod's past is taken when it joins a capture: it began a moment ago, and its first
/// packets passed before anybody could be told of it.
pub const JOIN_LOOK_BACK: Duration = Duration::from_secs(10);

/// A capture over several nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    pub id: CaptureId,
    pub selector: Selector,
    /// Pods that come later do not join.
    pub fixed: bool,
    /// Without target and part.
    pub spec: v1::CaptureSpec,
}

/// The time of a capture is over before the pod came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over;

impl Order {
    /// The request for a member. The same one again means the same session, whoever asks.
    #[must_use]
    pub fn request(&self, member: &Member) -> v1::StartRequest {
        let part = Part {
            capture: self.id,
            selector: self.selector.clone(),
            fixed: self.fixed,
        };
        let target = match &member.pod {
            Some(pod) => v1::target::Target::Pod(pod.clone().into()),
            None => v1::target::Target::CgroupPath("/".to_owned()),
        };
        v1::StartRequest {
            spec: Some(v1::CaptureSpec {
                target: Some(v1::Target {
                    target: Some(target),
                }),
                part: Some((&part).into()),
                ..self.spec.clone()
            }),
            idempotency_key: format!("{}/{}", self.id, member.key()),
            coalescing_key: String::new(),
        }
    }

    /// The request for a member that joins at `now` what began at `started`: it ends with the rest,
    /// and has the pod's first packets.
    ///
    /// # Errors
    /// [`Over`].
    pub fn joining(
        &self,
        member: &Member,
        started: Timestamp,
        now: Timestamp,
    ) -> Result<v1::StartRequest, Over> {
        let elapsed = Duration::try_from(now.duration_since(started)).unwrap_or_default();
        let mut request = self.request(member);
        let Some(spec) = &mut request.spec else {
            return Ok(request);
        };
        let limit = spec
            .limits
            .as_mut()
            .and_then(|limits| limits.duration.as_mut());
        if let Some(limit) = limit {
            let whole = Duration::try_from(*limit).unwrap_or_default();
            // What is left of it, in whole milliseconds.
            let left = whole.saturating_sub(elapsed);
            if !whole.is_zero() && left < Duration::from_millis(1) {
                return Err(Over);
            }
            *limit = prost_types::Duration::try_from(left).unwrap_or_default();
        }
        let wanted = spec
            .look_back
            .and_then(|wanted| Duration::try_from(wanted).ok());
        let look_back = wanted.unwrap_or_default().max(elapsed.min(JOIN_LOOK_BACK));
        spec.look_back = prost_types::Duration::try_from(look_back).ok();
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use remora_capture::session::PodRef;
    use remora_proto::convert::Start;

    use super::*;

    fn order(duration_s: i64) -> Order {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        Order {
            id: CaptureId::generate(),
            selector: Selector::parse("deploy/cart", "shop").unwrap(),
            fixed: false,
            spec: v1::CaptureSpec {
                filter: "tcp port 80".into(),
                limits: (duration_s > 0).then(|| v1::Limits {
                    duration: seconds(duration_s),
                    ..Default::default()
                }),
                ..Default::default()
            },
        }
    }

    fn member() -> Member {
        Member {
            node: "w1".into(),
            pod: Some(PodRef {
                namespace: "shop".into(),
                name: "cart-1".into(),
                uid: Some("0b9c5a4e-6a0b-4c1e-9a57-2f4c2f0f6a11".into()),
                container: None,
            }),
        }
    }

    #[test]
    fn a_request_is_the_same_for_whoever_makes_it() {
        let order = order(60);
        let request = order.request(&member());
        assert_eq!(request, order.clone().request(&member()));
        let expected = format!("{}/0b9c5a4e-6a0b-4c1e-9a57-2f4c2f0f6a11", order.id);
        assert_eq!(request.idempotency_key, expected);
        let start = Start::try_from(request).unwrap();
        assert_eq!(start.spec.part.unwrap().capture, order.id);
        assert_eq!(
            start.spec.target.to_string(),
            "pod:shop/cart-1@0b9c5a4e-6a0b-4c1e-9a57-2f4c2f0f6a11"
        );
        let node = Member {
            node: "w1".into(),
            pod: None,
        };
        assert!(order.request(&node).idempotency_key.ends_with("/node"));
    }

    #[test]
    fn who_joins_ends_with_the_rest_and_has_its_beginning() {
        let started: Timestamp = "2026-11-24T03:00:00Z".parse().unwrap();
        let after = |seconds| started + jiff::SignedDuration::from_secs(seconds);
        for (duration, elapsed, left, look_back) in [
            (60, 3, 57, 3),
            (60, 50, 10, 10),
            (0, 1000, 0, 10),
            (60, -5, 60, 0),
        ] {
            let request = order(duration)
                .joining(&member(), started, after(elapsed))
                .unwrap();
            let spec = request.spec.unwrap();
            let limit = spec.limits.and_then(|limits| limits.duration);
            assert_eq!(limit.map_or(0, |limit| limit.seconds), left);
            assert_eq!(
                spec.look_back.map_or(0, |d| d.seconds),
                look_back,
                "{elapsed}"
            );
        }
        assert_eq!(order(60).joining(&member(), started, after(61)), Err(Over));
    }
}
