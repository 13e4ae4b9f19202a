//! A session's encoder: packets to pcapng blocks in the current batch.

use std::sync::{
    Arc,
    atomic::Ordering::Relaxed,
    mpsc::{SyncSender, TrySendError},
};

use remora_agent_common::{
    record::{HOOK_TCX_EGRESS, HOOK_TCX_INGRESS, LINK_IP},
    session::DIRECTION_INGRESS,
};
use remora_capture::{
    pcapng::{self, PacketDirection, PacketMeta},
    segment::{self, Gso},
    session::{StopReason, SuperPackets},
};

use super::memory::{BATCH_BYTES, Permit, Share};
use crate::{
    record::Packet,
    session::{BoundTap, Meter, Signal, Slot, TapHook},
};

/// Batches of one session that wait for its writer: 8 MiB, a quarter of a second at 32 MB/s.
pub const QUEUE_BATCHES: usize = 32;

/// Blocks on their way to the writer.
#[derive(Debug)]
pub struct Batch {
    pub blocks: Vec<u8>,
    pub packets: u64,
    /// Packet blocks: more than packets where super-packets were cut.
    pub packet_blocks: u64,
    pub permit: Permit,
}

/// What the writer is sent.
#[derive(Debug)]
pub enum ToWriter {
    Batch(Batch),
    /// The last: kernel counts are final.
    Finish(crate::session::KernelCounts),
}

/// Owned by the consumer while the session runs, then by whoever closes it.
#[derive(Debug)]
pub struct Lane {
    pub slot: Slot,
    pub generation: u32,
    snaplen: usize,
    super_packets: SuperPackets,
    taps: Vec<LaneTap>,
    /// UTC minus CLOCK_MONOTONIC, nanoseconds: one value for the whole file, so that its order is
    /// the kernel clock's.
    offset_ns: i64,
    meter: Arc<Meter>,
    /// Id of the next packet: counts every packet that matched within the limits, lost or not.
    next_id: u64,
    /// Packets lost or dropped since the last block.
    untold: u32,
    packet_limit: Option<u64>,
    batch: Option<Batch>,
    to_writer: SyncSender<ToWriter>,
    share: Share,
    signals: tokio::sync::mpsc::Sender<Signal>,
    signal: Option<StopReason>,
}

/// A tap of the session and its interface in the file.
#[derive(Debug)]
struct LaneTap {
    index: u32,
    generation: u32,
    hook: TapHook,
    interface_id: u32,
    /// The file's directions are for the interface's eyes, the record's for the pod's.
    swap: bool,
}

/// What a lane is made of.
#[derive(Debug)]
pub struct LaneParts {
    pub slot: Slot,
    pub generation: u32,
    pub snaplen: u32,
    pub super_packets: SuperPackets,
    pub offset_ns: i64,
    pub packet_limit: Option<u64>,
    pub meter: Arc<Meter>,
    pub to_writer: SyncSender<ToWriter>,
    pub share: Share,
    pub signals: tokio::sync::mpsc::Sender<Signal>,
}

impl Lane {
    /// Interfaces of the file are numbered as `taps` are.
    #[must_use]
    pub fn new(parts: LaneParts, taps: &[BoundTap]) -> Self {
        let LaneParts {
            slot,
            generation,
            snaplen,
            super_packets,
            offset_ns,
            packet_limit,
            meter,
            to_writer,
            share,
            signals,
        } = parts;
        let taps = (0..)
            .zip(taps)
            .map(|(interface_id, tap)| LaneTap {
                index: tap.id.index,
                generation: tap.id.generation,
                hook: tap.hook,
                interface_id,
                swap: tap.is_swapped(),
            })
            .collect();
        Self {
            slot,
            generation,
            snaplen: snaplen as usize,
            super_packets,
            taps,
            offset_ns,
            meter,
            next_id: 0,
            untold: 0,
            packet_limit,
            batch: None,
            to_writer,
            share,
            signals,
            signal: None,
        }
    }

    /// The lowest bit of the generation, as records carry it.
    #[must_use]
    pub fn parity(&self) -> bool {
        self.generation & 1 == 1
    }

