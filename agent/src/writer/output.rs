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
        atomic::{AtomicU64, Ordering::SeqCst},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use jiff::Timestamp;
use remora_capture::{
    pcapng::{self, Statistics},
    session::{Counts, StopReason},
};
use tokio::sync::oneshot;

use super::{
    AppendError, ConsumerHandle, Sink,
    encoder::Encoder,
    lane::{Batch, Lane, LaneParts, QUEUE_BATCHES, ToWriter},
    memory::{BATCH_BYTES, Memory},
    past::{Chooser, Rings, Wish},
};
use crate::session::{
    ChunkReceiver, Closed, KernelCounts, Meter, Output, Ready, Signal, Slot, StartError, Tail,
    TapId,
};

/// Makes the sink; called on the writer's thread, so that arming waits for no disk.
pub type OpenSink = Box<dyn FnOnce() -> Result<Box<dyn Sink>, StartError> + Send>;

/// Where an output's blocks go and what it is made for.
pub struct OutputParts {
    pub slot: Slot,
    pub generation: u32,
    pub encoder: Encoder,
    pub packet_limit: Option<u64>,
    pub look_back: Option<LookBack>,
    pub meter: Arc<Meter>,
    pub memory: Memory,
    pub signals: tokio::sync::mpsc::Sender<Signal>,
    pub started: Timestamp,
    /// The blocks before the first packet.
    pub header: Vec<u8>,
    pub sink: OpenSink,
    pub stream: Option<ChunkReceiver>,
    /// Name of the file in the store.
    pub file: Option<String>,
    pub tail: Option<Tail>,
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
    tail: Option<Tail>,
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
        tail,
    } = parts;
    let header_bytes = header.len() as u64;
    let (to_writer, batches) = sync_channel(QUEUE_BATCHES);
    let (recycle, empties) = sync_channel(QUEUE_BATCHES);
    let (ready_sender, ready) = oneshot::channel();
    let (armed, when_armed) = sync_channel(1);
    let until = Arc::new(AtomicU64::new(u64::MAX));
    let disarmed = Arc::clone(&until);
    let past_encoder = encoder.clone();
    let past_bytes = look_back
        .as_ref()
        .and_then(|look_back| look_back.wish.bytes);
    let opening = Writer {
        sink: Box::new(Broken(String::new())),
        meter: Arc::clone(&meter),
        recycle,
        signals: signals.clone(),
        slot,
        generation,
        started,
        problem: None,
        notes: Vec::new(),
    };
    let thread = std::thread::Builder::new()
        .name(format!("writer-{slot}"))
        .spawn(move || {
            let mut writer = opening.open(sink, header, ready_sender);
            if let Some(look_back) = look_back {
                // If it is not armed, it ends.
                if let Ok(armed_ns) = when_armed.recv() {
                    writer.look_back(&look_back, &past_encoder, armed_ns, &disarmed);
                }
            }
            writer.run(&batches)
        })
        .map_err(|error| StartError::Output(format!("failed to start a writer: {error}")))?;
    let lane = Lane::new(LaneParts {
        slot,
        generation,
        encoder,
        packet_limit,
        meter: Arc::clone(&meter),
        to_writer,
        empties,
        memory,
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
        tail,
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

    fn tail(&self) -> Option<Tail> {
        self.tail.clone()
    }

    fn take_ready(&mut self) -> Option<Ready> {
        self.ready.take()
    }

    fn armed(&mut self, time_ns: u64) {
        if let Some(armed) = self.armed.take() {
            // Nobody listens if there is nothing to look back at.
            let _gone = armed.try_send(time_ns);
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
        let mut notes = Vec::new();
        match thread.join() {
            Ok(ended) => {
                problem = problem.or(ended.problem);
                notes = ended.notes;
            }
            Err(_panic) => problem = Some("the writer failed".to_owned()),
        }
        // Both do something only if a thread broke, and took along what it had.
        meter.count_unread(kernel.submitted);
        meter.count_unwritten();
        let mut counts = Counts::default();
        kernel.fill(&mut counts);
        meter.fill(&mut counts);
        Closed {
            counts,
            problem,
            notes,
        }
    }
}

struct Writer {
    sink: Box<dyn Sink>,
    meter: Arc<Meter>,
    recycle: SyncSender<Vec<u8>>,
    signals: tokio::sync::mpsc::Sender<Signal>,
    slot: Slot,
    generation: u32,
    started: Timestamp,
    problem: Option<String>,
    notes: Vec<String>,
}

/// What a writer's thread has to say at its end.
struct Ended {
    problem: Option<String>,
    notes: Vec<String>,
}

/// The sink of an output that could not be opened: what came meanwhile is dropped, and counted.
struct Broken(String);

impl Sink for Broken {
    fn append(&mut self, blocks: Vec<u8>) -> Result<Option<Vec<u8>>, AppendError> {
        let Self(problem) = self;
        Err(AppendError {
            taken: 0,
            blocks,
            reason: StopReason::IoError,
            problem: problem.clone(),
        })
    }

    fn finish(&mut self) -> Result<(), String> {
        Ok(())
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
        let bytes = header.len() as u64;
        let opened = sink().and_then(|mut sink| match sink.append(header) {
            Ok(_) => Ok(sink),
            Err(error) => Err(StartError::Output(error.problem)),
        });
        let told = match opened {
            Ok(sink) => {
                self.sink = sink;
                Meter::add(&self.meter.written_bytes, bytes);
                Ok(())
            }
            Err(error) => {
                // Told to the starter, who ends the session; no signal besides.
                self.problem = Some(error.to_string());
                self.sink = Box::new(Broken(error.to_string()));
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
                    self.notes.push(format!("look-back failed: {problem}"));
                }
            }
        }
        // It could not be opened: what was frozen is let go all the same.
        if self.problem.is_some() {
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
        self.notes.extend(past.notes);
        let mut blocks = past.blocks.as_slice();
        while !blocks.is_empty() {
            // A block is never longer.
            let part = pcapng::whole_blocks(blocks, BATCH_BYTES);
            let (now, rest) = blocks.split_at(part.bytes.max(1).min(blocks.len()));
            self.append(now.to_vec(), part.packets);
            blocks = rest;
        }
    }

    fn run(mut self, batches: &Receiver<ToWriter>) -> Ended {
        while let Ok(message) = batches.recv() {
            match message {
                ToWriter::Batch(batch) => self.write(batch),
                ToWriter::Finish(kernel) => {
                    self.finish(kernel);
                    return self.ended();
                }
            }
        }
        // The consumer is gone: the agent is going down in disorder; the next start repairs.
        self.problem = Some("the ring's reader has ended".to_owned());
        self.ended()
    }

    fn ended(self) -> Ended {
        Ended {
            problem: self.problem,
            notes: self.notes,
        }
    }

    fn write(&mut self, batch: Batch) {
        let Batch {
            blocks,
            packets,
            permit: _permit,
        } = batch;
        self.append(blocks, packets);
    }

    fn append(&mut self, blocks: Vec<u8>, packets: u64) {
        let bytes = blocks.len() as u64;
        match self.sink.append(blocks) {
            Ok(empty) => {
                Meter::add(&self.meter.written, packets);
                Meter::add(&self.meter.written_bytes, bytes);
                if let Some(mut empty) = empty {
                    empty.clear();
                    // A full recycling queue frees the buffer.
                    let _full = self.recycle.try_send(empty);
                }
            }
            Err(AppendError {
                taken,
                blocks,
                reason,
                problem,
            }) => {
                let written = pcapng::whole_blocks(&blocks, taken).packets;
                Meter::add(&self.meter.written, written);
                Meter::add(&self.meter.written_bytes, taken as u64);
                Meter::add(&self.meter.dropped_io, packets.saturating_sub(written));
                if self.problem.is_none() {
                    tracing::warn!(slot = %self.slot, %problem, "the output failed");
                    self.problem = Some(problem);
                    let signal = Signal {
                        slot: self.slot,
                        generation: self.generation,
                        reason,
                    };
                    if self.signals.blocking_send(signal).is_err() {
                        tracing::debug!("nobody is told of the failed output");
                    }
                }
            }
        }
    }

    fn finish(&mut self, kernel: KernelCounts) {
        self.sink.release_reserve();
        let mut counts = Counts::default();
        kernel.fill(&mut counts);
        self.meter.fill(&mut counts);
        let end = Timestamp::now();
        let statistics = Statistics::new(0, &counts, nanoseconds(self.started), nanoseconds(end));
        let block = pcapng::interface_statistics(&statistics);
        let bytes = block.len() as u64;
        match self.sink.append(block) {
            Ok(_) => Meter::add(&self.meter.written_bytes, bytes),
            Err(error) => {
                self.problem.get_or_insert(error.problem);
            }
        }
        if let Err(problem) = self.sink.finish() {
            self.problem.get_or_insert(problem);
        }
    }
}

fn nanoseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}
