//! One packet for the sessions that take it: their limits, one record for all.
//!
//! What is being worked on lies in a [`Scratch`], not on the stack.

use core::ffi::c_long;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use remora_agent_common::{
    SNAPLEN_MAX,
    record::{
        CAPLEN_MAX, ETHERNET_HEADER, HOOK_CGROUP_INGRESS, HOOK_TCX_INGRESS, KIND_GAP, KIND_LIMIT,
    },
    session::{Budget, DIRECTION_EGRESS, DIRECTION_INGRESS, Session, block_cost},
    stage::{WORK_HOOK, WORK_TAP},
    tap::{TAP_FLIP, TAP_HEADERS_ONLY, Tap},
};

use crate::{
    counters::{add, fetch_add, swap},
    look_back::headers,
    maps, ring,
    ring::Outcome,
    scratch::{self, Scratch},
    share,
    skb::{Skb, VLAN_TAG},
    table,
};

/// What of a packet a program may keep.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload {
    Allowed,
    /// Nothing was done: the packet is for the program that keeps headers only.
    Forbidden,
}

/// `L3`: a cgroup program, whose packet starts with the IP header. `HEADERS_ONLY`: the program that keeps
/// no payload; the other takes no packet of a tap that wants that one.
#[inline(always)]
pub(crate) fn packet<const L3: bool, const HEADERS_ONLY: bool>(skb: Skb) -> Payload {
    match scratch::take::<L3>() {
        Some(scratch) => {
            let payload = take_packet::<L3, HEADERS_ONLY>(skb, scratch);
            scratch::give_back::<L3>(scratch);
            payload
        }
        None => {
            scratch::none_left(skb.sessions());
            Payload::Allowed
        }
    }
}

#[inline(always)]
fn take_packet<const L3: bool, const HEADERS_ONLY: bool>(
    skb: Skb,
    scratch: *mut Scratch,
) -> Payload {
    let Some(&Tap {
        generation, flags, ..
    }) = table::array(&maps::TAPS, skb.cb(WORK_TAP))
    else {
        return Payload::Allowed;
    };
    if !HEADERS_ONLY && flags & TAP_HEADERS_ONLY != 0 {
        return Payload::Forbidden;
    }
    // SAFETY: it points into a map value that nobody else uses meanwhile.
    let s = unsafe { &mut *scratch };
    let hook = skb.cb(WORK_HOOK);
    let ingress = (hook == HOOK_TCX_INGRESS as u32 || hook == HOOK_CGROUP_INGRESS as u32)
        != (flags & TAP_FLIP != 0);
    s.direction = u32::from(if ingress {
        DIRECTION_INGRESS
    } else {
        DIRECTION_EGRESS
    });
    s.tap = skb.cb(WORK_TAP);
    s.generation = generation;
    s.hook = hook;
    s.left = skb.sessions();
    // Volatile: zeroes side by side would become a loop, which takes CAP_PERFMON.
    // SAFETY: both are fields of a live reference.
    unsafe {
        (&raw mut s.taken).write_volatile(0);
        (&raw mut s.parity).write_volatile(0);
    }
    s.snaplen = 0;
    let len = skb.len();
    s.frame_len = len
        + if L3 { ETHERNET_HEADER } else { 0 }
        + if skb.vlan_present() != 0 { VLAN_TAG } else { 0 };
    s.gso_size = skb.gso_size();
    // SAFETY: no preconditions.
    s.time_ns = unsafe { bpf_ktime_get_ns() };

    scratch::each(scratch, admit::<L3>, admit_next::<L3>);
    if s.taken == 0 {
        return Payload::Allowed;
    }

    if s.is_tight != 0 {
        // Before its headers are looked for, whose ways the verifier would follow here, too. They hardly ever
        // need more than the smallest record.
        s.caplen = if HEADERS_ONLY { 1 } else { min(len, s.snaplen) };
        share::narrow::<L3>(scratch);
        if s.taken == 0 {
            return Payload::Allowed;
        }
    }

    let mut caplen = len;
    if HEADERS_ONLY {
        let headers = headers::<L3>(skb, s);
        if caplen > headers {
            caplen = headers;
        }
    }
    if caplen > s.snaplen {
        caplen = s.snaplen;
    }
    if caplen > CAPLEN_MAX {
        caplen = CAPLEN_MAX;
    }
    s.caplen = caplen;
    let outcome = ring::packet::<L3>(skb, s);
    if outcome == Outcome::Submitted {
        return Payload::Allowed;
    }
    s.left = s.taken;
    s.is_lost = u32::from(outcome == Outcome::Lost);
    s.is_tight |= s.is_lost;
    scratch::each(scratch, give_up::<L3>, give_up_next::<L3>);
    Payload::Allowed
}

extern "C" fn admit_next<const ATOMIC: bool>(_: u64, scratch: *mut *mut Scratch) -> c_long {
    // SAFETY: as `scratch::Step` promises.
    let scratch = unsafe { *scratch };
    // SAFETY: as above.
    let Some(slot) = (unsafe { (*scratch).next() }) else {
        return 1;
    };
    admit::<ATOMIC>(scratch, slot);
    0
}

