//! A pod as the API server tells of it, as far as it matters here.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;

/// One pod of this node, known by its uid: a name that comes again is another pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: String,
    /// The uid in the name of its cgroup: of a pod from a manifest file the manifest's hash, which the API
    /// server's copy of it has as an annotation, else `metadata.uid`.
    pub cgroup_uid: String,
    pub namespace: String,
    pub name: String,
    pub created: Option<Timestamp>,
    pub labels: BTreeMap<String, String>,
    pub ips: Vec<IpAddr>,
    /// Its processes are in the node's network.
    pub host_network: bool,
    pub phase: PodPhase,
    pub containers: Vec<Container>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodPhase {
    #[default]
    Pending,
    Running,
    /// Succeeded or failed: it has no processes, and never will again.
    Ended,
}

/// One container by its name. A restart gives it another id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    pub kind: ContainerKind,
    /// As the runtime names its cgroup, without `containerd://`; none before it was made.
    pub id: Option<String>,
    pub image: String,
    /// With the image's digest.
    pub image_id: String,
    pub restarts: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContainerKind {
    #[default]
    Regular,
    /// Runs to its end before the others begin.
    Init,
    /// An init container that goes on beside the others.
    Sidecar,
    /// Added to the pod while it runs, by `kubectl debug` for one.
    Ephemeral,
}

impl Pod {
    /// Whether `uid` is what its cgroup's name has.
    #[must_use]
    pub fn is_static(&self) -> bool {
        self.uid != self.cgroup_uid
    }

    #[must_use]
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers
            .iter()
            .find(|container| container.name == name)
    }

    /// `namespace/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
