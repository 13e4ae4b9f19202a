//! A session's writer thread, and how it ends.
//!
//! ```text
//! open: header blocks into the sink, thread, lane to the consumer
//! close: lane back from the consumer ─▶ its rest, then Finish ─▶ thread: closing block, sink closed
//! ```
//! Whatever fails, the thread goes on taking batches and counts what it could not write, so that
//! nobody waits for it and nothing is missed.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, Release, SeqCst},
        },
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Instant,
};

use jiff::Timestamp;
use remora_capture::{
    pcapng::{self, Finished, Statistics, Totals, Whole},
    session::{Counts, StopReason},
};
use tokio::sync::oneshot;

use super::{
    AppendError, Blocks, ConsumerHandle, Sink,
    encoder::Encoder,
    lane::{Batch, Lane, LaneParts, LaneStart, QUEUE_BATCHES, ToWriter},
    memory::{BATCH_BYTES, Memory},
    past::{Chooser, Rings, Wish},
};
use crate::session::{
    ChunkReceiver, Closed, KernelCounts, Meter, Output, Ready, Signal, Slot, StartError, Stored,
    TapId,
};

/// Of a writer's thread, bytes; only what is used takes memory. Pages of a look-back ring (147 584 bytes) pass by
/// value, which a build without optimisation does several times over.
const STACK: usize = 8 << 20;

/// Makes the sink; called on the writer's thread, so that arming waits for no disk.
pub type OpenSink = Box<dyn FnOnce() -> Result<Box<dyn Sink>, StartError> + Send>;

/// Where an output's blocks go and what it is made for.
pub struct OutputParts {
    pub slot: Slot,
    pub generation: u32,
    pub start: LaneStart,
    pub encoder: Encoder,
    pub packet_limit: Option<u64>,
    pub look_back: Option<LookBack>,
    pub meter: Arc<Meter>,
    pub memory: Memory,
    pub signals: tokio::sync::mpsc::Sender<Signal>,
    pub started: Timestamp,
    /// The blocks before the first packet; none if they are in the file.
    pub header: Vec<u8>,
    pub sink: OpenSink,
    pub stream: Option<ChunkReceiver>,
    /// Name of the first file in the store.
    pub file: Option<String>,
    pub stored: Option<Stored>,
}

/// What a session writes first.
pub struct LookBack {
    pub wish: Wish,
    pub taps: Vec<TapId>,
    pub rings: Arc<dyn Rings>,
}

/// The open output of a session.
pub struct WriterOutput {
    slot: Slot,
    consumer: ConsumerHandle,
    meter: Arc<Meter>,
    thread: JoinHandle<Ended>,
    armed: Option<SyncSender<u64>>,
    until: Arc<AtomicU64>,
    ready: Option<Ready>,
    stream: Option<ChunkReceiver>,
    file: Option<String>,
    stored: Option<Stored>,
    overhead: u64,
}

