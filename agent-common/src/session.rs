//! The session table: what the kernel side knows of one armed capture.

use crate::{filter::TypedFilter, program::Span};

/// Capture packets going into the target.
pub const DIRECTION_INGRESS: u8 = 1;
/// Capture packets coming out of the target.
pub const DIRECTION_EGRESS: u8 = 2;

/// One slot of the session table. Written by userspace while no tap has the slot's bit set, so a
/// program sees either no session or a whole one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC) from which on packets are no longer matched;
    /// `u64::MAX` for never.
    pub deadline_ns: u64,
    /// Packets that may be submitted in all; `u64::MAX` for any number.
    pub packet_limit: u64,
    /// Bytes of pcapng packet blocks ([`block_cost`]) that may be submitted in all; `u64::MAX`
    /// for any number.
    pub byte_limit: u64,
    /// Raised each time the slot is taken; its lowest bit is stamped on records.
    pub generation: u32,
    /// Bytes of the frame to keep (of the Ethernet frame that the file will hold), 1 to
    /// [`crate::SNAPLEN_MAX`].
    pub snaplen: u32,
    /// `DIRECTION_*` bits.
    pub directions: u8,
    /// `FILTER_*`.
    pub filter_kind: u8,
    pub reserved: [u8; 2],
    pub filter: TypedFilter,
    /// Program for packets that start with an Ethernet header.
    pub ethernet: Span,
    /// Program for packets that start with an IP header.
    pub ip: Span,
}

/// The typed filter decides.
pub const FILTER_TYPED: u8 = 0;
/// The programs decide; the typed filter is empty.
pub const FILTER_PROGRAM: u8 = 1;

const _: () = assert!(size_of::<Session>() == 216);

/// What a session has used of its limits, and of its share of a ring that is nearly full; one for all
/// CPUs, changed by atomic operations.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Packets submitted (or being submitted).
    pub packets: u64,
    /// Their [`block_cost`], summed.
    pub bytes: u64,
    /// 1 when userspace was told that a limit is reached.
    pub told: u64,
    /// Where in the ring the session's present share begins, see [`crate::share`].
    pub share_from: u64,
    /// Bytes that it has taken of that share.
    pub share_used: u64,
    pub reserved: [u64; 3],
}

const _: () = assert!(size_of::<Budget>() == 64);

/// Bytes that a packet of `caplen` bytes takes in the file at the most: the Enhanced Packet Block
/// with flags, drop count, packet id and end of options, and room for the comment that a GSO
/// packet gets (pcapng draft-05, section 4.3).
///
/// The kernel counts the byte limit in it, so a file never outgrows its limit.
#[must_use]
#[inline(always)]
pub const fn block_cost(caplen: u32, gso: bool) -> u64 {
    let fixed = 32 + 8 + 12 + 12 + 4;
    let comment = if gso { GSO_COMMENT_MAX } else { 0 };
    fixed + comment + ((caplen as u64 + 3) & !3)
}

/// Room for the comment option of a GSO packet, padding and option header included.
pub const GSO_COMMENT_MAX: u64 = 60;
