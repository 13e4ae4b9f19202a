//! The maps, typed.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use remora_agent_common::{
    IFINDEX_ARRAY, SESSION_SLOTS, TAP_SLOTS,
    counters::SessionCounters,
    session::{Budget, Session},
    tap::{Gate, TAP_FLIP, TAP_HEADERS_ONLY, Tap, TapSessions},
};
use remora_capture::{
    filter::Meaning,
    session::{LookBackMode, SessionSpec, TapInfo},
};

use super::{
    KernelError, grace,
    layouts::{Eyes, Layout, session},
    load::take_map,
    pool::{Pool, Spans},
    seen::{self, Seen, TapSeen},
    taps::{Point, TapTable, Unbound},
};
use crate::session::{
    Arming, BoundTap, CgroupScope, InterfacePlace, KernelCounts, LinkEnd, Slot, StillArmed, Takes,
    TapHook, TapId,
};

/// All maps but the ring, and what userspace knows of the taps. Methods take microseconds where they
/// say nothing else.
pub struct Tables(Mutex<Maps>);

pub(super) struct Maps {
    pub(super) gate: Array<MapData, Layout<Gate>>,
    pub(super) ifindex_taps: Array<MapData, u32>,
    pub(super) ifindex_taps_high: HashMap<MapData, u32, u32>,
    pub(super) tap_sessions: Array<MapData, Layout<TapSessions>>,
    pub(super) tap_covered: Array<MapData, u64>,
    pub(super) tap_seen: TapSeen,
    pub(super) taps: Array<MapData, Layout<Tap>>,
    pub(super) sessions: Array<MapData, Layout<Session>>,
    pub(super) budgets: Array<MapData, Layout<Budget>>,
    pub(super) counters: PerCpuArray<MapData, Layout<SessionCounters>>,
    pub(super) pool: Pool,
    pub(super) cpus: usize,
    pub(super) table: TapTable,
    pub(super) seen: Vec<Seen>,
    /// By slot, while it is armed.
    pub(super) filters: Vec<Option<ArmedFilter>>,
    /// What `tap_covered` holds, where that is not 0.
    pub(super) covered: BTreeMap<u32, u64>,
    /// Sessions armed, and those of them that take ingress.
    pub(super) armed: u64,
    pub(super) ingress: u64,
    /// Taps with a look-back ring.
    pub(super) recorded: u32,
    /// By slot, of sessions of an agent before this one.
    pub(super) standing: Vec<StillArmed>,
}

/// The filter of a session that is armed.
#[derive(Clone, Debug)]
pub(super) struct ArmedFilter {
    pub(super) slot: u32,
    pub(super) generation: u32,
    pub(super) spec: Arc<SessionSpec>,
}

/// The filters of the sessions of a tap.
#[derive(Clone, Debug)]
pub(super) struct TapFilters {
    pub(super) tap: TapId,
    pub(super) hook: TapHook,
    /// By their slots.
    pub(super) sessions: Vec<ArmedFilter>,
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables")
            .field("taps", &self.maps().table)
            .finish_non_exhaustive()
    }
}

