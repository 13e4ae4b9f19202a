//! The look-back rings of the taps: made, frozen, read, grown and shrunk.
//!
//! ```text
//! tap bound ─▶ current ring ─ a session that looks back is armed ─▶ frozen: a spare takes its place
//!                                    └─ the programs that had found it have ended ─▶ copied
//! tap gone  ─▶ frozen, too
//! ```
//! At full rate a ring goes around in less time than those programs take to end: so it is frozen in
//! the same breath as the session is armed, and what was in it is there when it is copied. The copies
//! stay readable until those after them hold as much, and those of a tap that is gone until its time
//! is over or a living one needs their memory: the oldest go first ([`kept`]).
//!
//! Putting a ring into its slot takes milliseconds (the kernel waits for the programs that run), and
//! is done without the lock that arming takes.
mod budget;
mod kept;
mod ring;

pub use budget::Budget;

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, ArrayOfMaps, MapData},
};
use remora_agent_common::look_back::{FlowState, PAGE_SHIFT, PAGE_VALUE, RING_SLOTS};
use remora_capture::session::LookBackRing;

use super::{
    KernelError, Tables, grace,
    layouts::Layout,
    tables::{failed, typed},
};
use crate::{clock, record::look_back::Reading, session::TapId};
use kept::Kept;
use ring::{Frozen, GivenBack, Ring, RingMap, empty, made};

/// How rings are made.
#[derive(Clone, Copy, Debug)]
pub struct LookBackOptions {
    pub budget: Budget,
    /// Bytes of each flow's direction that are recorded; 0 for all.
    pub flow_cutoff: u64,
    /// How long a ring whose tap is gone, or that was replaced, stays readable.
    pub keep: Duration,
}

/// Rings that lie ready, in their slots, to take the place of frozen ones.
const SPARES: usize = 2;

/// A recorded tap.
struct Live {
    tap: TapId,
    current: Ring,
}

/// All rings.
pub struct LookBack {
    options: LookBackOptions,
    tables: Arc<Tables>,
    slots: Mutex<Slots>,
    /// Held for microseconds.
    state: Mutex<State>,
}

/// Ring slots; changing one takes milliseconds.
struct Slots {
    outer: ArrayOfMaps<MapData, RingMap>,
    free: Vec<u32>,
    /// Put into a slot that is given back, so that the kernel frees its ring.
    none: RingMap,
}

struct State {
    taps: Array<MapData, u32>,
    flows: Array<MapData, Layout<FlowState>>,
    live: BTreeMap<u32, Live>,
    spares: Vec<Ring>,
    kept: Kept,
}

impl fmt::Debug for LookBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LookBack")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The maps, taken out of the object.
pub struct LookBackMaps {
    outer: ArrayOfMaps<MapData, RingMap>,
    taps: Array<MapData, u32>,
    flows: Array<MapData, Layout<FlowState>>,
}

impl fmt::Debug for LookBackMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LookBackMaps").finish_non_exhaustive()
    }
}

impl LookBackMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            outer: typed(ebpf, "LOOK_BACK")?,
            taps: typed(ebpf, "LOOK_BACK_TAPS")?,
            flows: typed(ebpf, "LOOK_BACK_FLOWS")?,
        })
    }
}

impl LookBack {
    /// # Errors
    /// The kernel has no memory.
    pub(super) fn new(
        maps: LookBackMaps,
        options: LookBackOptions,
        tables: Arc<Tables>,
    ) -> Result<Self, KernelError> {
        let LookBackMaps { outer, taps, flows } = maps;
        Ok(Self {
            options,
            tables,
            slots: Mutex::new(Slots {
                outer,
                free: (1..RING_SLOTS).rev().collect(),
                none: empty(1)?,
            }),
            state: Mutex::new(State {
                taps,
                flows,
                live: BTreeMap::new(),
                spares: Vec::new(),
                kept: Kept::new(options.keep),
            }),
        })
    }

