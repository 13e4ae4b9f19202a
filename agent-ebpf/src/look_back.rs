//! The last packets of a tap, for captures that begin later: see `remora_agent_common::look_back`.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
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
    let slot = skb.cb(WORK_RING) & (RING_SLOTS - 1);
    let Some(ring) = table::map(&maps::LOOK_BACK, slot) else {
        return;
    };
    let Some(head) = table::inner::<RingHead>(ring, 0) else {
        return;
    };
    let Some(scratch) = scratch::take::<L3>() else {
        return;
    };
    // SAFETY: the scratch is this program's until it is given back.
    let s = unsafe { &mut *scratch };
    describe(skb, s);
    if is_kept::<L3>(skb, head, s) {
        write::<L3, HEADERS_ONLY>(skb, ring, head, s);
    }
    scratch::give_back::<L3>(scratch);
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
    // Read by the program before this one, so before the time below: a session whose bit is not
    // there did not get this packet, and one whose bit is there was armed before that time.
    s.taken = skb.sessions();
    s.gso_size = skb.gso_size();
    // SAFETY: no preconditions.
    s.time_ns = unsafe { bpf_ktime_get_ns() };
}

/// The flow's hash, by way of the scratch; 0 of a packet that is too short to tell.
#[inline(always)]
fn hash<const L3: bool>(skb: Skb, s: &mut Scratch, key: u64) -> u32 {
    // SAFETY: the scratch is the caller's.
    let packet = unsafe { InScratch::of::<L3>(skb, s) };
    let ethertype = skb.ethertype();
    if ethertype == ETHERTYPE_IPV6 {
        // The last word is half a word: ports.
        if !packet.fill::<{ FLOW_BYTES_IPV6 - 4 }>(0) {
            return 0;
        }
        return flow_hash_ipv6(&s.network, key);
    }
    if !packet.fill::<FLOW_BYTES>(0) {
        return 0;
    }
    let [first, second, third, ..] = s.network;
    flow_hash(ethertype, &[first, second, third], key)
}

/// Counts the packet for its flow. Two CPUs that do so for the same flow at the same time may both
/// count for one: then more is kept than the cutoff says.
#[inline(always)]
fn is_kept<const L3: bool>(skb: Skb, head: *mut RingHead, s: &mut Scratch) -> bool {
    // SAFETY: it points into a map value.
    let hash = hash::<L3>(skb, s, unsafe { (*head).cookie });
    let tag = flow_tag(hash, s.tap, s.generation, s.direction);
    let index = flow_index(hash, s.tap, s.direction);
    let Some(flow) = table::array_mut::<FlowState>(&maps::LOOK_BACK_FLOWS, index) else {
        return false;
    };
    let len = u64::from(skb.len());
    // SAFETY: all point into map values.
    unsafe {
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

#[inline(always)]
fn write<const L3: bool, const HEADERS_ONLY: bool>(
    skb: Skb,
    ring: *mut c_void,
    head: *mut RingHead,
    s: &mut Scratch,
) {
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
    // Both bounds where the verifier sees them last, see `ring::record`.
    s.caplen = caplen;
    // SAFETY: a field of a live reference.
    let mut caplen = unsafe { (&raw const s.caplen).read_volatile() };
    if caplen < 2 {
        caplen = 1;
    }
    if caplen > LOOK_BACK_CAPLEN_MAX {
        caplen = LOOK_BACK_CAPLEN_MAX;
    }
    let size = (u64::from(caplen) + HEADER_LEN as u64 + 7) & !7;
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
    let Some(page) = table::inner::<u8>(ring, page as u32) else {
        return;
    };
    let offset = position as u32 & (PAGE_BYTES - 1);
    s.parity = 0;
    // SAFETY: the page has HEAD_BYTES, PAGE_BYTES and RECORD_MAX bytes; `offset` is below PAGE_BYTES
    // and a multiple of 8, and header and bytes are at most RECORD_MAX.
    unsafe {
        let to = page.add((HEAD_BYTES + offset) as usize);
        ring::write_header::<L3>(skb, s, KIND_LOOK_BACK, caplen, to.cast());
        if !skb.copy_to(to.add(HEADER_LEN).cast(), caplen) {
            fetch_add(&raw mut (*head).copy_errors, 1);
            return;
        }
        let position = (&raw const s.position).read_volatile();
        let cookie = (&raw const (*head).cookie).read_volatile();
        to.cast::<u64>()
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
