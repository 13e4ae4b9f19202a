//! Records: reserve, fill, submit.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_ringbuf_discard, bpf_ringbuf_reserve, bpf_ringbuf_submit},
};
use remora_agent_common::record::{HEADER_LEN, RecordHeader, SIZE_CLASSES};

use crate::{maps, skb::Skb};

/// What became of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Submitted,
    /// The ring had no room.
    Lost,
    /// The packet's bytes could not be read.
    CopyError,
}

/// Puts a packet into the ring, in the smallest class that holds it.
#[inline(always)]
pub(crate) fn packet(skb: Skb, header: &RecordHeader) -> Outcome {
    let len = header.caplen as usize + HEADER_LEN;
    if len <= SIZE_CLASSES[0] {
        record::<{ SIZE_CLASSES[0] }>(skb, header)
    } else if len <= SIZE_CLASSES[1] {
        record::<{ SIZE_CLASSES[1] }>(skb, header)
    } else if len <= SIZE_CLASSES[2] {
        record::<{ SIZE_CLASSES[2] }>(skb, header)
    } else if len <= SIZE_CLASSES[3] {
        record::<{ SIZE_CLASSES[3] }>(skb, header)
    } else if len <= SIZE_CLASSES[4] {
        record::<{ SIZE_CLASSES[4] }>(skb, header)
    } else {
        record::<{ SIZE_CLASSES[5] }>(skb, header)
    }
}

/// Puts a record without a packet into the ring. False if there is no room.
#[inline(always)]
pub(crate) fn notice(header: &RecordHeader) -> bool {
    // SAFETY: the map is a ring buffer, the size a constant.
    let entry = unsafe {
        bpf_ringbuf_reserve((&raw const maps::EVENTS).cast_mut().cast(), HEADER_LEN as u64, 0)
    };
    if entry.is_null() {
        return false;
    }
    // SAFETY: the entry has HEADER_LEN bytes, aligned to 8, and is submitted once.
    unsafe {
        entry.cast::<RecordHeader>().write(*header);
        bpf_ringbuf_submit(entry, wakeup());
    }
    true
}

#[inline(always)]
fn record<const SIZE: usize>(skb: Skb, header: &RecordHeader) -> Outcome {
    // SAFETY: the map is a ring buffer, the size a constant.
    let entry = unsafe {
        bpf_ringbuf_reserve((&raw const maps::EVENTS).cast_mut().cast(), SIZE as u64, 0)
    };
    if entry.is_null() {
        return Outcome::Lost;
    }
    // The verifier must see the bound where the helper is called.
    let mut len = header.caplen;
    if len > (SIZE - HEADER_LEN) as u32 {
        len = (SIZE - HEADER_LEN) as u32;
    }
    // SAFETY: the entry has SIZE bytes, aligned to 8: the header and, by the bound above, `len`
    // bytes after it. It is submitted or discarded exactly once.
    unsafe {
        entry.cast::<RecordHeader>().write(*header);
        if len > 0 && !skb.copy_to(entry.byte_add(HEADER_LEN), len) {
            bpf_ringbuf_discard(entry, u64::from(BPF_RB_NO_WAKEUP));
            return Outcome::CopyError;
        }
        bpf_ringbuf_submit(entry, wakeup());
    }
    Outcome::Submitted
}

/// The consumer looks by itself every few milliseconds; it is woken only when much is waiting.
#[inline(always)]
fn wakeup() -> u64 {
    if maps::EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) >= maps::REMORA_WAKE_BYTES.load() {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}
