//! Records of the ring buffer: a header, then for a packet its bytes.
//!
//! ```text
//! 0       2    3    4          8                16               24               32
//! +-------+----+----+----------+----------------+----------------+----------------+
//! | abi   |kind|hook| caplen   | time_ns        | sessions       | parity         |
//! +-------+----+----+----------+----------------+----------------+----------------+
//! 32         36         40         44         48       50       52       54   55 56
//! +----------+----------+----------+----------+--------+--------+--------+----+----+
//! | tap      | tap gen. | ifindex  | origlen  |gso_size|gso_segs|vlan_tci|dir |pkt |
//! +----------+----------+----------+----------+--------+--------+--------+----+----+
//! 56       58   59  60       62       64
//! +--------+----+---+--------+--------+--------------------------------------------+
//! |vlan_pr.|link| - |protocol| -      | caplen bytes, then padding to the size class|
//! +--------+----+---+--------+--------+--------------------------------------------+
//! ```
//! All in the byte order of the machine.

/// A packet.
pub const KIND_PACKET: u8 = 1;
/// Losses of one session on one CPU, told in the ring's order before its next packet: `sessions`
/// has the one bit, `origlen` is the number of packets.
pub const KIND_GAP: u8 = 2;
/// A session's packet or byte limit is reached: `sessions` has the one bit.
pub const KIND_LIMIT: u8 = 3;
/// A packet in a look-back ring, see [`crate::look_back`].
pub const KIND_LOOK_BACK: u8 = 4;

pub const HOOK_TCX_INGRESS: u8 = 1;
pub const HOOK_TCX_EGRESS: u8 = 2;
pub const HOOK_CGROUP_INGRESS: u8 = 3;
pub const HOOK_CGROUP_EGRESS: u8 = 4;

/// Bytes start with an Ethernet header.
pub const LINK_ETHERNET: u8 = 0;
/// Bytes start with an IP header; the writer puts a synthetic Ethernet header before it.
pub const LINK_IP: u8 = 1;

/// Length of the synthetic Ethernet header.
pub const ETHERNET_HEADER: u32 = 14;

/// See the module's picture.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHeader {
    /// [`crate::ABI_VERSION`].
    pub abi: u16,
    /// `KIND_*`.
    pub kind: u8,
    /// `HOOK_*`.
    pub hook: u8,
    /// Bytes of the packet that follow the header.
    pub caplen: u32,
    /// `bpf_ktime_get_ns`: CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Slots of the sessions that the packet belongs to.
    pub sessions: u64,
    /// For each bit of `sessions`, the lowest bit of that session's generation. A slot is used
    /// again only after the ring was drained, so one bit tells the two apart.
    pub parity: u64,
    /// Index of the tap.
    pub tap: u32,
    pub tap_generation: u32,
    /// Interface the packet was seen on (inside its own network namespace for cgroup hooks).
    pub ifindex: u32,
    /// Length of the packet as it was seen (from where its bytes start).
    pub origlen: u32,
    /// Payload bytes of each segment of a GSO super-packet, or 0.
    pub gso_size: u16,
    pub gso_segs: u16,
    /// Tag control information of a VLAN tag kept outside the bytes; valid if `vlan_proto` != 0.
    pub vlan_tci: u16,
    /// `session::DIRECTION_*`, as the target sees it.
    pub direction: u8,
    /// `skb->pkt_type` (linux/if_packet.h: 0 host, 1 broadcast, 2 multicast, 3 other, 4 outgoing).
    pub packet_type: u8,
    /// TPID of the tag in host byte order, or 0.
    pub vlan_proto: u16,
    /// `LINK_*`.
    pub link: u8,
    pub reserved: u8,
    /// EtherType of the packet (`skb->protocol`) in host byte order.
    pub protocol: u16,
    pub reserved_end: [u8; 2],
}

/// Bytes of the header.
pub const HEADER_LEN: usize = 64;

const _: () = assert!(size_of::<RecordHeader>() == HEADER_LEN);

/// Sizes of ring records, header included. A packet takes the smallest that holds it; the largest
/// holds a GSO packet of 64 KiB with its link header.
pub const SIZE_CLASSES: [usize; 6] = [192, 512, 1600, 4096, 16_384, 66_048];

/// Bytes of the record of a packet of which `caplen` bytes are kept, [`CAPLEN_MAX`] at the most.
#[inline(always)]
#[must_use]
pub const fn record_bytes(caplen: u32) -> u32 {
    let len = caplen as usize + HEADER_LEN;
    // Not a loop: to the verifier that is more work.
    let class = if len <= SIZE_CLASSES[0] {
        SIZE_CLASSES[0]
    } else if len <= SIZE_CLASSES[1] {
        SIZE_CLASSES[1]
    } else if len <= SIZE_CLASSES[2] {
        SIZE_CLASSES[2]
    } else if len <= SIZE_CLASSES[3] {
        SIZE_CLASSES[3]
    } else if len <= SIZE_CLASSES[4] {
        SIZE_CLASSES[4]
    } else {
        SIZE_CLASSES[5]
    };
    class as u32
}

/// Most bytes of a packet that a record holds.
pub const CAPLEN_MAX: u32 = (SIZE_CLASSES[5] - HEADER_LEN) as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_takes_the_smallest_class_that_holds_it() {
        for caplen in 1..=CAPLEN_MAX {
            let len = caplen as usize + HEADER_LEN;
            let smallest = SIZE_CLASSES.into_iter().find(|class| *class >= len);
            assert_eq!(Some(record_bytes(caplen) as usize), smallest);
        }
    }
}
