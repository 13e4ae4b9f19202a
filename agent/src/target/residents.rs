//! Who lives, or lived, behind each recorded veth: the names by which a pod is found when nothing but
//! its look-back ring is left of it.
//!
//! A tap is never another's, and a cgroup's id is never another's: a resident is known by both. A
//! path, a container's or a unit's name, and a pid come again; of those that are gone, the one that
//! left last is meant.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use remora_capture::session::Target;

use super::{links::Interface, names, pod::is_cgroup_of, procfs::NetnsInode};
use crate::session::TapId;

/// Cgroups of one resident that are remembered, those around the processes' included.
const CGROUPS_MAX: usize = 128;
/// Between the first and the last time that somebody is seen who is there to stay.
const SETTLED: Duration = Duration::from_secs(1);
/// Processes of one resident that are remembered.
const PIDS_MAX: usize = 1024;

/// A cgroup by its name and by what is never used again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Named {
    /// Not escaped.
    pub(super) path: String,
    pub(super) id: u64,
}

/// A cgroup that processes behind a veth were seen in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) id: u64,
    pub(super) first: Instant,
    pub(super) last: Instant,
}

impl Seat {
    /// Not a tool that looked in for a moment, as those do that set a network up.
    fn is_settled(&self) -> bool {
        self.last.saturating_duration_since(self.first) >= SETTLED
    }
}

/// Somebody behind a veth.
#[derive(Clone, Debug)]
pub(super) struct Resident {
    pub(super) tap: TapId,
    pub(super) interface: Interface,
    pub(super) netns: NetnsInode,
    /// Cgroups that processes were in, and those around them.
    pub(super) cgroups: Vec<Named>,
    /// Those that processes were in.
    pub(super) seats: Vec<Seat>,
    /// Pid, its cgroup's id, and when it was last seen.
    pub(super) pids: BTreeMap<u32, (u64, Instant)>,
    /// Not all could be remembered.
    pub(super) cut: bool,
    /// When its veth was gone.
    pub(super) left: Option<Instant>,
}

/// By tap, at most as many as there are rings.
#[derive(Debug, Default)]
pub(super) struct Residents(Mutex<Vec<Resident>>);

/// A resident, and the cgroup that a target's name means of it; none: all that is behind the veth.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) resident: Resident,
    pub(super) cgroup: Option<Named>,
}

impl Resident {
    /// The cgroup that the name means; outer `None`: it is not this resident's.
    fn named(&self, target: &Target) -> Option<Option<Named>> {
        let name = |cgroup: &Named| {
            cgroup
                .path
                .rsplit_once('/')
                .map(|(_, name)| name.to_owned())
        };
        let by = |wanted: &dyn Fn(&Named) -> bool| {
            // The upper one of two of the same name holds both, and what lies in a container goes
            // behind what does not.
            let fits = self.cgroups.iter().filter(|cgroup| wanted(cgroup));
            fits.min_by_key(|cgroup| (names::nesting(&cgroup.path), cgroup.path.len()))
                .cloned()
        };
        let cgroup = match target {
            Target::CgroupPath(path) => by(&|cgroup| cgroup.path == *path)?,
            Target::CgroupId(id) => by(&|cgroup| cgroup.id == *id)?,
            Target::Unit(unit) => {
                by(&|cgroup| name(cgroup).is_some_and(|name| names::is_unit(&name, unit)))?
            }
            Target::Container(id) => self.pod_around(by(&|cgroup| {
                name(cgroup).is_some_and(|name| {
                    names::container_id(&name).is_some_and(|found| found.starts_with(id.as_str()))
                })
            })?),
            Target::Pid(pid) => {
                let (id, _) = self.pids.get(pid)?;
                self.pod_around(by(&|cgroup| cgroup.id == *id)?)
            }
            Target::Interface(name) => {
                return (self.interface.name == *name).then_some(None);
            }
            // By its uid, which the name does not have: `Residents::of_pod`.
            Target::Pod(_) => return None,
        };
        Some(Some(cgroup))
    }

    /// The innermost pod that a cgroup is or lies in, else itself.
    fn pod_around(&self, cgroup: Named) -> Named {
        let around = self.cgroups.iter().filter(|outer| {
            let name = outer.path.rsplit_once('/').map_or("", |(_, name)| name);
            names::is_pod(name) && contains(&outer.path, &cgroup.path)
        });
        let innermost = around.max_by_key(|outer| outer.path.len()).cloned();
        innermost.unwrap_or(cgroup)
    }

    /// Nobody else lived behind the veth.
    pub(super) fn is_alone(&self, cgroup: &Named) -> bool {
        !self.cut && !self.others(cgroup).any(Seat::is_settled)
    }

    /// Somebody else was seen behind the veth for a moment.
    pub(super) fn had_visitors(&self, cgroup: &Named) -> bool {
        self.others(cgroup).next().is_some()
    }

