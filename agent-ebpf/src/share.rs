//! Whose packets a ring takes that is nearly full, see `remora_agent_common::share`.

use core::ffi::c_long;

use aya_ebpf::bindings::{BPF_RB_CONS_POS, BPF_RB_PROD_POS};
use remora_agent_common::{
    record::{HEADER_LEN, record_bytes},
    session::Budget,
};

use crate::{
    capture::{give_up, tell_gap},
    counters::{fetch_add, swap},
    maps, ring,
    scratch::{self, Scratch},
    table,
};

/// Takes the packet from those of its sessions that have used up their shares, if the ring is as full
/// still as it was when this CPU last asked. The others are told what they lost before, which
/// `admit` has left to this.
///
/// A function of its own: few packets come here.
#[inline(never)]
pub(crate) fn narrow<const L3: bool>(scratch: *mut Scratch) {
    // SAFETY: the caller's scratch, a map value that nobody else uses meanwhile.
    let s = unsafe { &mut *scratch };
    let is_tight = sharers() > 1 && ring::waiting() >= maps::REMORA_TIGHT_FROM.load();
    s.is_tight = u32::from(is_tight);
    s.charge = 0;
    if is_tight {
        let parts = s.taken.count_ones();
        s.charge = record_bytes(s.caplen) / if parts == 0 { 1 } else { parts };
    }
    s.is_lost = 1;
    s.left = s.taken;
    scratch::each(scratch, keep_or_give_up::<L3>, next::<L3>);
}

extern "C" fn next<const ATOMIC: bool>(_: u64, scratch: *mut *mut Scratch) -> c_long {
    // SAFETY: as `scratch::Step` promises.
    let scratch = unsafe { *scratch };
    // SAFETY: as above.
    let Some(slot) = (unsafe { (*scratch).next() }) else {
        return 1;
    };
    keep_or_give_up::<ATOMIC>(scratch, slot);
    0
}

#[inline(never)]
fn keep_or_give_up<const ATOMIC: bool>(scratch: *mut Scratch, slot: u32) {
    // SAFETY: the scratch is the caller's.
    let s = unsafe { &mut *scratch };
    let Some(session) = table::array(&maps::SESSIONS, slot) else {
        return;
    };
    let Some(counters) = table::per_cpu(&maps::COUNTERS, slot) else {
        return;
    };
    // SAFETY: it points into a map value.
    let is_untold = unsafe { (*counters).untold } != 0;
    let mut charge = u64::from(s.charge);
    if is_untold && charge != 0 {
        charge += HEADER_LEN as u64;
    }
    if !has_room(slot, charge) {
        s.taken &= !(1 << slot);
        s.parity &= !(1 << slot);
        give_up::<ATOMIC>(scratch, slot);
    } else if is_untold {
        // SAFETY: as above.
        tell_gap(slot, session, unsafe { &raw mut (*counters).untold });
    }
}

/// Charges so many bytes to the session, if its share has room for them; none always have.
#[inline(never)]
fn has_room(slot: u32, charge: u64) -> bool {
    if charge == 0 {
        return true;
    }
    let Some(budget): Option<*mut Budget> = table::array_mut(&maps::BUDGETS, slot) else {
        return false;
    };
    // Never 0: the compiler would take that for impossible, and leave out a check that the verifier asks
    // for.
    let mut sharers = sharers();
    if sharers < 2 {
        sharers = 2;
    }
    let share = maps::REMORA_TIGHT_ROOM.load() / u64::from(sharers);
    // SAFETY: the pointers point into a map value.
    unsafe {
        let from = (&raw const (*budget).share_from).read_volatile();
        if maps::EVENTS.query(u64::from(BPF_RB_CONS_POS)) > from {
            let produced = maps::EVENTS.query(u64::from(BPF_RB_PROD_POS));
            // Of several CPUs one begins the next window.
            if swap(&raw mut (*budget).share_from, produced) == from {
                swap(&raw mut (*budget).share_used, 0);
            }
        }
        if fetch_add(&raw mut (*budget).share_used, charge) + charge <= share {
            return true;
        }
        fetch_add(&raw mut (*budget).share_used, charge.wrapping_neg());
    }
    false
}

#[inline(always)]
fn sharers() -> u32 {
    table::first(&maps::GATE).map_or(0, |gate| gate.sharers)
}
