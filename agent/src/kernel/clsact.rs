//! Programs on interfaces as filters of the qdisc `clsact`, where the kernel has no TCX (before
//! 6.6).
//!
//! A filter is no link: it stays when its agent dies. So its name tells whose it is,
//!
//! ```text
//! remora-agent/<token>         16 hex digits, random; of the agent that added it
//! remora-agent/<token>/qdisc   that agent added the qdisc, too
//! ```
//!
//! and while an agent lives, it holds the abstract Unix socket `remora-agent/<token>` of the network
//! namespace. A filter whose socket nobody holds is left behind: the next agent's [`sweep`] removes
//! it. Who removes an agent's filters removes the qdisc as well if that agent had added it and no
//! other filter is on it.
//!
//! Order: priority 1, and there before the BPF filters that came earlier; the verdict is
//! TC_ACT_UNSPEC (as TCX_NEXT, -1), so the next filter decides. A filter that comes later at the
//! same priority runs earlier, and what it takes is not seen.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    os::{
        fd::BorrowedFd,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

use super::tc::{Direction, Filter, NewFilter, TcSocket};

const NAME: &str = "remora-agent/";
const OWN_QDISC: &str = "/qdisc";
/// Tried one after the other where filters of another kind hold the one before.
const PRIORITIES: std::ops::RangeInclusive<u16> = 1..=16;

/// What an agent has on interfaces of its network namespace.
#[derive(Debug)]
pub(super) struct Clsact {
    owner: Owner,
    tc: TcSocket,
    /// By ifindex; whether the qdisc is ours.
    attached: HashMap<u32, bool>,
}

/// A living agent.
#[derive(Debug)]
struct Owner {
    /// `remora-agent/<token>`.
    name: String,
    /// High half of its filters' handles, so that no other product's fixed handle hits them.
    handle: u32,
    /// Held, never read.
    _alive: UnixDatagram,
}

impl Owner {
    fn new() -> io::Result<Self> {
        let mut token = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut token)?;
        let token = u64::from_ne_bytes(token);
        let name = format!("{NAME}{token:016x}");
        let alive = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        Ok(Self {
            name,
            // Never 0, and below 2^31.
            handle: (token as u32 & 0x7fff_ffff) | 0x4000_0000,
            _alive: alive,
        })
    }

    fn owns(&self, filter: &Filter) -> bool {
        filter.name.as_deref().and_then(owner) == Some(&self.name)
    }
}

/// `remora-agent/<token>` of an agent's filter.
fn owner(name: &str) -> Option<&str> {
    let owner = name.strip_suffix(OWN_QDISC).unwrap_or(name);
    owner.starts_with(NAME).then_some(owner)
}

/// Nobody holds the socket of that name.
fn is_dead(owner: &str) -> io::Result<bool> {
    let address = SocketAddr::from_abstract_name(owner)?;
    match UnixDatagram::unbound()?.connect_addr(&address) {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) => Err(error),
    }
}

