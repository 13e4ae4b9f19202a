//! Pods, selectors and parts of captures over several nodes.

use remora_capture::session::{Part, PodRef, Selector, SpecError, WorkloadKind};

use super::{ConvertError, Problem, invalid, known, required};
use crate::v1;

impl From<v1::Pod> for PodRef {
    fn from(pod: v1::Pod) -> Self {
        let v1::Pod {
            namespace,
            name,
            uid,
            container,
        } = pod;
        Self {
            namespace,
            name,
            uid: given(uid),
            container: given(container),
        }
    }
}

impl From<PodRef> for v1::Pod {
    fn from(pod: PodRef) -> Self {
        let PodRef {
            namespace,
            name,
            uid,
            container,
        } = pod;
        Self {
            namespace,
            name,
            uid: uid.unwrap_or_default(),
            container: container.unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::Selector> for Selector {
    type Error = ConvertError;

    fn try_from(selector: v1::Selector) -> Result<Self, ConvertError> {
        use v1::selector::Kind as Wire;
        let v1::Selector { namespace, kind } = selector;
        let selector = match required("selector.kind", kind)? {
            Wire::Pod(v1::PodSelector { name, container }) => Self::Pod {
                namespace,
                name,
                container: given(container),
            },
            Wire::Workload(v1::WorkloadSelector { kind, name }) => Self::Workload {
                namespace,
                kind: workload_kind(kind)?,
                name,
            },
            Wire::Service(name) => Self::Service { namespace, name },
            Wire::Labels(labels) => Self::Labels { namespace, labels },
            Wire::Node(name) => Self::Node { name },
        };
        selector.validate().map_err(SpecError::from)?;
        Ok(selector)
    }
}

impl From<&Selector> for v1::Selector {
    fn from(selector: &Selector) -> Self {
        use v1::selector::Kind as Wire;
        let namespace = selector.namespace().unwrap_or_default().to_owned();
        let kind = match selector.clone() {
            Selector::Pod {
                name, container, ..
            } => Wire::Pod(v1::PodSelector {
                name,
                container: container.unwrap_or_default(),
            }),
            Selector::Workload { kind, name, .. } => Wire::Workload(v1::WorkloadSelector {
                kind: v1::WorkloadKind::from(kind).into(),
                name,
            }),
            Selector::Service { name, .. } => Wire::Service(name),
            Selector::Labels { labels, .. } => Wire::Labels(labels),
            Selector::Node { name } => Wire::Node(name),
        };
        Self {
            namespace,
            kind: Some(kind),
        }
    }
}

fn workload_kind(kind: i32) -> Result<WorkloadKind, ConvertError> {
    Ok(
        match known::<v1::WorkloadKind>("selector.workload.kind", kind)? {
            v1::WorkloadKind::Unspecified => {
                return Err(invalid("selector.workload.kind", Problem::Missing));
            }
            v1::WorkloadKind::Deployment => WorkloadKind::Deployment,
            v1::WorkloadKind::StatefulSet => WorkloadKind::StatefulSet,
            v1::WorkloadKind::DaemonSet => WorkloadKind::DaemonSet,
            v1::WorkloadKind::Job => WorkloadKind::Job,
            v1::WorkloadKind::ReplicaSet => WorkloadKind::ReplicaSet,
        },
    )
}

impl From<WorkloadKind> for v1::WorkloadKind {
    fn from(kind: WorkloadKind) -> Self {
        match kind {
            WorkloadKind::Deployment => Self::Deployment,
            WorkloadKind::StatefulSet => Self::StatefulSet,
            WorkloadKind::DaemonSet => Self::DaemonSet,
            WorkloadKind::Job => Self::Job,
            WorkloadKind::ReplicaSet => Self::ReplicaSet,
        }
    }
}

impl TryFrom<v1::Part> for Part {
    type Error = ConvertError;

    fn try_from(part: v1::Part) -> Result<Self, ConvertError> {
        let v1::Part {
            capture,
            selector,
            fixed,
        } = part;
        Ok(Self {
            capture: capture.parse()?,
            selector: required("spec.part.selector", selector)?.try_into()?,
            fixed,
        })
    }
}

impl From<&Part> for v1::Part {
    fn from(part: &Part) -> Self {
        let Part {
            capture,
            selector,
            fixed,
        } = part;
        Self {
            capture: capture.to_string(),
            selector: Some(selector.into()),
            fixed: *fixed,
        }
    }
}

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
