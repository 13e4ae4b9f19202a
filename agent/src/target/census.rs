//! Looks now and then who is behind the recorded veths, so that a pod is known by its names after it
//! has died, though nobody asked for it while it lived.
//!
//! ```text
//! recorded veth ─link events─▶ id of its peer's namespace ─┐ equal
//! /proc ─▶ pids ─RTM_GETNSID─▶ id of the process's ────────┘──▶ /proc/PID/cgroup ─▶ resident
//! ```
//! An id is another namespace's when the first has ended. So it is asked for a second time, with the
//! namespace's inode, after the kernel said that the veth leads there: the process held the
//! namespace, and with it the id, in between. That the veth of this index was still the tap's is
//! what the caller knows, who handles the link events: see [`Learned::ifindex`].
//!
//! A veth that just came is looked at soon and again, for its processes come after it; all are looked
//! at in pauses of a thousand times what a look takes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use remora_capture::session::LookBackMode;

use super::{
    cgroup::Cgroup,
    error::{ResolveError, shown},
    links::Interface,
    message::Nsid,
    modes::Modes,
    pods::KnownPods,
    procfs::{self, NetnsInode},
    residents::{Named, Resident, Seat},
    resolve::Resolver,
    rtnl::RouteSocket,
    sharers::{LiveProcesses, Processes as _},
};
use crate::session::TapId;

/// Processes of the node that are looked at.
const NODE_PIDS_MAX: usize = 65_536;
/// Processes behind one veth that are looked at.
const RESIDENT_PIDS_MAX: usize = 1024;
/// After a veth came; doubled with each look that finds nobody behind it.
const SOON: Duration = Duration::from_millis(10);
/// Looks at a veth behind which nobody is found, before it waits for the look at all.
const SOON_TRIES: u32 = 9;
/// Pause after a look at those that came, in times that it took: a twentieth of a core.
const SOON_FACTOR: u32 = 20;
const PAUSE_FACTOR: u32 = 1000;
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// When to look.
#[derive(Debug)]
pub struct Census {
    all: Instant,
    /// At those behind which nobody is known.
    soon: Option<Instant>,
    tries: u32,
}

/// Whom to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Among {
    /// Taps behind which nobody is known who is there to stay.
    Unknown,
    All,
}

/// Who was found behind a tap, to be kept with [`Resolver::remember`] if the interface of that index
/// was the tap's all the while.
#[derive(Debug)]
pub struct Learned(Resident);

impl Learned {
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.0.interface.ifindex
    }
}

impl Census {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            all: now,
            soon: None,
            tries: 0,
        }
    }

    /// A veth came.
    pub fn arrived(&mut self, now: Instant) {
        let soon = now + SOON;
        self.tries = 0;
        self.soon = Some(self.soon.map_or(soon, |due| due.min(soon)));
    }

    /// How long until a look is due.
    #[must_use]
    pub fn wait(&self, now: Instant) -> Duration {
        let due = self.soon.map_or(self.all, |soon| soon.min(self.all));
        due.saturating_duration_since(now)
    }

    /// The look that is due.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Among> {
        if self.all <= now {
            return Some(Among::All);
        }
        self.soon
            .is_some_and(|soon| soon <= now)
            .then_some(Among::Unknown)
    }

    /// A look took that long, and left taps behind which nobody is known.
    pub fn looked(&mut self, among: Among, took: Duration, unknown: bool, now: Instant) {
        if among == Among::All {
            self.all = now
                + took
                    .saturating_mul(PAUSE_FACTOR)
                    .clamp(PAUSE_MIN, PAUSE_MAX);
        }
        self.soon = None;
        if unknown && self.tries < SOON_TRIES {
            self.tries += 1;
            let pause = took
                .saturating_mul(SOON_FACTOR)
                .max(SOON * (1 << self.tries));
            self.soon = Some(now + pause.min(PAUSE_MAX));
        }
    }
}

/// A veth to look behind.
struct Veth {
    tap: TapId,
    ifindex: u32,
    nsid: Nsid,
}

/// A process behind one.
struct Seen {
    pid: u32,
    netns: NetnsInode,
    cgroup: String,
}

