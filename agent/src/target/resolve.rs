//! From a user's target to the places where its packets pass.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use remora_capture::session::Target;

use super::{
    cgroup::{Cgroup, Monitors},
    error::{ResolveError, shown},
    known::KnownVeths,
    links::{Interface, InterfaceKind},
    own,
    placement::{Placement, placement_of, veths_to},
    pods::KnownPods,
    presume::Doubted,
    residents::Residents,
    root::CgroupRoot,
    rtnl::RouteSocket,
};

/// Looks at a cgroup whose processes are in several networks, or whose network is others', too. A
/// process that is just being started in a pod is in its cgroup before it is in its network, or the
/// other way around (`kubectl exec`).
const LOOKS: usize = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// What of a cgroup's packets the cgroup programs take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupScope {
    /// Nothing: there is no cgroup to tell them by.
    None,
    /// What stays on the loopback interface; all else passes the interfaces.
    LoopbackOnly,
    /// As `LoopbackOnly`, and what its sockets receive, which comes past the interfaces.
    Received,
    /// Everything that its sockets send and receive.
    All,
}

/// Where the packets of a target pass; no packet passes two of these places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// `None` for interfaces, and for what has no cgroup of its own.
    pub cgroup: Option<Cgroup>,
    pub cgroup_scope: CgroupScope,
    pub interfaces: Vec<Interface>,
    /// For people, escaped: `cgroup /remora/web (id 4711) behind veth0`.
    pub description: String,
    /// For people, escaped: what this capture cannot see, or sees beyond what was asked for.
    pub notes: Vec<String>,
}

/// What has become of a [`Resolved`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revisit {
    Same,
    /// The cgroup is the same; its packets pass elsewhere now.
    Changed(Resolved),
    /// The cgroup is removed, or all that there was were interfaces and one is removed, renamed or
    /// another one now.
    Gone,
}

/// Looks up targets on this node.
#[derive(Debug)]
pub struct Resolver {
    pub(super) root: CgroupRoot,
    /// For [`Resolver::presume`].
    pub(super) veths: KnownVeths,
    pub(super) doubted: Doubted,
    /// Packets have been seen to come into a pod of this node past its veth.
    pub(super) has_bypass: AtomicBool,
    /// For [`Resolver::departed`].
    pub(super) residents: Residents,
    pub(super) pods: KnownPods,
}

/// What a target's text means, before its network is looked at.
pub(super) enum Located {
    Cgroup {
        cgroup: Cgroup,
        /// What the user named, when the cgroup is the pod around it.
        part: Option<String>,
    },
    /// That is all there is to it.
    Whole(Resolved),
}

/// Told when only sockets are looked at.
const SOCKETS_ONLY: &str = "only what its sockets send and receive is seen: no SYNs or datagrams \
                            to closed ports, no pings, no ICMP errors, no ARP or ND";

impl Resolver {
    #[must_use]
    pub fn new(root: CgroupRoot) -> Self {
        Self::with_known(root, KnownVeths::default(), KnownPods::default())
    }

    /// With a [`LinkWatcher`](super::LinkWatcher)'s veths, so that [`Resolver::presume`] asks
    /// nobody for them, and with what is known of the node's pods.
    #[must_use]
    pub fn with_known(root: CgroupRoot, veths: KnownVeths, pods: KnownPods) -> Self {
        Self {
            root,
            veths,
            doubted: Doubted::default(),
            has_bypass: AtomicBool::new(false),
            residents: Residents::default(),
            pods,
        }
    }

    #[must_use]
    pub fn cgroup_root(&self) -> &CgroupRoot {
        &self.root
    }

    /// Looks up `target` as it is now. Blocks: well under a millisecond by path or interface;
    /// longer with the number of cgroups (by id, unit, container) and, for what is behind a veth,
    /// of processes; some 80 ms for what is in several networks, or shares its own ([`LOOKS`]); up to two
    /// seconds for a pod that is being started.
    ///
    /// # Errors
    /// [`ResolveError`]; each kind but `Io` says what to do.
    pub fn resolve(&self, target: &Target) -> Result<Resolved, ResolveError> {
        let look = || match self.locate(target)? {
            Located::Cgroup { cgroup, part } => self.cgroup(cgroup, part),
            Located::Whole(resolved) => Ok(resolved),
        };
        self.once_started(target, look, |resolved| resolved)
    }

