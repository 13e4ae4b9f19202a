//! Which sessions take a packet, where no machine code decides that: typed terms and the
//! interpreter. Every session starts here; those of a tap get machine code some milliseconds later.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use remora_agent_common::{SESSION_SLOTS, filter::Flow, session::FILTER_PROGRAM};

use crate::{
    interpret, maps,
    scratch::{self, Scratch},
    skb::{Network, Skb, zero},
    stage::Work,
    table,
};

/// Whatever the tag's own (802.1Q or 802.1ad): not an address family.
const ETHERTYPE_VLAN: u16 = 0x8100;

/// What a step is called with. On the stack, as the kernel wants it.
#[repr(C)]
struct Visit {
    skb: Skb,
    scratch: *mut Scratch,
}

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
        (*scratch).taken = 0;
        // The file's frame of a packet with a tag starts with the tag's EtherType, so to libpcap
        // it is neither IP nor ARP.
        (*scratch).flow = Flow::decode(
            if skb.vlan_present() != 0 {
                ETHERTYPE_VLAN
            } else {
                skb.ethertype()
            },
            &Network::of::<L3>(skb),
            zero(&skb),
        );
    }
    let mut visit = Visit { skb, scratch };
    // SAFETY: the callback has the type that bpf_loop calls (kernel/bpf/bpf_iter.c, v5.17), and
    // `visit` outlives the call.
    unsafe {
        bpf_loop(
            SESSION_SLOTS,
            ask::<L3> as extern "C" fn(u64, *mut Visit) -> c_long as *mut c_void,
            (&raw mut visit).cast(),
            0,
        );
    }
    // SAFETY: as above.
    let takers = unsafe { (*scratch).taken };
    scratch::give_back::<L3>(scratch);
    takers
}

/// Asks the lowest session that is left.
extern "C" fn ask<const L3: bool>(_: u64, visit: *mut Visit) -> c_long {
    // SAFETY: bpf_loop hands on the pointer to the caller's live stack slot.
    let visit = unsafe { &*visit };
    // SAFETY: the scratch is this program's.
    let s = unsafe { &mut *visit.scratch };
    let Some(slot) = s.next() else { return 1 };
    let Some(session) = table::array(&maps::SESSIONS, slot) else {
        return 1;
    };
    let takes = if session.filter_kind == FILTER_PROGRAM {
        let span = if L3 { &session.ip } else { &session.ethernet };
        interpret::run::<L3>(&visit.skb, span, s)
    } else {
        session.filter.matches(&s.flow)
    };
    s.taken |= u64::from(takes) << slot;
    0
}