impl Clsact {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            owner: Owner::new()?,
            tc: TcSocket::open()?,
            attached: HashMap::new(),
        })
    }

    /// Attaches `programs`, ingress and egress, if that is not done yet. Takes microseconds: there
    /// is no grace period.
    ///
    /// # Errors
    /// The interface is gone or has the qdisc `ingress`, the kernel lacks clsact or BPF filters, or
    /// all of [`PRIORITIES`] are held by other kinds of filters.
    pub(super) fn attach(&mut self, ifindex: u32, programs: [BorrowedFd<'_>; 2]) -> io::Result<()> {
        if self.attached.contains_key(&ifindex) {
            return Ok(());
        }
        let own_qdisc = match self.tc.add_clsact(ifindex) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                // On `ingress` the egress program would see ingress.
                match self.tc.qdisc_at_clsact(ifindex)?.as_deref() {
                    Some("clsact") => false,
                    _ => {
                        return Err(io::Error::other(
                            "its qdisc `ingress` is in clsact's place; replace it by clsact",
                        ));
                    }
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                return Err(io::Error::other(
                    "the kernel has no qdisc clsact (module sch_ingress)",
                ));
            }
            Err(error) => return Err(error),
        };
        let suffix = if own_qdisc { OWN_QDISC } else { "" };
        let name = format!("{}{suffix}", self.owner.name);
        self.attached.insert(ifindex, own_qdisc);
        for (direction, program) in Direction::BOTH.into_iter().zip(programs) {
            if let Err(error) = self.add(ifindex, direction, program, &name) {
                let _half_undone = self.detach(ifindex);
                if own_qdisc {
                    // Without a filter of ours `detach` does not touch it.
                    let _already_gone = remove_empty_qdisc(&mut self.tc, ifindex);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        ifindex: u32,
        direction: Direction,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> io::Result<()> {
        let mut refusal = io::Error::from_raw_os_error(libc::EINVAL);
        for priority in PRIORITIES {
            let filter = NewFilter {
                program,
                name,
                priority,
                handle: self.owner.handle,
            };
            match self.tc.add_filter(ifindex, direction, &filter) {
                Ok(()) => {
                    if priority > *PRIORITIES.start() {
                        tracing::warn!(
                            ifindex,
                            priority,
                            ?direction,
                            "other filters run before ours: what they take is not captured"
                        );
                    }
                    return Ok(());
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    return Err(io::Error::other(
                        "the kernel has no BPF filters (module cls_bpf)",
                    ));
                }
                // Filters of another kind or protocol hold it.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = error,
                Err(error) => return Err(error),
            }
        }
        Err(refusal)
    }

    /// Removes what this agent has on the interface, if it is still the same one: another that has
    /// its number now has none of our filters.
    pub(super) fn detach(&mut self, ifindex: u32) -> io::Result<()> {
        let Some(own_qdisc) = self.attached.remove(&ifindex) else {
            return Ok(());
        };
        let owner = &self.owner;
        let removed = remove(&mut self.tc, ifindex, |filter| owner.owns(filter))?;
        if own_qdisc && removed > 0 {
            remove_empty_qdisc(&mut self.tc, ifindex)?;
        }
        Ok(())
    }

    /// Filters of ours are on the device that has this index now.
    ///
    /// # Errors
    /// rtnetlink does not tell.
    pub(super) fn is_on(&mut self, ifindex: u32) -> io::Result<bool> {
        let filters = self.tc.filters(ifindex, Direction::BOTH[0])?;
        Ok(filters.iter().any(|filter| self.owner.owns(filter)))
    }
}

impl Drop for Clsact {
    fn drop(&mut self) {
        let interfaces: Vec<_> = self.attached.keys().copied().collect();
        for ifindex in interfaces {
            if let Err(error) = self.detach(ifindex) {
                tracing::warn!(%error, ifindex, "filters are left; the next start removes them");
            }
        }
    }
}

/// Removes the filters that `ours` takes; how many those were.
fn remove(tc: &mut TcSocket, ifindex: u32, ours: impl Fn(&Filter) -> bool) -> io::Result<usize> {
    let mut removed = 0;
    for direction in Direction::BOTH {
        for filter in tc.filters(ifindex, direction)? {
            if ours(&filter) {
                tc.delete_filter(ifindex, direction, &filter)?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// Removes clsact if nobody has a filter on it.
fn remove_empty_qdisc(tc: &mut TcSocket, ifindex: u32) -> io::Result<()> {
    for direction in Direction::BOTH {
        if !tc.filters(ifindex, direction)?.is_empty() {
            return Ok(());
        }
    }
    tc.delete_clsact(ifindex)
}

/// Removes what agents that died left in this network namespace. What cannot be removed from one
/// interface (it may be going away) keeps no other from being looked at.
///
/// # Returns
/// ifindexes of the interfaces that had something.
///
/// # Errors
/// rtnetlink does not tell the interfaces.
pub(super) fn sweep() -> io::Result<Vec<u32>> {
    let mut tc = TcSocket::open()?;
    let mut swept = Vec::new();
    let mut dead = HashMap::new();
    for ifindex in tc.clsact_interfaces()? {
        match sweep_interface(&mut tc, ifindex, &mut dead) {
            Ok(true) => swept.push(ifindex),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, ifindex, "failed to remove a dead agent's filters");
            }
        }
    }
    Ok(swept)
}

/// Whether there was something. `dead`: agents by name, as far as they were asked for.
fn sweep_interface(
    tc: &mut TcSocket,
    ifindex: u32,
    dead: &mut HashMap<String, bool>,
) -> io::Result<bool> {
    let mut left = Vec::new();
    for direction in Direction::BOTH {
        for filter in tc.filters(ifindex, direction)? {
            let Some(owner) = filter.name.as_deref().and_then(owner) else {
                continue;
            };
            let is_dead = match dead.get(owner) {
                Some(&known) => known,
                None => *dead.entry(owner.to_owned()).or_insert(is_dead(owner)?),
            };
            if is_dead {
                left.push((direction, filter));
            }
        }
    }
    let mut own_qdisc = false;
    for (direction, filter) in &left {
        tc.delete_filter(ifindex, *direction, filter)?;
        own_qdisc |= (filter.name.as_deref()).is_some_and(|name| name.ends_with(OWN_QDISC));
    }
    if own_qdisc {
        remove_empty_qdisc(tc, ifindex)?;
    }
    Ok(!left.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filters_name_tells_its_agent_and_foreign_names_none() {
        let own = "remora-agent/0123456789abcdef";
        assert_eq!(owner(own), Some(own));
        assert_eq!(owner("remora-agent/0123456789abcdef/qdisc"), Some(own));
        assert_eq!(owner("cil_from_container"), None);
        assert_eq!(owner("tcx_ingress"), None);
    }

    #[test]
    fn an_agent_is_alive_until_its_socket_is_closed() {
        let owner = Owner::new().unwrap();
        let name = owner.name.clone();
        assert!(!is_dead(&name).unwrap());
        drop(owner);
        assert!(is_dead(&name).unwrap());
    }
}
