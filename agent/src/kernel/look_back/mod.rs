//! The look-back rings of the taps.
//!
//! ```text
//!             tap bound: a ready ring takes its place            tap gone, or armed by a session
//!   ready ────────────────────────────────────────────▶ current ─────────────────────▶ frozen
//!     ▲                                                                                  │ grace
//!     └──── emptied: new cookie, no byte of the one before ──── used ◀──── copied ───────┘ period
//! ```
//! At full rate a ring goes around in less time than the programs that have found it take to end: so it
//! is frozen in the same breath as a session that looks back is armed, and what was in it is there when
//! it is copied. The copies stay readable until those after them hold as much, and those of a tap that
//! is gone until its time is over or a living one needs their memory: the oldest go first ([`kept`]).
//!
//! What takes milliseconds is done by a thread ([`worker`]): the kernel waits for the programs that run
//! whenever a map is put into its slot, so a ring keeps its slot, and one grace period serves all
//! rings that wait for it. Neither a pod that comes nor one that goes waits for it, nor arming.

mod budget;
mod kept;
mod ring;
mod worker;

pub use budget::Budget;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, ArrayOfMaps, MapData},
};
use remora_agent_common::look_back::{FlowState, HEADERS_ONLY, PAGE_SHIFT, RING_SLOTS};
use remora_capture::session::{LookBackMode, LookBackRing};

use super::{
    KernelError, Tables, grace,
    layouts::Layout,
    tables::{failed, typed},
};
use crate::{clock, record::look_back::Reading, session::TapId};
use budget::SPARES;
use kept::Kept;
use ring::{Frozen, Ring, RingMap, empty};

/// Bytes of stack of a thread that reads or writes rings: their pages (147 584 bytes) pass by value, which a
/// build without optimisation does several times over.
pub const STACK: usize = 8 << 20;

/// How rings are made.
#[derive(Clone, Copy, Debug)]
pub struct LookBackOptions {
    pub budget: Budget,
    /// Bytes of each flow's direction that are recorded; 0 for all.
    pub flow_cutoff: u64,
    /// How long a ring whose tap is gone, or that was replaced, stays readable.
    pub keep: Duration,
}

/// All rings, and the thread that makes them.
pub struct LookBack {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

struct Shared {
    options: LookBackOptions,
    tables: Arc<Tables>,
    /// Changed by the worker alone; putting a map into a slot takes milliseconds.
    slots: Mutex<Slots>,
    /// Held for microseconds.
    state: Mutex<State>,
    /// There is something to do for the worker.
    came: Condvar,
}

struct Slots {
    outer: ArrayOfMaps<MapData, RingMap>,
    free: Vec<u32>,
    /// Put into a slot whose ring is let go, so that the kernel frees it.
    none: RingMap,
}

struct State {
    taps: Array<MapData, u32>,
    flows: Array<MapData, Layout<FlowState>>,
    /// By index.
    followed: BTreeMap<u32, Followed>,
    /// Indices whose earlier tap's programs may still run: what these write is not to go into
    /// another tap's ring.
    resting: BTreeSet<u32>,
    ready: Vec<Ring>,
    /// In the kernel, for the worker to copy.
    frozen: Vec<Arc<Frozen>>,
    /// Copied, for the worker to empty.
    used: Vec<Ring>,
    kept: Kept,
    /// Of all rings in the kernel.
    pages: u64,
    work: bool,
    closed: bool,
}

/// A tap that is recorded as soon as there is a ring for it, unless its mode is off.
struct Followed {
    tap: TapId,
    mode: LookBackMode,
    ring: Option<Ring>,
}

impl fmt::Debug for LookBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LookBack")
            .field("options", &self.shared.options)
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
    /// The kernel has no memory, or there are no threads left.
    pub(super) fn new(
        maps: LookBackMaps,
        options: LookBackOptions,
        tables: Arc<Tables>,
    ) -> Result<Self, KernelError> {
        let LookBackMaps { outer, taps, flows } = maps;
        let shared = Arc::new(Shared {
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
                followed: BTreeMap::new(),
                resting: BTreeSet::new(),
                ready: Vec::new(),
                frozen: Vec::new(),
                used: Vec::new(),
                kept: Kept::new(options.keep),
                pages: 0,
                work: false,
                closed: false,
            }),
            came: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        let worker = thread::Builder::new()
            .name("look-back".to_owned())
            .stack_size(STACK)
            .spawn(move || theirs.run())
            .map_err(|error| KernelError::Io("start a thread", error))?;
        Ok(Self {
            shared,
            worker: Some(worker),
        })
    }

