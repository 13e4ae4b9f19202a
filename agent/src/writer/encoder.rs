//! Packets to pcapng blocks, as one session's file has them.

use remora_agent_common::{
    record::{HOOK_TCX_EGRESS, HOOK_TCX_INGRESS, LINK_IP},
    session::DIRECTION_INGRESS,
};
use remora_capture::{
    pcapng::{self, PacketDirection, PacketMeta},
    segment::{self, Gso},
    session::SuperPackets,
};

use crate::{
    record::Packet,
    session::{BoundTap, Takes, TapHook},
};

/// What all packets of a file have in common.
#[derive(Clone, Debug)]
pub struct Encoder {
    snaplen: usize,
    super_packets: SuperPackets,
    taps: Vec<FileTap>,
    /// UTC minus CLOCK_MONOTONIC, nanoseconds: one value for the whole file, so that its order is
    /// the kernel clock's.
    offset_ns: i64,
}

/// A tap of the session and its interface in the file.
#[derive(Clone, Debug)]
struct FileTap {
    index: u32,
    generation: u32,
    hook: TapHook,
    interface_id: u32,
    /// The file's directions are for the interface's eyes, the record's for the pod's.
    swap: bool,
    takes: Takes,
}

/// The file's interface of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileInterface {
    id: u32,
    swap: bool,
    takes: Takes,
}

impl FileInterface {
    /// Packets that go this way are not taken there, but elsewhere.
    pub(super) fn leaves_to_others(self, direction: PacketDirection) -> bool {
        self.takes == Takes::Sent && direction == PacketDirection::Ingress
    }
}

/// What a block says beside the packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Marks<'a> {
    pub packet_id: Option<u64>,
    pub drop_count: u64,
    /// Before what is said of the packet itself.
    pub comment: Option<&'a str>,
}

impl Encoder {
    /// Interfaces of the file are numbered as `taps` are.
    #[must_use]
    pub fn new(
        snaplen: u32,
        super_packets: SuperPackets,
        offset_ns: i64,
        taps: &[BoundTap],
    ) -> Self {
        let taps = (0..)
            .zip(taps)
            .map(|(interface_id, tap)| FileTap {
                index: tap.id.index,
                generation: tap.id.generation,
                hook: tap.hook,
                interface_id,
                swap: tap.is_swapped(),
                takes: tap.takes,
            })
            .collect();
        Self {
            snaplen: snaplen as usize,
            super_packets,
            taps,
            offset_ns,
        }
    }

    /// UTC of a kernel time, nanoseconds.
    #[must_use]
    pub fn utc(&self, time_ns: u64) -> u64 {
        time_ns.saturating_add_signed(self.offset_ns)
    }

    /// The file's interface for a packet, if its tap is the session's, and is still bound as it
    /// was.
    #[must_use]
    pub fn interface(&self, packet: &Packet<'_>) -> Option<FileInterface> {
        let header = &packet.header;
        let hook = match header.hook {
            HOOK_TCX_INGRESS | HOOK_TCX_EGRESS => TapHook::Tc,
            _ => TapHook::Cgroup,
        };
        // A cgroup's packet names the innermost tap, which can be another session's; a session has
        // at most one cgroup tap.
        let tap = self.taps.iter().find(|tap| {
            tap.hook == hook
                && (hook == TapHook::Cgroup
                    || (tap.index == header.tap && tap.generation == header.tap_generation))
        })?;
        Some(FileInterface {
            id: tap.interface_id,
            swap: tap.swap,
            takes: tap.takes,
        })
    }

    /// As the file says it.
    #[must_use]
    pub fn direction(packet: &Packet<'_>, interface: FileInterface) -> PacketDirection {
        if (packet.header.direction == DIRECTION_INGRESS) == interface.swap {
            PacketDirection::Egress
        } else {
            PacketDirection::Ingress
        }
    }