impl Tables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self(Mutex::new(Maps {
            gate: typed(ebpf, "GATE")?,
            ifindex_taps: typed(ebpf, "IFINDEX_TAPS")?,
            ifindex_taps_high: typed(ebpf, "IFINDEX_TAPS_HIGH")?,
            tap_sessions: typed(ebpf, "TAP_SESSIONS")?,
            tap_covered: typed(ebpf, "TAP_COVERED")?,
            tap_seen: typed(ebpf, "TAP_SEEN")?,
            taps: typed(ebpf, "TAPS")?,
            sessions: typed(ebpf, "SESSIONS")?,
            budgets: typed(ebpf, "BUDGETS")?,
            counters: typed(ebpf, "COUNTERS")?,
            pool: Pool::new(typed(ebpf, "PROGRAMS")?),
            cpus: nr_cpus()
                .map_err(|(_, error)| KernelError::Io("count the machine's CPUs", error))?,
            table: TapTable::new(TAP_SLOTS),
            seen: (0..SESSION_SLOTS).map(|_| Seen::default()).collect(),
            filters: vec![None; SESSION_SLOTS as usize],
            covered: BTreeMap::new(),
            armed: 0,
            ingress: 0,
            recorded: 0,
            standing: vec![StillArmed::No; SESSION_SLOTS as usize],
        })))
    }

    /// The maps stay consistent when a holder of the lock panics: each method leaves them so
    /// between any two writes.
    pub(super) fn maps(&self) -> MutexGuard<'_, Maps> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tap of an interface, if it is bound.
    pub fn interface(&self, ifindex: u32) -> Option<(TapId, LinkEnd)> {
        self.maps().table.interface(ifindex)
    }

    /// A session enters the tap of an interface, if it is bound.
    pub fn enter_interface(&self, ifindex: u32) -> Option<(TapId, LinkEnd)> {
        let mut maps = self.maps();
        let bound = maps.table.interface(ifindex)?;
        maps.table.enter(bound.0);
        Some(bound)
    }

    /// A session enters a tap, if it is there still: one that is gone may be another's by now.
    pub fn enter(&self, tap: TapId) {
        self.maps().table.enter(tap);
    }

    /// Binds an interface, if it is not bound.
    ///
    /// # Errors
    /// No tap is free, or the kernel refuses.
    pub fn bind_interface(&self, ifindex: u32, end: LinkEnd) -> Result<(), KernelError> {
        let mut maps = self.maps();
        if maps.table.interface(ifindex).is_some() {
            return Ok(());
        }
        let flags = if end == LinkEnd::VethHost {
            TAP_FLIP
        } else {
            0
        };
        let tap = Tap {
            flags,
            ..Tap::default()
        };
        let id = maps.bind(Point::Interface { ifindex, end }, tap)?;
        let bound = maps.point_interface(ifindex, id.index);
        if bound.is_err() {
            maps.table.interface_gone(ifindex);
        }
        bound
    }

    /// A session enters the tap of a cgroup, which is bound for it if it is not.
    ///
    /// # Errors
    /// No tap is free, it is bound with another scope, or the kernel refuses.
    pub fn enter_cgroup(
        &self,
        id: u64,
        level: u32,
        scope: CgroupScope,
    ) -> Result<TapId, KernelError> {
        let mut maps = self.maps();
        if let Some((tap, bound)) = maps.table.cgroup(id) {
            return if bound == scope {
                maps.table.enter(tap);
                Ok(tap)
            } else {
                Err(KernelError::Scope(format!(
                    "cgroup {id} is being captured by another session in another way (its \
                     processes changed their network namespace meanwhile); stop that one first"
                )))
            };
        }
        let tap = Tap {
            cgroup_id: id,
            cgroup_level: level,
            ..Tap::default()
        };
        let id = maps.bind(Point::Cgroup { id, scope }, tap)?;
        maps.table.enter(id);
        Ok(id)
    }

    /// Some taps are recorded: programs do not leave at the gate.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_recorded(&self, taps: u32) -> Result<(), KernelError> {
        let mut maps = self.maps();
        maps.recorded = taps;
        maps.write_gate()
    }

    /// Forgets an interface that is gone. Its sessions keep their tap, which sees nothing more.
    pub fn interface_gone(&self, ifindex: u32) {
        let mut maps = self.maps();
        if maps.table.interface(ifindex).is_some() {
            log_failure(maps.point_interface(ifindex, 0));
            if let Some(index) = maps.table.interface_gone(ifindex) {
                log_failure(maps.no_sessions(index));
            }
        }
    }

    /// Interfaces that are bound now.
    pub fn interfaces(&self) -> Vec<(u32, LinkEnd)> {
        let maps = self.maps();
        maps.table
            .points()
            .filter_map(|(_, point)| match point {
                Point::Interface { ifindex, end } => Some((*ifindex, *end)),
                Point::Cgroup { .. } => None,
            })
            .collect()
    }

    /// A session leaves a tap. A cgroup's tap goes with its last session.
    ///
    /// # Returns
    /// The cgroup whose tap is gone.
    pub fn leave(&self, tap: TapId) -> Option<u64> {
        let mut maps = self.maps();
        let Unbound { index, point } = maps.table.leave(tap)?;
        log_failure(maps.no_sessions(index));
        match point {
            Point::Cgroup { id, .. } => Some(id),
            Point::Interface { .. } => None,
        }
    }

    /// How a cgroup is bound, if it is.
    #[must_use]
    pub fn cgroup_scope(&self, id: u64) -> Option<CgroupScope> {
        self.maps().table.cgroup(id).map(|(_, scope)| scope)
    }

    pub fn is_bound(&self, tap: TapId) -> bool {
        self.maps().table.is_bound(tap)
    }

    /// Fills the slot, then flips its bit on each tap. A filter that is a program takes about a
    /// microsecond for each of its instructions.
    ///
    /// # Errors
    /// There is no room for the filter, or the kernel refuses a write; nothing is armed then.
    pub fn arm(&self, arming: &Arming, taps: &[BoundTap]) -> Result<(), KernelError> {
        let mut maps = self.maps();
        let slot = arming.slot.0;
        // All taps of a place see with the same eyes.
        let eyes = match taps.first() {
            Some(tap) if tap.end == LinkEnd::Loopback => Eyes::Once,
            Some(tap) if tap.is_swapped() => Eyes::Swapped,
            _ => Eyes::Same,
        };
        let filter = &arming.spec.filter;
        let spans = match filter.meaning() {
            Meaning::Terms(_) => Spans::default(),
            Meaning::Programs(programs) => maps.pool.write(slot, programs)?,
            Meaning::Unread => return Err(KernelError::Uncompiled(filter.to_string())),
        };
        let entry = session(arming, eyes, spans);
        let zeroes = PerCpuValues::try_from(vec![Layout(SessionCounters::default()); maps.cpus])
            .map_err(|error| KernelError::Io("clear the counters", error))?;
        maps.counters
            .set(slot, zeroes, 0)
            .map_err(failed("COUNTERS"))?;
        maps.budgets
            .set(slot, Layout(Budget::default()), 0)
            .map_err(failed("BUDGETS"))?;
        maps.sessions
            .set(slot, Layout(entry), 0)
            .map_err(failed("SESSIONS"))?;
        let bound = taps.iter().filter(|tap| maps.table.is_bound(tap.id));
        let seen = Seen::since_now(&maps.tap_seen, bound);
        if let Some(entry) = maps.seen.get_mut(slot as usize) {
            *entry = seen;
        }
        if let Some(filter) = maps.filters.get_mut(slot as usize) {
            *filter = Some(ArmedFilter {
                slot,
                generation: arming.generation,
                spec: Arc::clone(&arming.spec),
            });
        }
        let bit = 1u64 << slot;
        maps.armed |= bit;
        if entry.directions & remora_agent_common::session::DIRECTION_INGRESS != 0 {
            maps.ingress |= bit;
        }
        let flipped = maps.write_gate().and_then(|()| {
            taps.iter()
                .try_for_each(|tap| maps.flip(tap.id, |sessions| armed(sessions, bit, tap)))
        });
        if flipped.is_err() {
            drop(maps);
            self.disarm(arming.slot, taps);
        }
        flipped
    }

    /// Cuts the packets of a tap after their transport headers, or does so no more.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn restrict(&self, tap: TapId, level: LookBackMode) -> Result<(), KernelError> {
        let mut maps = self.maps();
        if !maps.table.is_bound(tap) {
            return Ok(());
        }
        let Layout(mut entry) = maps.taps.get(&tap.index, 0).map_err(failed("TAPS"))?;
        let flags = match level {
            LookBackMode::Payload => entry.flags & !TAP_HEADERS_ONLY,
            LookBackMode::Headers | LookBackMode::Off => entry.flags | TAP_HEADERS_ONLY,
        };
        if flags == entry.flags {
            return Ok(());
        }
        entry.flags = flags;
        maps.taps
            .set(tap.index, Layout(entry), 0)
            .map_err(failed("TAPS"))
    }

    /// The session ends then; programs that run may see any mixture of the old bytes and the new.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_deadline(&self, slot: Slot, deadline_ns: Option<u64>) -> Result<(), KernelError> {
        self.maps().set_deadline(slot.0, deadline_ns)
    }

    pub fn disarm(&self, slot: Slot, taps: &[BoundTap]) {
        let mut maps = self.maps();
        let bit = 1u64 << slot.0;
        for BoundTap { id, .. } in taps {
            log_failure(maps.flip(*id, |sessions| TapSessions {
                ingress: sessions.ingress & !bit,
                egress: sessions.egress & !bit,
            }));
            // Or the slot's next session would be taken for it.
            if maps.table.is_bound(*id) {
                let covered = maps.covered.get(&id.index).copied().unwrap_or(0);
                log_failure(maps.set_covered(id.index, covered & !bit));
            }
        }
        if let Some(filter) = maps.filters.get_mut(slot.0 as usize) {
            *filter = None;
        }
        maps.armed &= !bit;
        maps.ingress &= !bit;
        maps.pool.leave(slot.0);
        log_failure(maps.write_gate());
    }

    pub fn counts(&self, slot: Slot) -> KernelCounts {
        let maps = self.maps();
        let mut sum = KernelCounts::default();
        match maps.counters.get(&slot.0, 0) {
            Ok(values) => {
                for Layout(cpu) in values.iter() {
                    sum.matched += cpu.matched;
                    sum.lost += cpu.lost;
                    sum.over_budget += cpu.over_budget;
                    sum.copy_error += cpu.copy_error;
                }
            }
            Err(error) => tracing::error!(%error, %slot, "failed to read the session's counters"),
        }
        // See `SessionCounters`: not counted by itself.
        sum.submitted = sum
            .matched
            .saturating_sub(sum.lost + sum.over_budget + sum.copy_error);
        if let Some(seen) = maps.seen.get(slot.0 as usize) {
            sum.seen = seen.packets(&maps.tap_seen);
        }
        sum
    }

    /// Packets that taps have looked at so far.
    pub fn seen(&self, taps: &[BoundTap]) -> Vec<u64> {
        let maps = self.maps();
        taps.iter()
            .map(|tap| seen::count(&maps.tap_seen, tap.id))
            .collect()
    }

    /// What is bound to a tap's index, and the filters of its sessions.
    pub(super) fn filters(&self, index: u32) -> Option<TapFilters> {
        let maps = self.maps();
        let (tap, hook) = maps.table.at(index)?;
        let armed = match maps.tap_sessions.get(&index, 0) {
            Ok(Layout(armed)) => armed.ingress | armed.egress,
            Err(error) => {
                log_failure(Err(failed("TAP_SESSIONS")(error)));
                return None;
            }
        };
        let filters = maps.filters.iter().flatten();
        Some(TapFilters {
            tap,
            hook,
            sessions: filters
                .filter(|filter| armed >> filter.slot & 1 != 0)
                .cloned()
                .collect(),
        })
    }

    /// The tap's program has the filters of these sessions, given as slot and generation, and whoever
    /// calls it from now on finds that program. Sessions that have ended meanwhile are left out.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn cover(&self, tap: TapId, sessions: &[(u32, u32)]) -> Result<(), KernelError> {
        let mut maps = self.maps();
        if !maps.table.is_bound(tap) {
            return Ok(());
        }
        let filters = maps.filters.iter().flatten();
        let covered = filters
            .filter(|filter| sessions.contains(&(filter.slot, filter.generation)))
            .fold(0, |covered, filter| covered | 1 << filter.slot);
        maps.set_covered(tap.index, covered)
    }

    /// Waits until nothing runs that ran when it was called. Blocks for milliseconds.
    pub fn grace(&self) {
        let leaving = self.maps().pool.take_leaving();
        grace::wait();
        self.maps().pool.free(leaving);
    }

    /// The tap of an interface as a session is told of it.
    pub(super) fn describe_interface(
        id: TapId,
        end: LinkEnd,
        place: &InterfacePlace,
        takes: Takes,
    ) -> BoundTap {
        BoundTap {
            id,
            info: TapInfo {
                hook: "tcx".to_owned(),
                interface: place.name.clone(),
                ifindex: place.ifindex,
                cgroup_id: 0,
                description: match (end, takes) {
                    (LinkEnd::VethHost, Takes::All) => "host end of the pod's veth",
                    (LinkEnd::VethHost, Takes::Sent) => {
                        "host end of the pod's veth, what the pod sends"
                    }
                    (LinkEnd::Loopback, _) => "loopback interface, each packet once",
                    (LinkEnd::Other, _) => "interface",
                }
                .to_owned(),
                look_back: None,
            },
            hook: TapHook::Tc,
            view: place.view,
            end,
            takes,
        }
    }
}

