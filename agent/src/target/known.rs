//! The node's veths as link events tell them, for a look that must not wait.
//!
//! Asking the kernel for its links takes the lock that whoever makes or removes a pod's network
//! holds for milliseconds (`rtnl_lock`). What is known here is behind by the events that are on
//! their way: good for a presumption, not for the truth.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use super::{
    links::{Interface, InterfaceKind},
    message::{Link, Nsid},
};

/// Filled by a [`LinkWatcher`](super::LinkWatcher), read by a [`Resolver`](super::Resolver).
#[derive(Clone, Debug, Default)]
pub struct KnownVeths(Arc<RwLock<BTreeMap<u32, (Nsid, Interface)>>>);

impl KnownVeths {
    pub(super) fn insert(&self, link: &Link) {
        let Link {
            interface,
            peer_netns,
            device: _,
        } = link;
        match peer_netns {
            Some(nsid) if interface.kind == InterfaceKind::Veth => {
                self.write(|veths| veths.insert(interface.ifindex, (*nsid, interface.clone())));
            }
            _ => self.remove(interface.ifindex),
        }
    }

    pub(super) fn remove(&self, ifindex: u32) {
        self.write(|veths| veths.remove(&ifindex));
    }

    pub(super) fn clear(&self) {
        self.write(BTreeMap::clear);
    }

    /// Those that lead to `nsid`, by ifindex.
    pub(super) fn to(&self, nsid: Nsid) -> Vec<Interface> {
        let veths = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let leads = veths.values().filter(|(peer, _)| *peer == nsid);
        leads.map(|(_, interface)| interface.clone()).collect()
    }

    /// The veth of that index, and where it leads to.
    pub(super) fn get(&self, ifindex: u32) -> Option<(Nsid, Interface)> {
        let veths = self.0.read().unwrap_or_else(PoisonError::into_inner);
        veths.get(&ifindex).cloned()
    }

    fn write<T>(&self, change: impl FnOnce(&mut BTreeMap<u32, (Nsid, Interface)>) -> T) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}
