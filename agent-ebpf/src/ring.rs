//! Records: reserve, fill, submit.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_ringbuf_discard, bpf_ringbuf_reserve, bpf_ringbuf_submit},
};
use remora_agent_common::{
    ABI_VERSION,
    record::{HEADER_LEN, RecordHeader, SIZE_CLASSES},
};

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

/// Puts a record without a packet into the ring: one session, and a number of packets. False if
/// there is no room.
#[inline(always)]
pub(crate) fn notice(kind: u8, slot: u32, generation: u32, packets: u32) -> bool {
    // SAFETY: the map is a ring buffer, the size a constant.
    let entry = unsafe {
        bpf_ringbuf_reserve(
            (&raw const maps::EVENTS).cast_mut().cast(),
            HEADER_LEN as u64,
            0,
        )
    };
    if entry.is_null() {
        return false;
    }
    let words = entry.cast::<u64>();
    // Word by word, and volatile: the compiler would make a loop of the zeroes, which the verifier
    // refuses to an agent without CAP_PERFMON.
    // SAFETY: the entry has the eight words of a header, and is submitted once.
    unsafe {
        words.write_volatile(ABI_VERSION as u64 | (kind as u64) << 16);
        words.add(1).write_volatile(0);
        words.add(2).write_volatile(1 << slot);
        words
            .add(3)
            .write_volatile(u64::from(generation & 1) << slot);
        words.add(4).write_volatile(0);
        words.add(5).write_volatile(u64::from(packets) << 32);
        words.add(6).write_volatile(0);
        words.add(7).write_volatile(0);
        bpf_ringbuf_submit(entry, wakeup());
    }
    true
}

#[inline(always)]
fn record<const SIZE: usize>(skb: Skb, header: &RecordHeader) -> Outcome {
    // SAFETY: the map is a ring buffer, the size a constant.
    let entry =
        unsafe { bpf_ringbuf_reserve((&raw const maps::EVENTS).cast_mut().cast(), SIZE as u64, 0) };
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