impl Maps {
    fn bind(&mut self, point: Point, mut tap: Tap) -> Result<TapId, KernelError> {
        let id = self
            .table
            .bind(point)
            .ok_or(KernelError::TapsFull(TAP_SLOTS - 1))?;
        tap.generation = id.generation;
        // Nothing points to the index yet.
        self.no_sessions(id.index)?;
        self.taps
            .set(id.index, Layout(tap), 0)
            .map_err(failed("TAPS"))?;
        Ok(id)
    }

    /// The tap that an interface leads to.
    pub(super) fn pointed(&self, ifindex: u32) -> Result<u32, KernelError> {
        if ifindex < IFINDEX_ARRAY {
            return self
                .ifindex_taps
                .get(&ifindex, 0)
                .map_err(failed("IFINDEX_TAPS"));
        }
        match self.ifindex_taps_high.get(&ifindex, 0) {
            Ok(tap) => Ok(tap),
            Err(MapError::KeyNotFound) => Ok(0),
            Err(error) => Err(failed("IFINDEX_TAPS_HIGH")(error)),
        }
    }

    pub(super) fn point_interface(&mut self, ifindex: u32, tap: u32) -> Result<(), KernelError> {
        if ifindex < IFINDEX_ARRAY {
            self.ifindex_taps
                .set(ifindex, tap, 0)
                .map_err(failed("IFINDEX_TAPS"))
        } else if tap == 0 {
            match self.ifindex_taps_high.remove(&ifindex) {
                Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
                Err(error) => Err(failed("IFINDEX_TAPS_HIGH")(error)),
            }
        } else {
            self.ifindex_taps_high
                .insert(ifindex, tap, 0)
                .map_err(failed("IFINDEX_TAPS_HIGH"))
        }
    }

