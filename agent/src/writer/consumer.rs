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
mod tests {
    use std::sync::mpsc;

    use remora_agent_common::{
        ABI_VERSION,
        record::{HOOK_TCX_INGRESS, KIND_PACKET, RecordHeader},
        session::DIRECTION_INGRESS,
    };
    use remora_capture::{pcapng, session::TapInfo};

    use super::*;
    use crate::{
        record::tests::bytes_of,
        session::{BoundTap, KernelCounts, LinkEnd, Meter, Takes, TapHook, TapId, View},
        writer::lane::{LaneParts, LaneStart, STUCK, ToWriter},
    };

    const SLOT: u32 = 3;
    const GENERATION: u32 = 5;
    const TAP: TapId = TapId {
        index: 7,
        generation: 2,
    };

    /// Lanes with one open session, and what comes out of it.
    struct Bed {
        lanes: Vec<Option<Box<Lane>>>,
        totals: RecordTotals,
        meter: Arc<Meter>,
        written: mpsc::Receiver<ToWriter>,
    }

    impl Bed {
        fn new() -> Self {
            let (to_writer, written) = sync_channel(4);
            let meter = Arc::new(Meter::default());
            let tap = BoundTap {
                id: TAP,
                info: TapInfo::default(),
                hook: TapHook::Tc,
                view: View::Pod,
                end: LinkEnd::VethHost,
                takes: Takes::All,
            };
            let lane = Lane::new(LaneParts {
                slot: Slot(SLOT),
                generation: GENERATION,
                ..LaneParts::of_a_tap(tap, LaneStart::default(), &meter, to_writer)
            });
            let mut lanes: Vec<_> = (0..SESSION_SLOTS).map(|_| None).collect();
            lanes[SLOT as usize] = Some(Box::new(lane));
            Self {
                lanes,
                totals: RecordTotals::default(),
                meter,
                written,
            }
        }

        fn take(&mut self, record: &[u8]) {
            self.take_with(record, &mut Patience::default());
        }

        fn take_with(&mut self, record: &[u8], patience: &mut Patience) {
            let (lanes, totals) = (&mut self.lanes, &self.totals);
            let unknown = hand_out(0, record, lanes, totals, patience, Unknown::Count);
            assert!(!unknown, "counted, not put off");
        }

        fn totals(&self) -> [u64; 2] {
            [&self.totals.stale, &self.totals.malformed].map(|total| total.load(Relaxed))
        }

        /// Read, malformed and stale of the session.
        fn session(&self) -> [u64; 3] {
            let Meter {
                read,
                malformed,
                stale,
                ..
            } = &*self.meter;
            [read, malformed, stale].map(|count| count.load(Relaxed))
        }

        /// Packet ids and drop counts of what the session's file gets.
        fn finish(mut self) -> Vec<(u64, u64)> {
            let lane = self.lanes[SLOT as usize].take().expect("open");
            lane.finish(KernelCounts::default());
            let mut told = Vec::new();
            while let Ok(ToWriter::Batch(batch)) = self.written.try_recv() {
                let runs = pcapng::runs(&batch.blocks);
                let packets = runs.filter_map(|run| run.packet);
                told.extend(packets.map(|p| (p.id.expect("an id"), p.dropped)));
            }
            told
        }
    }

    /// Of the open session alone.
    fn header() -> RecordHeader {
        RecordHeader {
            abi: ABI_VERSION,
            kind: KIND_PACKET,
            hook: HOOK_TCX_INGRESS,
            caplen: 60,
            sessions: 1 << SLOT,
            parity: u64::from(GENERATION & 1) << SLOT,
            tap: TAP.index,
            tap_generation: TAP.generation,
            origlen: 60,
            direction: DIRECTION_INGRESS,
            ..RecordHeader::default()
        }
    }

    fn record(header: &RecordHeader) -> Vec<u8> {
        bytes_of(header, &[7; 60])
    }

