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
