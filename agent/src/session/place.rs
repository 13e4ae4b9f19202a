//! Where a target's packets pass on this node, before and after that is bound in the kernel.

use remora_capture::session::{LookBackMode, PodIdentity, TapInfo};
use serde::{Deserialize, Serialize};

use super::TapId;

/// Where on this node a target's packets pass: what [`Targets`](super::Targets) finds and [`Taps`](super::Taps) binds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub cgroup: Option<CgroupPlace>,
    pub interfaces: Vec<InterfacePlace>,
    /// What look-back has of a target that is gone: nothing more comes from there.
    pub left: Vec<LeftTap>,
    /// For a person: "cgroup /remora/web (id 4711) behind veth0".
    pub description: String,
    /// What cannot be seen here, for a person.
    pub notes: Vec<String>,
    /// How much of its packets may be taken; never `Off`, which is refused.
    #[serde(default)]
    pub level: LookBackMode,
    /// The pod that it is, or is a part of.
    #[serde(default)]
    pub pod: Option<Box<PodIdentity>>,
}

/// What is said of a place that is taken as it was when another session began.
const AS_OTHERS: &str = "what comes into it past its interface is taken, or not, as in the capture of it that runs \
                         already";

/// The tap where the packets of a target passed that is gone. Its index may be another's by now, or
/// the interface be there still, with others of its pod behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftTap {
    pub id: TapId,
    pub interface: InterfacePlace,
}

impl Place {
    /// The target is gone, and only its past can be had.
    #[must_use]
    pub fn is_past(&self) -> bool {
        !self.left.is_empty()
    }

    /// What of it is taken at its interfaces.
    #[must_use]
    pub fn takes(&self) -> Takes {
        match self.cgroup.as_ref().map(|cgroup| cgroup.scope) {
            Some(CgroupScope::Received) => Takes::Sent,
            _ => Takes::All,
        }
    }

    /// All that its target sends and receives, but for loopback, is taken at its interfaces.
    #[must_use]
    pub(super) fn is_taken_at_interfaces(&self) -> bool {
        let scope = self.cgroup.as_ref().map(|cgroup| cgroup.scope);
        scope == Some(CgroupScope::LoopbackOnly) && !self.interfaces.is_empty()
    }

    /// The same place in the way in which a session of its cgroup takes it already: that way is the cgroup's.
    #[must_use]
    pub(super) fn taken_as(mut self, bound: CgroupScope) -> Self {
        use CgroupScope::{LoopbackOnly, Received};
        if let Some(cgroup) = &mut self.cgroup
            && let (LoopbackOnly, Received) | (Received, LoopbackOnly) = (cgroup.scope, bound)
        {
            cgroup.scope = bound;
            self.notes.push(AS_OTHERS.to_owned());
        }
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlace {
    pub id: u64,
    /// Depth in the tree; the root is 0.
    pub level: u32,
    pub path: String,
    pub scope: CgroupScope,
}

/// Which packets the cgroup hooks take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupScope {
    /// Only loopback: the others pass an interface of the place.
    LoopbackOnly,
    /// Loopback, and what its sockets receive: only what they send passes an interface of the place.
    Received,
    All,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfacePlace {
    pub ifindex: u32,
    pub name: String,
    pub end: LinkEnd,
    /// Whose eyes the session's directions are for.
    pub view: View,
}

/// Which of the packets that pass an interface are taken there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Takes {
    #[default]
    All,
    /// Those that the pod behind it sends: what it receives comes past the interface, and is taken at its
    /// sockets.
    Sent,
}

/// What kind of end of a link an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkEnd {
    /// The host end of a veth whose other end is in another network namespace.
    VethHost,
    /// Each packet passes twice, out and then in; a session that wants both takes it once, going
    /// in.
    Loopback,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum View {
    /// The pod behind the veth: what enters the host end leaves the pod.
    Pod,
    /// The interface itself, as tcpdump sees it.
    Interface,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TapHook {
    Tc,
    Cgroup,
}

/// A place whose points are bound in the kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BoundTap {
    pub id: TapId,
    pub info: TapInfo,
    pub hook: TapHook,
    pub view: View,
    pub end: LinkEnd,
    #[serde(default)]
    pub takes: Takes,
}

impl BoundTap {
    /// The session's directions are for the interface's eyes, but the tap sees with the pod's.
    #[must_use]
    pub fn is_swapped(&self) -> bool {
        self.end == LinkEnd::VethHost && self.view == View::Interface
    }
}