impl Resolver {
    /// Looks who is behind recorded taps. Blocks for milliseconds.
    ///
    /// # Errors
    /// [`ResolveError::Io`].
    pub fn look_behind(
        &self,
        recorded: &[(TapId, u32)],
        among: Among,
    ) -> Result<Vec<Learned>, ResolveError> {
        let known = match among {
            Among::All => HashSet::new(),
            Among::Unknown => self.residents.settled(),
        };
        let veths: Vec<Veth> = recorded
            .iter()
            .filter(|(tap, _)| !known.contains(tap))
            .filter_map(|&(tap, ifindex)| {
                let (nsid, _) = self.veths.get(ifindex)?;
                Some(Veth { tap, ifindex, nsid })
            })
            .collect();
        if veths.is_empty() {
            return Ok(Vec::new());
        }
        self.behind(&veths)
    }

    fn behind(&self, veths: &[Veth]) -> Result<Vec<Learned>, ResolveError> {
        let io = ResolveError::io;
        let mut socket = RouteSocket::open(0).map_err(io("open rtnetlink"))?;
        let mut processes = LiveProcesses::new(&self.root).map_err(io("open rtnetlink"))?;
        let pids = procfs::pids(NODE_PIDS_MAX).map_err(io("list the processes in /proc"))?;
        let ask = "ask rtnetlink for the network namespaces of processes";
        let nsids = socket.nsids(&pids).map_err(io(ask))?;
        let mut behind: HashMap<Nsid, Vec<u32>> =
            veths.iter().map(|veth| (veth.nsid, Vec::new())).collect();
        for (pid, nsid) in pids.into_iter().zip(nsids) {
            if let Some(pids) = nsid.and_then(|nsid| behind.get_mut(&nsid)) {
                pids.push(pid);
            }
        }
        let mut learned = Vec::new();
        for veth in veths {
            let Some(pids) = behind.get(&veth.nsid).filter(|pids| !pids.is_empty()) else {
                continue;
            };
            let cut = pids.len() > RESIDENT_PIDS_MAX;
            let pids = pids.get(..RESIDENT_PIDS_MAX).unwrap_or(pids);
            let mut seen = Vec::new();
            for &pid in pids {
                let Ok(netns) = procfs::netns_of(pid) else {
                    continue;
                };
                if let Some(cgroup) = processes.cgroup_path(pid)? {
                    seen.push(Seen { pid, netns, cgroup });
                }
            }
            let link = socket
                .link_by_index(veth.ifindex)
                .map_err(io("ask rtnetlink for an interface"))?;
            let Some(link) = link.filter(|link| link.peer_netns == Some(veth.nsid)) else {
                continue;
            };
            let pids: Vec<u32> = seen.iter().map(|seen| seen.pid).collect();
            let nsids = socket.nsids(&pids).map_err(io(ask))?;
            let mut nsids = nsids.into_iter();
            seen.retain(|seen| {
                nsids.next().flatten() == Some(veth.nsid)
                    && procfs::netns_of(seen.pid).is_ok_and(|now| now == seen.netns)
            });
            if let Some(resident) = self.resident(veth.tap, link.interface, &seen, cut) {
                learned.push(Learned(resident));
            }
        }
        Ok(learned)
    }

    fn resident(
        &self,
        tap: TapId,
        interface: Interface,
        seen: &[Seen],
        cut: bool,
    ) -> Option<Resident> {
        let now = Instant::now();
        let mut resident = Resident {
            tap,
            interface,
            netns: seen.first()?.netns,
            cgroups: Vec::new(),
            seats: Vec::new(),
            pids: BTreeMap::new(),
            cut,
            left: None,
        };
        for Seen { pid, cgroup, .. } in seen {
            let Some(id) = self.seat(cgroup, &mut resident.cgroups) else {
                continue;
            };
            resident.pids.insert(*pid, (id, now));
            if !resident.seats.iter().any(|seat| seat.id == id) {
                resident.seats.push(Seat {
                    id,
                    first: now,
                    last: now,
                });
            }
        }
        (!resident.seats.is_empty()).then_some(resident)
    }

