//! The look-back ring of a tap: the last packets, in the kernel, overwriting the oldest.
//!
//! A ring is an array map of 1 to [`PAGES_MAX`] pages. `LOOK_BACK` has it by its slot, and
//! `LOOK_BACK_TAPS` a tap's slot, with [`HEADERS_ONLY`]. A record starts at a *position*: the bytes ever
//! written before it. It lies in one piece:
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

use crate::{
    TAP_SLOTS,
    filter::{ETHERTYPE_IPV4, has_ports},
    record::HEADER_LEN,
};

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
/// Beside a tap's slot: its packets are recorded up to the end of their headers
/// ([`crate::headers`]).
pub const HEADERS_ONLY: u32 = 1 << 31;

const _: () = assert!(RING_SLOTS <= HEADERS_ONLY);

/// Most bytes that are kept of a packet.
pub const LOOK_BACK_CAPLEN_MAX: u32 = RECORD_MAX - HEADER_LEN as u32;

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
    /// Records begun.
    pub packets: u64,
    /// Left out by the flow cutoff.
    pub cut_packets: u64,
    pub cut_bytes: u64,
    /// Records of packets whose bytes could not be read; they are among `packets`.
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
    /// When its last packet came: CLOCK_MONOTONIC_COARSE, nanoseconds.
    pub last_ns: u64,
    /// Bytes since it began, or since its last silence.
    pub bytes: u64,
    /// Packets left out since its last record.
    pub cut_packets: u64,
}

const _: () = assert!(size_of::<FlowState>() == 32);

/// Bytes of a packet, from its network header on, that tell its flow: of IPv6, and of all others.
pub const FLOW_BYTES_IPV6: usize = 48;
/// See [`FLOW_BYTES_IPV6`].
pub const FLOW_BYTES: usize = 24;

/// Which flow a packet belongs to: addresses, protocol and ports in their order, so that each
/// direction is a flow. `words` are the first bytes from the network header on, as they lie in memory.
/// An IPv4 packet with options, and a fragment, count for their addresses and protocol alone; what is
/// no IP for its 9th to 24th byte (of ARP: who says it).
///
/// Not the kernel's own hash (`bpf_get_hash_recalc`): to dissect a UDP packet and to hash it safely
/// took half of the samples (cpu-clock, Linux 6.18) that recording took. `key` is the ring's random
/// number, so that nobody can know which flows share a place.
#[must_use]
#[inline(always)]
pub const fn flow_hash(ethertype: u16, words: &[u64; FLOW_BYTES / 8], key: u64) -> u32 {
    let (first, second, third) = (
        u64::from_be(words[0]),
        u64::from_be(words[1]),
        u64::from_be(words[2]),
    );
    if ethertype != ETHERTYPE_IPV4 {
        return fold(mix(mix(key, second), third));
    }
    let protocol = (second >> 48) as u8;
    let is_plain = first >> 56 == 0x45 && first & 0x3fff == 0 && has_ports(protocol);
    let ports = if is_plain { third & 0xffff_ffff } else { 0 };
    let addresses = second << 32 | third >> 32;
    fold(mix(mix(key, addresses), (protocol as u64) << 32 | ports))
}

/// The same of an IPv6 packet; behind an extension header no ports are looked for.
#[must_use]
#[inline(always)]
pub const fn flow_hash_ipv6(words: &[u64; FLOW_BYTES_IPV6 / 8], key: u64) -> u32 {
    let protocol = (u64::from_be(words[0]) >> 8) as u8;
    let ports = if has_ports(protocol) {
        u64::from_be(words[5]) >> 32
    } else {
        0
    };
    let source = mix(mix(key, words[1]), words[2]);
    let addresses = mix(mix(source, words[3]), words[4]);
    fold(mix(addresses, (protocol as u64) << 32 | ports))
}

#[inline(always)]
const fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 29
}

#[inline(always)]
const fn fold(hash: u64) -> u32 {
    (hash >> 32 ^ hash) as u32
}

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

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: u64 = 0x1234_5678_9abc_def1;

    fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
        core::array::from_fn(|i| {
            u64::from_ne_bytes(bytes[i * 8..i * 8 + 8].try_into().unwrap_or_default())
        })
    }

    /// `header`: version and length, then the fragment field's second byte, protocol, last byte of
    /// the source's and of the destination's address, of both ports.
    fn ipv4(header: [u8; 7]) -> u32 {
        let [first, fragment, protocol, source, destination, from, to] = header;
        let mut bytes = [9; FLOW_BYTES];
        (bytes[0], bytes[6], bytes[7], bytes[9]) = (first, 0, fragment, protocol);
        (bytes[15], bytes[19]) = (source, destination);
        (bytes[21], bytes[23]) = (from, to);
        flow_hash(ETHERTYPE_IPV4, &words(&bytes), KEY)
    }

    #[test]
    fn each_part_of_a_flow_makes_another_and_nothing_else_does() {
        let flow = ipv4([0x45, 0, 17, 1, 2, 3, 4]);
        assert_eq!(flow, ipv4([0x45, 0, 17, 1, 2, 3, 4]));
        for other in [
            [0x45, 0, 6, 1, 2, 3, 4],
            [0x45, 0, 17, 9, 2, 3, 4],
            [0x45, 0, 17, 1, 9, 3, 4],
            [0x45, 0, 17, 1, 2, 9, 4],
            [0x45, 0, 17, 1, 2, 3, 9],
            [0x45, 0, 17, 2, 1, 4, 3],
        ] {
            assert_ne!(flow, ipv4(other), "{other:?}");
        }
    }

    #[test]
    fn what_lies_where_ports_would_be_tells_nothing_of_options_fragments_and_icmp() {
        for [first, fragment, protocol] in [[0x46, 0, 17], [0x45, 1, 17], [0x45, 0, 1]] {
            let flow = |port| ipv4([first, fragment, protocol, 1, 2, port, port]);
            assert_eq!(flow(3), flow(4));
            assert_ne!(flow(3), ipv4([first, fragment, protocol, 1, 9, 3, 3]));
        }
    }

    #[test]
    fn of_ipv6_addresses_protocol_and_ports_tell() {
        let flow = |at: usize| {
            let mut bytes = [0; FLOW_BYTES_IPV6];
            bytes[6] = 17;
            if at != 0 {
                bytes[at] ^= 5;
            }
            flow_hash_ipv6(&words(&bytes), KEY)
        };
        for same in [1, 2, 4, 5, 7, 44, 47] {
            assert_eq!(flow(0), flow(same), "byte {same}");
        }
        for other in 8..44 {
            assert_ne!(flow(0), flow(other), "byte {other}");
        }
    }
}