    /// Each method leaves the state whole between any two writes.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to record a tap. Nothing happens if it is recorded, or the budget is off or used up.
    /// Blocks for some milliseconds.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn begin(&self, tap: TapId) -> Result<(), KernelError> {
        let rings = {
            let state = self.state();
            if state.live(tap).is_some() {
                return Ok(());
            }
            state.live.len() + 1
        };
        let share = self.share(rings);
        if share == 0 {
            return Ok(());
        }
        self.resize(share)?;
        let ring = self.ring(share)?;
        let replaced = {
            let mut state = self.state();
            state.point(tap.index, ring.slot)?;
            let live = Live { tap, current: ring };
            state.live.insert(tap.index, live)
        };
        if let Some(live) = replaced {
            self.state().kept.push(live.tap, live.current);
        }
        self.count()?;
        self.stock(share)?;
        self.tidy();
        Ok(())
    }

    /// A tap is gone: its rings stay readable for a while.
    pub fn end(&self, tap: TapId) {
        {
            let mut state = self.state();
            if state.live(tap).is_none() {
                return;
            }
            log_failure(state.point(tap.index, 0));
            let live = state.live.remove(&tap.index);
            if let Some(Live { current, .. }) = live {
                state.kept.push(tap, current);
            }
        }
        grace::wait();
        log_failure(self.copy_frozen(&self.frozen(tap)).map(drop));
        log_failure(self.count());
        let taps = self.state().live.len();
        log_failure(self.resize(self.share(taps)));
        self.tidy();
    }

    /// Lets go of what was kept for its time, or is more than the budget has beside the rings that
    /// are written.
    pub fn tidy(&self) {
        let gone = {
            let mut state = self.state();
            let State {
                live, spares, kept, ..
            } = &mut *state;
            let written: u64 = live
                .values()
                .map(|live| &live.current)
                .chain(&*spares)
                .map(|ring| Budget::bytes(ring.pages))
                .sum();
            let room = self.options.budget.all().saturating_sub(written);
            let is_live = |tap: TapId| live.get(&tap.index).is_some_and(|live| live.tap == tap);
            let mut gone = kept.expire(Instant::now());
            gone.extend(kept.shrink(room, is_live));
            gone
        };
        // One that nobody copied still has its slot.
        log_failure(self.copy_frozen(&gone).map(drop));
    }

    /// Taps that have a ring, or had one that is still kept.
    pub fn taps(&self) -> HashSet<TapId> {
        let state = self.state();
        let live = state.live.values().map(|live| live.tap);
        live.chain(state.kept.taps()).collect()
    }

    /// Taps whose rings are written now.
    pub fn recorded(&self) -> HashSet<TapId> {
        let state = self.state();
        state.live.values().map(|live| live.tap).collect()
    }

    /// A session that looks back was armed on a tap a moment ago: what is in its ring stays there.
    /// Takes microseconds. Where no spare ring is left nothing happens: newer packets may then push
    /// the oldest out before they are read.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn freeze(&self, tap: TapId) -> Result<(), KernelError> {
        let mut state = self.state();
        if state.live(tap).is_none() {
            return Ok(());
        }
        let Some(next) = state.spares.pop() else {
            return Ok(());
        };
        let before = state.replace(tap, next)?;
        state.kept.push(tap, before);
        Ok(())
    }

    /// What the rings of a tap held when a session was armed at `armed_ns` (kernel time), oldest ring
    /// first, with all packets whose programs did not see the session. Blocks until those have
    /// ended, for some milliseconds.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn read(&self, tap: TapId, armed_ns: u64) -> Result<Vec<Arc<Reading>>, KernelError> {
        let (frozen, is_frozen_for_it) = self.state().kept.until(tap, armed_ns);
        grace::wait();
        let mut readings = self.copy_frozen(&frozen)?;
        let mut state = self.state();
        if let Some(live) = state.live(tap) {
            let capacity = u64::from(live.current.pages) << PAGE_SHIFT;
            if !is_frozen_for_it {
                readings.push(Arc::new(live.current.reading()?));
            }
            state.kept.forget_beyond(tap, capacity);
        }
        Ok(readings)
    }

    /// A tap's rings that programs do not find any more, oldest first.
    fn frozen(&self, tap: TapId) -> Vec<Arc<Frozen>> {
        self.state().kept.of(tap)
    }

    /// Copies rings that no program has any more, and gives their slots back.
    fn copy_frozen(&self, frozen: &[Arc<Frozen>]) -> Result<Vec<Arc<Reading>>, KernelError> {
        let mut readings = Vec::new();
        for frozen in frozen {
            let (reading, given_back) = frozen.copy()?;
            readings.push(reading);
            if let Some(GivenBack { slot, pages }) = given_back {
                self.give_back(slot);
                log_failure(self.stock(pages));
            }
        }
        Ok(readings)
    }

    /// A place of the flow table.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn flow(&self, index: u32) -> Result<FlowState, KernelError> {
        let Layout(flow) = self
            .state()
            .flows
            .get(&index, 0)
            .map_err(failed("LOOK_BACK_FLOWS"))?;
        Ok(flow)
    }

    /// Recorded taps, with what their rings are.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn facts(&self) -> Result<Vec<(TapId, LookBackRing)>, KernelError> {
        let state = self.state();
        let now = clock::monotonic_ns();
        let rings = state.live.values().map(|live| {
            let reading = live.current.reading()?;
            let head = reading.copied.after;
            let reach = Duration::from_nanos(now.saturating_sub(reading.reaches_ns()));
            let facts = LookBackRing {
                bytes: u64::from(live.current.pages) * PAGE_VALUE as u64,
                reach_ms: u64::try_from(reach.as_millis()).unwrap_or(u64::MAX),
                packets: head.packets.saturating_sub(head.copy_errors),
                cut_packets: head.cut_packets,
                cut_bytes: head.cut_bytes,
            };
            Ok((live.tap, facts))
        });
        rings.collect()
    }

    /// Pages of each ring; the spares take a share, too.
    fn share(&self, taps: usize) -> u32 {
        self.options.budget.share(taps + SPARES)
    }

    /// The gate lets packets through while there is a tap to record.
    fn count(&self) -> Result<(), KernelError> {
        let taps = self.state().live.len();
        self.tables
            .set_recorded(u32::try_from(taps).unwrap_or(u32::MAX))
    }

    /// Makes sure of the spare rings.
    fn stock(&self, pages: u32) -> Result<(), KernelError> {
        while self.state().spares.len() < SPARES {
            let ring = self.ring(pages)?;
            self.state().spares.push(ring);
        }
        Ok(())
    }

    /// Gives taps whose ring has the wrong size another one. The old one is kept only if that leaves
    /// the budget whole.
    fn resize(&self, share: u32) -> Result<(), KernelError> {
        let (wrong, spares) = {
            let mut state = self.state();
            let wrong = state
                .live
                .values()
                .filter(|live| share > 0 && Budget::is_wrong(live.current.pages, share))
                .map(|live| live.tap)
                .collect::<Vec<_>>();
            let spares = state.spares.extract_if(.., |ring| ring.pages > share);
            (wrong, spares.collect::<Vec<_>>())
        };
        for ring in spares {
            self.give_back(ring.slot);
        }
        for tap in wrong {
            let ring = self.ring(share)?;
            let mut state = self.state();
            let before = state.replace(tap, ring)?;
            if before.pages <= share {
                state.kept.push(tap, before);
                continue;
            }
            drop(state);
            self.give_back(before.slot);
        }
        Ok(())
    }

    /// Empties a slot. Afterwards no program has its ring.
    fn give_back(&self, slot: u32) {
        let mut slots = self.slots();
        let Slots { outer, none, free } = &mut *slots;
        match outer.set(slot, none, 0) {
            Ok(()) => free.push(slot),
            Err(error) => tracing::error!(%error, "failed to free a look-back ring"),
        }
    }

    /// A new ring in a slot of its own.
    fn ring(&self, pages: u32) -> Result<Ring, KernelError> {
        let map = made(pages, self.options.flow_cutoff)?;
        let mut slots = self.slots();
        let slot = slots
            .free
            .pop()
            .ok_or_else(|| KernelError::Scope("all look-back slots are in use".to_owned()))?;
        if let Err(error) = slots.outer.set(slot, &map, 0) {
            slots.free.push(slot);
            return Err(failed("LOOK_BACK")(error));
        }
        Ok(Ring {
            map,
            slot,
            pages,
            begun_ns: clock::monotonic_ns(),
        })
    }
}

impl State {
    fn live(&self, tap: TapId) -> Option<&Live> {
        self.live.get(&tap.index).filter(|live| live.tap == tap)
    }

    fn point(&mut self, tap: u32, slot: u32) -> Result<(), KernelError> {
        self.taps
            .set(tap, slot, 0)
            .map_err(failed("LOOK_BACK_TAPS"))
    }

    /// Gives a tap another ring; the one it had, or the new one if the tap is gone.
    fn replace(&mut self, tap: TapId, ring: Ring) -> Result<Ring, KernelError> {
        if self.live(tap).is_none() {
            return Ok(ring);
        }
        self.point(tap.index, ring.slot)?;
        Ok(match self.live.get_mut(&tap.index) {
            Some(live) => std::mem::replace(&mut live.current, ring),
            None => ring,
        })
    }
}

/// For the ways down, which must go on.
fn log_failure(result: Result<(), KernelError>) {
    if let Err(error) = result {
        tracing::error!(%error, "failed to change the look-back rings");
    }
}
