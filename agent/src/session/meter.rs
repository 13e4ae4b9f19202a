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

    /// Counts what of `submitted` packets was never read as malformed: no record of it was found.
    pub fn count_unread(&self, submitted: u64) {
        let unread = submitted.saturating_sub(self.read.load(Relaxed));
        Self::add(&self.read, unread);
        Self::add(&self.malformed, unread);
    }

    /// Counts what was read and then neither written nor counted as dropped by the output.
    pub fn count_unwritten(&self) {
        let ends = [
            &self.written,
            &self.dropped_queue,
            &self.dropped_io,
            &self.malformed,
            &self.stale,
        ];
        let ended = ends.iter().map(|counter| counter.load(Relaxed)).sum();
        let unwritten = self.read.load(Relaxed).saturating_sub(ended);
        Self::add(&self.dropped_io, unwritten);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_broken_thread_took_along_is_counted_and_nothing_else() {
        let meter = Meter::default();
        Meter::add(&meter.read, 10);
        Meter::add(&meter.written, 6);
        Meter::add(&meter.stale, 1);
        meter.count_unread(12);
        meter.count_unwritten();
        let mut counts = Counts {
            matched: 12,
            submitted: 12,
            ..Counts::default()
        };
        meter.fill(&mut counts);
        assert!(counts.balanced(), "{counts:?}");
        assert_eq!((counts.malformed, counts.dropped_io), (2, 3));

        meter.count_unread(12);
        meter.count_unwritten();
        let before = counts;
        meter.fill(&mut counts);
        assert_eq!(counts, before, "a balanced meter is left as it is");
    }
}