    /// Begins to record a tap: at once if there is a ring to spare, else as soon as one is made, which
    /// takes milliseconds; when the budget is used up, once there is room again. Takes microseconds.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn begin(&self, tap: TapId, mode: LookBackMode) -> Result<(), KernelError> {
        if self.shared.options.budget.is_off() {
            return Ok(());
        }
        let mut state = self.shared.state();
        if state.followed(tap).is_some() {
            return Ok(());
        }
        state.unfollow(tap.index)?;
        let ring = None;
        state
            .followed
            .insert(tap.index, Followed { tap, mode, ring });
        let given = match state.ready.len() > SPARES {
            true => state.ready.pop(),
            false => None,
        };
        if let Some(ring) = given {
            self.shared.give(&mut state, ring)?;
        }
        self.shared.wake(&mut state);
        Ok(())
    }

    /// Records a tap in another mode. If that is stricter, nothing is left to read of what was
    /// recorded before. Takes microseconds.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_mode(&self, tap: TapId, mode: LookBackMode) -> Result<(), KernelError> {
        let mut state = self.shared.state();
        let Some(followed) = state.followed_mut(tap) else {
            return Ok(());
        };
        let before = std::mem::replace(&mut followed.mode, mode);
        if mode > before {
            let withdrawn = state.withdraw(tap);
            self.shared.count(&state)?;
            withdrawn?;
        } else if let Some(slot) = followed.ring.as_ref().map(|ring| ring.slot) {
            state.point(tap.index, entry(slot, mode))?;
        }
        self.shared.wake(&mut state);
        Ok(())
    }

    /// A tap is gone: its rings stay readable for a while. Takes microseconds.
    pub fn end(&self, tap: TapId) {
        let mut state = self.shared.state();
        if state.followed(tap).is_some() {
            log_failure(state.unfollow(tap.index));
            log_failure(self.shared.count(&state));
            self.shared.wake(&mut state);
        }
    }

    /// Lets go of what was kept for its time, or is more than the budget has beside the rings that
    /// are in the kernel.
    pub fn tidy(&self) {
        let mut state = self.shared.state();
        let room = self.shared.options.budget.all();
        let room = room.saturating_sub(Budget::bytes(state.pages));
        let State { followed, kept, .. } = &mut *state;
        let is_live = |tap: TapId| followed.get(&tap.index).is_some_and(|f| f.tap == tap);
        kept.expire(Instant::now());
        kept.shrink(room, is_live);
        self.shared.wake(&mut state);
    }

    /// Taps that have a ring, or shall have one, or had one that is still kept.
    pub fn taps(&self) -> HashSet<TapId> {
        let state = self.shared.state();
        let followed = state.followed.values().map(|followed| followed.tap);
        followed.chain(state.kept.taps()).collect()
    }

    /// Taps whose rings are written now, or will be.
    pub fn followed(&self) -> HashSet<TapId> {
        let state = self.shared.state();
        state
            .followed
            .values()
            .map(|followed| followed.tap)
            .collect()
    }

    /// A session that looks back was armed on a tap a moment ago: what is in its ring stays there.
    /// Takes microseconds. Where no spare ring is left nothing happens: newer packets may then push
    /// the oldest out before they are read.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn freeze(&self, tap: TapId) -> Result<(), KernelError> {
        let mut state = self.shared.state();
        if state.current(tap).is_none() {
            return Ok(());
        }
        let Some(next) = state.ready.pop() else {
            return Ok(());
        };
        state.replace(tap, next)?;
        self.shared.wake(&mut state);
        Ok(())
    }

    /// What the rings of a tap held when a session was armed at `armed_ns` (kernel time), oldest ring
    /// first, with all packets whose programs did not see the session. Blocks until those have
    /// ended, for some milliseconds.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn read(&self, tap: TapId, armed_ns: u64) -> Result<Vec<Arc<Reading>>, KernelError> {
        loop {
            let (frozen, is_frozen_for_it) = self.shared.state().kept.until(tap, armed_ns);
            grace::wait();
            let mut readings = Vec::new();
            for frozen in frozen {
                readings.push(self.shared.copy(&frozen)?);
            }
            let mut state = self.shared.state();
            if !is_frozen_for_it {
                // Frozen for another session meanwhile, or its tap is gone: then it is kept now, and
                // its programs need a grace period of their own.
                if state.kept.until(tap, armed_ns).1 {
                    continue;
                }
                if let Some(current) = state.current(tap) {
                    readings.push(Arc::new(current.reading()?));
                }
            }
            if let Some(current) = state.current(tap) {
                let capacity = u64::from(current.pages) << PAGE_SHIFT;
                state.kept.forget_beyond(tap, capacity);
            }
            return Ok(readings);
        }
    }

    /// A place of the flow table.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn flow(&self, index: u32) -> Result<FlowState, KernelError> {
        let Layout(flow) = self
            .shared
            .state()
            .flows
            .get(&index, 0)
            .map_err(failed("LOOK_BACK_FLOWS"))?;
        Ok(flow)
    }

    /// Recorded taps, with what their rings are. Copies ring after ring, so that nobody who arms waits
    /// longer than for one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn facts(&self) -> Result<Vec<(TapId, LookBackRing)>, KernelError> {
        let off = LookBackRing {
            mode: LookBackMode::Off,
            ..LookBackRing::default()
        };
        let facts = self.followed().into_iter().filter_map(|tap| {
            let state = self.shared.state();
            let Followed { mode, ring, .. } = state.followed(tap)?;
            match (mode, ring) {
                (LookBackMode::Off, _) => Some(Ok((tap, off))),
                (_, None) => None,
                (_, Some(ring)) => Some(fact(ring, *mode).map(|facts| (tap, facts))),
            }
        });
        facts.collect()
    }
}

