//! Which tap index belongs to what: pure bookkeeping, no kernel in it.

use std::collections::{HashMap, VecDeque};

use crate::session::{CgroupScope, LinkEnd, TapHook, TapId};

/// What a tap index is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Point {
    Interface { ifindex: u32, end: LinkEnd },
    Cgroup { id: u64, scope: CgroupScope },
}

#[derive(Clone, Debug, Default)]
struct Entry {
    generation: u32,
    bound: Option<Bound>,
}

#[derive(Clone, Debug)]
struct Bound {
    point: Point,
    /// Sessions that use it.
    users: u32,
    /// The point is gone; the index is free when the last user leaves.
    gone: bool,
}

/// Index 0 is never given out. A freed index goes to the end of the queue, so it rests as long as
/// possible; its next owner has a new generation.
#[derive(Debug)]
pub(super) struct TapTable {
    entries: Vec<Entry>,
    free: VecDeque<u32>,
    interfaces: HashMap<u32, u32>,
    cgroups: HashMap<u64, u32>,
}

/// What unbinding freed in the lookup maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unbound {
    pub(super) index: u32,
    pub(super) point: Point,
}

impl TapTable {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            entries: vec![Entry::default(); slots as usize],
            free: (1..slots).collect(),
            interfaces: HashMap::new(),
            cgroups: HashMap::new(),
        }
    }

    pub(super) fn interface(&self, ifindex: u32) -> Option<(TapId, LinkEnd)> {
        let &index = self.interfaces.get(&ifindex)?;
        match self.point(index)? {
            Point::Interface { end, .. } => Some((self.id(index), *end)),
            Point::Cgroup { .. } => None,
        }
    }

    pub(super) fn cgroup(&self, id: u64) -> Option<(TapId, CgroupScope)> {
        let &index = self.cgroups.get(&id)?;
        match self.point(index)? {
            Point::Cgroup { scope, .. } => Some((self.id(index), *scope)),
            Point::Interface { .. } => None,
        }
    }

    /// Gives a point an index; `None` if all are taken. The point must not be bound.
    pub(super) fn bind(&mut self, point: Point) -> Option<TapId> {
        let index = self.free.pop_front()?;
        match &point {
            Point::Interface { ifindex, .. } => {
                self.interfaces.insert(*ifindex, index);
            }
            Point::Cgroup { id, .. } => {
                self.cgroups.insert(*id, index);
            }
        }
        let entry = &mut self.entries[index as usize];
        entry.generation += 1;
        entry.bound = Some(Bound {
            point,
            users: 0,
            gone: false,
        });
        Some(self.id(index))
    }

    /// An agent before this one has given the index out so often.
    pub(super) fn known_generation(&mut self, index: u32, generation: u32) {
        if let Some(entry) = self.entries.get_mut(index as usize) {
            entry.generation = entry.generation.max(generation);
        }
    }

    /// Binds an index as an agent before this one had; nothing happens if it is bound. A point that is
    /// gone is not found any more.
    pub(super) fn restore(&mut self, id: TapId, point: Point, gone: bool) {
        let TapId { index, generation } = id;
        let is_free = self.free.contains(&index);
        let Some(entry) = self.entries.get_mut(index as usize).filter(|_| is_free) else {
            return;
        };
        self.free.retain(|free| *free != index);
        entry.generation = generation;
        match &point {
            _ if gone => {}
            Point::Interface { ifindex, .. } => {
                self.interfaces.insert(*ifindex, index);
            }
            Point::Cgroup { id, .. } => {
                self.cgroups.insert(*id, index);
            }
        }
        entry.bound = Some(Bound {
            point,
            users: 0,
            gone,
        });
    }

    pub(super) fn enter(&mut self, id: TapId) {
        if let Some(bound) = self.bound(id) {
            bound.users += 1;
        }
    }

    /// A session leaves. A cgroup without sessions is unbound, an interface only if it is gone.
    pub(super) fn leave(&mut self, id: TapId) -> Option<Unbound> {
        let bound = self.bound(id)?;
        bound.users = bound.users.saturating_sub(1);
        let keep = matches!(bound.point, Point::Interface { .. }) && !bound.gone;
        if bound.users > 0 || keep {
            None
        } else {
            self.unbind(id.index)
        }
    }

    /// The interface is gone: its number may come back as another's at once. Its index is freed
    /// when its last session leaves.
    pub(super) fn interface_gone(&mut self, ifindex: u32) -> Option<u32> {
        let index = self.interfaces.remove(&ifindex)?;
        let bound = self.entries[index as usize].bound.as_mut()?;
        bound.gone = true;
        if bound.users == 0 {
            self.unbind(index);
        }
        Some(index)
    }

    /// What is bound to an index and not gone.
    pub(super) fn at(&self, index: u32) -> Option<(TapId, TapHook)> {
        let id = TapId {
            index,
            generation: self.entries.get(index as usize)?.generation,
        };
        let hook = match self.point(index)? {
            Point::Interface { .. } => TapHook::Tc,
            Point::Cgroup { .. } => TapHook::Cgroup,
        };
        self.is_bound(id).then_some((id, hook))
    }

    /// Bound and not gone.
    pub(super) fn is_bound(&self, id: TapId) -> bool {
        self.entries.get(id.index as usize).is_some_and(|e| {
            e.generation == id.generation && e.bound.as_ref().is_some_and(|b| !b.gone)
        })
    }

    /// Bound taps with what they are.
    pub(super) fn points(&self) -> impl Iterator<Item = (u32, &Point)> {
        (0..).zip(&self.entries).filter_map(|(index, entry)| {
            entry
                .bound
                .as_ref()
                .filter(|b| !b.gone)
                .map(|bound| (index, &bound.point))
        })
    }

    fn id(&self, index: u32) -> TapId {
        TapId {
            index,
            generation: self.entries[index as usize].generation,
        }
    }

    fn point(&self, index: u32) -> Option<&Point> {
        self.entries
            .get(index as usize)?
            .bound
            .as_ref()
            .map(|bound| &bound.point)
    }

    fn bound(&mut self, id: TapId) -> Option<&mut Bound> {
        let entry = self.entries.get_mut(id.index as usize)?;
        if entry.generation == id.generation {
            entry.bound.as_mut()
        } else {
            None
        }
    }

    fn unbind(&mut self, index: u32) -> Option<Unbound> {
        let bound = self.entries[index as usize].bound.take()?;
        self.free.push_back(index);
        match &bound.point {
            Point::Interface { ifindex, .. } => {
                if self.interfaces.get(ifindex) == Some(&index) {
                    self.interfaces.remove(ifindex);
                }
            }
            Point::Cgroup { id, .. } => {
                if self.cgroups.get(id) == Some(&index) {
                    self.cgroups.remove(id);
                }
            }
        }
        Some(Unbound {
            index,
            point: bound.point,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VETH: LinkEnd = LinkEnd::VethHost;

    fn cgroup(id: u64) -> Point {
        Point::Cgroup {
            id,
            scope: CgroupScope::All,
        }
    }

    #[test]
    fn index_zero_is_never_given_out_and_a_full_table_says_so() {
        let mut table = TapTable::new(3);
        let first = table.bind(cgroup(1)).unwrap();
        let second = table.bind(cgroup(2)).unwrap();
        assert_eq!([first.index, second.index], [1, 2]);
        assert_eq!(table.bind(cgroup(3)), None);
    }

    #[test]
    fn a_reused_interface_number_gets_another_tap_while_a_session_still_has_the_old_one() {
        let mut table = TapTable::new(4);
        let old = table
            .bind(Point::Interface {
                ifindex: 9,
                end: VETH,
            })
            .unwrap();
        table.enter(old);
        assert_eq!(table.interface_gone(9), Some(old.index));
        assert!(!table.is_bound(old));
        let new = table
            .bind(Point::Interface {
                ifindex: 9,
                end: VETH,
            })
            .unwrap();
        assert_ne!(new.index, old.index);
        assert!(table.leave(old).is_some());
        assert_eq!(table.interface(9), Some((new, VETH)));
    }

    #[test]
    fn a_reused_index_has_another_generation() {
        let mut table = TapTable::new(2);
        let old = table.bind(cgroup(1)).unwrap();
        table.enter(old);
        assert!(table.leave(old).is_some());
        let new = table.bind(cgroup(2)).unwrap();
        assert_eq!(new.index, old.index);
        assert_ne!(new.generation, old.generation);
        assert!(!table.is_bound(old) && table.is_bound(new));
        assert!(table.leave(old).is_none(), "an old id changes nothing");
        assert!(table.is_bound(new));
    }

    #[test]
    fn a_restored_table_is_as_it_was_and_gives_no_old_id_again() {
        let mut table = TapTable::new(4);
        let point = Point::Interface {
            ifindex: 9,
            end: VETH,
        };
        let id = TapId {
            index: 2,
            generation: 5,
        };
        table.known_generation(2, 5);
        table.known_generation(1, 8);
        table.restore(id, point.clone(), false);
        table.restore(id, point.clone(), true);
        table.enter(id);
        assert_eq!(table.interface(9), Some((id, VETH)));
        let others = [
            table.bind(cgroup(1)).unwrap(),
            table.bind(cgroup(2)).unwrap(),
        ];
        assert_eq!(others.map(|id| (id.index, id.generation)), [(1, 9), (3, 1)]);
        assert!(table.leave(id).is_none() && table.is_bound(id));

        let mut table = TapTable::new(4);
        table.restore(id, point, true);
        table.enter(id);
        assert_eq!(table.interface(9), None);
        assert!(!table.is_bound(id));
        assert!(table.leave(id).is_some());
    }

    #[test]
    fn an_interface_stays_bound_without_sessions_and_a_cgroup_does_not() {
        let mut table = TapTable::new(4);
        let link = table
            .bind(Point::Interface {
                ifindex: 9,
                end: VETH,
            })
            .unwrap();
        let group = table.bind(cgroup(1)).unwrap();
        for id in [link, group] {
            table.enter(id);
            table.enter(id);
            assert!(table.leave(id).is_none());
        }
        assert!(table.leave(link).is_none());
        assert!(table.is_bound(link));
        assert!(table.leave(group).is_some());
        assert!(!table.is_bound(group));
    }
}
