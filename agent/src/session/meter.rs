//! A session's counts in user space, shared between the threads that make them and those that
//! read them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jiff::Timestamp;
use remora_capture::session::Counts;

/// Each counter has one writer at a time, and readers only want a recent value, so relaxed
/// accesses do; the final values are read after the writing threads have ended or answered.
#[derive(Debug, Default)]
pub struct Meter {
    pub read: AtomicU64,
    pub written: AtomicU64,
    pub dropped_queue: AtomicU64,
    pub dropped_io: AtomicU64,
    pub malformed: AtomicU64,
    pub stale: AtomicU64,
    pub written_bytes: AtomicU64,
    /// UTC, nanoseconds; 0 for none yet.
    pub first_packet_ns: AtomicU64,
    pub last_packet_ns: AtomicU64,
}

impl Meter {
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    /// Puts user space's part into `counts`.
    pub fn fill(&self, counts: &mut Counts) {
        let Self {
            read,
            written,
            dropped_queue,
            dropped_io,
            malformed,
            stale,
            written_bytes,
            first_packet_ns: _,
            last_packet_ns: _,
        } = self;
        counts.read = read.load(Relaxed);
        counts.written = written.load(Relaxed);
        counts.dropped_queue = dropped_queue.load(Relaxed);
        counts.dropped_io = dropped_io.load(Relaxed);
        counts.malformed = malformed.load(Relaxed);
        counts.stale = stale.load(Relaxed);
        counts.written_bytes = written_bytes.load(Relaxed);
    }

    pub fn first_packet(&self) -> Option<Timestamp> {
        timestamp(self.first_packet_ns.load(Relaxed))
    }

    pub fn last_packet(&self) -> Option<Timestamp> {
        timestamp(self.last_packet_ns.load(Relaxed))
    }
}

fn timestamp(ns: u64) -> Option<Timestamp> {
    if ns == 0 {
        None
    } else {
        Timestamp::from_nanosecond(i128::from(ns)).ok()
    }
}
