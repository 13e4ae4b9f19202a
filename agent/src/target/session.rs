//! The resolver as sessions use it.

use std::{fs, os::unix::fs::MetadataExt as _};

use nix::net::if_::if_nametoindex;
use remora_capture::session::{LookBackMode, PodIdentity, Target};

use super::{
    bypass::bypassed,
    cgroup::Monitors,
    error::ResolveError,
    links::{Interface, InterfaceKind},
    procfs,
    resolve::{CgroupScope, Resolved, Resolver},
    rtnl::RouteSocket,
    sharers::{Claim, LiveProcesses, sharers},
};
use crate::session::{
    CgroupPlace, CgroupScope as Scope, FirstLook, InterfacePlace, LinkEnd, Place, StartError,
    Targets, View,
};

impl Targets for Resolver {
    fn presume(&self, target: &Target) -> Result<FirstLook, StartError> {
        let view = view(target);
        match Self::presume(self, target).map_err(start_error)? {
            FirstLook::Presumed(resolved) => {
                let place = self.permitted(place(resolved, view))?;
                Ok(FirstLook::Presumed(place))
            }
            FirstLook::Certain(resolved) => {
                let place = self.permitted(place(resolved, view))?;
                Ok(FirstLook::Certain(place))
            }
        }
    }

    fn resolve(&self, target: &Target) -> Result<Place, StartError> {
        let resolved = Self::resolve(self, target).map_err(start_error)?;
        self.permitted(place(resolved, view(target)))
    }

    fn confirm(&self, target: &Target, presumed: &Place) -> Result<Option<Place>, StartError> {
        let mut whole = place(
            Self::resolve(self, target).map_err(start_error)?,
            view(target),
        );
        self.cross_check(&whole);
        // What is known of a pod changes all the time; where it is does not.
        whole.level = presumed.level;
        whole.pod.clone_from(&presumed.pod);
        let notes = std::mem::take(&mut whole.notes);
        let same = Place {
            notes: Vec::new(),
            ..presumed.clone()
        };
        if whole == same && presumed.notes.starts_with(&notes) {
            return Ok(None);
        }
        if let Some(cgroup) = &whole.cgroup {
            self.doubt(cgroup.id);
        }
        whole.notes = notes;
        self.permitted(whole).map(Some)
    }

    fn departed(&self, target: &Target) -> Result<Option<Place>, StartError> {
        let place = Self::departed(self, target).map_err(start_error)?;
        place.map(|place| self.permitted(place)).transpose()
    }

    fn level(&self, place: &Place) -> Option<LookBackMode> {
        self.privacy(place)
    }

    fn pod(&self, place: &Place) -> Option<Box<PodIdentity>> {
        self.identity(place)
    }

    fn still_there(&self, place: &Place) -> bool {
        if place.is_past() {
            return false;
        }
        let Some(cgroup) = &place.cgroup else {
            return place
                .interfaces
                .iter()
                .any(|i| if_nametoindex(i.name.as_str()).ok() == Some(i.ifindex));
        };
        let path = self
            .cgroup_root()
            .mount()
            .join(cgroup.path.trim_start_matches('/'));
        fs::metadata(path).is_ok_and(|directory| directory.ino() == cgroup.id)
    }

    fn bypassed(&self, place: &Place) -> u64 {
        self.bypassed_now(place).unwrap_or_default()
    }

    fn shared(&self, places: &[Place]) -> Result<Vec<(usize, String)>, String> {
        self.sharers_of(places).map_err(|error| match error {
            ResolveError::Io { ref source, .. } => format!("{error}: {source}"),
            _ => error.to_string(),
        })
    }
}

impl Resolver {
    /// `None` where it is not known: the pod may be gone.
    fn bypassed_now(&self, place: &Place) -> Option<u64> {
        let cgroup = self
            .cgroup_root()
            .by_path(&place.cgroup.as_ref()?.path)
            .ok()?;
        let pid = *cgroup.members(Monitors::Skipped).pids.first()?;
        let inside = procfs::outward_interfaces(pid).ok()?;
        let veths: Vec<_> = place.interfaces.iter().map(veth).collect();
        bypassed(&inside, &veths).ok()
    }