fn fact(ring: &Ring, mode: LookBackMode) -> Result<LookBackRing, KernelError> {
    let now = clock::monotonic_ns();
    let reading = ring.reading()?;
    let head = reading.copied.after;
    let reach = Duration::from_nanos(now.saturating_sub(reading.reaches_ns()));
    Ok(LookBackRing {
        mode,
        bytes: Budget::bytes(ring.pages.into()),
        reach_ms: u64::try_from(reach.as_millis()).unwrap_or(u64::MAX),
        packets: head.packets.saturating_sub(head.copy_errors),
        cut_packets: head.cut_packets,
        cut_bytes: head.cut_bytes,
    })
}

impl Drop for LookBack {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.came.notify_all();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Each method leaves the state whole between any two writes.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, state: &mut State) {
        state.work = true;
        self.came.notify_all();
    }

    /// Gives a ring that nobody has to a tap that waits for one, else it lies ready.
    fn give(&self, state: &mut State, ring: Ring) -> Result<(), KernelError> {
        let Some(tap) = state.waiting() else {
            state.ready.push(ring);
            return Ok(());
        };
        state.replace(tap, ring)?;
        self.count(state)
    }

    /// The gate lets packets through while there is a tap to record. Under the state's lock, so that
    /// the last number is the right one.
    fn count(&self, state: &State) -> Result<(), KernelError> {
        let rings = state.followed.values().filter(|f| f.ring.is_some()).count();
        self.tables
            .set_recorded(u32::try_from(rings).unwrap_or(u32::MAX))
    }

    /// The copy of a frozen ring, after its grace period.
    fn copy(&self, frozen: &Frozen) -> Result<Arc<Reading>, KernelError> {
        let (reading, ring) = frozen.copy()?;
        if let Some(ring) = ring {
            let mut state = self.state();
            state.used.push(ring);
            self.wake(&mut state);
        }
        Ok(reading)
    }
}

