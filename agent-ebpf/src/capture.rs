//! One packet of a tap with sessions: which of them take it, their budgets, one record for all.

use core::ffi::{c_long, c_void};

use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, bpf_loop},
    programs::SkBuffContext,
};
use aya_log_ebpf::debug;
use remora_agent_common::{
    ABI_VERSION, SESSION_SLOTS, SNAPLEN_MAX,
    filter::Flow,
    record::{
        CAPLEN_MAX, ETHERNET_HEADER, HOOK_CGROUP_INGRESS, HOOK_TCX_INGRESS, KIND_GAP, KIND_LIMIT,
        KIND_PACKET, LINK_ETHERNET, LINK_IP, RecordHeader,
    },
    session::{DIRECTION_EGRESS, DIRECTION_INGRESS, Session, block_cost},
};

use crate::{
    counters::{add, fetch_add, swap},
    maps, ring,
    ring::Outcome,
    skb::{Network, Skb},
    taps::Owner,
};

/// Bytes of a VLAN tag, which the file's frame has beyond the packet's own.
const VLAN_TAG: u32 = 4;
/// Whatever the tag's own (802.1Q or 802.1ad): not an address family.
const ETHERTYPE_VLAN: u16 = 0x8100;

/// What the loops over sessions share. Lives on the stack of [`packet`].
#[repr(C)]
struct Visit {
    now_ns: u64,
    /// Sessions that the round visits.
    left: u64,
    /// Sessions that took the packet.
    taken: u64,
    parity: u64,
    /// Length of the frame that the file will hold.
    frame_len: u32,
    /// Largest snaplen of the sessions that took it.
    snaplen: u32,
    gso: bool,
    direction: u8,
    outcome: Outcome,
    flow: Flow,
}

/// 0, for no packet has 2 GiB, but neither compiler nor verifier knows: see [`Flow::decode`].
#[inline(always)]
pub(crate) fn zero(skb: &Skb) -> u32 {
    skb.len() >> 31
}

/// `L3`: a cgroup program, whose packet starts with the IP header.
///
/// A function of its own, so that its stack and that of the tap look-up are not added up (the
/// limit is 512 bytes over a chain of calls).
#[inline(never)]
pub(crate) fn packet<const HOOK: u8, const L3: bool>(skb: &Skb, owner: &Owner) {
    let skb = *skb;
    let len = skb.len();
    let vlan = skb.vlan_present() != 0;
    let ingress = (HOOK == HOOK_TCX_INGRESS || HOOK == HOOK_CGROUP_INGRESS) != owner.flip;
    let gso_size = skb.gso_size();
    // SAFETY: no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let mut visit = Visit {
        now_ns,
        left: owner.sessions,
        // Not a plain 0: two of them side by side become a loop over the stack.
        taken: u64::from(zero(&skb)),
        parity: 0,
        frame_len: len + if L3 { ETHERNET_HEADER } else { 0 } + if vlan { VLAN_TAG } else { 0 },
        snaplen: 0,
        gso: gso_size != 0,
        direction: if ingress {
            DIRECTION_INGRESS
        } else {
            DIRECTION_EGRESS
        },
        outcome: Outcome::Submitted,
        // The file's frame of a packet with a tag starts with the tag's EtherType, so to libpcap
        // it is neither IP nor ARP.
        flow: Flow::decode(
            if vlan {
                ETHERTYPE_VLAN
            } else {
                skb.ethertype()
            },
            &Network::of::<L3>(skb),
            zero(&skb),
        ),
    };
    each_session(decide::<L3>, &mut visit);
    if visit.taken == 0 {
        return;
    }

    let mut caplen = len;
    if caplen > visit.snaplen {
        caplen = visit.snaplen;
    }
    if caplen > CAPLEN_MAX {
        caplen = CAPLEN_MAX;
    }
    let header = RecordHeader {
        abi: ABI_VERSION,
        kind: KIND_PACKET,
        hook: HOOK,
        caplen,
        time_ns: visit.now_ns,
        sessions: visit.taken,
        parity: visit.parity,
        tap: owner.tap,
        tap_generation: owner.generation,
        ifindex: skb.ifindex(),
        origlen: len,
        gso_size: gso_size as u16,
        gso_segs: skb.gso_segs() as u16,
        vlan_tci: if vlan { skb.vlan_tci() as u16 } else { 0 },
        direction: visit.direction,
        packet_type: skb.pkt_type() as u8,
        vlan_proto: if vlan {
            u16::from_be(skb.vlan_proto() as u16)
        } else {
            0
        },
        link: if L3 { LINK_IP } else { LINK_ETHERNET },
        reserved: 0,
        protocol: skb.ethertype(),
        reserved_end: [0; 2],
    };
    visit.outcome = ring::packet(skb, &header);
    if visit.outcome == Outcome::CopyError {
        let ctx = SkBuffContext::new(skb.as_ptr());
        debug!(
            &ctx,
            "copy error: hook {} len {} caplen {}", HOOK, len, caplen
        );
    }
    visit.left = visit.taken;
    each_session(settle::<L3>, &mut visit);
}

type Step = extern "C" fn(u64, *mut Visit) -> c_long;