    /// Appends a packet's block, or those of its segments, and tells how many. A packet without an
    /// id, by which its segments would be known as one packet's, stays whole.
    pub fn encode(
        &self,
        blocks: &mut Vec<u8>,
        packet: &Packet<'_>,
        interface: FileInterface,
        marks: &Marks<'_>,
    ) -> u64 {
        let header = &packet.header;
        let frame = Frame::of(packet);
        let prefix = &frame.prefix[..frame.prefix_len];
        let gso = Gso {
            size: header.gso_size,
            segments: header.gso_segs,
        };
        let mut meta = PacketMeta {
            interface_id: interface.id,
            time_ns: self.utc(header.time_ns),
            direction: Self::direction(packet, interface),
            packet_id: marks.packet_id,
            drop_count: marks.drop_count,
            original_len: header.origlen.saturating_add(frame.added),
            comment: marks.comment,
        };
        let mut append = |meta: &PacketMeta<'_>, prefix: &[u8], data: &[u8]| {
            let prefix = &prefix[..prefix.len().min(self.snaplen)];
            let data = &data[..data.len().min(self.snaplen - prefix.len())];
            pcapng::encode_packet(blocks, meta, prefix, data);
        };
        if self.super_packets == SuperPackets::Segmented
            && marks.packet_id.is_some()
            && let Some(cut) = segment::cut(prefix, frame.data, meta.original_len, gso)
        {
            cut.each(|headers, payload, original_len| {
                meta.original_len = original_len;
                append(&meta, headers, payload);
                // Told once.
                meta.drop_count = 0;
            });
            return cut.segments() as u64;
        }
        let gso = (gso.size != 0).then(|| pcapng::gso_comment(gso.segments, gso.size));
        let both = marks
            .comment
            .zip(gso.as_deref())
            .map(|(first, second)| format!("{first}; {second}"));
        meta.comment = both.as_deref().or(marks.comment).or(gso.as_deref());
        append(&meta, prefix, frame.data);
        1
    }

    /// The frame that the file would hold of a packet, were it not cut at the snaplen, and its length
    /// on the wire.
    #[must_use]
    pub fn frame(packet: &Packet<'_>) -> (Vec<u8>, u32) {
        let frame = Frame::of(packet);
        let mut bytes = frame.prefix[..frame.prefix_len].to_vec();
        bytes.extend_from_slice(frame.data);
        (bytes, packet.header.origlen.saturating_add(frame.added))
    }
}

const MACS: usize = 12;
/// MAC addresses and EtherType, which an IP packet gets.
const ETHERNET_HEADER: usize = MACS + 2;
const VLAN_TAG: usize = 4;
const PREFIX_MAX: usize = MACS + VLAN_TAG;

/// A packet as the file holds it: a prefix, then bytes of its own.
struct Frame<'a> {
    prefix: [u8; PREFIX_MAX],
    prefix_len: usize,
    data: &'a [u8],
    /// Bytes that the frame is longer than the packet was.
    added: u32,
}

impl<'a> Frame<'a> {
    /// - An IP packet gets a synthetic Ethernet header: addresses of zeroes, and its EtherType.
    /// - A VLAN tag that the kernel keeps outside of the bytes is put back (IEEE 802.1Q).
    fn of(packet: &Packet<'a>) -> Self {
        let header = &packet.header;
        let mut frame = Self {
            prefix: [0; PREFIX_MAX],
            prefix_len: 0,
            data: packet.data,
            added: 0,
        };
        if header.link == LINK_IP {
            frame.prefix[MACS..ETHERNET_HEADER].copy_from_slice(&header.protocol.to_be_bytes());
            frame.prefix_len = ETHERNET_HEADER;
            frame.added = ETHERNET_HEADER as u32;
        } else if header.vlan_proto != 0 {
            frame.added = VLAN_TAG as u32;
            // A shorter packet is cut before the tag.
            if let Some((macs, rest)) = packet.data.split_at_checked(MACS) {
                frame.prefix[..MACS].copy_from_slice(macs);
                frame.prefix[MACS..MACS + 2].copy_from_slice(&header.vlan_proto.to_be_bytes());
                frame.prefix[MACS + 2..].copy_from_slice(&header.vlan_tci.to_be_bytes());
                frame.prefix_len = PREFIX_MAX;
                frame.data = rest;
            }
        }
        frame
    }
}