impl State {
    fn followed(&self, tap: TapId) -> Option<&Followed> {
        self.followed.get(&tap.index).filter(|f| f.tap == tap)
    }

    fn current(&self, tap: TapId) -> Option<&Ring> {
        self.followed(tap)?.ring.as_ref()
    }

    fn followed_mut(&mut self, tap: TapId) -> Option<&mut Followed> {
        self.followed.get_mut(&tap.index).filter(|f| f.tap == tap)
    }

    /// The first tap that has no ring and may have one.
    fn waiting(&self) -> Option<TapId> {
        let waiting = |f: &&Followed| {
            f.ring.is_none() && f.mode != LookBackMode::Off && !self.resting.contains(&f.tap.index)
        };
        self.followed.values().find(waiting).map(|f| f.tap)
    }

    fn point(&mut self, tap: u32, entry: u32) -> Result<(), KernelError> {
        self.taps
            .set(tap, entry, 0)
            .map_err(failed("LOOK_BACK_TAPS"))
    }

    /// Gives a tap another ring, or its first; the one it had is frozen. If the tap is gone, the
    /// new one lies ready.
    fn replace(&mut self, tap: TapId, mut ring: Ring) -> Result<(), KernelError> {
        let Some(mode) = self.followed(tap).map(|followed| followed.mode) else {
            self.ready.push(ring);
            return Ok(());
        };
        if let Err(error) = self.point(tap.index, entry(ring.slot, mode)) {
            self.ready.push(ring);
            return Err(error);
        }
        ring.begun_ns = clock::monotonic_ns();
        let followed = self.followed_mut(tap);
        if let Some(before) = followed.and_then(|f| f.ring.replace(ring)) {
            self.keep(tap, before);
        }
        Ok(())
    }

    /// Takes a tap's ring away with all that is kept of it; the tap waits for another. Nothing of what comes
    /// meanwhile is recorded: what was before it would end in a hole that nobody is told of.
    fn withdraw(&mut self, tap: TapId) -> Result<(), KernelError> {
        self.kept.forget(tap);
        let ring = self.followed_mut(tap).and_then(|f| f.ring.take());
        let Some(ring) = ring else { return Ok(()) };
        let pointed = self.point(tap.index, 0);
        self.frozen.push(Frozen::new(ring));
        pointed
    }

    /// Nobody is recorded at that index any more.
    fn unfollow(&mut self, index: u32) -> Result<(), KernelError> {
        let Some(Followed { tap, ring, .. }) = self.followed.remove(&index) else {
            return Ok(());
        };
        let Some(ring) = ring else { return Ok(()) };
        let pointed = self.point(index, 0);
        self.resting.insert(index);
        self.keep(tap, ring);
        pointed
    }

    fn keep(&mut self, tap: TapId, ring: Ring) {
        let frozen = Frozen::new(ring);
        self.frozen.push(Arc::clone(&frozen));
        self.kept.push(tap, frozen);
    }
}

/// What a tap's programs are told of its ring.
fn entry(slot: u32, mode: LookBackMode) -> u32 {
    match mode {
        LookBackMode::Payload => slot,
        LookBackMode::Headers => slot | HEADERS_ONLY,
        LookBackMode::Off => 0,
    }
}

/// For the ways down, which must go on.
fn log_failure(result: Result<(), KernelError>) {
    if let Err(error) = result {
        tracing::error!(%error, "failed to change the look-back rings");
    }
}