/// Calls `step` for each session in `visit.left`.
#[inline(always)]
fn each_session(step: Step, visit: &mut Visit) {
    // SAFETY: the callback has the type that bpf_loop calls (kernel/bpf/bpf_iter.c, v5.17), and
    // `visit` outlives the call.
    unsafe {
        bpf_loop(
            SESSION_SLOTS,
            step as *mut c_void,
            (&raw mut *visit).cast(),
            0,
        );
    }
}

/// Whether session `i` is among those to be visited. The loop counts through the slots: to look for
/// the lowest bit would take branches (which the verifier multiplies) or a table (which takes
/// CAP_PERFMON). The slot is masked for the verifier.
#[inline(always)]
fn visited(i: u64, visit: &Visit) -> Visited {
    let rest = visit.left >> (i & 63);
    if rest == 0 {
        Visited::Done
    } else if rest & 1 == 0 {
        Visited::Skip
    } else {
        Visited::Slot(i as u32 & (SESSION_SLOTS - 1))
    }
}

enum Visited {
    Slot(u32),
    Skip,
    Done,
}

/// First round: does the session take the packet?
extern "C" fn decide<const ATOMIC: bool>(i: u64, visit: *mut Visit) -> c_long {
    // SAFETY: bpf_loop hands on the pointer to the caller's live stack slot.
    let visit = unsafe { &mut *visit };
    let slot = match visited(i, visit) {
        Visited::Slot(slot) => slot,
        Visited::Skip => return 0,
        Visited::Done => return 1,
    };
    let Some(session) = maps::SESSIONS.get(slot) else {
        return 1;
    };
    let Some(counters) = maps::COUNTERS.get_ptr_mut(slot) else {
        return 1;
    };
    if visit.now_ns >= session.deadline_ns {
        return 0;
    }
    // SAFETY (here and below): the pointers point into map values.
    unsafe { add::<ATOMIC>(&raw mut (*counters).seen, 1) };
    if session.directions & visit.direction == 0 || !session.filter.matches(&visit.flow) {
        return 0;
    }
    // SAFETY: as above.
    unsafe { add::<ATOMIC>(&raw mut (*counters).matched, 1) };
    let cost = block_cost(min(visit.frame_len, session.snaplen), visit.gso);
    if !take(slot, session, cost) {
        // SAFETY: as above.
        unsafe { add::<ATOMIC>(&raw mut (*counters).over_budget, 1) };
        return 0;
    }
    // SAFETY: as above.
    if unsafe { (*counters).untold } != 0 {
        // SAFETY: as above.
        tell_gap(slot, session, unsafe { &raw mut (*counters).untold });
    }
    visit.taken |= 1 << slot;
    visit.parity |= u64::from(session.generation & 1) << slot;
    if session.snaplen > visit.snaplen {
        visit.snaplen = session.snaplen;
    }
    0
}

/// Second round: what became of the record, for each session that took the packet.
extern "C" fn settle<const ATOMIC: bool>(i: u64, visit: *mut Visit) -> c_long {
    // SAFETY: as in `decide`.
    let visit = unsafe { &mut *visit };
    let slot = match visited(i, visit) {
        Visited::Slot(slot) => slot,
        Visited::Skip => return 0,
        Visited::Done => return 1,
    };
    let Some(counters) = maps::COUNTERS.get_ptr_mut(slot) else {
        return 1;
    };
    // SAFETY: the pointers point into map values.
    unsafe {
        if visit.outcome == Outcome::Submitted {
            add::<ATOMIC>(&raw mut (*counters).submitted, 1);
            return 0;
        }
        // Both are added to: one addition with a chosen address would be arithmetic on a pointer,
        // which the verifier refuses to an agent without CAP_PERFMON.
        let lost = u64::from(visit.outcome == Outcome::Lost);
        add::<ATOMIC>(&raw mut (*counters).lost, lost);
        add::<ATOMIC>(&raw mut (*counters).copy_error, 1 - lost);
        add::<ATOMIC>(&raw mut (*counters).untold, 1);
    }
    let Some(session) = maps::SESSIONS.get(slot) else {
        return 1;
    };
    give_back(
        slot,
        session,
        block_cost(min(visit.frame_len, session.snaplen), visit.gso),
    );
    0
}

/// Takes a packet of `cost` bytes from the session's budget, or leaves it as it is. Exact on any
/// number of CPUs: what was taken never exceeds a limit.
#[inline(always)]
fn take(slot: u32, session: &Session, cost: u64) -> bool {
    if session.packet_limit == u64::MAX && session.byte_limit == u64::MAX {
        return true;
    }
    let Some(budget) = maps::BUDGETS.get_ptr_mut(slot) else {
        return false;
    };
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

/// A packet that was lost after all does not use up the budget.
#[inline(always)]
fn give_back(slot: u32, session: &Session, cost: u64) {
    if session.packet_limit == u64::MAX && session.byte_limit == u64::MAX {
        return;
    }
    let Some(budget) = maps::BUDGETS.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: the pointers point into a map value.
    unsafe {
        fetch_add(&raw mut (*budget).bytes, cost.wrapping_neg());
        fetch_add(&raw mut (*budget).packets, 1u64.wrapping_neg());
    }
}

/// Tells how many packets were lost on this CPU since the last record, before the next one.
#[inline(always)]
fn tell_gap(slot: u32, session: &Session, untold: *mut u64) {
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
