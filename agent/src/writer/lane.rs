//! A session's way from the consumer to its writer: packets into the current batch.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
    mpsc::{SyncSender, TrySendError},
};

use remora_capture::session::StopReason;

use super::{
    encoder::{Encoder, Marks},
    memory::{BATCH_BYTES, Permit, Share},
    patience::Patience,
};
use crate::{
    record::Packet,
    session::{Meter, Signal, Slot},
};

/// Batches of one session that wait for its writer: 8 MiB, a quarter of a second at 32 MB/s.
pub const QUEUE_BATCHES: usize = 32;
/// Pauses of the reader after which a writer that has taken nothing is stuck, and no longer waited for.
pub(super) const STUCK: u32 = 8;

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
    /// Id of its capture.
    pub(super) capture: [u64; 2],
    /// Records before this position of the ring are not its own.
    pub(super) from: u64,
    encoder: Encoder,
    meter: Arc<Meter>,
    /// Id of the next packet: counts every packet that matched within the limits, lost or not.
    next_id: u64,
    /// What an agent before this one did with the next packets.
    done: Option<Done>,
    /// Packets that went into batches.
    handed: u64,
    /// Packets lost or dropped since the last block.
    untold: u32,
    packet_limit: Option<u64>,
    batch: Option<Batch>,
    to_writer: SyncSender<ToWriter>,
    share: Share,
    /// Pauses of the reader since the writer last had room.
    waited: u32,
    signals: tokio::sync::mpsc::Sender<Signal>,
    signal: Option<StopReason>,
}

/// Packets that an agent read and wrote and could not say so before it died; they are read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Those with an id below this one: each is in the file, or was dropped, which the packet after
    /// it tells.
    pub until: u64,
    /// Packets that were in the file then.
    pub written: u64,
}

/// Where a lane begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneStart {
    /// Id of its capture.
    pub capture: [u64; 2],
    /// Where its records begin in the ring; those before it are of whoever had its slot before.
    pub from: u64,
    pub next_id: u64,
    /// Packets missing before the next one that no packet has told.
    pub untold: u32,
    pub done: Option<Done>,
}

/// What a lane is made of.
#[derive(Debug)]
pub struct LaneParts {
    pub slot: Slot,
    pub generation: u32,
    pub start: LaneStart,
    pub encoder: Encoder,
    pub packet_limit: Option<u64>,
    pub meter: Arc<Meter>,
    pub to_writer: SyncSender<ToWriter>,
    pub share: Share,
    pub signals: tokio::sync::mpsc::Sender<Signal>,
}

#[cfg(test)]
impl LaneParts {
    /// A session of all that one tap sees, whole.
    pub(super) fn of_a_tap(
        tap: crate::session::BoundTap,
        start: LaneStart,
        meter: &Arc<Meter>,
        to_writer: SyncSender<ToWriter>,
    ) -> Self {
        Self {
            slot: Slot(0),
            generation: 1,
            start,
            encoder: Encoder::new(262_144, Default::default(), 0, &[tap]),
            packet_limit: None,
            meter: Arc::clone(meter),
            to_writer,
            share: super::memory::Memory::default().share(),
            signals: crate::session::driver::signals().0,
        }
    }
}

impl Lane {
    #[must_use]
    pub fn new(parts: LaneParts) -> Self {
        let LaneParts {
            slot,
            generation,
            start,
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
            capture: start.capture,
            from: start.from,
            encoder,
            meter,
            next_id: start.next_id,
            done: start.done,
            handed: 0,
            untold: start.untold,
            packet_limit,
            batch: None,
            to_writer,
            share,
            waited: 0,
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
        self.meter.taken()
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// What was put into batches; [`Meter::settled`] comes up to it.
    pub(super) fn handed(&self) -> (Arc<Meter>, u64) {
        (Arc::clone(&self.meter), self.handed)
    }

    /// The next packet was handled by an agent before this one.
    fn is_done(&mut self) -> bool {
        let Some(Done { until, written }) = self.done else {
            return false;
        };
        if self.next_id < until {
            return true;
        }
        // All of those were read again: what is not in the file was dropped for lack of room.
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let Meter {
            read,
            malformed,
            stale,
            dropped_io,
            dropped_queue,
            ..
        } = &*self.meter;
        let ended = written + count(malformed) + count(stale) + count(dropped_io);
        dropped_queue.store(count(read).saturating_sub(ended), Relaxed);
        self.done = None;
        false
    }

    /// Encodes a packet into the batch, or counts why not. Waits for its writer as far as the reader's patience goes.
    pub(super) fn packet(&mut self, packet: &Packet<'_>, patience: &mut Patience) {
        let is_done = self.is_done();
        Meter::add(&self.meter.read, 1);
        if self.packet_limit.is_some_and(|limit| self.read() >= limit) {
            self.signal = Some(StopReason::Packets);
        }
        let Some(interface) = self.encoder.interface(packet) else {
            Meter::add(&self.meter.stale, 1);
            self.drop_one();
            return;
        };
        if is_done {
            self.next_id += 1;
            return;
        }
        if !self.comes_to_room(patience) {
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
        // `comes_to_room` made sure of it.
        if let Some(batch) = &mut self.batch {
            batch.packet_blocks +=
                self.encoder
                    .encode(&mut batch.blocks, packet, interface, &marks);
            batch.packets += 1;
            self.handed += 1;
        }
    }

    /// The kernel lost packets of this session.
    pub fn gap(&mut self, packets: u32) {
        let is_told = self.is_done();
        self.next_id += u64::from(packets);
        if !is_told {
            self.untold = self.untold.saturating_add(packets);
        }
    }

    /// A record that was this session's does not parse.
    pub fn malformed(&mut self) {
        self.is_done();
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
                Meter::add(&self.meter.settled, batch.packets);
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
                Meter::add(&self.meter.settled, packets);
            }
        }
        if self.to_writer.send(ToWriter::Finish(kernel)).is_err() {
            tracing::error!(slot = %self.slot, "the writer ended before its session");
        }
    }

    fn drop_one(&mut self) {
        let is_told = self.done.is_some_and(|done| self.next_id < done.until);
        self.next_id += 1;
        if !is_told {
            self.untold = self.untold.saturating_add(1);
        }
    }

    /// As [`Self::has_room`], after waiting for it, if its writer is not stuck.
    fn comes_to_room(&mut self, patience: &mut Patience) -> bool {
        while !self.has_room() {
            if self.waited == STUCK || !patience.pause() {
                return false;
            }
            self.waited += 1;
        }
        self.waited = 0;
        true
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