    /// Packets taken out of the ring so far.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.meter.read.load(Relaxed)
    }

    /// Encodes a packet into the batch, or counts why not.
    pub fn packet(&mut self, packet: &Packet<'_>) {
        Meter::add(&self.meter.read, 1);
        if self.packet_limit.is_some_and(|limit| self.read() >= limit) {
            self.signal = Some(StopReason::Packets);
        }
        let header = &packet.header;
        let Some((interface_id, swap)) = self.interface(packet) else {
            Meter::add(&self.meter.stale, 1);
            self.drop_one();
            return;
        };
        if !self.has_room() {
            Meter::add(&self.meter.dropped_queue, 1);
            self.drop_one();
            return;
        }
        let time_ns = header.time_ns.saturating_add_signed(self.offset_ns);
        if self.meter.first_packet_ns.load(Relaxed) == 0 {
            self.meter.first_packet_ns.store(time_ns, Relaxed);
        }
        self.meter.last_packet_ns.store(time_ns, Relaxed);

        let frame = Frame::of(packet);
        let prefix = &frame.prefix[..frame.prefix_len];
        let origlen = header.origlen + frame.added;
        let ingress = (header.direction == DIRECTION_INGRESS) != swap;
        let gso = Gso {
            size: header.gso_size,
            segments: header.gso_segs,
        };
        let mut meta = PacketMeta {
            interface_id,
            time_ns,
            direction: if ingress {
                PacketDirection::Ingress
            } else {
                PacketDirection::Egress
            },
            packet_id: self.next_id,
            drop_count: u64::from(std::mem::take(&mut self.untold)),
            original_len: origlen,
            comment: None,
        };
        self.next_id += 1;
        // `has_room` made sure of it.
        let Some(batch) = &mut self.batch else {
            return;
        };
        batch.packets += 1;
        let mut encode = |meta: &PacketMeta<'_>, prefix: &[u8], data: &[u8]| {
            let prefix = &prefix[..prefix.len().min(self.snaplen)];
            let data = &data[..data.len().min(self.snaplen - prefix.len())];
            pcapng::encode_packet(&mut batch.blocks, meta, prefix, data);
            batch.packet_blocks += 1;
        };
        if self.super_packets == SuperPackets::Segmented
            && let Some(cut) = segment::cut(prefix, frame.data, origlen, gso)
        {
            cut.each(|headers, payload, original_len| {
                meta.original_len = original_len;
                encode(&meta, headers, payload);
                // Told once.
                meta.drop_count = 0;
            });
            return;
        }
        let comment = (gso.size != 0).then(|| pcapng::gso_comment(gso.segments, gso.size));
        meta.comment = comment.as_deref();
        encode(&meta, prefix, frame.data);
    }

    /// The kernel lost packets of this session.
    pub fn gap(&mut self, packets: u32) {
        self.next_id += u64::from(packets);
        self.untold = self.untold.saturating_add(packets);
    }

    /// A record that was this session's does not parse.
    pub fn malformed(&mut self) {
        Meter::add(&self.meter.read, 1);
        Meter::add(&self.meter.malformed, 1);
        self.drop_one();
    }

    /// The kernel says that a limit is reached.
    pub fn limit_reached(&mut self) {
        self.signal
            .get_or_insert(if self.packet_limit.is_some_and(|l| self.read() >= l) {
                StopReason::Packets
            } else {
                StopReason::FileBytes
            });
    }

    /// Hands over what there is, without waiting; with no room for another batch it is filled
    /// further first.
    pub fn flush(&mut self) {
        self.tell_signal();
        if self
            .batch
            .as_ref()
            .is_some_and(|batch| batch.blocks.len() >= BATCH_BYTES || self.share.has_more())
        {
            self.hand_over();
        }
    }

    fn tell_signal(&mut self) {
        if let Some(reason) = self.signal {
            let signal = Signal {
                slot: self.slot,
                generation: self.generation,
                reason,
            };
            if self.signals.try_send(signal).is_ok() {
                self.signal = None;
                // Told once; the session ends by it.
                self.packet_limit = None;
            }
        }
    }

    fn hand_over(&mut self) {
        let Some(batch) = self.batch.take() else {
            return;
        };
        match self.to_writer.try_send(ToWriter::Batch(batch)) {
            Ok(()) => {}
            Err(TrySendError::Full(ToWriter::Batch(batch))) => self.batch = Some(batch),
            // The writer is gone only if it panicked: its packets are dropped, and counted.
            Err(TrySendError::Disconnected(ToWriter::Batch(batch))) => {
                Meter::add(&self.meter.dropped_io, batch.packets);
            }
            Err(_) => {}
        }
    }

    /// The session is over: hands over the rest, waiting for the writer, then the kernel's counts.
    pub fn finish(mut self, kernel: crate::session::KernelCounts) {
        if let Some(batch) = self.batch.take() {
            let packets = batch.packets;
            if self.to_writer.send(ToWriter::Batch(batch)).is_err() {
                Meter::add(&self.meter.dropped_io, packets);
            }
        }
        if self.to_writer.send(ToWriter::Finish(kernel)).is_err() {
            tracing::error!(slot = %self.slot, "the writer ended before its session");
        }
    }

    fn drop_one(&mut self) {
        self.next_id += 1;
        self.untold = self.untold.saturating_add(1);
    }

    /// The file's interface for a packet, if its tap is the session's, and is still bound as it
    /// was.
    fn interface(&self, packet: &Packet<'_>) -> Option<(u32, bool)> {
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
        Some((tap.interface_id, tap.swap))
    }

    /// Makes sure of a batch that takes one more packet.
    fn has_room(&mut self) -> bool {
        if self
            .batch
            .as_ref()
            .is_some_and(|batch| batch.blocks.len() >= BATCH_BYTES)
        {
            self.hand_over();
        }
        match &self.batch {
            Some(batch) => batch.blocks.len() < BATCH_BYTES,
            None => {
                self.batch = self.share.permit().map(|permit| Batch {
                    blocks: self.share.buffer(),
                    packets: 0,
                    packet_blocks: 0,
                    permit,
                });
                self.batch.is_some()
            }
        }
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
