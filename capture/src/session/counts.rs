//! The conservation law.

use serde::{Deserialize, Serialize};

/// Where each packet of a session went.
///
/// ```text
/// K  matched   = submitted + lost + over_budget + copy_error
/// U  submitted = read + lost_on_crash
///    read      = written + dropped_queue + dropped_io + malformed + stale
/// F  written   = packets an independent reader finds in the file
/// ```
/// While a session runs the counts are a moment's snapshot and the laws hold only roughly; from
/// `Finished` on they hold to the packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Packets of the target that were looked at.
    pub seen: u64,
    /// Packets that the filter took.
    pub matched: u64,
    /// Put into the kernel's ring.
    pub submitted: u64,
    /// The kernel's ring had no room.
    pub lost: u64,
    /// Matched after a limit was reached.
    pub over_budget: u64,
    /// The kernel could not read the packet's bytes.
    pub copy_error: u64,
    /// Taken out of the ring.
    pub read: u64,
    /// In the file or stream.
    pub written: u64,
    /// The writer or reader was too slow for its bounded queue.
    pub dropped_queue: u64,
    /// The disk or the stream failed.
    pub dropped_io: u64,
    /// The record did not parse.
    pub malformed: u64,
    /// The record belonged to an earlier session or an earlier owner of the tap.
    pub stale: u64,
    /// In the ring when the agent died.
    pub lost_on_crash: u64,
    /// Bytes of the file or stream.
    pub written_bytes: u64,
}

impl Counts {
    /// Every count of packets with its name in the law, in the order of a packet's way.
    #[must_use]
    pub fn by_name(&self) -> [(&'static str, u64); 13] {
        let Self {
            seen,
            matched,
            submitted,
            lost,
            over_budget,
            copy_error,
            read,
            written,
            dropped_queue,
            dropped_io,
            malformed,
            stale,
            lost_on_crash,
            // Bytes.
            written_bytes: _,
        } = *self;
        [
            ("seen", seen),
            ("matched", matched),
            ("submitted", submitted),
            ("lost", lost),
            ("over_budget", over_budget),
            ("copy_error", copy_error),
            ("read", read),
            ("written", written),
            ("dropped_queue", dropped_queue),
            ("dropped_io", dropped_io),
            ("malformed", malformed),
            ("stale", stale),
            ("lost_on_crash", lost_on_crash),
        ]
    }

    /// The sum, field by field; a sum that would be too large stays at the largest number.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let add = u64::saturating_add;
        Self {
            seen: add(self.seen, other.seen),
            matched: add(self.matched, other.matched),
            submitted: add(self.submitted, other.submitted),
            lost: add(self.lost, other.lost),
            over_budget: add(self.over_budget, other.over_budget),
            copy_error: add(self.copy_error, other.copy_error),
            read: add(self.read, other.read),
            written: add(self.written, other.written),
            dropped_queue: add(self.dropped_queue, other.dropped_queue),
            dropped_io: add(self.dropped_io, other.dropped_io),
            malformed: add(self.malformed, other.malformed),
            stale: add(self.stale, other.stale),
            lost_on_crash: add(self.lost_on_crash, other.lost_on_crash),
            written_bytes: add(self.written_bytes, other.written_bytes),
        }
    }

    /// Packets that matched within the limits and are not in the output.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.lost_in_kernel().saturating_add(self.dropped())
    }

    /// Lost in the kernel: no room, or bytes that could not be read.
    #[must_use]
    pub fn lost_in_kernel(&self) -> u64 {
        self.lost.saturating_add(self.copy_error)
    }

    /// Dropped in user space, for whatever reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let dropped = [
            self.dropped_queue,
            self.dropped_io,
            self.malformed,
            self.stale,
            self.lost_on_crash,
        ];
        u64::try_from(sum(&dropped)).unwrap_or(u64::MAX)
    }

    /// Laws K and U hold to the packet.
    #[must_use]
    pub fn balanced(&self) -> bool {
        let kernel = [self.submitted, self.lost, self.over_budget, self.copy_error];
        let user = [
            self.written,
            self.dropped_queue,
            self.dropped_io,
            self.malformed,
            self.stale,
        ];
        u128::from(self.matched) == sum(&kernel)
            && u128::from(self.submitted) == sum(&[self.read, self.lost_on_crash])
            && u128::from(self.read) == sum(&user)
    }
}

/// Counts in a document that somebody made up may exceed all numbers.
fn sum(counts: &[u64]) -> u128 {
    counts.iter().copied().map(u128::from).sum()
}