    fn others<'a>(&'a self, cgroup: &'a Named) -> impl Iterator<Item = &'a Seat> {
        self.seats.iter().filter(|seat| {
            let named = self.cgroups.iter().find(|named| named.id == seat.id);
            !named.is_some_and(|named| contains(&cgroup.path, &named.path))
        })
    }

    fn merge(&mut self, newer: Self) {
        let Self {
            tap: _,
            interface,
            netns,
            cgroups,
            seats,
            pids,
            cut,
            left: _,
        } = newer;
        self.interface = interface;
        self.netns = netns;
        self.cut |= cut;
        for cgroup in cgroups {
            if !self.cgroups.contains(&cgroup) {
                self.cgroups.push(cgroup);
            }
        }
        for seat in seats {
            match self.seats.iter_mut().find(|known| known.id == seat.id) {
                Some(known) => known.last = seat.last,
                None => self.seats.push(seat),
            }
        }
        if self.pids.len() + pids.len() > PIDS_MAX {
            self.pids.clear();
        }
        self.pids.extend(pids);
        self.bound();
    }

    fn bound(&mut self) {
        self.cut |= self.cgroups.len() > CGROUPS_MAX || self.seats.len() > CGROUPS_MAX;
        self.cgroups.truncate(CGROUPS_MAX);
        self.seats.truncate(CGROUPS_MAX);
        while self.pids.len() > PIDS_MAX {
            self.pids.pop_first();
        }
    }
}

