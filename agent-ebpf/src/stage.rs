//! From one program to the next: see `remora_agent_common::stage`.

use aya_ebpf::{EbpfContext, maps::ProgramArray};
use remora_agent_common::stage::{STAGE_CAPTURE, STAGE_DECIDE, WORK_HOOK, WORK_SESSIONS, WORK_TAP};

use crate::{maps, skb::Skb, table};

/// The program arrays of a program type: the kernel keeps types apart.
pub(crate) struct Stages {
    stages: &'static ProgramArray,
    /// tap index -> machine code of its filters.
    filters: &'static ProgramArray,
}

/// `L3`: the cgroup programs'.
#[inline(always)]
fn stages<const L3: bool>() -> Stages {
    if L3 {
        Stages {
            stages: &maps::CGROUP_STAGES,
            filters: &maps::CGROUP_FILTERS,
        }
    } else {
        Stages {
            stages: &maps::TC_STAGES,
            filters: &maps::TC_FILTERS,
        }
    }
}

/// What is known of a packet that some session may want.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    /// Never none.
    pub(crate) sessions: u64,
    pub(crate) tap: u32,
    pub(crate) hook: u32,
}

impl Work {
    #[inline(always)]
    pub(crate) fn of(skb: Skb) -> Self {
        Self {
            sessions: u64::from(skb.cb(WORK_SESSIONS)) | u64::from(skb.cb(WORK_SESSIONS + 1)) << 32,
            tap: skb.cb(WORK_TAP),
            hook: skb.cb(WORK_HOOK),
        }
    }
}

/// Hands a packet to what decides which of its sessions take it. Returns only if that could not be
/// called, which does not happen once the agent has loaded all programs.
#[inline(always)]
pub(crate) fn decide<const L3: bool>(ctx: &impl EbpfContext, skb: Skb, work: Work) {
    skb.set_cb(WORK_TAP, work.tap);
    skb.set_cb(WORK_HOOK, work.hook);
    set_sessions(skb, work.sessions);
    let Stages { stages, filters } = stages::<L3>();
    // A tag outside of the bytes moves every offset; only the interpreter knows how.
    if skb.vlan_present() == 0
        && let Some(&covered) = covered::<L3>(work.tap)
        && work.sessions & !covered == 0
    {
        // SAFETY: nothing here needs to be dropped.
        unsafe { filters.tail_call(ctx, work.tap) };
    }
    // SAFETY: as above.
    unsafe { stages.tail_call(ctx, STAGE_DECIDE) };
}

/// Sessions that the tap's machine code decides.
#[inline(always)]
fn covered<const L3: bool>(tap: u32) -> Option<&'static u64> {
    if L3 {
        // By the stack: the tap was found in one of many ways, and a pointer that is added to by
        // each with its own number takes CAP_PERFMON.
        maps::TAP_COVERED.get(tap)
    } else {
        table::array(&maps::TAP_COVERED, tap)
    }
}

/// Hands a packet on for the sessions that take it.
#[inline(always)]
pub(crate) fn capture<const L3: bool>(ctx: &impl EbpfContext, skb: Skb, sessions: u64) {
    set_sessions(skb, sessions);
    // SAFETY: nothing here needs to be dropped.
    unsafe { stages::<L3>().stages.tail_call(ctx, STAGE_CAPTURE) };
}

#[inline(always)]
fn set_sessions(skb: Skb, sessions: u64) {
    skb.set_cb(WORK_SESSIONS, sessions as u32);
    skb.set_cb(WORK_SESSIONS + 1, (sessions >> 32) as u32);
}
