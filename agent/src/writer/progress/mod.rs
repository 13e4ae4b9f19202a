//! How far the ring was read, told to the next agent.
//!
//! ```text
//! ring   ───────┬──────────────────┬─────────────────┬──────▶
//!            published           pending            read
//!   in the files, or counted │ with the writers │ in batches
//! ```
//! Only what is in the files is given back to the kernel, for what is in memory alone goes with the
//! process and has to be read again. So between two looks the reader notes where it is and how many
//! packets it has handed to each writer; when all of them are written, that is published: the
//! checkpoint first, then the ring's position. A writer that is slow must not cost the others'
//! packets: with half of the ring held back it is published all the same, and should the agent then
//! die, the checkpoint tells how many packets went with it.

use std::sync::{
    Arc,
    atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed},
    },
};

use remora_agent_common::checkpoint::{Checkpoint, SessionMark};

use super::{RecordSource, lane::Lane};
use crate::{clock, session::Meter};

/// Nanoseconds after which a checkpoint is written though nothing has moved: a sign of life.
const SIGN_OF_LIFE_NS: u64 = 1_000_000_000;

/// Where checkpoints are kept.
pub trait KeepCheckpoint: Send {
    /// Keeps it in place of the one before, at once and whole.
    fn keep(&mut self, checkpoint: &Checkpoint);
}

/// The reader's progress.
pub(super) struct Progress {
    keep: Box<dyn KeepCheckpoint>,
    published: Box<Checkpoint>,
    pending: Option<Pending>,
}

/// A place that is published when the writers have come so far.
struct Pending {
    checkpoint: Box<Checkpoint>,
    /// Packets of each session that must be settled.
    waits: Vec<(Arc<Meter>, u64)>,
}

impl Pending {
    fn is_settled(&self) -> bool {
        let settled = |(meter, handed): &(Arc<Meter>, u64)| meter.settled.load(Acquire) >= *handed;
        self.waits.iter().all(settled)
    }
}

impl Progress {
    /// Goes on from the last checkpoint.
    pub(super) fn new(keep: Box<dyn KeepCheckpoint>, last: Box<Checkpoint>) -> Self {
        Self {
            keep,
            published: last,
            pending: None,
        }
    }

    /// Something was read that is not published.
    pub(super) fn is_behind(&self, source: &impl RecordSource) -> bool {
        source.position() != self.published.position
    }

    /// A session begins, and nothing of it was read. Its mark is kept at once: a session that was in
    /// the slot before it may have records that are not published.
    pub(super) fn opened(&mut self, lane: &Lane) {
        let slot = lane.slot.0 as usize;
        let pending = self.pending.iter_mut().map(|p| &mut p.checkpoint);
        for checkpoint in pending.chain([&mut self.published]) {
            if let Some(mark) = checkpoint.sessions.get_mut(slot) {
                *mark = lane.mark();
            }
        }
        self.publish();
    }

    /// To be called between two records.
    pub(super) fn advance(&mut self, lanes: &[Option<Box<Lane>>], source: &mut impl RecordSource) {
        if let Some(pending) = self.pending.take_if(|pending| pending.is_settled()) {
            self.published = pending.checkpoint;
            self.publish();
            source.release(self.published.position);
        }
        let held = source.position() - self.published.position;
        if held > source.capacity() / 2 {
            self.pending = None;
            self.published = self.note(lanes, source).checkpoint;
            self.publish();
            source.release(self.published.position);
        } else if held > 0 && self.pending.is_none() {
            self.pending = Some(self.note(lanes, source));
        } else if clock::realtime_ns().saturating_sub(self.published.time_ns) > SIGN_OF_LIFE_NS {
            self.publish();
        }
    }

    fn note(&self, lanes: &[Option<Box<Lane>>], source: &impl RecordSource) -> Pending {
        let mut checkpoint = self.published.clone();
        checkpoint.position = source.position();
        let mut waits = Vec::new();
        for lane in lanes.iter().flatten() {
            waits.push(lane.handed());
            if let Some(mark) = checkpoint.sessions.get_mut(lane.slot.0 as usize) {
                *mark = lane.mark();
            }
        }
        Pending { checkpoint, waits }
    }

    fn publish(&mut self) {
        self.published.time_ns = clock::realtime_ns();
        self.keep.keep(&self.published);
    }
}

impl Lane {
    /// What the next agent has to know.
    fn mark(&self) -> SessionMark {
        let meter = self.meter();
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        SessionMark {
            capture: self.capture,
            from: self.from,
            next_id: self.next_id(),
            read: count(&meter.read),
            written: count(&meter.written),
            malformed: count(&meter.malformed),
            stale: count(&meter.stale),
            dropped_queue: count(&meter.dropped_queue),
            dropped_io: count(&meter.dropped_io),
            lost_on_crash: count(&meter.lost_on_crash),
            past_seen: count(&meter.past_seen),
            past_matched: count(&meter.past_matched),
            past_over_budget: count(&meter.past_over_budget),
            past_done: count(&meter.past_done),
            reserved: 0,
        }
    }
}

#[cfg(test)]
mod tests;