    fn sharers_of(&self, places: &[Place]) -> Result<Vec<(usize, String)>, ResolveError> {
        let io = ResolveError::io;
        let mut socket = RouteSocket::open(0).map_err(io("open rtnetlink"))?;
        let mut claimed = Vec::new();
        for (number, place) in places.iter().enumerate() {
            let Some(cgroup) = &place.cgroup else {
                continue;
            };
            // A cgroup or an interface that is gone is what `still_there` and the taps tell.
            let Ok(cgroup) = self.cgroup_root().by_path(&cgroup.path) else {
                continue;
            };
            for interface in &place.interfaces {
                let link = socket
                    .link_by_index(interface.ifindex)
                    .map_err(io("ask rtnetlink for an interface"))?;
                if let Some(nsid) = link.and_then(|link| link.peer_netns) {
                    claimed.push((number, nsid, cgroup.clone()));
                }
            }
        }
        let claims: Vec<_> = claimed
            .iter()
            .map(|(_, nsid, cgroup)| Claim {
                nsid: *nsid,
                cgroup,
            })
            .collect();
        let mut processes = LiveProcesses::new(self.cgroup_root()).map_err(io("open rtnetlink"))?;
        let found = sharers(&mut processes, &claims)?;
        let numbers = claimed.iter().map(|(number, ..)| *number);
        Ok(numbers
            .zip(found)
            .filter_map(|(number, sharer)| Some((number, sharer?.to_string())))
            .collect())
    }
}

/// Whose eyes a session's directions are for.
pub(super) fn view(target: &Target) -> View {
    match target {
        Target::Interface(_) => View::Interface,
        // The node's own interfaces.
        Target::CgroupPath(path) if path == "/" => View::Interface,
        _ => View::Pod,
    }
}

fn place(resolved: Resolved, view: View) -> Place {
    let Resolved {
        cgroup,
        cgroup_scope,
        interfaces,
        description,
        notes,
    } = resolved;
    let scope = match cgroup_scope {
        CgroupScope::None => None,
        CgroupScope::LoopbackOnly => Some(Scope::LoopbackOnly),
        CgroupScope::Received => Some(Scope::Received),
        CgroupScope::All => Some(Scope::All),
    };
    Place {
        cgroup: cgroup.zip(scope).map(|(cgroup, scope)| CgroupPlace {
            id: cgroup.id,
            level: cgroup.level,
            path: cgroup.path,
            scope,
        }),
        interfaces: interfaces
            .into_iter()
            .map(|interface| InterfacePlace {
                ifindex: interface.ifindex,
                name: interface.name,
                end: link_end(interface.kind),
                view,
            })
            .collect(),
        left: Vec::new(),
        description,
        notes,
        level: LookBackMode::default(),
        pod: None,
    }
}

fn veth(place: &InterfacePlace) -> Interface {
    Interface {
        ifindex: place.ifindex,
        name: place.name.clone(),
        kind: InterfaceKind::Veth,
    }
}

/// What kind of end of a link an interface is, as taps are told of it.
#[must_use]
pub fn link_end(kind: InterfaceKind) -> LinkEnd {
    match kind {
        InterfaceKind::Veth => LinkEnd::VethHost,
        InterfaceKind::Loopback => LinkEnd::Loopback,
        InterfaceKind::Other | InterfaceKind::NoEthernet => LinkEnd::Other,
    }
}

fn start_error(error: ResolveError) -> StartError {
    let message = error.to_string();
    match error {
        ResolveError::Invalid(error) => StartError::Spec(error.into()),
        ResolveError::NotFound { .. } => StartError::TargetNotFound(message),
        ResolveError::Ambiguous { .. } | ResolveError::Unsupported { .. } => {
            StartError::TargetUnsupported(message)
        }
        ResolveError::Io { source, .. } => StartError::Kernel(format!("{message}: {source}")),
    }
}
