//! The ring's one reader.
//!
//! A thread of its own: it drains the ring, then waits. With a session open it looks again after
//! [`LOOK_AGAIN`] at the latest (or as soon as the kernel says that much is waiting); with none it
//! sleeps until it is woken.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    time::{Duration, Instant},
};

use remora_agent_common::{SESSION_SLOTS, checkpoint::Checkpoint};

use super::{
    Frontier, RecordSource, Waker,
    lane::Lane,
    patience::Patience,
    progress::{KeepCheckpoint, Progress},
};
use crate::{
    record::{Packet, Record},
    session::Slot,
};

/// How long a record may lie in the ring while a session is open.
pub const LOOK_AGAIN: Duration = Duration::from_millis(6);
/// Records after which lanes are flushed and commands looked at, however many more there are.
const PASS_RECORDS: usize = 4096;
/// The same as a part of the ring: those records are given back only when lanes were flushed.
const PASS_PARTS: u64 = 16;
/// Commands in the queue: each session has at most an opening and a closing one.
const COMMANDS: usize = 2 * SESSION_SLOTS as usize;
/// How long a close waits for the session's last records to come out of the ring. They are in it;
/// only a program that is stopped in the middle of a record could hold them up.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

enum Command {
    Open(Box<Lane>),
    Close {
        slot: Slot,
        submitted: u64,
        reply: SyncSender<Box<Lane>>,
    },
}

/// Records that were no session's.
#[derive(Debug, Default)]
pub struct RecordTotals {
    pub stale: AtomicU64,
    pub malformed: AtomicU64,
}

/// Sends the consumer its commands.
#[derive(Clone, Debug)]
pub struct ConsumerHandle {
    commands: SyncSender<Command>,
    waker: Waker,
    frontier: Frontier,
    pub totals: Arc<RecordTotals>,
}

/// The consumer ended, which it does only with the agent.
#[derive(Debug, thiserror::Error)]
#[error("the ring's reader has ended")]
pub struct ConsumerGone;

impl ConsumerHandle {
    /// Where the records of a session that is armed after this call begin: what lies before it is of
    /// those that had its slot before, however far the reader has come.
    #[must_use]
    pub fn frontier(&self) -> u64 {
        self.frontier.position()
    }

    /// From now on records of the lane's slot are the lane's. To be called before arming.
    ///
    /// # Errors
    /// The consumer is gone.
    pub fn open(&self, lane: Lane) -> Result<(), ConsumerGone> {
        self.commands
            .send(Command::Open(Box::new(lane)))
            .map_err(|_gone| ConsumerGone)?;
        self.waker.wake();
        Ok(())
    }

    /// Takes the lane back when `submitted` packets of it are out of the ring. Blocks until then.
    ///
    /// # Errors
    /// The consumer is gone, or has no lane in the slot.
    pub fn close(&self, slot: Slot, submitted: u64) -> Result<Lane, ConsumerGone> {
        let (reply, answer) = sync_channel(1);
        self.commands
            .send(Command::Close {
                slot,
                submitted,
                reply,
            })
            .map_err(|_gone| ConsumerGone)?;
        self.waker.wake();
        answer
            .recv()
            .map(|lane| *lane)
            .map_err(|_gone| ConsumerGone)
    }
}

struct Closing {
    slot: Slot,
    submitted: u64,
    reply: SyncSender<Box<Lane>>,
    until: Instant,
}

/// The reader's state.
pub struct Consumer<S> {
    source: S,
    commands: Receiver<Command>,
    lanes: Vec<Option<Box<Lane>>>,
    closing: Vec<Closing>,
    totals: Arc<RecordTotals>,
    patience: Patience,
    /// Of a ring that outlives the agent.
    progress: Option<Progress>,
}

impl<S: RecordSource> Consumer<S> {
    #[must_use]
    pub fn new(source: S) -> (ConsumerHandle, Self) {
        let (sender, commands) = sync_channel(COMMANDS);
        let totals = Arc::new(RecordTotals::default());
        let handle = ConsumerHandle {
            commands: sender,
            waker: source.waker(),
            frontier: source.frontier(),
            totals: Arc::clone(&totals),
        };
        let consumer = Self {
            source,
            commands,
            lanes: (0..SESSION_SLOTS).map(|_| None).collect(),
            closing: Vec::new(),
            totals,
            patience: Patience::default(),
            progress: None,
        };
        (handle, consumer)
    }

    /// Tells the agent after this one how far it has come; `last` is how far the one before had.
    pub fn keep_progress(&mut self, keep: Box<dyn KeepCheckpoint>, last: Box<Checkpoint>) {
        self.progress = Some(Progress::new(keep, last));
    }

    /// Runs until every handle is gone; to be called on a thread of its own.
    pub fn run(mut self) {
        loop {
            match self.turn() {
                Turn::Ended => return,
                Turn::More => {}
                Turn::Drained => {
                    let progress = self.progress.as_ref();
                    let behind = progress.is_some_and(|p| p.is_behind(&self.source));
                    let open = behind || self.lanes.iter().any(Option::is_some);
                    let timeout = open.then_some(LOOK_AGAIN);
                    self.source.wait(timeout);
                }
            }
        }
    }

    /// Obeys, reads, hands over: once.
    pub(super) fn turn(&mut self) -> Turn {
        if !self.take_commands() {
            return Turn::Ended;
        }
        let drained = self.pass();
        for lane in self.lanes.iter_mut().flatten() {
            lane.flush();
        }
        self.finish_closing();
        if let Some(progress) = &mut self.progress {
            progress.advance(&self.lanes, &mut self.source);
        }
        if drained { Turn::Drained } else { Turn::More }
    }