    pub(super) fn set_deadline(
        &mut self,
        slot: u32,
        deadline_ns: Option<u64>,
    ) -> Result<(), KernelError> {
        let failed = failed("SESSIONS");
        let Layout(mut entry) = self.sessions.get(&slot, 0).map_err(&failed)?;
        entry.deadline_ns = deadline_ns.unwrap_or(u64::MAX);
        self.sessions.set(slot, Layout(entry), 0).map_err(failed)
    }

    /// Only this process writes the bitmaps, and only under the lock.
    fn flip(
        &mut self,
        tap: TapId,
        change: impl Fn(TapSessions) -> TapSessions,
    ) -> Result<(), KernelError> {
        if !self.table.is_bound(tap) {
            return Ok(());
        }
        let Layout(before) = self
            .tap_sessions
            .get(&tap.index, 0)
            .map_err(failed("TAP_SESSIONS"))?;
        self.tap_sessions
            .set(tap.index, Layout(change(before)), 0)
            .map_err(failed("TAP_SESSIONS"))
    }

    fn no_sessions(&mut self, index: u32) -> Result<(), KernelError> {
        self.tap_sessions
            .set(index, Layout::default(), 0)
            .map_err(failed("TAP_SESSIONS"))?;
        self.set_covered(index, 0)
    }

