//! Captures over several nodes: what is selected in a cluster, and which part of it a session is.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    CaptureId,
    pod::{PodError, check, is_label, is_name},
};

/// Longest label selector, in bytes.
const LABELS_MAX: usize = 1024;

/// Objects of a cluster whose pods are captured.
///
/// As text (see [`Selector::parse`]): `pod/cart-7d9`, `deploy/cart`, `svc/cart`, `-l app=cart`, `node/worker-1`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    Pod {
        namespace: String,
        name: String,
        /// One container of it, by name; `None`: the whole pod.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        container: Option<String>,
    },
    /// The pods that a workload has, and those that it gets.
    Workload {
        namespace: String,
        kind: WorkloadKind,
        name: String,
    },
    /// The pods behind a service.
    Service { namespace: String, name: String },
    /// Pods by their labels, in Kubernetes' words: `app=cart,tier!=cache`.
    Labels { namespace: String, labels: String },
    /// A node's own interfaces: the traffic of everybody on it.
    Node { name: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadKind {
    Deployment,
    StatefulSet,
    DaemonSet,
    Job,
    ReplicaSet,
}

impl WorkloadKind {
    pub const ALL: [Self; 5] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::Job,
        Self::ReplicaSet,
    ];

    /// Kubernetes' kind: `Deployment`.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::Job => "Job",
            Self::ReplicaSet => "ReplicaSet",
        }
    }

    /// As kubectl abbreviates it: `deploy`.
    #[must_use]
    pub fn short(self) -> &'static str {
        match self {
            Self::Deployment => "deploy",
            Self::StatefulSet => "sts",
            Self::DaemonSet => "ds",
            Self::Job => "job",
            Self::ReplicaSet => "rs",
        }
    }

    /// By any of the names that kubectl takes.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        Self::ALL.into_iter().find(|kind| {
            let full = kind.kind().to_ascii_lowercase();
            name == kind.short() || name == full || name.strip_suffix('s') == Some(&full)
        })
    }
}

/// What is said of a selection cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SelectorError {
    #[error(
        "`{0}` selects nothing known; use pod/NAME, deploy/NAME, sts/NAME, ds/NAME, job/NAME, rs/NAME, svc/NAME, \
             node/NAME or -l LABELS"
    )]
    Kind(String),
    #[error(transparent)]
    Name(#[from] PodError),
    #[error(
        "a label selector has 1 to {LABELS_MAX} bytes of printable text, like app=cart,tier!=cache"
    )]
    Labels,
}

impl Selector {
    /// `KIND/NAME` in a namespace, as kubectl writes it; a bare name is a pod's.
    ///
    /// # Errors
    /// [`SelectorError`].
    pub fn parse(text: &str, namespace: &str) -> Result<Self, SelectorError> {
        let (kind, name) = text.split_once('/').unwrap_or(("pod", text));
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let selector = match kind {
            "pod" | "pods" | "po" => Self::Pod {
                namespace,
                name,
                container: None,
            },
            "service" | "services" | "svc" => Self::Service { namespace, name },
            "node" | "nodes" | "no" => Self::Node { name },
            kind => Self::Workload {
                namespace,
                kind: WorkloadKind::named(kind).ok_or_else(|| {
                    SelectorError::Kind(
                        text.chars()
                            .take(80)
                            .collect::<String>()
                            .escape_debug()
                            .to_string(),
                    )
                })?,
                name,
            },
        };
        selector.validate()?;
        Ok(selector)
    }

    /// # Errors
    /// [`SelectorError`]: names come from outside.
    pub fn validate(&self) -> Result<(), SelectorError> {
        if let Some(namespace) = self.namespace() {
            check("namespace", namespace, is_label)?;
        }
        match self {
            Self::Pod {
                name, container, ..
            } => {
                check("name", name, is_name)?;
                if let Some(container) = container {
                    check("container", container, is_label)?;
                }
            }
            Self::Workload { name, .. } | Self::Service { name, .. } | Self::Node { name } => {
                check("name", name, is_name)?;
            }
            Self::Labels { labels, .. } => {
                let is_right = (1..=LABELS_MAX).contains(&labels.len())
                    && labels.bytes().all(|b| (b' '..=b'~').contains(&b));
                if !is_right {
                    return Err(SelectorError::Labels);
                }
            }
        }
        Ok(())
    }

    /// `None` for what is in no namespace: a node.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Pod { namespace, .. }
            | Self::Workload { namespace, .. }
            | Self::Service { namespace, .. }
            | Self::Labels { namespace, .. } => Some(namespace),
            Self::Node { .. } => None,
        }
    }
}

/// Without the namespace, as kubectl would write it.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod {
                name,
                container: None,
                ..
            } => write!(f, "pod/{name}"),
            Self::Pod {
                name,
                container: Some(container),
                ..
            } => write!(f, "pod/{name} -c {container}"),
            Self::Workload { kind, name, .. } => write!(f, "{}/{name}", kind.short()),
            Self::Service { name, .. } => write!(f, "svc/{name}"),
            Self::Labels { labels, .. } => write!(f, "-l {labels}"),
            Self::Node { name } => write!(f, "node/{name}"),
        }
    }
}

/// Which capture over several nodes a session is a part of. The agents keep it: whoever asks them all finds the
/// whole again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Part {
    pub capture: CaptureId,
    pub selector: Selector,
    /// Pods that come later do not join.
    pub fixed: bool,
}

impl FromStr for WorkloadKind {
    type Err = SelectorError;

    fn from_str(name: &str) -> Result<Self, SelectorError> {
        Self::named(name).ok_or_else(|| SelectorError::Kind(name.chars().take(80).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubectl_takes_is_selected() {
        for (text, shown) in [
            ("cart-7d9", "pod/cart-7d9"),
            ("po/cart-7d9", "pod/cart-7d9"),
            ("deployments/cart", "deploy/cart"),
            ("StatefulSet/db", "sts/db"),
            ("ds/log", "ds/log"),
            ("jobs/once", "job/once"),
            ("svc/cart", "svc/cart"),
            ("node/worker-1.example", "node/worker-1.example"),
        ] {
            let selector = Selector::parse(text, "shop").unwrap();
            assert_eq!(selector.to_string(), shown);
            let json = serde_json::to_string(&selector).unwrap();
            assert_eq!(serde_json::from_str::<Selector>(&json).unwrap(), selector);
        }
        assert_eq!(Selector::parse("node/a", "shop").unwrap().namespace(), None);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "pod/",
            "cron/x",
            "pod/Cart",
            "svc/../x",
            "deploy/a_b",
            "pod/a\u{1b}[31m",
            "pod/-a",
        ] {
            assert!(Selector::parse(text, "shop").is_err(), "{text:?}");
        }
        assert!(Selector::parse("cart", "Shop").is_err());
        let labels = |labels: &str| Selector::Labels {
            namespace: "shop".into(),
            labels: labels.into(),
        };
        assert_eq!(labels("app=cart,tier!=cache").validate(), Ok(()));
        for bad in ["", "a\nb", "\u{202e}", &"a".repeat(1025)] {
            assert_eq!(labels(bad).validate(), Err(SelectorError::Labels));
        }
    }
}
