//! A session's way from the consumer to its writer: packets into the current batch.

use std::sync::{
    Arc,
    atomic::Ordering::Relaxed,
    mpsc::{SyncSender, TrySendError},
};

use remora_capture::session::StopReason;

use super::{
    encoder::{Encoder, Marks},
    memory::{BATCH_BYTES, Permit, Share},
};
use crate::{
    record::Packet,
    session::{Meter, Signal, Slot},
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
    encoder: Encoder,
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

/// What a lane is made of.
#[derive(Debug)]
pub struct LaneParts {
    pub slot: Slot,
    pub generation: u32,
    pub encoder: Encoder,
    pub packet_limit: Option<u64>,
    pub meter: Arc<Meter>,
    pub to_writer: SyncSender<ToWriter>,
    pub share: Share,
    pub signals: tokio::sync::mpsc::Sender<Signal>,
}

impl Lane {
    #[must_use]
    pub fn new(parts: LaneParts) -> Self {
        let LaneParts {
            slot,
            generation,
            encoder,
            packet_limit,
            meter,
            to_writer,
            share,
            signals,
        } = parts;
        Self {
            slot,
            generation,
            encoder,
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
        let Some(interface) = self.encoder.interface(packet) else {
            Meter::add(&self.meter.stale, 1);
            self.drop_one();
            return;
        };
        if !self.has_room() {
            Meter::add(&self.meter.dropped_queue, 1);
            self.drop_one();
            return;
        }
        let time_ns = self.encoder.utc(packet.header.time_ns);
        self.meter.packet_at(time_ns);
        let marks = Marks {
            packet_id: Some(self.next_id),
            drop_count: u64::from(std::mem::take(&mut self.untold)),
            comment: None,
        };
        self.next_id += 1;
        // `has_room` made sure of it.
        if let Some(batch) = &mut self.batch {
            batch.packet_blocks +=
                self.encoder
                    .encode(&mut batch.blocks, packet, interface, &marks);
            batch.packets += 1;
        }
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
