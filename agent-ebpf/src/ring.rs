//! Records: reserve, fill, submit.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_ringbuf_discard, bpf_ringbuf_reserve, bpf_ringbuf_submit},
};
use remora_agent_common::{
    ABI_VERSION,
    record::{HEADER_LEN, KIND_PACKET, LINK_ETHERNET, LINK_IP, RecordHeader, SIZE_CLASSES},
};

use crate::{maps, scratch::Scratch, skb::Skb};

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
pub(crate) fn packet<const L3: bool>(skb: Skb, s: &mut Scratch) -> Outcome {
    let len = s.caplen as usize + HEADER_LEN;
    if len <= SIZE_CLASSES[0] {
        record::<{ SIZE_CLASSES[0] }, L3>(skb, s)
    } else if len <= SIZE_CLASSES[1] {
        record::<{ SIZE_CLASSES[1] }, L3>(skb, s)
    } else if len <= SIZE_CLASSES[2] {
        record::<{ SIZE_CLASSES[2] }, L3>(skb, s)
    } else if len <= SIZE_CLASSES[3] {
        record::<{ SIZE_CLASSES[3] }, L3>(skb, s)
    } else if len <= SIZE_CLASSES[4] {
        record::<{ SIZE_CLASSES[4] }, L3>(skb, s)
    } else {
        record::<{ SIZE_CLASSES[5] }, L3>(skb, s)
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
        bpf_ringbuf_submit(entry, u64::from(BPF_RB_NO_WAKEUP));
    }
    true
}

#[inline(always)]
fn record<const SIZE: usize, const L3: bool>(skb: Skb, s: &mut Scratch) -> Outcome {
    // SAFETY: the map is a ring buffer, the size a constant.
    let entry =
        unsafe { bpf_ringbuf_reserve((&raw const maps::EVENTS).cast_mut().cast(), SIZE as u64, 0) };
    if entry.is_null() {
        return Outcome::Lost;
    }
    // The verifier must see both bounds where the helper is called. Read anew, for to the compiler the
    // choice of the class has bounded it already, which the verifier of 6.12 has forgotten. And never
    // 0, which no packet and no snaplen has; `len != 0` proves nothing to that of 6.1.
    // SAFETY: a field of a live reference.
    let mut len = unsafe { (&raw const s.caplen).read_volatile() };
    if len < 2 {
        len = 1;
    }
    if len > (SIZE - HEADER_LEN) as u32 {
        len = (SIZE - HEADER_LEN) as u32;
    }
    // SAFETY: the entry has SIZE bytes, aligned to 8: the header and, by the bound above, `len`
    // bytes after it. It is submitted or discarded exactly once.
    unsafe {
        write_header::<L3>(skb, s, KIND_PACKET, len, entry.cast());
        if !skb.copy_to(entry.byte_add(HEADER_LEN), len) {
            bpf_ringbuf_discard(entry, u64::from(BPF_RB_NO_WAKEUP));
            return Outcome::CopyError;
        }
        bpf_ringbuf_submit(entry, wakeup(s, SIZE as u32));
    }
    Outcome::Submitted
}

/// Bytes of the ring that the reader has not given back.
#[inline(always)]
pub(crate) fn waiting() -> u64 {
    maps::EVENTS.query(u64::from(BPF_RB_AVAIL_DATA))
}

/// Word by word into the ring, as `RecordHeader` lays it out: put together on the stack it would be
/// slow (see [`crate::table`]).
///
/// # Safety
/// `to` has the eight words of a header.
#[inline(always)]
pub(crate) unsafe fn write_header<const L3: bool>(
    skb: Skb,
    s: &Scratch,
    kind: u8,
    caplen: u32,
    to: *mut u64,
) {
    let vlan = skb.vlan_present() != 0;
    let (tci, tpid) = if vlan {
        let tpid = u16::from_be(skb.vlan_proto() as u16);
        (u64::from(skb.vlan_tci() & 0xffff), u64::from(tpid))
    } else {
        (0, 0)
    };
    let link = u64::from(if L3 { LINK_IP } else { LINK_ETHERNET });
    let word = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    // SAFETY: as the caller promises.
    unsafe {
        to.write(
            ABI_VERSION as u64
                | u64::from(kind) << 16
                | u64::from(s.hook & 0xff) << 24
                | u64::from(caplen) << 32,
        );
        to.add(1).write(s.time_ns);
        to.add(2).write(s.taken);
        to.add(3).write(s.parity);
        to.add(4).write(word(s.tap, s.generation));
        to.add(5).write(word(skb.ifindex(), skb.len()));
        to.add(6).write(
            u64::from(s.gso_size & 0xffff)
                | u64::from(skb.gso_segs() & 0xffff) << 16
                | tci << 32
                | u64::from(s.direction & 0xff) << 48
                | u64::from(skb.pkt_type() & 0xff) << 56,
        );
        to.add(7)
            .write(tpid | link << 16 | u64::from(skb.ethertype()) << 32);
    }
}

const _: () = {
    assert!(offset_of!(RecordHeader, caplen) == 4 && offset_of!(RecordHeader, hook) == 3);
    assert!(offset_of!(RecordHeader, time_ns) == 8);
    assert!(offset_of!(RecordHeader, sessions) == 16);
    assert!(offset_of!(RecordHeader, parity) == 24);
    assert!(offset_of!(RecordHeader, tap) == 32 && offset_of!(RecordHeader, origlen) == 44);
    assert!(offset_of!(RecordHeader, gso_size) == 48 && offset_of!(RecordHeader, vlan_tci) == 52);
    assert!(offset_of!(RecordHeader, direction) == 54);
    assert!(offset_of!(RecordHeader, vlan_proto) == 56 && offset_of!(RecordHeader, link) == 58);
    assert!(offset_of!(RecordHeader, protocol) == 60);
};

/// The consumer looks by itself every few milliseconds; it is woken only when much is waiting. That is
/// asked once for many bytes, not with each record: a wake-up is an interrupt (1.5 us), and of a consumer
/// that is behind, each record would be one.
#[inline(always)]
fn wakeup(s: &mut Scratch, len: u32) -> u64 {
    s.unasked = s.unasked.wrapping_add(len);
    if u64::from(s.unasked) < maps::REMORA_ASK_BYTES.load() {
        return u64::from(BPF_RB_NO_WAKEUP);
    }
    s.unasked = 0;
    let waiting = waiting();
    s.is_tight = u32::from(waiting >= maps::REMORA_TIGHT_FROM.load());
    if waiting >= maps::REMORA_WAKE_BYTES.load() {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}