    #[test]
    fn what_does_not_parse_is_counted_with_its_session_and_told_in_its_file() {
        let abi = RecordHeader {
            abi: ABI_VERSION + 1,
            ..header()
        };
        let torn = RecordHeader {
            caplen: 61,
            origlen: 61,
            ..header()
        };
        let kind = RecordHeader {
            kind: 99,
            ..header()
        };
        let cut = record(&header())[..63].to_vec();
        for bad in [record(&abi), record(&torn), record(&kind), cut] {
            let mut bed = Bed::new();
            bed.take(&record(&header()));
            bed.take(&bad);
            bed.take(&record(&header()));
            assert_eq!(bed.totals(), [0, 1]);
            assert_eq!(bed.session(), [3, 1, 0]);
            assert_eq!(bed.finish(), [(0, 0), (2, 1)]);
        }
        // Too short to tell whose it was.
        let mut bed = Bed::new();
        bed.take(&record(&header())[..16]);
        assert_eq!((bed.totals(), bed.session()), ([0, 1], [0; 3]));
    }

    #[test]
    fn a_record_of_no_session_is_stale_and_touches_no_other() {
        let unknown = RecordHeader {
            sessions: 1 << 9,
            ..header()
        };
        // The slot's session before this one.
        let earlier = RecordHeader {
            parity: 0,
            ..header()
        };
        for stale in [unknown, earlier] {
            let mut bed = Bed::new();
            bed.take(&record(&stale));
            assert_eq!((bed.totals(), bed.session()), ([1, 0], [0; 3]));
            assert_eq!(bed.finish(), []);
        }
        // Beside a session that is there.
        let both = RecordHeader {
            sessions: header().sessions | 1 << 9,
            ..header()
        };
        let mut bed = Bed::new();
        bed.take(&record(&both));
        assert_eq!((bed.totals(), bed.session()), ([1, 0], [1, 0, 0]));
        assert_eq!(bed.finish(), [(0, 0)]);
    }

    #[test]
    fn a_packet_of_a_tap_that_was_bound_anew_is_stale_and_told() {
        let rebound = RecordHeader {
            tap_generation: TAP.generation + 1,
            ..header()
        };
        let mut bed = Bed::new();
        bed.take(&record(&rebound));
        bed.take(&record(&header()));
        assert_eq!((bed.totals(), bed.session()), ([0, 0], [2, 0, 1]));
        assert_eq!(bed.finish(), [(1, 1)]);
    }

    const MANY: u64 = 200;

    /// [`MANY`] packets that fill more batches than wait for a writer; how many were dropped.
    fn flood(bed: &mut Bed, patience: &mut Patience) -> u64 {
        let header = RecordHeader {
            caplen: 60_000,
            origlen: 60_000,
            ..header()
        };
        let record = bytes_of(&header, &vec![7; 60_000]);
        for _ in 0..MANY {
            bed.take_with(&record, patience);
        }
        assert_eq!(bed.session(), [MANY, 0, 0]);
        bed.meter.dropped_queue.load(Relaxed)
    }

    #[test]
    fn a_writer_that_is_behind_is_waited_for() {
        let mut bed = Bed::new();
        let written = std::mem::replace(&mut bed.written, sync_channel(0).1);
        let mut patience = Patience::with(move |_pause| drop(written.try_recv()));
        assert_eq!(flood(&mut bed, &mut patience), 0);
    }

    #[test]
    fn a_writer_that_is_stuck_is_waited_for_once_until_it_takes_something() {
        let mut bed = Bed::new();
        let pauses = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&pauses);
        let mut patience = Patience::with(move |_pause| {
            count.fetch_add(1, Relaxed);
        });
        assert!(flood(&mut bed, &mut patience) > 0);
        assert_eq!(pauses.swap(0, Relaxed), u64::from(STUCK));
        drop(bed.written.try_recv());
        let record = record(&header());
        bed.take_with(&record, &mut patience);
        assert_eq!(pauses.load(Relaxed), 0, "there is room");
    }
}
