//! The maps. Userspace writes all but the counters and budgets.

use aya_ebpf::{
    Global, btf_maps,
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray, ProgramArray, RingBuf},
};
use remora_agent_common::{
    ABI_VERSION, IFINDEX_ARRAY, SESSION_SLOTS, TAP_SLOTS,
    checkpoint::Checkpoint,
    counters::SessionCounters,
    look_back::{FLOWS, FlowState, PAGE_VALUE, RING_SLOTS},
    program::{Instruction, PROGRAM_POOL},
    session::{Budget, Session},
    stage::STAGES,
    tap::{Gate, Tap, TapSessions},
};

use crate::{
    attach_point::AttachPoint,
    scratch::{SCRATCHES, Scratch},
};

/// Its number of entries is the ABI version: the agent compares it with its own before it loads a
/// program.
#[map]
pub(crate) static ABI: Array<u32> = Array::with_max_entries(ABI_VERSION as u32, 0);

/// Bytes waiting in the ring from which on the consumer is woken; below, it looks by itself every
/// few milliseconds while a session is armed. Set at load to a part of the ring's size.
#[unsafe(no_mangle)]
pub(crate) static REMORA_WAKE_BYTES: Global<u64> = Global::new(0);

/// Bytes that a CPU writes until it asks again how much is waiting. Set at load to its share of half of
/// [`REMORA_WAKE_BYTES`], so that all CPUs together are late by no more than that.
#[unsafe(no_mangle)]
pub(crate) static REMORA_ASK_BYTES: Global<u64> = Global::new(0);

/// Bytes waiting in the ring from which on sessions are held to their shares, see
/// `remora_agent_common::share`. Set at load.
#[unsafe(no_mangle)]
pub(crate) static REMORA_TIGHT_FROM: Global<u64> = Global::new(0);

/// Bytes that all sessions share from there on. Set at load.
#[unsafe(no_mangle)]
pub(crate) static REMORA_TIGHT_ROOM: Global<u64> = Global::new(0);

#[map]
pub(crate) static GATE: Array<Gate> = Array::with_max_entries(1, 0);

/// ifindex -> tap index, 0 for none.
#[map]
pub(crate) static IFINDEX_TAPS: Array<u32> = Array::with_max_entries(IFINDEX_ARRAY, 0);

/// The same for interfaces with a larger index.
#[map]
pub(crate) static IFINDEX_TAPS_HIGH: HashMap<u32, u32> = HashMap::with_max_entries(TAP_SLOTS, 0);

/// Cgroup that the cgroup programs are attached to -> its tap, see `remora_agent_common::tap`.
#[map]
pub(crate) static CGROUP_TAP: AttachPoint = AttachPoint::new();

/// tap index -> sessions armed on it.
#[map]
pub(crate) static TAP_SESSIONS: Array<TapSessions> = Array::with_max_entries(TAP_SLOTS, 0);

/// tap index -> sessions whose filters the tap's program has, in [`TC_FILTERS`] or
/// [`CGROUP_FILTERS`].
#[map]
pub(crate) static TAP_COVERED: Array<u64> = Array::with_max_entries(TAP_SLOTS, 0);

/// tap index -> packets that were looked at for some session.
#[map]
pub(crate) static TAP_SEEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(TAP_SLOTS, 0);

#[map]
pub(crate) static TAPS: Array<Tap> = Array::with_max_entries(TAP_SLOTS, 0);

#[map]
pub(crate) static SESSIONS: Array<Session> = Array::with_max_entries(SESSION_SLOTS, 0);

#[map]
pub(crate) static BUDGETS: Array<Budget> = Array::with_max_entries(SESSION_SLOTS, 0);

#[map]
pub(crate) static COUNTERS: PerCpuArray<SessionCounters> =
    PerCpuArray::with_max_entries(SESSION_SLOTS, 0);

/// Filter programs of all sessions; each session's say where they lie. Written before the session is
/// armed, and not again until nothing runs them.
#[map]
pub(crate) static PROGRAMS: Array<Instruction> = Array::with_max_entries(PROGRAM_POOL, 0);

#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(SCRATCHES, 0);

#[map]
pub(crate) static TC_STAGES: ProgramArray = ProgramArray::with_max_entries(STAGES, 0);

#[map]
pub(crate) static CGROUP_STAGES: ProgramArray = ProgramArray::with_max_entries(STAGES, 0);

/// `BPF_F_INNER_MAP` (linux/bpf.h, v5.10): rings differ in their number of pages.
const INNER_MAP: usize = 1 << 12;

/// Ring slot -> look-back ring, see `remora_agent_common::look_back`.
#[btf_map]
pub(crate) static LOOK_BACK: btf_maps::ArrayOfMaps<
    btf_maps::Array<[u8; PAGE_VALUE], 1, INNER_MAP>,
    { RING_SLOTS as usize },
> = btf_maps::ArrayOfMaps::new();

/// tap index -> slot of its ring, 0 for none.
#[map]
pub(crate) static LOOK_BACK_TAPS: Array<u32> = Array::with_max_entries(TAP_SLOTS, 0);

#[map]
pub(crate) static LOOK_BACK_FLOWS: Array<FlowState> = Array::with_max_entries(FLOWS, 0);

/// tap index -> the tap's program: does what `decide` does, as machine code.
#[map]
pub(crate) static TC_FILTERS: ProgramArray = ProgramArray::with_max_entries(TAP_SLOTS, 0);

#[map]
pub(crate) static CGROUP_FILTERS: ProgramArray = ProgramArray::with_max_entries(TAP_SLOTS, 0);

/// Size set at load.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(16 << 20, 0);

/// How far user space has come with [`EVENTS`]; no program looks at it.
#[map]
pub(crate) static CHECKPOINT: Array<Checkpoint> = Array::with_max_entries(1, 0);