/// Starts the thread, which opens the sink and writes the header, and gives the consumer the lane.
///
/// # Errors
/// The thread cannot be made, or the consumer is gone.
pub fn open(parts: OutputParts, consumer: ConsumerHandle) -> Result<WriterOutput, StartError> {
    let OutputParts {
        slot,
        generation,
        start,
        encoder,
        packet_limit,
        look_back,
        meter,
        memory,
        signals,
        started,
        header,
        sink,
        stream,
        file,
        stored,
    } = parts;
    let header_bytes = header.len() as u64;
    let (to_writer, batches) = sync_channel(QUEUE_BATCHES);
    let (ready_sender, ready) = oneshot::channel();
    let (armed, when_armed) = sync_channel(1);
    let until = Arc::new(AtomicU64::new(u64::MAX));
    let disarmed = Arc::clone(&until);
    let past_encoder = encoder.clone();
    let past_bytes = look_back
        .as_ref()
        .and_then(|look_back| look_back.wish.bytes);
    let opening = Writer {
        sink: Box::new(Broken::default()),
        meter: Arc::clone(&meter),
        signals: signals.clone(),
        slot,
        generation,
        started,
        ended: Ended::default(),
    };
    let thread = std::thread::Builder::new()
        .name(format!("writer-{slot}"))
        .stack_size(STACK)
        .spawn(move || {
            // What it does is not in the way of arming, on a machine of few CPUs neither.
            let Ok(armed_ns) = when_armed.recv() else {
                return opening.run(&batches);
            };
            let mut writer = opening.open(sink, header, ready_sender);
            if let Some(look_back) = look_back {
                writer.look_back(&look_back, &past_encoder, armed_ns, &disarmed);
            }
            writer.run(&batches)
        })
        .map_err(|error| StartError::Output(format!("failed to start a writer: {error}")))?;
    let lane = Lane::new(LaneParts {
        slot,
        generation,
        start,
        encoder,
        packet_limit,
        meter: Arc::clone(&meter),
        to_writer,
        share: memory.share(),
        signals,
    });
    consumer
        .open(lane)
        .map_err(|gone| StartError::Output(gone.to_string()))?;
    let overhead =
        header_bytes + pcapng::STATISTICS_BYTES_MAX as u64 + past_bytes.unwrap_or_default();
    Ok(WriterOutput {
        slot,
        consumer,
        meter,
        thread,
        armed: Some(armed),
        until,
        ready: Some(ready),
        stream,
        file,
        stored,
        overhead,
    })
}

impl Output for WriterOutput {
    fn overhead_bytes(&self) -> u64 {
        self.overhead
    }

    fn file(&self) -> Option<String> {
        self.file.clone()
    }

    fn stored(&self) -> Option<Stored> {
        self.stored.clone()
    }

    fn take_ready(&mut self) -> Option<Ready> {
        self.ready.take()
    }

    fn armed(&mut self, time_ns: u64) {
        if let Some(armed) = self.armed.take() {
            // It is the only message, and has room.
            let _sent = armed.try_send(time_ns);
        }
    }

    fn disarming(&mut self, time_ns: u64) {
        self.until.store(time_ns, SeqCst);
    }

    fn take_stream(&mut self) -> Option<ChunkReceiver> {
        self.stream.take()
    }

    fn close(self: Box<Self>, kernel: KernelCounts) -> Closed {
        let Self {
            slot,
            consumer,
            meter,
            thread,
            armed,
            ..
        } = *self;
        drop(armed);
        let mut problem = match consumer.close(slot, kernel.submitted) {
            Ok(lane) => {
                // What the ring still held back after the consumer's patience: none of it will be
                // written, and the closing block must tell it.
                meter.count_unread(kernel.submitted);
                lane.finish(kernel);
                None
            }
            Err(gone) => Some(gone.to_string()),
        };
        let Ended {
            files,
            blocks,
            problem: writers,
            notes,
        } = thread.join().unwrap_or_else(|_panic| Ended {
            problem: Some("the writer failed".to_owned()),
            ..Ended::default()
        });
        problem = problem.or(writers);
        // Both do something only if a thread broke, and took along what it had.
        meter.count_unread(kernel.submitted);
        meter.count_unwritten();
        let mut counts = Counts::default();
        kernel.fill(&mut counts);
        meter.fill(&mut counts);
        Closed {
            counts,
            files,
            blocks,
            problem,
            notes,
        }
    }
}

struct Writer {
    sink: Box<dyn Sink>,
    meter: Arc<Meter>,
    signals: tokio::sync::mpsc::Sender<Signal>,
    slot: Slot,
    generation: u32,
    started: Timestamp,
    ended: Ended,
}

/// What a writer's thread has to say at its end.
#[derive(Debug, Default)]
struct Ended {
    files: Finished,
    /// Packet blocks that were written.
    blocks: u64,
    /// The first.
    problem: Option<String>,
    notes: Vec<String>,
}

