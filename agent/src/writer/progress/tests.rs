use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        mpsc::{Receiver, sync_channel},
    },
    time::Duration,
};

use remora_agent_common::{
    ABI_VERSION,
    record::{HEADER_LEN, HOOK_TCX_INGRESS, KIND_PACKET},
    session::DIRECTION_INGRESS,
};

use super::*;
use crate::writer::{
    Consumer, ConsumerHandle, Frontier, Waker,
    consumer::Turn,
    lane::{LaneParts, LaneStart, ToWriter},
};

const CAPACITY: u64 = 64 << 10;
const RECORD: u64 = 72;

/// A ring whose records are made here, and what was given back of it.
#[derive(Clone)]
struct FakeRing {
    records: Arc<Mutex<VecDeque<Vec<u8>>>>,
    position: u64,
    produced: Arc<AtomicU64>,
    released: Arc<Mutex<u64>>,
}

impl RecordSource for FakeRing {
    fn next(&mut self, visit: &mut dyn FnMut(u64, &[u8])) -> bool {
        let record = self.records.lock().expect("no panic").pop_front();
        let Some(record) = record else { return false };
        let at = self.position;
        self.position += RECORD;
        visit(at, &record);
        true
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn capacity(&self) -> u64 {
        CAPACITY
    }

    fn release(&mut self, position: u64) {
        *self.released.lock().expect("no panic") = position;
    }

    fn wait(&mut self, _: Option<Duration>) {}

    fn waker(&self) -> Waker {
        let event = nix::sys::eventfd::EventFd::new().expect("an eventfd");
        Waker::new(Arc::new(event))
    }

    fn frontier(&self) -> Frontier {
        let produced = Arc::clone(&self.produced);
        Frontier::new(move || produced.load(Relaxed))
    }
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Option<Checkpoint>>>);

impl KeepCheckpoint for Kept {
    fn keep(&mut self, checkpoint: &Checkpoint) {
        *self.0.lock().expect("no panic") = Some(*checkpoint);
    }
}

struct Bed {
    ring: FakeRing,
    kept: Kept,
    meter: Arc<Meter>,
    batches: Receiver<ToWriter>,
    consumer: Consumer<FakeRing>,
    _handle: ConsumerHandle,
}

fn record() -> Vec<u8> {
    let mut record = vec![0; HEADER_LEN];
    record[..2].copy_from_slice(&ABI_VERSION.to_ne_bytes());
    record[2] = KIND_PACKET;
    record[3] = HOOK_TCX_INGRESS;
    record[16] = 1; // sessions: slot 0
    record[24] = 1; // its generation is odd
    record[54] = DIRECTION_INGRESS;
    record
}

impl FakeRing {
    fn at(position: u64) -> Self {
        Self {
            records: Arc::default(),
            position,
            produced: Arc::new(position.into()),
            released: Arc::default(),
        }
    }

    fn fill(&self, count: usize) {
        let mut records = self.records.lock().expect("no panic");
        for _ in 0..count {
            records.push_back(record());
            self.produced.fetch_add(RECORD, Relaxed);
        }
    }
}

impl Bed {
    /// A session of one tap begins; the ring was read to `position`.
    fn new(position: u64) -> Self {
        Self::on(FakeRing::at(position))
    }

    fn on(ring: FakeRing) -> Self {
        let position = ring.position;
        let kept = Kept::default();
        let (handle, mut consumer) = Consumer::new(ring.clone());
        let mut last = Box::new(Checkpoint::NONE);
        last.position = position;
        consumer.keep_progress(Box::new(kept.clone()), last);
        let meter = Arc::new(Meter::default());
        let (to_writer, batches) = sync_channel(64);
        let tap = crate::session::BoundTap {
            id: crate::session::TapId {
                index: 0,
                generation: 0,
            },
            info: Default::default(),
            hook: crate::session::TapHook::Tc,
            view: crate::session::View::Pod,
            end: crate::session::LinkEnd::Other,
            takes: crate::session::Takes::All,
        };
        let start = LaneStart {
            capture: [3, 4],
            from: handle.frontier(),
            ..LaneStart::default()
        };
        let lane = Lane::new(LaneParts::of_a_tap(tap, start, &meter, to_writer));
        handle.open(lane).expect("the consumer is there");
        Self {
            ring,
            kept,
            meter,
            batches,
            consumer,
            _handle: handle,
        }
    }

    fn packets(&mut self, count: usize) {
        self.ring.fill(count);
        // A turn reads a part of the ring.
        while self.consumer.turn() == Turn::More {}
    }

    /// The writer does what it has.
    fn settle(&self) {
        for message in self.batches.try_iter() {
            if let ToWriter::Batch(batch) = message {
                self.meter
                    .settled
                    .fetch_add(batch.packets, std::sync::atomic::Ordering::Release);
            }
        }
    }

    fn released(&self) -> u64 {
        *self.ring.released.lock().expect("no panic")
    }

    fn kept(&self) -> Checkpoint {
        self.kept.0.lock().expect("no panic").expect("one is kept")
    }
}

#[test]
fn what_no_file_has_is_neither_given_back_nor_told_as_read() {
    let mut bed = Bed::new(640);
    bed.packets(10);
    for _ in 0..3 {
        bed.packets(0);
        assert_eq!((bed.released(), bed.kept().position), (0, 640));
    }
    let mark = bed.kept().sessions[0];
    assert_eq!((mark.capture, mark.from, mark.read), ([3, 4], 640, 0));
    bed.settle();
    bed.packets(5);
    let end = 640 + 10 * RECORD;
    assert_eq!((bed.released(), bed.kept().position), (end, end));
    let mark = bed.kept().sessions[0];
    assert_eq!((mark.next_id, mark.read, mark.from), (10, 10, 640));
}

#[test]
fn a_slow_writer_does_not_hold_more_than_half_of_the_ring() {
    let mut bed = Bed::new(0);
    let half = usize::try_from(CAPACITY / 2 / RECORD).expect("small");
    bed.packets(half);
    bed.packets(0);
    assert_eq!(bed.released(), 0);
    bed.packets(20);
    bed.packets(0);
    assert!(bed.released() >= CAPACITY / 2, "{}", bed.released());
    let kept = bed.kept();
    assert_eq!(kept.position, bed.released());
    assert_eq!(kept.sessions[0].read, kept.position / RECORD);
}

/// An agent counts the generations of a slot anew if it found nobody there, so the parity of its first
/// session may be that of the last one before.
#[test]
fn a_session_takes_nothing_of_who_had_its_slot_and_was_not_read_yet() {
    let ring = FakeRing::at(640);
    ring.fill(5);
    let mut bed = Bed::on(ring);
    bed.packets(3);
    bed.settle();
    bed.packets(0);
    let mark = bed.kept().sessions[0];
    assert_eq!((mark.read, mark.next_id), (3, 3));
    assert_eq!(mark.from, 640 + 5 * RECORD);
}
