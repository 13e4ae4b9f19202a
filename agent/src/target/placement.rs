//! Where the processes of a cgroup live on the network.
//!
//! ```text
//! pid ──/proc/PID/net/dev──▶ inode: which namespace, and is it the agent's own?
//!  └───RTM_GETNSID──────────▶ id that the agent's namespace has for it ─┐ equal: the veth
//! veth ──RTM_GETLINK────────▶ id of its other end's namespace ──────────┘ leads there
//! ```
//! None of it needs a right over the process. An id is given to a namespace when something first
//! shows it (a link dump does), stays until the namespace ends, and may then be given to another
//! one: so it is only read while a process is known to hold the namespace.

use std::{collections::BTreeMap, io};

use super::{
    bypass::bypassed,
    cgroup::{Cgroup, Members},
    error::ResolveError,
    links::{Interface, InterfaceKind},
    message::{LinkFilter, Nsid},
    procfs::{self, NetnsInode, is_gone},
    root::CgroupRoot,
    rtnl::RouteSocket,
    sharers::{Claim, LiveProcesses, Sharer, sharers},
};

/// Times that a process may change its network namespace, or die, under our eyes.
const TRIES: usize = 3;

/// The network of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// No process.
    Empty,
    /// All in the agent's network namespace.
    Own,
    /// All in one other namespace that these veths lead to, and nobody else is in there.
    Behind {
        veths: Vec<Interface>,
        /// Interfaces in there that are not the other end of one of these.
        others: usize,
        /// Packets come in there past these.
        bypassed: bool,
    },
    /// As `Behind`, but others are in there, too.
    Shared { veths: Vec<Interface>, with: Sharer },
    /// All in one other namespace that no veth of the agent's namespace leads to.
    Remote,
    /// In that many namespaces.
    Mixed { namespaces: usize },
    /// It cannot be told.
    Unknown { reason: &'static str },
}

/// Finds out where the processes of `cgroup`, its `members`, are.
pub(super) fn placement_of(
    root: &CgroupRoot,
    cgroup: &Cgroup,
    members: &Members,
) -> Result<Placement, ResolveError> {
    if members.hidden > 0 {
        return Ok(Placement::Unknown {
            reason: "the agent does not see its processes; run it in the host's pid namespace",
        });
    }
    if members.cut {
        return Ok(Placement::Unknown {
            reason: "it has too many processes to look at all",
        });
    }
    if procfs::hides_processes() {
        return Ok(Placement::Unknown {
            reason: "/proc hides other users' processes (hidepid); mount it without, or with gid=",
        });
    }
    for _ in 0..TRIES {
        let namespaces = namespaces_of(&members.pids)?;
        let mut each = namespaces.iter();
        let (netns, pid) = match (each.next(), each.next()) {
            (None, _) => return Ok(Placement::Empty),
            (Some(_), Some(_)) => {
                return Ok(Placement::Mixed {
                    namespaces: namespaces.len(),
                });
            }
            (Some((netns, pid)), None) => (*netns, *pid),
        };
        match way_to(netns, pid)? {
            Way::Own => return Ok(Placement::Own),
            Way::None => return Ok(Placement::Remote),
            Way::Veths { nsid, veths } => {
                let outward = match procfs::outward_interfaces(pid) {
                    Ok(outward) => outward,
                    Err(error) if is_gone(&error) => continue,
                    Err(error) => {
                        return Err(ResolveError::io(format!("read /proc/{pid}/net/dev"))(error));
                    }
                };
                let mut processes =
                    LiveProcesses::new(root).map_err(ResolveError::io("open rtnetlink"))?;
                let found = sharers(&mut processes, &[Claim { nsid, cgroup }])?;
                return Ok(match found.into_iter().next().flatten() {
                    None => {
                        let others = outward.len().saturating_sub(veths.len());
                        let bypassed = bypassed(&outward, &veths)
                            .map_err(ResolveError::io("read /proc/thread-self/net/dev"))?;
                        Placement::Behind {
                            veths,
                            others,
                            bypassed: bypassed > 0,
                        }
                    }
                    Some(with) => Placement::Shared { veths, with },
                });
            }
            Way::Lost => {}
        }
    }
    Ok(Placement::Unknown {
        reason: "its processes change their network namespace all the time",
    })
}

/// The veths that lead to the network namespace of a process, whoever else is in there; none
/// when it is the agent's own, or nothing leads there.
pub(super) fn veths_to(pid: u32) -> Result<Vec<Interface>, ResolveError> {
    for _ in 0..TRIES {
        let netns = match procfs::netns_of(pid) {
            Ok(netns) => netns,
            Err(error) if is_gone(&error) => break,
            Err(error) => return Err(ResolveError::io(format!("look at /proc/{pid}/net"))(error)),
        };
        match way_to(netns, pid)? {
            Way::Own | Way::None => return Ok(Vec::new()),
            Way::Veths { veths, .. } => return Ok(veths),
            Way::Lost => {}
        }
    }
    Err(ResolveError::not_found(
        format!("process {pid}"),
        "it ended just now",
    ))
}

/// A process in each of the network namespaces of `pids`; who is dead is left out.
fn namespaces_of(pids: &[u32]) -> Result<BTreeMap<NetnsInode, u32>, ResolveError> {
    let mut namespaces = BTreeMap::new();
    for &pid in pids {
        match procfs::netns_of(pid) {
            Ok(netns) => {
                namespaces.entry(netns).or_insert(pid);
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(ResolveError::io(format!("look at /proc/{pid}/net"))(error)),
        }
    }
    Ok(namespaces)
}

/// How to get from the agent's network namespace to another.
enum Way {
    /// It is the same.
    Own,
    Veths {
        nsid: Nsid,
        veths: Vec<Interface>,
    },
    /// No veth leads there.
    None,
    /// The process is there no more.
    Lost,
}

/// The way to `netns`, which `pid` was seen in.
fn way_to(netns: NetnsInode, pid: u32) -> Result<Way, ResolveError> {
    let own = procfs::own_netns().map_err(ResolveError::io("look at /proc/thread-self/net"))?;
    if netns == own {
        return Ok(Way::Own);
    }
    let (nsid, links) = (|| {
        let mut socket = RouteSocket::open(0)?;
        let mut nsid = socket.nsid(pid)?;
        if nsid.is_none() {
            // The dump gives the namespace an id if a veth leads there.
            socket.links(LinkFilter::Veth)?;
            nsid = socket.nsid(pid)?;
        }
        let links = if nsid.is_some() {
            socket.links(LinkFilter::Veth)?
        } else {
            Vec::new()
        };
        io::Result::Ok((nsid, links))
    })()
    .map_err(ResolveError::io(
        "ask rtnetlink for the network namespace and its veths",
    ))?;
    // The process held the namespace, and so its id, from before until now.
    if !procfs::netns_of(pid).is_ok_and(|now| now == netns) {
        return Ok(Way::Lost);
    }
    let Some(nsid) = nsid else {
        return Ok(Way::None);
    };
    let mut veths: Vec<Interface> = links
        .into_iter()
        .filter(|link| link.peer_netns == Some(nsid) && link.interface.kind == InterfaceKind::Veth)
        .map(|link| link.interface)
        .collect();
    veths.sort_unstable_by_key(|veth| veth.ifindex);
    Ok(if veths.is_empty() {
        Way::None
    } else {
        Way::Veths { nsid, veths }
    })
}