extern "C" fn give_up_next<const ATOMIC: bool>(_: u64, scratch: *mut *mut Scratch) -> c_long {
    // SAFETY: as `scratch::Step` promises.
    let scratch = unsafe { *scratch };
    // SAFETY: as above.
    let Some(slot) = (unsafe { (*scratch).next() }) else {
        return 1;
    };
    give_up::<ATOMIC>(scratch, slot);
    0
}

/// Does the session's state let it have the packet? A function of its own, for it has registers of its own
/// then, and needs no stack.
#[inline(never)]
fn admit<const ATOMIC: bool>(scratch: *mut Scratch, slot: u32) {
    // SAFETY: the scratch is the caller's.
    let s = unsafe { &mut *scratch };
    let Some(session) = table::array(&maps::SESSIONS, slot) else {
        return;
    };
    if s.time_ns >= session.deadline_ns || u32::from(session.directions) & s.direction == 0 {
        return;
    }
    let Some(counters) = table::per_cpu(&maps::COUNTERS, slot) else {
        return;
    };
    // SAFETY (here and below): the pointers point into map values.
    unsafe { add::<ATOMIC>(&raw mut (*counters).matched, 1) };
    if is_limited(session) && !take(s, slot, session) {
        // SAFETY: as above.
        unsafe { add::<ATOMIC>(&raw mut (*counters).over_budget, 1) };
        return;
    }
    // In a ring that is nearly full `share` tells it, for those that have room.
    // SAFETY: as above.
    if unsafe { (*counters).untold } != 0 && s.is_tight == 0 {
        // SAFETY: as above.
        tell_gap(slot, session, unsafe { &raw mut (*counters).untold });
    }
    s.taken |= 1 << slot;
    s.parity |= u64::from(session.generation & 1) << slot;
    if session.snaplen > s.snaplen {
        s.snaplen = session.snaplen;
    }
}

/// The record was not to be had, for each session that took the packet.
#[inline(never)]
pub(crate) fn give_up<const ATOMIC: bool>(scratch: *mut Scratch, slot: u32) {
    // SAFETY: the scratch is the caller's.
    let s = unsafe { &*scratch };
    let Some(counters) = table::per_cpu(&maps::COUNTERS, slot) else {
        return;
    };
    // SAFETY: the pointers point into map values.
    unsafe {
        // Both are added to: one addition with a chosen address would be arithmetic on a pointer,
        // which the verifier refuses to an agent without CAP_PERFMON.
        let lost = u64::from(s.is_lost);
        add::<ATOMIC>(&raw mut (*counters).lost, lost);
        add::<ATOMIC>(&raw mut (*counters).copy_error, 1 - lost);
        add::<ATOMIC>(&raw mut (*counters).untold, 1);
    }
    let Some(session) = table::array(&maps::SESSIONS, slot) else {
        return;
    };
    // A packet that was lost after all does not use up the budget.
    if is_limited(session)
        && let Some(budget) = table::array_mut(&maps::BUDGETS, slot)
    {
        // SAFETY: as above.
        unsafe {
            fetch_add(&raw mut (*budget).bytes, cost(s, session).wrapping_neg());
            fetch_add(&raw mut (*budget).packets, 1u64.wrapping_neg());
        }
    }
}

#[inline(always)]
fn is_limited(session: &Session) -> bool {
    session.packet_limit & session.byte_limit != u64::MAX
}

#[inline(always)]
fn cost(s: &Scratch, session: &Session) -> u64 {
    block_cost(min(s.frame_len, session.snaplen), s.gso_size != 0)
}

/// Takes the packet from the session's budget, or leaves it as it is. Exact on any number of CPUs:
/// what was taken never exceeds a limit.
#[inline(never)]
fn take(s: &Scratch, slot: u32, session: &Session) -> bool {
    let Some(budget): Option<*mut Budget> = table::array_mut(&maps::BUDGETS, slot) else {
        return false;
    };
    let cost = cost(s, session);
    // SAFETY: the pointers point into a map value.
    unsafe {
        if fetch_add(&raw mut (*budget).packets, 1) < session.packet_limit {
            let before = fetch_add(&raw mut (*budget).bytes, cost);
            if before <= session.byte_limit && cost <= session.byte_limit - before {
                return true;
            }
            fetch_add(&raw mut (*budget).bytes, cost.wrapping_neg());
        }
        fetch_add(&raw mut (*budget).packets, 1u64.wrapping_neg());
        if swap(&raw mut (*budget).told, 1) == 0
            && !ring::notice(KIND_LIMIT, slot, session.generation, 0)
        {
            swap(&raw mut (*budget).told, 0);
        }
    }
    false
}

/// Tells how many packets were lost on this CPU since the last record, before the next one.
#[inline(never)]
pub(crate) fn tell_gap(slot: u32, session: &Session, untold: *mut u64) {
    // SAFETY: `untold` points into a map value. Swapped, so that a program that interrupts this
    // one does not tell the same loss again.
    let lost = unsafe { swap(untold, 0) };
    if lost == 0 {
        return;
    }
    let packets = if lost > u64::from(u32::MAX) {
        u32::MAX
    } else {
        lost as u32
    };
    let told = ring::notice(KIND_GAP, slot, session.generation, packets);
    if !told {
        // SAFETY: as above.
        unsafe { fetch_add(untold, lost) };
    }
}

#[inline(always)]
fn min(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

const _: () = assert!(SNAPLEN_MAX >= CAPLEN_MAX);