    pub(super) fn locate(&self, target: &Target) -> Result<Located, ResolveError> {
        target.validate()?;
        let (cgroup, part) = match target {
            Target::CgroupPath(path) => (self.root.by_path(path)?, None),
            Target::CgroupId(id) => (self.root.by_id(*id)?, None),
            Target::Unit(unit) => (self.root.by_unit(unit)?, None),
            Target::Container(id) => self.workload(
                self.root.by_container(id)?,
                format!("container {}", excerpt_id(id)),
            ),
            Target::Pid(pid) => {
                let cgroup = self.root.of_pid(*pid)?;
                if cgroup.is_root() {
                    return without_cgroup(*pid).map(Located::Whole);
                }
                self.workload(cgroup, format!("process {pid}"))
            }
            Target::Interface(name) => return interface(name).map(Located::Whole),
            Target::Pod(pod) => return self.locate_pod(pod),
        };
        if cgroup.is_root() {
            return own::node(&self.residents).map(Located::Whole);
        }
        Ok(Located::Cgroup { cgroup, part })
    }

    /// Looks again at what `before` was resolved to: the network of a cgroup changes with its
    /// processes, a veth may be gone.
    ///
    /// # Errors
    /// [`ResolveError::Io`].
    pub fn revisit(&self, before: &Resolved) -> Result<Revisit, ResolveError> {
        let mut socket = RouteSocket::open(0).map_err(ResolveError::io("open rtnetlink"))?;
        let mut interfaces_left = true;
        for interface in &before.interfaces {
            let now = socket
                .link_by_index(interface.ifindex)
                .map_err(ResolveError::io("ask rtnetlink for an interface"))?;
            interfaces_left &= now.is_some_and(|link| link.interface == *interface);
        }
        let Some(cgroup) = &before.cgroup else {
            return Ok(if interfaces_left {
                Revisit::Same
            } else {
                Revisit::Gone
            });
        };
        let now = self.cgroup(cgroup.clone(), None)?;
        // Looked at last: processes of a cgroup that is there now were its processes.
        if !cgroup.exists_still() {
            return Ok(Revisit::Gone);
        }
        let same = interfaces_left
            && (now.cgroup_scope, &now.interfaces) == (before.cgroup_scope, &before.interfaces);
        Ok(if same {
            Revisit::Same
        } else {
            Revisit::Changed(now)
        })
    }

    /// A process or container means its pod, if it is in one: the network namespace is the pod's.
    fn workload(&self, cgroup: Cgroup, what: String) -> (Cgroup, Option<String>) {
        match self.root.pod_of(&cgroup) {
            Some(pod) => (pod, Some(what)),
            None => (cgroup, None),
        }
    }

    /// `part`: what the user named, when the cgroup is the pod around it.
    pub(super) fn cgroup(
        &self,
        cgroup: Cgroup,
        part: Option<String>,
    ) -> Result<Resolved, ResolveError> {
        let look = || placement_of(&self.root, &cgroup, &cgroup.members(Monitors::Skipped));
        let mut placement = look()?;
        // A container is never alone in its pod's network, so there is nothing to wait for.
        let looks = if self.has_pod_around(&cgroup) {
            1
        } else {
            LOOKS
        };
        for _ in 1..looks {
            let passes = matches!(
                placement,
                Placement::Mixed { .. } | Placement::Shared { .. }
            );
            if !passes {
                break;
            }
            thread::sleep(BETWEEN_LOOKS);
            placement = look()?;
        }
        if let Placement::Behind { bypassed: true, .. } = placement {
            self.has_bypass.store(true, Relaxed);
        }
        Ok(resolved(cgroup, part, placement))
    }
}