impl Residents {
    fn change<T>(&self, change: impl FnOnce(&mut Vec<Resident>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn learn(&self, learned: Vec<Resident>) {
        self.change(|residents| {
            for mut newer in learned {
                let known = residents.iter_mut().find(|known| known.tap == newer.tap);
                match known {
                    Some(known) => known.merge(newer),
                    None => {
                        newer.bound();
                        residents.push(newer);
                    }
                }
            }
        });
    }

    /// Taps behind which somebody is known who is there to stay.
    pub(super) fn settled(&self) -> HashSet<TapId> {
        self.change(|residents| {
            let settled = residents
                .iter()
                .filter(|resident| resident.seats.iter().any(Seat::is_settled));
            settled.map(|resident| resident.tap).collect()
        })
    }

    /// Paths of the cgroups that processes behind a tap were seen in, if all are known and some are
    /// there to stay.
    pub(super) fn seats(&self, tap: TapId) -> Option<Vec<String>> {
        self.change(|residents| {
            let resident = residents.iter().find(|resident| resident.tap == tap)?;
            if resident.cut || !resident.seats.iter().any(Seat::is_settled) {
                return None;
            }
            let path = |seat: &Seat| {
                let mut cgroups = resident.cgroups.iter();
                cgroups.find(|cgroup| cgroup.id == seat.id)
            };
            let paths = resident
                .seats
                .iter()
                .map(|seat| Some(path(seat)?.path.clone()));
            paths.collect()
        })
    }

    /// Path of the cgroup that processes behind a tap were last seen in.
    pub(super) fn seat(&self, tap: TapId) -> Option<String> {
        self.change(|residents| {
            let resident = residents.iter().find(|resident| resident.tap == tap)?;
            let seat = resident.seats.iter().max_by_key(|seat| seat.last)?;
            let cgroup = resident
                .cgroups
                .iter()
                .find(|cgroup| cgroup.id == seat.id)?;
            Some(cgroup.path.clone())
        })
    }

    /// Forgets whose ring is not `kept`, and marks who is not `recorded` any more as gone.
    pub(super) fn retain(&self, kept: &HashSet<TapId>, recorded: &HashSet<TapId>, now: Instant) {
        self.change(|residents| {
            residents.retain(|resident| kept.contains(&resident.tap));
            let gone = residents
                .iter_mut()
                .filter(|resident| resident.left.is_none() && !recorded.contains(&resident.tap));
            for resident in gone {
                resident.left = Some(now);
            }
        });
    }

    /// Who lived in the cgroup of a pod, the latest first.
    pub(super) fn of_pod(&self, cgroup_uid: &str) -> Vec<Found> {
        let mut found: Vec<Found> = self.change(|residents| {
            let found = residents.iter().filter_map(|resident| {
                let mut cgroups = resident.cgroups.iter();
                let cgroup = cgroups.find(|cgroup| is_cgroup_of(&cgroup.path, cgroup_uid))?;
                Some(Found {
                    resident: resident.clone(),
                    cgroup: Some(cgroup.clone()),
                })
            });
            found.collect()
        });
        found.sort_by_key(|Found { resident, .. }| {
            Reverse((resident.left.is_none(), resident.left))
        });
        found
    }

    /// Paths of the cgroups that processes behind the interface of this index were seen in, if some are there
    /// to stay.
    pub(super) fn behind(&self, ifindex: u32) -> Option<Vec<String>> {
        let tap = self.change(|residents| {
            let there = residents.iter().find(|resident| {
                resident.left.is_none() && resident.interface.ifindex == ifindex
            })?;
            Some(there.tap)
        })?;
        self.seats(tap)
    }

    /// Nobody was ever seen behind the interface of this index.
    pub(super) fn has_nobody(&self, ifindex: u32) -> bool {
        self.change(|residents| {
            let mut there = residents.iter();
            !there.any(|resident| resident.interface.ifindex == ifindex)
        })
    }

    /// Whom the target's name means, the latest first.
    pub(super) fn find(&self, target: &Target) -> Vec<Found> {
        let mut found: Vec<Found> = self.change(|residents| {
            let found = residents.iter().filter_map(|resident| {
                let cgroup = resident.named(target)?;
                let resident = resident.clone();
                Some(Found { resident, cgroup })
            });
            found.collect()
        });
        let seen = |resident: &Resident| match target {
            Target::Pid(pid) => resident.pids.get(pid).map(|(_, seen)| *seen),
            _ => None,
        };
        found.sort_by_key(|found| {
            let Resident { left, .. } = found.resident;
            Reverse((seen(&found.resident), left.is_none(), left))
        });
        found
    }
}

/// The cgroup at `inner` is the one at `outer` or lies below it.
fn contains(outer: &str, inner: &str) -> bool {
    inner
        .strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    const ID: &str = "6e858ea516b6826b46d8405beb4c9717649f578660b11d8cfa2b5206cf147dfe";

    /// A resident in `/node/NAME/ID`, whose cgroups have the ids `id` and `id + 1`.
    pub(in crate::target) fn resident(index: u32, name: &str, id: u64) -> Resident {
        let named = |path: String, id| Named { path, id };
        Resident {
            tap: TapId {
                index,
                generation: 1,
            },
            interface: Interface {
                ifindex: index,
                name: format!("veth-{name}"),
                kind: super::super::links::InterfaceKind::Veth,
            },
            netns: NetnsInode::of_test(u64::from(index)),
            cgroups: vec![
                named(format!("/node/{name}/{ID}"), id + 1),
                named(format!("/node/{name}"), id),
                named("/node".to_owned(), 1),
            ],
            seats: vec![seat(id + 1)],
            pids: BTreeMap::from([(index, (id + 1, Instant::now()))]),
            cut: false,
            left: None,
        }
    }

    /// Of somebody who stayed.
    pub(in crate::target) fn seat(id: u64) -> Seat {
        let first = Instant::now();
        let last = first + SETTLED;
        Seat { id, first, last }
    }

    fn taps(found: &[Found]) -> Vec<u32> {
        found.iter().map(|found| found.resident.tap.index).collect()
    }

    #[test]
    fn a_name_that_came_again_means_who_left_last_and_an_id_means_its_owner() {
        let residents = Residents::default();
        residents.learn(vec![resident(1, "web", 10), resident(2, "web", 20)]);
        let kept = residents.settled();
        let now = Instant::now();
        let second = HashSet::from([resident(2, "web", 20).tap]);
        residents.retain(&kept, &second, now);
        residents.retain(&kept, &HashSet::new(), now + Duration::from_secs(1));
        for target in [
            Target::CgroupPath("/node/web".to_owned()),
            Target::Container(ID[..12].to_owned()),
            Target::Interface("veth-web".to_owned()),
        ] {
            assert_eq!(taps(&residents.find(&target)), [2, 1], "{target}");
        }
        assert_eq!(taps(&residents.find(&Target::CgroupId(10))), [1]);
        assert_eq!(taps(&residents.find(&Target::Pid(1))), [1]);
        assert!(residents.find(&Target::CgroupId(30)).is_empty());
    }

    #[test]
    fn one_with_company_is_not_alone() {
        let mut web = resident(1, "web", 10);
        let found = Named {
            path: "/node/web".to_owned(),
            id: 10,
        };
        assert!(web.is_alone(&found));
        web.merge(resident(1, "other", 20));
        assert!(!web.is_alone(&found) && web.had_visitors(&found));
        web = resident(1, "web", 10);
        let mut visitor = resident(1, "other", 20);
        visitor.seats[0].last = visitor.seats[0].first;
        web.merge(visitor);
        assert!(web.is_alone(&found) && web.had_visitors(&found));
        web.cut = true;
        assert!(!web.is_alone(&found));
    }

    #[test]
    fn what_is_remembered_of_one_is_bounded() {
        let mut web = resident(1, "web", 10);
        for id in 0..2 * CGROUPS_MAX as u64 {
            web.merge(resident(1, &id.to_string(), 100 + 2 * id));
        }
        assert!(web.cut && web.cgroups.len() <= CGROUPS_MAX && web.seats.len() <= CGROUPS_MAX);
        for pid in 0..2 * PIDS_MAX as u32 {
            let mut newer = resident(1, "web", 10);
            newer.pids = BTreeMap::from([(pid, (11, Instant::now()))]);
            web.merge(newer);
        }
        assert!(web.pids.len() <= PIDS_MAX);
    }
}
