//! Rings that no program finds any more, and how long they stay readable.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::ring::Frozen;
use crate::{clock, session::TapId};

/// Rings that are kept at the most, however little is in them.
const KEPT_MAX: usize = 4096;

/// Oldest first.
pub(super) struct Kept {
    rings: Vec<Old>,
    keep: Duration,
}

struct Old {
    tap: TapId,
    frozen: Arc<Frozen>,
    /// Kernel time.
    frozen_ns: u64,
    until: Instant,
}

impl Kept {
    pub(super) fn new(keep: Duration) -> Self {
        Self {
            rings: Vec::new(),
            keep,
        }
    }

    pub(super) fn push(&mut self, tap: TapId, frozen: Arc<Frozen>) {
        self.rings.push(Old {
            tap,
            frozen,
            frozen_ns: clock::monotonic_ns(),
            until: Instant::now() + self.keep,
        });
    }

    pub(super) fn taps(&self) -> impl Iterator<Item = TapId> {
        self.rings.iter().map(|old| old.tap)
    }

    /// A tap's up to the first that was frozen at `armed_ns` (kernel time) or later, and whether there
    /// is such a one.
    pub(super) fn until(&self, tap: TapId, armed_ns: u64) -> (Vec<Arc<Frozen>>, bool) {
        let mut rings = self.rings.iter().filter(|old| old.tap == tap);
        let mut frozen = Vec::new();
        let last = rings.find(|old| {
            frozen.push(Arc::clone(&old.frozen));
            old.frozen_ns >= armed_ns
        });
        (frozen, last.is_some())
    }

    /// Forgets copies whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        self.rings
            .retain(|old| old.until > now || !old.frozen.is_copied());
    }

    /// Forgets as many that the rest has at most `bytes`: first the oldest of taps that are gone,
    /// then the oldest copies of the others.
    pub(super) fn shrink(&mut self, bytes: u64, is_live: impl Fn(TapId) -> bool) {
        let mut held: u64 = self.rings.iter().map(|old| old.frozen.bytes()).sum();
        let mut count = self.rings.len();
        for of_the_living in [false, true] {
            self.rings.retain(|old| {
                // What is not copied yet somebody is about to read.
                let goes = (held > bytes || count > KEPT_MAX)
                    && old.frozen.is_copied()
                    && is_live(old.tap) == of_the_living;
                if goes {
                    held -= old.frozen.bytes();
                    count -= 1;
                }
                !goes
            });
        }
    }

    /// Forgets all of a tap.
    pub(super) fn forget(&mut self, tap: TapId) {
        self.rings.retain(|old| old.tap != tap);
    }

    /// Forgets a tap's oldest copies where those after them hold `bytes`.
    pub(super) fn forget_beyond(&mut self, tap: TapId, bytes: u64) {
        let mut held = 0;
        let mut kept: Vec<Old> = Vec::with_capacity(self.rings.len());
        for old in self.rings.drain(..).rev() {
            if old.tap != tap || held < bytes {
                if old.tap == tap {
                    held += old.frozen.bytes();
                }
                kept.push(old);
            }
        }
        kept.reverse();
        self.rings = kept;
    }
}
