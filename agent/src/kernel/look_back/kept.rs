//! Rings that no program finds any more, and how long they stay readable.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::ring::{Frozen, Ring};
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

    pub(super) fn push(&mut self, tap: TapId, ring: Ring) {
        self.rings.push(Old {
            tap,
            frozen: Frozen::new(ring),
            frozen_ns: clock::monotonic_ns(),
            until: Instant::now() + self.keep,
        });
    }

    pub(super) fn taps(&self) -> impl Iterator<Item = TapId> {
        self.rings.iter().map(|old| old.tap)
    }

    /// A tap's, oldest first.
    pub(super) fn of(&self, tap: TapId) -> Vec<Arc<Frozen>> {
        let rings = self.rings.iter().filter(|old| old.tap == tap);
        rings.map(|old| Arc::clone(&old.frozen)).collect()
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

    /// Takes out those whose time is over.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Arc<Frozen>> {
        let over = self.rings.extract_if(.., |old| old.until <= now);
        over.map(|old| old.frozen).collect()
    }

    /// Takes out as many that the rest has at most `bytes`: first the oldest of taps that are gone,
    /// then the oldest copies of the others.
    pub(super) fn shrink(
        &mut self,
        bytes: u64,
        is_live: impl Fn(TapId) -> bool,
    ) -> Vec<Arc<Frozen>> {
        let mut held: u64 = self.rings.iter().map(|old| old.frozen.bytes()).sum();
        let mut count = self.rings.len();
        let mut out = Vec::new();
        for of_the_living in [false, true] {
            let one_out = self.rings.extract_if(.., |old| {
                let size = old.frozen.bytes();
                // What is not copied yet somebody is about to read.
                let goes = (held > bytes || count > KEPT_MAX)
                    && size > 0
                    && is_live(old.tap) == of_the_living;
                if goes {
                    held -= size;
                    count -= 1;
                }
                goes
            });
            out.extend(one_out.map(|old| old.frozen));
        }
        out
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
