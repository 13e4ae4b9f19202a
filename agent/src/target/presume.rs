//! A first look at a target: where it very likely is, found without asking every process of the
//! node and without the kernel's lock over all links.
//!
//! ```text
//!            a pod as most are                    whole look, while packets are taken but
//! presume ──────────────────────▶ Presumed ──────────────────────────────────────────────▶ right
//!    │ no processes, not behind a veth, in doubt                 written nowhere └─▶ wrong: begun
//!    └──────▶ whole look at once ─▶ Certain                                          anew, doubted
//! ```
//! It presumes that all processes of the cgroup are where one of them is, that they are alone in
//! there, that the veths are those that link events have told, and that no packet comes in there past them until
//! one has been seen to do so on this node.

use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, PoisonError, atomic::Ordering::Relaxed},
};

use remora_capture::session::Target;

use super::{
    bypass::bypassed,
    cgroup::{Cgroup, Monitors},
    error::ResolveError,
    placement::Placement,
    procfs,
    resolve::{Located, Resolved, Resolver, resolved},
    rtnl::RouteSocket,
};
use crate::session::FirstLook;

/// Cgroups that are remembered as not being what was presumed.
const DOUBTED_MAX: usize = 1024;

/// Ids of cgroups that were not where they were presumed to be, the latest last: next time they
/// are looked at whole at once.
#[derive(Debug, Default)]
pub(super) struct Doubted(Mutex<VecDeque<u64>>);

impl Doubted {
    fn has(&self, cgroup: u64) -> bool {
        self.change(|ids| ids.contains(&cgroup))
    }

    fn insert(&self, cgroup: u64) {
        self.change(|ids| {
            if ids.contains(&cgroup) {
                return;
            }
            if ids.len() == DOUBTED_MAX {
                ids.pop_front();
            }
            ids.push_back(cgroup);
        });
    }

    fn remove(&self, cgroup: u64) {
        self.change(|ids| ids.retain(|id| *id != cgroup));
    }

    fn change<T>(&self, change: impl FnOnce(&mut VecDeque<u64>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Resolver {
    /// Looks up `target` in well under a millisecond if it is a pod behind a veth, however many
    /// processes and veths the node has; as [`Resolver::resolve`] does otherwise.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn presume(&self, target: &Target) -> Result<FirstLook<Resolved>, ResolveError> {
        let look = || self.look_first(target);
        self.once_started(target, look, |looked| match looked {
            FirstLook::Presumed(resolved) | FirstLook::Certain(resolved) => resolved,
        })
    }

    fn look_first(&self, target: &Target) -> Result<FirstLook<Resolved>, ResolveError> {
        let (cgroup, part) = match self.locate(target)? {
            Located::Cgroup { cgroup, part } => (cgroup, part),
            Located::Whole(resolved) => return Ok(FirstLook::Certain(resolved)),
        };
        let id = cgroup.id;
        let doubted = self.doubted.has(id);
        if !doubted && !self.has_pod_around(&cgroup) {
            // What fails here is asked again, and told, by the whole look.
            if let Some(placement) = self.likely_placement(&cgroup).ok().flatten() {
                return Ok(FirstLook::Presumed(resolved(cgroup, part, placement)));
            }
        }
        let whole = self.cgroup(cgroup, part)?;
        if doubted && !whole.interfaces.is_empty() {
            self.doubted.remove(id);
        }
        Ok(FirstLook::Certain(whole))
    }

    /// The cgroup was not where it was presumed to be.
    pub(super) fn doubt(&self, cgroup: u64) {
        self.doubted.insert(cgroup);
    }

    /// It is one container of a pod, which is never alone in its network.
    pub(super) fn has_pod_around(&self, cgroup: &Cgroup) -> bool {
        let pod = self.root.pod_of(cgroup);
        pod.is_some_and(|pod| pod.id != cgroup.id)
    }

    fn likely_placement(&self, cgroup: &Cgroup) -> io::Result<Option<Placement>> {
        let members = cgroup.members(Monitors::Skipped);
        let Some(&pid) = members.pids.first().filter(|_| !members.cut) else {
            return Ok(None);
        };
        let Some(nsid) = RouteSocket::open(0)?.nsid(pid)? else {
            return Ok(None);
        };
        let veths = self.veths.to(nsid);
        if veths.is_empty() {
            return Ok(None);
        }
        let outward = procfs::outward_interfaces(pid)?;
        let bypassed = self.has_bypass.load(Relaxed) && bypassed(&outward, &veths)? > 0;
        Ok(Some(Placement::Behind {
            others: outward.len().saturating_sub(veths.len()),
            veths,
            bypassed,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubts_are_bounded_and_the_oldest_goes_first() {
        let doubted = Doubted::default();
        for id in 0..=DOUBTED_MAX as u64 {
            doubted.insert(id);
            doubted.insert(id);
        }
        assert!(!doubted.has(0));
        assert!(doubted.has(1) && doubted.has(DOUBTED_MAX as u64));
        doubted.remove(1);
        assert!(!doubted.has(1));
    }
}