/// The sink of an output that could not be opened: what came meanwhile is dropped, and counted.
#[derive(Default)]
struct Broken {
    problem: String,
    /// What went out before an agent died.
    totals: Totals,
}

impl Sink for Broken {
    fn append(&mut self, _: Blocks, _: Whole) -> Result<(), AppendError> {
        Err(AppendError {
            reason: StopReason::IoError,
            problem: self.problem.clone(),
        })
    }

    fn totals(&self) -> Totals {
        self.totals
    }

    fn finish(&mut self) -> (Finished, Result<(), String>) {
        (Finished::default(), Ok(()))
    }
}

impl Writer {
    /// Opens the sink, writes the header, and tells whether that went well.
    fn open(
        mut self,
        sink: OpenSink,
        header: Vec<u8>,
        ready: oneshot::Sender<Result<(), StartError>>,
    ) -> Self {
        let whole = Whole {
            bytes: header.len(),
            ..Whole::default()
        };
        let opened = sink().and_then(|mut sink| match sink.append(header.into(), whole) {
            Ok(()) => Ok(sink),
            Err(error) => Err(match error.reason {
                StopReason::NoSpace => StartError::Quota(error.problem),
                _ => StartError::Output(error.problem),
            }),
        });
        let told = match opened {
            Ok(sink) => {
                self.sink = sink;
                self.tell_totals();
                Ok(())
            }
            Err(error) => {
                // Told to the starter, who ends the session; no signal besides.
                self.ended.problem = Some(error.to_string());
                self.sink = Box::new(Broken {
                    problem: error.to_string(),
                    totals: Totals {
                        packets: self.meter.written.load(Relaxed),
                        blocks: 0,
                        bytes: self.meter.written_bytes.load(Relaxed),
                    },
                });
                Err(error)
            }
        };
        // A starter that went away has nobody to tell; the session has its problem anyway.
        let _gone = ready.send(told);
        self
    }

    /// Writes the packets from before the session: when it is armed, so that none is missing
    /// between them and its own, which wait in their queue meanwhile.
    fn look_back(
        &mut self,
        look_back: &LookBack,
        encoder: &Encoder,
        armed_ns: u64,
        until: &AtomicU64,
    ) {
        let LookBack { wish, taps, rings } = look_back;
        let mut readings = Vec::new();
        for tap in taps {
            match rings.read(*tap, armed_ns) {
                Ok(read) => readings.push((*tap, read)),
                Err(problem) => {
                    tracing::error!(%problem, "failed to look back");
                    self.ended
                        .notes
                        .push(format!("look-back failed: {problem}"));
                }
            }
        }
        // It could not be opened: what was frozen is let go all the same.
        if self.ended.problem.is_some() {
            return;
        }
        let chooser = Chooser {
            wish,
            encoder,
            armed_ns,
            // Read after the rings: who is in them since then has seen it stored.
            until_ns: until.load(SeqCst),
            rings: rings.as_ref(),
        };
        let past = chooser.choose(&readings);
        Meter::add(&self.meter.past_seen, past.seen);
        Meter::add(&self.meter.past_over_budget, past.over_budget);
        Meter::add(&self.meter.past_matched, past.matched);
        if let Some((first, last)) = past.first_ns.zip(past.last_ns) {
            self.meter.packets_before(first, last);
        }
        self.ended.notes.extend(past.notes);
        let mut blocks = past.blocks.as_slice();
        while !blocks.is_empty() {
            // A block is never longer.
            let part = pcapng::whole_blocks(blocks, BATCH_BYTES);
            let (now, rest) = blocks.split_at(part.bytes.max(1).min(blocks.len()));
            let counted = Whole {
                bytes: now.len(),
                ..part
            };
            self.append(now.to_vec().into(), counted);
            blocks = rest;
        }
        self.meter.past_done.store(1, Relaxed);
    }