    pub(super) fn set_covered(&mut self, index: u32, covered: u64) -> Result<(), KernelError> {
        let before = if covered == 0 {
            self.covered.remove(&index)
        } else {
            self.covered.insert(index, covered)
        };
        if before.unwrap_or(0) == covered {
            return Ok(());
        }
        self.tap_covered
            .set(index, covered, 0)
            .map_err(failed("TAP_COVERED"))
    }

    pub(super) fn write_gate(&mut self) -> Result<(), KernelError> {
        let gate = Gate {
            in_use: self.armed.count_ones() + self.recorded,
            sharers: self.armed.count_ones(),
            ingress_sessions: self.ingress,
        };
        self.gate.set(0, Layout(gate), 0).map_err(failed("GATE"))
    }
}

pub(super) fn typed<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, KernelError> {
    T::try_from(take_map(ebpf, name)?).map_err(failed(name))
}

pub(super) fn failed(name: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| KernelError::Map {
        name,
        source: Box::new(source),
    }
}

/// With the session's bit for what it takes of the tap. What a pod sends comes in by the node's end of its veth.
fn armed(sessions: TapSessions, bit: u64, tap: &BoundTap) -> TapSessions {
    TapSessions {
        ingress: sessions.ingress | bit,
        egress: match tap.takes {
            Takes::All => sessions.egress | bit,
            Takes::Sent => sessions.egress,
        },
    }
}

/// For the ways down, which must go on.
fn log_failure(result: Result<(), KernelError>) {
    if let Err(error) = result {
        tracing::error!(%error, "failed to take something back in the kernel's maps");
    }
}

const _: () = assert!(SESSION_SLOTS == 64);
