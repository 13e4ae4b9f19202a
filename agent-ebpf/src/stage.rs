//! From one program to the next: see `remora_agent_common::stage`.

use aya_ebpf::{EbpfContext, maps::ProgramArray};
use remora_agent_common::{
    look_back::HEADERS_ONLY,
    stage::{
        STAGE_CAPTURE, STAGE_CAPTURE_HEADERS, STAGE_DECIDE, STAGE_LOOK_BACK,
        STAGE_LOOK_BACK_HEADERS, WORK_HOOK, WORK_RING, WORK_SESSIONS, WORK_TAP,
    },
};

use crate::{maps, skb::Skb, table};

/// The programs of a program type: the kernel keeps types apart. `L3`: the cgroup programs'.
#[inline(always)]
fn stages<const L3: bool>() -> &'static ProgramArray {
    if L3 {
        &maps::CGROUP_STAGES
    } else {
        &maps::TC_STAGES
    }
}

/// The taps' programs.
#[inline(always)]
fn filters<const L3: bool>() -> &'static ProgramArray {
    if L3 {
        &maps::CGROUP_FILTERS
    } else {
        &maps::TC_FILTERS
    }
}

/// What is known of a packet that some session may want.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    /// None only on the way to the look-back ring.
    pub(crate) sessions: u64,
    pub(crate) tap: u32,
    pub(crate) hook: u32,
}

impl Work {
    #[inline(always)]
    pub(crate) fn of(skb: Skb) -> Self {
        Self {
            sessions: skb.sessions(),
            tap: skb.cb(WORK_TAP),
            hook: skb.cb(WORK_HOOK),
        }
    }

    #[inline(always)]
    fn set(&self, skb: Skb) {
        skb.set_cb(WORK_TAP, self.tap);
        skb.set_cb(WORK_HOOK, self.hook);
        set_sessions(skb, self.sessions);
    }
}

/// Hands a packet to what decides which of its sessions take it: the tap's program or the `decide`
/// stage. Returns only if that could not be called, which does not happen once the agent has loaded all
/// programs.
#[inline(always)]
pub(crate) fn decide<const L3: bool>(ctx: &impl EbpfContext, skb: Skb, work: Work) {
    work.set(skb);
    decide_on::<L3>(ctx, skb);
}

/// The same for a packet that brings its work from an earlier stage.
#[inline(always)]
pub(crate) fn decide_on<const L3: bool>(ctx: &impl EbpfContext, skb: Skb) {
    tap_filter::<L3>(ctx, skb);
    // SAFETY: nothing here needs to be dropped.
    unsafe { stages::<L3>().tail_call(ctx, STAGE_DECIDE) };
}

/// Hands a packet to its tap's program, if that has the filters of all the packet's sessions.
#[inline(always)]
fn tap_filter<const L3: bool>(ctx: &impl EbpfContext, skb: Skb) {
    // As told, and not as known here: the verifier would follow what comes for each way here.
    let Work { sessions, tap, .. } = Work::of(skb);
    if is_covered(skb, tap, sessions) {
        // It comes back only if the tap has just lost its program.
        // SAFETY: nothing here needs to be dropped.
        unsafe { filters::<L3>().tail_call(ctx, tap) };
    }
}

/// The tap's program has the filters of all the packet's sessions. It looks at the packet's bytes,
/// so a tag that is beside them is not for it.
#[inline(always)]
fn is_covered(skb: Skb, tap: u32, sessions: u64) -> bool {
    let covered = match table::array_mut(&maps::TAP_COVERED, tap) {
        // SAFETY: it points into a map value.
        Some(covered) => unsafe { covered.read_volatile() },
        None => 0,
    };
    sessions & !covered == 0 && skb.vlan_present() == 0
}

/// Hands a packet of a recorded tap to its look-back ring, whose program hands it on to `decide` if
/// it has sessions.
#[inline(always)]
pub(crate) fn look_back(ctx: &impl EbpfContext, skb: Skb, work: Work, ring: u32) {
    work.set(skb);
    skb.set_cb(WORK_RING, ring);
    // Two calls, for the verifier takes only a constant for one that it makes a jump of.
    let stages = stages::<false>();
    // SAFETY (both): nothing here needs to be dropped.
    if ring & HEADERS_ONLY == 0 {
        unsafe { stages.tail_call(ctx, STAGE_LOOK_BACK) };
    } else {
        unsafe { stages.tail_call(ctx, STAGE_LOOK_BACK_HEADERS) };
    }
}

/// Hands a packet on for the sessions that take it.
#[inline(always)]
pub(crate) fn capture<const L3: bool>(ctx: &impl EbpfContext, skb: Skb, sessions: u64) {
    set_sessions(skb, sessions);
    // SAFETY: nothing here needs to be dropped.
    unsafe { stages::<L3>().tail_call(ctx, STAGE_CAPTURE) };
}

/// Hands a packet on whose tap's packets are cut after their headers.
#[inline(always)]
pub(crate) fn capture_headers<const L3: bool>(ctx: &impl EbpfContext) {
    // SAFETY: nothing here needs to be dropped.
    unsafe { stages::<L3>().tail_call(ctx, STAGE_CAPTURE_HEADERS) };
}

#[inline(always)]
fn set_sessions(skb: Skb, sessions: u64) {
    skb.set_cb(WORK_SESSIONS, sessions as u32);
    skb.set_cb(WORK_SESSIONS + 1, (sessions >> 32) as u32);
}