    /// False when nobody can send a command any more.
    fn take_commands(&mut self) -> bool {
        let Self {
            commands,
            lanes,
            closing,
            progress,
            ..
        } = self;
        obey(commands, lanes, closing, progress) != TryRecvError::Disconnected
    }

    /// Reads a bounded number of records; true if the ring is empty now.
    fn pass(&mut self) -> bool {
        let Self {
            source,
            commands,
            lanes,
            closing,
            totals,
            patience,
            progress,
        } = self;
        let end = source.position() + source.capacity() / PASS_PARTS;
        for _ in 0..PASS_RECORDS {
            let more = source.next(&mut |at, bytes| {
                if hand_out(at, bytes, lanes, totals, patience, Unknown::Look) {
                    // Its session may have been opened since the commands were last looked at.
                    obey(commands, lanes, closing, progress);
                    hand_out(at, bytes, lanes, totals, patience, Unknown::Count);
                }
            });
            if !more {
                return true;
            }
            if source.position() > end {
                return false;
            }
        }
        false
    }

    fn finish_closing(&mut self) {
        let Self { lanes, closing, .. } = self;
        closing.retain(
            |Closing {
                 slot,
                 submitted,
                 reply,
                 until,
             }| {
                let Some(place) = lanes.get_mut(slot.0 as usize) else {
                    return false;
                };
                let Some(lane) = place.as_ref() else {
                    return false;
                };
                let missing = submitted.saturating_sub(lane.read());
                if missing > 0 && Instant::now() < *until {
                    return true;
                }
                if missing > 0 {
                    tracing::error!(%slot, missing, "records did not come out of the ring");
                }
                if let Some(lane) = place.take()
                    && reply.try_send(lane).is_err()
                {
                    tracing::error!(%slot, "nobody waits for the closed session");
                }
                false
            },
        );
    }
}

/// Carries out the commands that are there; says how the queue ended.
fn obey(
    commands: &Receiver<Command>,
    lanes: &mut [Option<Box<Lane>>],
    closing: &mut Vec<Closing>,
    progress: &mut Option<Progress>,
) -> TryRecvError {
    loop {
        match commands.try_recv() {
            Ok(Command::Open(lane)) => {
                if let Some(progress) = progress {
                    progress.opened(&lane);
                }
                if let Some(place) = lanes.get_mut(lane.slot.0 as usize) {
                    debug_assert!(place.is_none(), "a slot is used again only after its close");
                    *place = Some(lane);
                }
            }
            Ok(Command::Close {
                slot,
                submitted,
                reply,
            }) => {
                let until = Instant::now() + CLOSE_PATIENCE;
                closing.push(Closing {
                    slot,
                    submitted,
                    reply,
                    until,
                });
            }
            Err(end) => return end,
        }
    }
}

/// How a turn of the reader went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The ring may have more.
    More,
    /// The ring was empty.
    Drained,
    /// Nobody can send a command any more.
    Ended,
}

/// What to do with a record whose session has no lane.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unknown {
    /// Say so, and touch nothing.
    Look,
    /// Count it stale.
    Count,
}

/// Gives a record, which is at `at`, to the lanes of its sessions. True if it belongs to a session
/// without a lane and `unknown` is to look.
fn hand_out(
    at: u64,
    bytes: &[u8],
    lanes: &mut [Option<Box<Lane>>],
    totals: &RecordTotals,
    patience: &mut Patience,
    unknown: Unknown,
) -> bool {
    match Record::parse(bytes) {
        Ok(Record::Packet(packet)) => {
            let sessions = packet.header.sessions;
            // All or none, for it may come once more.
            if unknown == Unknown::Look
                && !sessions.is_power_of_two()
                && slots(sessions).any(|slot| lane_of(lanes, slot, &packet, at).is_none())
            {
                return true;
            }
            for slot in slots(sessions) {
                match lane_of(lanes, slot, &packet, at) {
                    Some(lane) => lane.packet(&packet, patience),
                    None if unknown == Unknown::Look => return true,
                    None => {
                        totals.stale.fetch_add(1, Relaxed);
                    }
                }
            }
        }
        Ok(Record::Gap {
            slot,
            parity,
            packets,
        }) => match current(lanes, slot, parity, at) {
            Some(lane) => lane.gap(packets),
            None if unknown == Unknown::Look => return true,
            // Not a packet: what it tells is in the kernel's counters anyway.
            None => {}
        },
        Ok(Record::Limit { slot, parity }) => match current(lanes, slot, parity, at) {
            Some(lane) => lane.limit_reached(),
            None if unknown == Unknown::Look => return true,
            None => {}
        },
        Err(error) => {
            tracing::error!(%error, "a record of the ring does not parse");
            totals.malformed.fetch_add(1, Relaxed);
            for slot in slots(Record::sessions_of(bytes)) {
                if let Some(lane) = lanes.get_mut(slot as usize).and_then(Option::as_mut) {
                    lane.malformed();
                }
            }
        }
    }
    false
}

fn slots(mut sessions: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        (sessions != 0).then(|| {
            let slot = sessions.trailing_zeros();
            sessions &= sessions - 1;
            slot
        })
    })
}

fn lane_of<'a>(
    lanes: &'a mut [Option<Box<Lane>>],
    slot: u32,
    packet: &Packet<'_>,
    at: u64,
) -> Option<&'a mut Lane> {
    current(lanes, slot, packet.header.parity & (1 << slot) != 0, at)
}

/// The slot's lane, if it is the generation that the record was made for.
fn current(lanes: &mut [Option<Box<Lane>>], slot: u32, parity: bool, at: u64) -> Option<&mut Lane> {
    lanes
        .get_mut(slot as usize)
        .and_then(Option::as_mut)
        .map(|lane| &mut **lane)
        .filter(|lane| lane.parity() == parity && lane.from <= at)
}

#[cfg(test)]
mod tests;