    /// Adds a cgroup, and those around it, to `cgroups`; its id.
    fn seat(&self, path: &str, cgroups: &mut Vec<Named>) -> Option<u64> {
        let known = |cgroups: &[Named], path: &str| {
            let known = cgroups.iter().find(|known| known.path == path);
            known.map(|known| known.id)
        };
        if let Some(id) = known(cgroups, path) {
            return Some(id);
        }
        let id = Cgroup::at(self.root.mount(), path).ok()?.id;
        if path == "/" {
            // A tool of the node's. Nobody else lies in it by name.
            let path = path.to_owned();
            cgroups.push(Named { path, id });
        }
        let mut around = path;
        while !matches!(around, "" | "/") && known(cgroups, around).is_none() {
            let cgroup = Cgroup::at(self.root.mount(), around).ok()?;
            cgroups.push(Named {
                path: cgroup.path,
                id: cgroup.id,
            });
            around = around.rsplit_once('/').map_or("", |(outer, _)| outer);
        }
        Some(id)
    }

    /// Keeps what a look found.
    pub fn remember(&self, learned: Vec<Learned>) {
        self.residents.learn(
            learned
                .into_iter()
                .map(|Learned(resident)| resident)
                .collect(),
        );
    }

    /// Who is known behind a tap, for a person: the cgroup of one of its processes.
    #[must_use]
    pub fn who(&self, tap: TapId) -> Option<String> {
        let path = self.residents.seat(tap)?;
        let cgroup = format!("cgroup {}", shown(&path));
        Some(match self.pods.of_path(&path) {
            Some(pod) => format!("pod {}, {cgroup}", shown(&pod.full_name())),
            None => cgroup,
        })
    }

    /// How much look-back is to keep of those behind a tap.
    #[must_use]
    pub fn mode(&self, tap: TapId, modes: &Modes) -> LookBackMode {
        match self.residents.seats(tap) {
            Some(paths) => {
                let level = self.level_behind(tap);
                let level = level.unwrap_or_else(|| self.pods.strictest());
                modes.of(&paths).max(level)
            }
            None => self.unknown_mode(modes),
        }
    }

    /// Of those of whom nothing is known.
    #[must_use]
    pub fn unknown_mode(&self, modes: &Modes) -> LookBackMode {
        modes.unknown().max(self.pods.strictest())
    }

    /// What is known of the node's pods.
    #[must_use]
    pub fn pods(&self) -> &KnownPods {
        &self.pods
    }

    /// Some of these taps are nobody's yet.
    #[must_use]
    pub fn has_unknown(&self, recorded: &[(TapId, u32)]) -> bool {
        let known = self.residents.settled();
        recorded.iter().any(|(tap, _)| !known.contains(tap))
    }

    /// Forgets who has no ring any more.
    pub fn forget(&self, kept: &HashSet<TapId>, recorded: &[(TapId, u32)]) {
        let recorded = recorded.iter().map(|(tap, _)| *tap).collect();
        let now = Instant::now();
        self.residents.retain(kept, &recorded, now);
        self.pods.forget(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_veth_that_came_is_looked_at_soon_until_its_processes_are_there() {
        let start = Instant::now();
        let mut census = Census::new(start);
        let took = Duration::from_micros(10);
        census.looked(Among::All, took, false, start);
        assert_eq!(census.wait(start), PAUSE_MIN);
        census.arrived(start);
        assert_eq!(census.wait(start), SOON);
        let mut now = start;
        let mut looks = 0;
        while let Some(due) = census.soon {
            now = due;
            census.looked(Among::Unknown, took, true, now);
            looks += 1;
        }
        assert_eq!(looks, SOON_TRIES + 1);
        assert!(now - start > Duration::from_secs(5));
        census.arrived(now);
        census.looked(Among::Unknown, took, false, now);
        assert_eq!(census.soon, None);
    }

    #[test]
    fn looks_cost_a_bounded_part_of_a_core() {
        let start = Instant::now();
        let mut census = Census::new(start);
        let took = Duration::from_millis(20);
        census.looked(Among::All, took, true, start);
        assert_eq!(census.wait(start), took * SOON_FACTOR);
        assert_eq!(census.all, start + took * PAUSE_FACTOR);
        census.looked(Among::All, took * 1000, false, start);
        assert_eq!(census.all, start + PAUSE_MAX);
    }
}
