//! The resolver as sessions use it.

use std::{fs, os::unix::fs::MetadataExt as _};

use nix::net::if_::if_nametoindex;
use remora_capture::session::Target;

use super::{
    error::ResolveError,
    links::InterfaceKind,
    resolve::{CgroupScope, Resolved, Resolver},
};
use crate::session::{
    CgroupPlace, CgroupScope as Scope, InterfacePlace, LinkEnd, Place, StartError, Targets, View,
};

impl Targets for Resolver {
    fn resolve(&self, target: &Target) -> Result<Place, StartError> {
        let view = match target {
            Target::Interface(_) => View::Interface,
            _ => View::Pod,
        };
        Self::resolve(self, target)
            .map(|resolved| place(resolved, view))
            .map_err(start_error)
    }

    fn still_there(&self, place: &Place) -> bool {
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
        description,
        notes,
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
