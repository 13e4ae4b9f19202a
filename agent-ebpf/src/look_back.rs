//! The last packets of a tap, for captures that begin later: see `remora_agent_common::look_back`.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use remora_agent_common::{
    filter::ETHERTYPE_IPV6,
    headers::headers_len,
    look_back::{
        FLOW_BYTES, FLOW_BYTES_IPV6, FlowState, HEAD_BYTES, LOOK_BACK_CAPLEN_MAX, PAGE_BYTES,
        PAGE_SHIFT, RING_SLOTS, RingHead, flow_hash, flow_hash_ipv6, flow_index, flow_tag,
    },
    record::{ETHERNET_HEADER, HEADER_LEN, HOOK_CGROUP_INGRESS, HOOK_TCX_INGRESS, KIND_LOOK_BACK},
    session::{DIRECTION_EGRESS, DIRECTION_INGRESS},
    stage::{WORK_HOOK, WORK_RING, WORK_TAP},
    tap::{TAP_FLIP, Tap},
};

use crate::{
    counters::fetch_add,
    maps, ring,
    scratch::{self, Scratch},
    skb::{InScratch, Skb},
    table,
};

/// Word of a record's header that is written last, see `look_back`.
const CHECK: usize = 3;

/// Writes a packet, or its headers, into its tap's ring, if the flow cutoff lets it.
#[inline(always)]
pub(crate) fn record<const L3: bool, const HEADERS_ONLY: bool>(skb: Skb) {
    let Some(scratch) = scratch::take::<L3>() else {
        return;
    };
    // SAFETY: the scratch is this program's until it is given back.
    let s = unsafe { &mut *scratch };
    describe(skb, s);
    if let Some(head) = head(skb)
        && is_kept::<L3>(skb, head, s)
    {
        write::<L3, HEADERS_ONLY>(skb, head, s);
    }
    scratch::give_back::<L3>(scratch);
}

/// The packet's ring. It is looked up each time, as a pointer to it would be one too many for the registers:
/// it stays in its slot while a program that found it there runs.
#[inline(always)]
fn ring_of(skb: Skb) -> Option<*mut c_void> {
    table::map(&maps::LOOK_BACK, skb.cb(WORK_RING) & (RING_SLOTS - 1))
}

/// The start of its first page.
#[inline(always)]
fn head(skb: Skb) -> Option<*mut RingHead> {
    table::inner_first(ring_of(skb)?)
}

/// The work is read where it is needed: kept, it would be spilled to the stack, which is slow (see
/// [`crate::table`]).
#[inline(always)]
fn describe(skb: Skb, s: &mut Scratch) {
    let (generation, flags) = match table::array(&maps::TAPS, skb.cb(WORK_TAP)) {
        Some(&Tap {
            generation, flags, ..
        }) => (generation, flags),
        None => (0, 0),
    };
    let hook = skb.cb(WORK_HOOK);
    let ingress = (hook == HOOK_TCX_INGRESS as u32 || hook == HOOK_CGROUP_INGRESS as u32)
        != (flags & TAP_FLIP != 0);
    s.direction = u32::from(if ingress {
        DIRECTION_INGRESS
    } else {
        DIRECTION_EGRESS
    });
    s.hook = hook;
    s.tap = skb.cb(WORK_TAP);
    s.generation = generation;
    // Read by the program before this one, so before the record's time: a session whose bit is not
    // there did not get this packet, and one whose bit is there was armed before that time.
    s.taken = skb.sessions();
    s.gso_size = skb.gso_size();
    // Enough to tell a flow's silence, and an eighth of what the exact time takes (4 of 32 ns).
    // SAFETY: no preconditions.
    s.time_ns = unsafe { bpf_ktime_get_coarse_ns() };
}

/// The flow's hash, by way of the scratch; 0 of a packet that is too short to tell.
#[inline(always)]
fn hash<const L3: bool>(skb: Skb, s: &mut Scratch, head: *const RingHead) -> u32 {
    // SAFETY: the scratch is the caller's.
    let packet = unsafe { InScratch::of::<L3>(skb, s) };
    if skb.ethertype() == ETHERTYPE_IPV6 {
        // The last word is half a word: ports.
        if !packet.fill::<{ FLOW_BYTES_IPV6 - 4 }>(0) {
            return 0;
        }
        return flow_hash_ipv6(&s.network, key(head));
    }
    if !packet.fill::<FLOW_BYTES>(0) {
        return 0;
    }
    let [first, second, third, ..] = s.network;
    flow_hash(skb.ethertype(), &[first, second, third], key(head))
}

/// The ring's random number. Read where it is needed, see [`describe`].
#[inline(always)]
fn key(head: *const RingHead) -> u64 {
    // SAFETY: it points into a map value.
    unsafe { (&raw const (*head).cookie).read_volatile() }
}

