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
    /// Read by an agent that died before it could write them.
    pub lost_on_crash: AtomicU64,
    /// Of those that were handed to the writer, how many it has written or dropped.
    pub settled: AtomicU64,
    /// Of the time before the session: looked at, matched, and of these without room. The others
    /// of these were read, and are counted as live ones are from there on.
    pub past_seen: AtomicU64,
    pub past_matched: AtomicU64,
    pub past_over_budget: AtomicU64,
    /// 1: all of these are on their way.
    pub past_done: AtomicU64,
    /// UTC, nanoseconds; 0 for none yet.
    pub first_packet_ns: AtomicU64,
    pub last_packet_ns: AtomicU64,
}

impl Meter {
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    /// A packet of that time (UTC, nanoseconds) is on its way to the output.
    pub fn packet_at(&self, time_ns: u64) {
        if self.first_packet_ns.load(Relaxed) == 0 {
            self.first_packet_ns.store(time_ns, Relaxed);
        }
        self.last_packet_ns.store(time_ns, Relaxed);
    }

    /// Packets from before the session, of those times.
    pub fn packets_before(&self, first_ns: u64, last_ns: u64) {
        self.first_packet_ns.store(first_ns, Relaxed);
        let _later = self
            .last_packet_ns
            .compare_exchange(0, last_ns, Relaxed, Relaxed);
    }

    /// Packets from before the session that are on their way to the output.
    pub fn from_past(&self) -> u64 {
        let matched = self.past_matched.load(Relaxed);
        matched.saturating_sub(self.past_over_budget.load(Relaxed))
    }

    /// Packets taken out of the ring, by this agent and those before it.
    pub fn taken(&self) -> u64 {
        self.read.load(Relaxed) + self.lost_on_crash.load(Relaxed)
    }

    /// Adds user space's part to `counts`, in which the kernel's part is.
    pub fn fill(&self, counts: &mut Counts) {
        let Self {
            read,
            written,
            dropped_queue,
            dropped_io,
            malformed,
            stale,
            written_bytes,
            lost_on_crash,
            settled: _,
            past_seen,
            past_matched,
            past_over_budget,
            past_done: _,
            first_packet_ns: _,
            last_packet_ns: _,
        } = self;
        let from_past = self.from_past();
        counts.seen += past_seen.load(Relaxed);
        counts.matched += past_matched.load(Relaxed);
        counts.over_budget += past_over_budget.load(Relaxed);
        counts.submitted += from_past;
        counts.read = read.load(Relaxed) + from_past;
        counts.written = written.load(Relaxed);
        counts.dropped_queue = dropped_queue.load(Relaxed);
        counts.dropped_io = dropped_io.load(Relaxed);
        counts.malformed = malformed.load(Relaxed);
        counts.stale = stale.load(Relaxed);
        counts.lost_on_crash = lost_on_crash.load(Relaxed);
        counts.written_bytes = written_bytes.load(Relaxed);
    }

    /// Counts what of `submitted` packets was never read as malformed: no record of it was found.
    pub fn count_unread(&self, submitted: u64) {
        let unread = submitted.saturating_sub(self.taken());
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
        let read = self.read.load(Relaxed) + self.from_past();
        let unwritten = read.saturating_sub(ended);
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
