//! What is kept of an object.

use std::{net::IpAddr, sync::Arc};

use remora_capture::session::{PodRef, WorkloadKind};

use super::labels::Labels;

/// A pod as a watch tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// `None` until it is scheduled.
    pub node: Option<String>,
    /// Its controlling owner: kind and name.
    pub owner: Option<(String, String)>,
    pub labels: Vec<(String, String)>,
    pub addresses: Vec<IpAddr>,
    pub network: PodNetwork,
    pub life: Life,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNetwork {
    #[default]
    Own,
    /// The node's; its addresses are not the pod's alone.
    Host,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Life {
    #[default]
    Running,
    /// Succeeded or failed: no process of it is left.
    Over,
}

/// Addresses kept of a pod: one of each family.
const ADDRESSES_MAX: usize = 2;

/// A pod as it is kept: texts that many have are shared.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) namespace: Arc<str>,
    pub(super) name: Box<str>,
    pub(super) uid: Box<str>,
    pub(super) node: Option<Arc<str>>,
    pub(super) owner: Option<(OwnerKind, Arc<str>)>,
    pub(super) labels: Arc<Labels>,
    pub(super) addresses: [Option<IpAddr>; ADDRESSES_MAX],
    pub(super) network: PodNetwork,
    pub(super) life: Life,
}

/// Kinds that captures select by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerKind {
    Known(WorkloadKind),
    Other,
}

impl OwnerKind {
    pub(super) fn of(kind: &str) -> Self {
        WorkloadKind::ALL
            .into_iter()
            .find(|known| known.kind() == kind)
            .map_or(Self::Other, Self::Known)
    }
}

impl Pod {
    pub(super) fn reference(&self, container: Option<&str>) -> PodRef {
        PodRef {
            namespace: self.namespace.as_ref().to_owned(),
            name: self.name.as_ref().to_owned(),
            uid: Some(self.uid.as_ref().to_owned()),
            container: container.map(str::to_owned),
        }
    }

    /// Addresses by which it alone is known.
    pub(super) fn own_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let has_own = self.network == PodNetwork::Own && self.life == Life::Running;
        self.addresses
            .iter()
            .flatten()
            .copied()
            .filter(move |_| has_own)
    }
}

pub(super) fn addresses(all: &[IpAddr]) -> [Option<IpAddr>; ADDRESSES_MAX] {
    let mut kept = [None; ADDRESSES_MAX];
    for (slot, address) in kept.iter_mut().zip(all) {
        *slot = Some(*address);
    }
    kept
}
