//! The look-back ring of a tap: the last packets, in the kernel, overwriting the oldest.
//!
//! A ring is an array map of 1 to [`PAGES_MAX`] pages. `LOOK_BACK` has it by its slot, and
//! `LOOK_BACK_TAPS` a tap's slot. A record starts at a *position*: the bytes ever written before it. It lies in one piece:
//!
//! ```text
//! page (position / PAGE_BYTES) % pages, at HEAD_BYTES + position % PAGE_BYTES
//!
//! 0         HEAD_BYTES                       + PAGE_BYTES       + RECORD_MAX
//! +---------+----------+--------+------------+------------------+
//! | head    | record   | record | record …   | … runs over here |
//! +---------+----------+--------+------------+------------------+
//!   page 0's
//! ```
//! The record is a [`crate::record`] header of kind `KIND_LOOK_BACK` and the packet's bytes, padded
//! to 8. Its `sessions` are those that were armed when the packet came (they have it already, or did
//! not want it), `parity` is its position xor the ring's cookie, written last: what lies elsewhere,
//! is not finished, or was made up by the one who sent the packet is no record. `tap` is the
//! flow's hash, `tap_generation` the number of packets that the flow cutoff left out right before
//! this one.
//!
//! It is read while it is written: a record is whole if the ring's position, read after the record,
//! is at most its own and the ring's capacity.

use crate::TAP_SLOTS;

/// Bytes of a page in which records start.
pub const PAGE_BYTES: u32 = 1 << PAGE_SHIFT;
/// `PAGE_BYTES` as a power of two.
pub const PAGE_SHIFT: u32 = 17;
/// Longest record, header included.
pub const RECORD_MAX: u32 = 16 << 10;
/// Size of [`RingHead`].
pub const HEAD_BYTES: u32 = 128;
/// Bytes of a page's map value.
pub const PAGE_VALUE: usize = (HEAD_BYTES + PAGE_BYTES + RECORD_MAX) as usize;
/// Largest ring, in pages.
pub const PAGES_MAX: u32 = 64;

/// Slots for rings; slot 0 is none.
pub const RING_SLOTS: u32 = TAP_SLOTS;

/// Flows that are followed at a time, of all rings together.
pub const FLOWS: u32 = 1 << 14;

/// At the start of a ring's page 0. What is not a counter is written by user space before the ring
/// is in use.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingHead {
    /// Bytes of records begun so far.
    pub position: u64,
    /// A random number.
    pub cookie: u64,
    pub pages: u64,
    /// Bytes of each flow's direction after which its packets are left out; `u64::MAX` for never.
    pub cutoff: u64,
    /// Silence after which a flow's bytes are counted anew, in nanoseconds.
    pub pause_ns: u64,
    /// Bytes kept of a packet, 1 to [`RECORD_MAX`] less the header.
    pub snaplen: u32,
    pub reserved: u32,
    pub packets: u64,
    /// Left out by the flow cutoff.
    pub cut_packets: u64,
    pub cut_bytes: u64,
    /// Packets whose bytes could not be read.
    pub copy_errors: u64,
    /// The position at which a program found that the ring had gone once around while it wrote.
    pub overrun: u64,
    pub reserved_end: [u64; 5],
}

const _: () = assert!(size_of::<RingHead>() == HEAD_BYTES as usize);

/// One direction of a flow, in a table of [`FLOWS`]; another flow takes its place when it has the
/// same index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowState {
    /// Hash, tap, its generation, and direction: whose place it is. 0: nobody's.
    pub tag: u64,
    pub last_ns: u64,
    /// Bytes since it began, or since its last silence.
    pub bytes: u64,
    /// Packets left out since its last record.
    pub cut_packets: u64,
}

const _: () = assert!(size_of::<FlowState>() == 32);

/// A flow's place in the table. Its tap and direction choose it, too.
#[must_use]
#[inline(always)]
pub const fn flow_index(hash: u32, tap: u32, direction: u32) -> u32 {
    (hash ^ tap.wrapping_mul(0x9e37_79b1) ^ direction << 7) & (FLOWS - 1)
}

/// Whose place it is: never 0, for there is no tap 0.
#[must_use]
#[inline(always)]
pub const fn flow_tag(hash: u32, tap: u32, tap_generation: u32, direction: u32) -> u64 {
    hash as u64
        | ((tap & (TAP_SLOTS - 1)) as u64) << 32
        | ((tap_generation & 0x3_ffff) as u64) << 44
        | ((direction & 3) as u64) << 62
}

const _: () = assert!(TAP_SLOTS == 1 << 12);