/// Counts the packet for its flow. Two CPUs that do so for the same flow at the same time may both
/// count for one: then more is kept than the cutoff says.
#[inline(always)]
fn is_kept<const L3: bool>(skb: Skb, head: *mut RingHead, s: &mut Scratch) -> bool {
    let hash = hash::<L3>(skb, s, head);
    let index = flow_index(hash, s.tap, s.direction);
    // SAFETY: a field of a live reference.
    unsafe { (&raw mut s.hash).write_volatile(hash) };
    let Some(flow) = table::array_mut::<FlowState>(&maps::LOOK_BACK_FLOWS, index) else {
        return false;
    };
    let len = u64::from(skb.len());
    // SAFETY: all point into map values.
    unsafe {
        let hash = (&raw const s.hash).read_volatile();
        let tag = flow_tag(hash, s.tap, s.generation, s.direction);
        s.tap = hash;
        if (*flow).tag != tag {
            (*flow).tag = tag;
            (*flow).bytes = len;
            (*flow).last_ns = s.time_ns;
            (*flow).cut_packets = 0;
            s.generation = 0;
            return true;
        }
        let silence = s.time_ns.wrapping_sub((*flow).last_ns);
        (*flow).last_ns = s.time_ns;
        let mut before = (*flow).bytes;
        if silence > (*head).pause_ns {
            before = 0;
        }
        (*flow).bytes = before + len;
        if before >= (*head).cutoff {
            (*flow).cut_packets += 1;
            fetch_add(&raw mut (*head).cut_packets, 1);
            fetch_add(&raw mut (*head).cut_bytes, len);
            return false;
        }
        s.generation = (*flow).cut_packets as u32;
        (*flow).cut_packets = 0;
    }
    true
}

/// Bytes of the packet up to the end of its headers, by way of the scratch.
#[inline(always)]
pub(crate) fn headers<const L3: bool>(skb: Skb, s: &mut Scratch) -> u32 {
    let link = if L3 { 0 } else { ETHERNET_HEADER };
    // SAFETY: the scratch is the caller's.
    let packet = unsafe { InScratch::of::<L3>(skb, s) };
    link + headers_len(skb.ethertype(), &packet)
}

/// A function of its own, for it has registers of its own then.
#[inline(never)]
fn write<const L3: bool, const HEADERS_ONLY: bool>(skb: Skb, head: *mut RingHead, s: &mut Scratch) {
    // SAFETY: no preconditions.
    s.time_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: `head` points into a map value, as do all pointers below.
    let snaplen = unsafe { (*head).snaplen };
    let mut caplen = skb.len();
    if HEADERS_ONLY {
        let headers = headers::<L3>(skb, s);
        if caplen > headers {
            caplen = headers;
        }
    }
    if caplen > snaplen {
        caplen = snaplen;
    }
    s.caplen = caplen;
    let size = (u64::from(bounded(s)) + HEADER_LEN as u64 + 7) & !7;
    // SAFETY: as above.
    let position = unsafe {
        // Before the record, whose memory is cold: a locked addition waits for all writes before it.
        fetch_add(&raw mut (*head).packets, 1);
        fetch_add(&raw mut (*head).position, size)
    };
    // Kept in the scratch, and what the head has is read again: registers that are needed after the
    // helpers below would be spilled to the stack, which is slow (see `crate::table`).
    // SAFETY: as above, and a field of a live reference.
    let pages = unsafe {
        (&raw mut s.position).write_volatile(position);
        (&raw const (*head).pages).read_volatile()
    };
    // Division by 0 gives 0 in eBPF; user space never writes it.
    let page = (position >> PAGE_SHIFT) % (pages | u64::from(pages == 0));
    // By way of the scratch: the verifier of 7.3 refuses a pointer to which a number is added that it knows on
    // one way and not on another.
    // SAFETY: a field of a live reference.
    let page = unsafe {
        (&raw mut s.page).write_volatile(page as u32);
        (&raw const s.page).read_volatile()
    };
    let Some(page) = ring_of(skb).and_then(|ring| table::inner(ring, page)) else {
        return;
    };
    s.parity = 0;
    // SAFETY: header and bytes are at most RECORD_MAX.
    unsafe {
        ring::write_header::<L3>(skb, s, KIND_LOOK_BACK, bounded(s), place(page, s).cast());
        if !skb.copy_to(place(page, s).add(HEADER_LEN).cast(), bounded(s)) {
            fetch_add(&raw mut (*head).copy_errors, 1);
            return;
        }
        let position = (&raw const s.position).read_volatile();
        let cookie = key(head);
        place(page, s)
            .cast::<u64>()
            .add(CHECK)
            .write_volatile(position ^ cookie);
        // Whoever is held up for a whole round of the ring has written over newer records.
        let now = (&raw const (*head).position).read_volatile();
        let pages = (&raw const (*head).pages).read_volatile();
        if now.wrapping_sub(position) > pages << PAGE_SHIFT {
            (*head).overrun = now;
        }
    }
}

/// The record's number of bytes. Both bounds where the verifier sees them last, see `ring::record`.
#[inline(always)]
fn bounded(s: &Scratch) -> u32 {
    // SAFETY: a field of a live reference.
    let mut caplen = unsafe { (&raw const s.caplen).read_volatile() };
    if caplen < 2 {
        caplen = 1;
    }
    if caplen > LOOK_BACK_CAPLEN_MAX {
        caplen = LOOK_BACK_CAPLEN_MAX;
    }
    caplen
}

/// Where in its page the record lies: RECORD_MAX bytes, at a multiple of 8. Found anew each time, for a pointer
/// that is kept is copied, see `table::lookup`.
#[inline(always)]
fn place(page: *mut u8, s: &Scratch) -> *mut u8 {
    // SAFETY: a field of a live reference.
    let position = unsafe { (&raw const s.position).read_volatile() };
    // SAFETY: the page has HEAD_BYTES, PAGE_BYTES and RECORD_MAX bytes, and positions are multiples of 8.
    unsafe { page.add((HEAD_BYTES + (position as u32 & (PAGE_BYTES - 1))) as usize) }
}
