//! What is asked for, checked. Pure.

use remora_capture::session::{CaptureId, Selector, SessionSpec, Target};
use remora_proto::{convert::ConvertError, limits::IDEMPOTENCY_KEY_BYTES_MAX, v1};
use tonic::Status;

use super::{access::Caller, error::invalid};

/// A checked [`v1::ClusterStartRequest`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Start {
    pub(crate) selector: Selector,
    pub(crate) spec: v1::CaptureSpec,
    pub(crate) fixed: bool,
    pub(super) key: Option<String>,
    /// How far before now pods that are gone belong to it.
    pub(super) look_back: std::time::Duration,
}

impl Start {
    pub(crate) fn checked(
        request: v1::ClusterStartRequest,
        caller: &Caller,
    ) -> Result<Self, Status> {
        let v1::ClusterStartRequest {
            selector,
            spec,
            fixed,
            idempotency_key: key,
        } = request;
        if key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
            return Err(invalid(format!(
                "idempotency_key has {} bytes; at most {IDEMPOTENCY_KEY_BYTES_MAX} are taken",
                key.len()
            )));
        }
        let selector =
            selector.ok_or_else(|| invalid("selector is missing; say what is captured"))?;
        let selector = Selector::try_from(selector)?;
        let mut spec = spec.unwrap_or_default();
        if spec.target.is_some() || spec.part.is_some() {
            return Err(invalid(
                "spec.target and spec.part are the controller's; say it in the selector",
            ));
        }
        // Told here once, instead of by each agent.
        let checked = SessionSpec::try_from(v1::CaptureSpec {
            target: Some((&Target::CgroupPath("/".to_owned())).into()),
            ..spec.clone()
        })?;
        let trigger = spec.trigger.get_or_insert_default();
        if trigger.source.is_empty() {
            trigger.source = "grpc".to_owned();
        }
        // Who it is, not who he says to be.
        trigger.requester.clone_from(&caller.name);
        Ok(Self {
            selector,
            spec,
            fixed,
            key: Some(key).filter(|key| !key.is_empty()),
            look_back: checked.look_back,
        })
    }
}

pub(super) fn id(text: &str) -> Result<CaptureId, Status> {
    text.parse()
        .map_err(|error| Status::from(ConvertError::Id(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Caller {
        Caller {
            name: "ann".into(),
            known: None,
        }
    }

    fn request() -> v1::ClusterStartRequest {
        v1::ClusterStartRequest {
            selector: Some((&Selector::parse("deploy/cart", "shop").unwrap()).into()),
            spec: Some(v1::CaptureSpec {
                filter: "tcp port 80".into(),
                trigger: Some(v1::Trigger {
                    requester: "root".into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn the_requester_is_who_calls() {
        let start = Start::checked(request(), &caller()).unwrap();
        let trigger = start.spec.trigger.unwrap();
        assert_eq!(
            (trigger.requester.as_str(), trigger.source.as_str()),
            ("ann", "grpc")
        );
    }

    type Spoil = fn(&mut v1::ClusterStartRequest);

    #[test]
    fn each_wrong_field_is_named() {
        let cases: [(&str, Spoil); 6] = [
            ("selector is missing", |r| r.selector = None),
            ("`Shop` is not the namespace", |r| {
                r.selector.as_mut().unwrap().namespace = "Shop".into();
            }),
            ("idempotency_key has 129 bytes", |r| {
                r.idempotency_key = "k".repeat(129);
            }),
            ("spec.target and spec.part", |r| {
                r.spec.as_mut().unwrap().part = Some(v1::Part::default());
            }),
            ("snaplen 300000", |r| {
                r.spec.as_mut().unwrap().snaplen = 300_000;
            }),
            ("spec.direction", |r| {
                r.spec.as_mut().unwrap().direction = 77;
            }),
        ];
        for (told, spoil) in cases {
            let mut request = request();
            spoil(&mut request);
            let status = Start::checked(request, &caller()).unwrap_err();
            assert!(
                status.message().contains(told),
                "{told}: {}",
                status.message()
            );
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
        }
    }
}
