//! Which sessions' filters take a packet.

use core::ffi::c_long;

use remora_agent_common::session::FILTER_PROGRAM;

use crate::{
    interpret, maps,
    scratch::{self, Scratch},
    skb::{InScratch, Skb, zero},
    stage::Work,
    table,
};

/// Whatever the tag's own (802.1Q or 802.1ad): not an address family.
const ETHERTYPE_VLAN: u16 = 0x8100;

/// A function of its own, for the stack's sake.
#[inline(never)]
pub(crate) fn takers<const L3: bool>(skb: &Skb) -> u64 {
    let skb = *skb;
    let sessions = Work::of(skb).sessions;
    let Some(scratch) = scratch::take::<L3>() else {
        scratch::none_left(sessions);
        return 0;
    };
    // SAFETY: the scratch is this program's until it is given back.
    unsafe {
        (*scratch).left = sessions;
        // Volatile: zeroes side by side would become a loop, which takes CAP_PERFMON.
        (&raw mut (*scratch).taken).write_volatile(0);
        (&raw mut (*scratch).programs).write_volatile(0);
        // The file's frame of a packet with a tag starts with the tag's EtherType, so to libpcap
        // it is neither IP nor ARP.
        let ethertype = if skb.vlan_present() != 0 {
            ETHERTYPE_VLAN
        } else {
            skb.ethertype()
        };
        let packet = InScratch::of::<L3>(skb, scratch);
        (*scratch).flow.decode_into(ethertype, &packet, zero(&skb));
    }
    scratch::each(scratch, ask, ask_next);
    interpret::each::<L3>(skb, scratch);
    // SAFETY: as above.
    let takers = unsafe { (*scratch).taken };
    scratch::give_back::<L3>(scratch);
    takers
}

extern "C" fn ask_next(_: u64, scratch: *mut *mut Scratch) -> c_long {
    // SAFETY: as `scratch::Step` promises.
    let scratch = unsafe { *scratch };
    // SAFETY: as above.
    let Some(slot) = (unsafe { (*scratch).next() }) else {
        return 1;
    };
    ask(scratch, slot);
    0
}

/// Asks the session's typed filter.
#[inline(never)]
fn ask(scratch: *mut Scratch, slot: u32) {
    // SAFETY: the scratch is the caller's.
    let s = unsafe { &mut *scratch };
    let Some(session) = table::array(&maps::SESSIONS, slot) else {
        return;
    };
    // A session with a program has no terms, which take every packet; its program decides then. Both
    // are written: one of two chosen addresses would be arithmetic on a pointer, as in `give_up`.
    s.taken |= u64::from(session.filter.matches(&s.flow)) << slot;
    s.programs |= u64::from(session.filter_kind == FILTER_PROGRAM) << slot;
}
