//! Waiting for a writer that is behind, instead of dropping its packets.
//!
//! After a pause of the whole process (SIGSTOP, a busy machine) the ring may hold more than a session's batches
//! do, and its reader is quicker than a writer: so it lets the writers run for a moment. What lies in the ring
//! meanwhile is safe but late, that of other sessions, too: so it does that for little of its time, and not for a
//! writer that is stuck.

use std::{
    fmt, thread,
    time::{Duration, Instant},
};

/// One pause.
const PAUSE: Duration = Duration::from_micros(250);
/// In a row at the most: a writer on a memory file system takes some 46 MiB meanwhile, of 2316 MiB a second
/// (docs/performance.md, P9).
const MOST: Duration = Duration::from_millis(20);
/// Time after which as long as a pause may be spent anew, in pauses: a fiftieth of all time.
const SELDOM: u32 = 50;

/// The reader's, for all its sessions together.
pub(super) struct Patience {
    left: Duration,
    /// When `left` was right.
    at: Instant,
    sleep: Box<dyn FnMut(Duration) + Send>,
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patience")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::with(thread::sleep)
    }
}

impl Patience {
    /// That lets time pass by `sleep`.
    pub(super) fn with(sleep: impl FnMut(Duration) + Send + 'static) -> Self {
        Self {
            left: MOST,
            at: Instant::now(),
            sleep: Box::new(sleep),
        }
    }

    /// Lets the writers run for a moment, if that may be.
    pub(super) fn pause(&mut self) -> bool {
        let begun = Instant::now();
        self.earn(begun.saturating_duration_since(self.at));
        self.at = begun;
        if self.left < PAUSE {
            return false;
        }
        (self.sleep)(PAUSE);
        self.at = Instant::now();
        self.left = self
            .left
            .saturating_sub(self.at.saturating_duration_since(begun));
        true
    }

    fn earn(&mut self, passed: Duration) {
        self.left = self.left.saturating_add(passed / SELDOM).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_and_comes_again_slowly() {
        let mut patience = Patience::default();
        let pauses = (0..1000).take_while(|_| patience.pause()).count();
        let most = MOST.as_micros() / PAUSE.as_micros();
        assert!((1..=most as usize + 4).contains(&pauses), "{pauses}");
        patience.left = Duration::ZERO;
        patience.earn(PAUSE * SELDOM / 2);
        assert_eq!(patience.left, PAUSE / 2);
        patience.earn(Duration::from_secs(3600));
        assert_eq!(patience.left, MOST);
    }
}