    fn run(mut self, batches: &Receiver<ToWriter>) -> Ended {
        loop {
            if self.is_sync_due() {
                self.sync();
            }
            match self.next(batches) {
                Ok(ToWriter::Batch(batch)) => self.write(batch),
                Ok(ToWriter::Finish(kernel)) => {
                    self.finish(kernel);
                    return self.ended;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // The consumer is gone: the agent is going down in disorder; the next start repairs.
        Ended {
            problem: Some("the ring's reader has ended".to_owned()),
            ..self.ended
        }
    }

    /// Waits for the next message, but not longer than what was written may wait for its sync.
    fn next(&self, batches: &Receiver<ToWriter>) -> Result<ToWriter, RecvTimeoutError> {
        match self.sink.sync_due() {
            Some(due) if self.ended.problem.is_none() => {
                batches.recv_timeout(due.saturating_duration_since(Instant::now()))
            }
            _ => batches.recv().map_err(RecvTimeoutError::from),
        }
    }

    fn is_sync_due(&self) -> bool {
        let due = self.sink.sync_due();
        self.ended.problem.is_none() && due.is_some_and(|due| due <= Instant::now())
    }

    fn sync(&mut self) {
        if let Err(error) = self.sink.sync() {
            self.failed(error);
        }
    }

    fn write(&mut self, batch: Batch) {
        let Batch {
            blocks,
            packets,
            packet_blocks,
            permit,
        } = batch;
        let counted = Whole {
            bytes: blocks.len(),
            packets,
            blocks: packet_blocks,
        };
        self.append(Blocks::of_batch(blocks, permit), counted);
        // Not before: the next agent does not read them again.
        self.meter.settled.fetch_add(packets, Release);
    }

    /// After the first failure nothing is written any more: a gap in the middle would be told by no
    /// packet after it.
    fn append(&mut self, blocks: Blocks, counted: Whole) {
        if self.ended.problem.is_some() {
            Meter::add(&self.meter.dropped_io, counted.packets);
            return;
        }
        let before = self.sink.totals().packets;
        let appended = self.sink.append(blocks, counted);
        let written = self.tell_totals().packets - before;
        Meter::add(
            &self.meter.dropped_io,
            counted.packets.saturating_sub(written),
        );
        if let Err(error) = appended {
            self.failed(error);
        }
    }

    /// The session ends by it.
    fn failed(&mut self, AppendError { reason, problem }: AppendError) {
        tracing::warn!(slot = %self.slot, %problem, "the output failed");
        self.ended.problem = Some(problem);
        let signal = Signal {
            slot: self.slot,
            generation: self.generation,
            reason,
        };
        if self.signals.blocking_send(signal).is_err() {
            tracing::debug!("nobody is told of the failed output");
        }
    }

    fn tell_totals(&self) -> Totals {
        let totals = self.sink.totals();
        self.meter.written.store(totals.packets, Relaxed);
        self.meter.written_bytes.store(totals.bytes, Relaxed);
        totals
    }

    fn finish(&mut self, kernel: KernelCounts) {
        self.sink.release_reserve();
        let mut counts = Counts::default();
        kernel.fill(&mut counts);
        self.meter.fill(&mut counts);
        let end = Timestamp::now();
        let mut statistics =
            Statistics::new(0, &counts, nanoseconds(self.started), nanoseconds(end));
        let blocks = self.sink.totals().blocks;
        if blocks > counts.written {
            statistics.comment += &format!(" segments={blocks}");
        }
        let block = pcapng::interface_statistics(&statistics);
        let counted = Whole {
            bytes: block.len(),
            ..Whole::default()
        };
        if let Err(error) = self.sink.append(block.into(), counted) {
            self.ended.problem.get_or_insert(error.problem);
        }
        let (files, finished) = self.sink.finish();
        if let Err(problem) = finished {
            self.ended.problem.get_or_insert(problem);
        }
        self.ended.files = files;
        self.ended.blocks = self.tell_totals().blocks;
    }
}

fn nanoseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