/// Which places a cgroup's packets are taken at. A veth is taken only when all that passes it is
/// the cgroup's; else the cgroup programs take everything they see, so none is taken twice.
pub(super) fn resolved(cgroup: Cgroup, part: Option<String>, placement: Placement) -> Resolved {
    let mut description = format!("cgroup {} (id {})", shown(&cgroup.path), cgroup.id);
    let mut notes = Vec::new();
    if let Some(part) = part {
        description = format!("pod of {part}: {description}");
        notes.push(format!(
            "{part} shares its network with its pod, so all of the pod is captured; \
             cgroup:PATH captures one container's sockets alone"
        ));
    }
    let mut interfaces = Vec::new();
    let mut cgroup_scope = CgroupScope::All;
    match placement {
        Placement::Behind {
            veths,
            others,
            bypassed,
        } => {
            cgroup_scope = if bypassed {
                notes.push(format!(
                    "packets come into it past {} (another program of the node hands them over): what it \
                     receives is taken at its sockets, without what none of them takes (SYNs and \
                     datagrams to closed ports, pings, ICMP errors), and look-back has only what it sends",
                    names(&veths)
                ));
                CgroupScope::Received
            } else {
                CgroupScope::LoopbackOnly
            };
            if others > 0 {
                notes.push(format!(
                    "its network namespace has {others} more interfaces than those that lead to \
                     the node: what passes only them is not seen"
                ));
            }
            description = format!("{description} behind {}", names(&veths));
            interfaces = veths;
        }
        Placement::Own => {
            description.push_str(" in the node's network");
            notes.push(SOCKETS_ONLY.to_owned());
        }
        Placement::Empty => {
            description.push_str(" without processes");
            notes.push(format!(
                "no process is in it now; of those to come, {SOCKETS_ONLY}"
            ));
        }
        Placement::Shared { veths, with } => {
            notes.push(format!(
                "{} may carry packets of others ({with}), so it is left out: {SOCKETS_ONLY}",
                names(&veths)
            ));
        }
        Placement::Remote => notes.push(format!(
            "no veth of the node leads to its network namespace (netkit, macvlan, nested, or \
             none at all): {SOCKETS_ONLY}"
        )),
        Placement::Mixed { namespaces } => notes.push(format!(
            "its processes are in {namespaces} network namespaces: {SOCKETS_ONLY}"
        )),
        Placement::Unknown { reason } => {
            notes.push(format!(
                "its interface is not known ({reason}): {SOCKETS_ONLY}"
            ));
        }
    }
    Resolved {
        cgroup: Some(cgroup),
        cgroup_scope,
        interfaces,
        description,
        notes,
    }
}

/// A process in the root cgroup: only its interface can tell its packets from others.
fn without_cgroup(pid: u32) -> Result<Resolved, ResolveError> {
    let veths = veths_to(pid)?;
    if veths.is_empty() {
        return Err(ResolveError::unsupported(
            format!("process {pid} is in the root cgroup and behind no veth"),
            "put it into a cgroup of its own (`systemd-run --scope`), or capture an interface: \
             interface:NAME",
        ));
    }
    Ok(Resolved {
        cgroup: None,
        cgroup_scope: CgroupScope::None,
        description: format!(
            "network namespace of process {pid} behind {}",
            names(&veths)
        ),
        notes: vec![format!(
            "process {pid} is in the root cgroup: all of its network namespace is captured, but \
             nothing of its loopback interface"
        )],
        interfaces: veths,
    })
}

fn interface(name: &str) -> Result<Resolved, ResolveError> {
    let link = RouteSocket::open(0)
        .and_then(|mut socket| socket.link_by_name(name))
        .map_err(ResolveError::io(format!(
            "ask rtnetlink for interface `{}`",
            shown(name)
        )))?;
    let Some(link) = link else {
        return Err(ResolveError::not_found(
            format!("interface `{}`", shown(name)),
            "`ip link` shows those of the node; a pod's own interface is not among them: capture \
             the pod by container:ID, pid:N or cgroup:PATH",
        ));
    };
    let interface = link.interface;
    if interface.kind == InterfaceKind::NoEthernet {
        return Err(ResolveError::unsupported(
            format!(
                "interface `{}` has no Ethernet headers, which all captures have",
                shown(name)
            ),
            "capture the cgroup, process or unit that uses it",
        ));
    }
    Ok(Resolved {
        cgroup: None,
        cgroup_scope: CgroupScope::None,
        description: format!(
            "interface {} (index {})",
            shown(&interface.name),
            interface.ifindex
        ),
        notes: Vec::new(),
        interfaces: vec![interface],
    })
}

fn names(interfaces: &[Interface]) -> String {
    interfaces
        .iter()
        .map(|interface| shown(&interface.name))
        .collect::<Vec<_>>()
        .join(", ")
}

/// As `docker ps` shows it; a target's id is hex digits.
fn excerpt_id(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
