//! When what was written has to be on the disk.

use std::time::{Duration, Instant};

/// Longest that anything written waits for its fdatasync.
pub const SYNC_INTERVAL: Duration = Duration::from_millis(250);
/// Most bytes that wait for it.
pub const SYNC_BYTES: u64 = 4 << 20;

/// Bytes that wait for an fdatasync, and since when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unsynced {
    bytes: u64,
    since: Option<Instant>,
}

impl Unsynced {
    pub fn written(&mut self, bytes: u64, now: Instant) {
        if bytes > 0 {
            self.bytes += bytes;
            self.since.get_or_insert(now);
        }
    }

    /// All is on the disk.
    pub fn synced(&mut self) {
        *self = Self::default();
    }

    /// When the next fdatasync is due; `None` if nothing waits for one.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let since = self.since?;
        Some(if self.bytes >= SYNC_BYTES {
            since
        } else {
            since + SYNC_INTERVAL
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_is_due_after_the_interval_or_the_bytes_whichever_comes_first() {
        let start = Instant::now();
        let later = start + Duration::from_millis(100);
        let mut unsynced = Unsynced::default();
        unsynced.written(0, start);
        assert_eq!(unsynced.due(), None);
        unsynced.written(1, start);
        unsynced.written(1, later);
        assert_eq!(unsynced.due(), Some(start + SYNC_INTERVAL));
        unsynced.written(SYNC_BYTES, later);
        assert!(unsynced.due() <= Some(later));
        unsynced.synced();
        assert_eq!(unsynced.due(), None);
    }
}
