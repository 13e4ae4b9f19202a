//! What all batches together may take, fairly.
//!
//! ```text
//! 256 batches of 256 KiB = 64 slots × 2 of their own + 128 for whoever needs more (fewer by `--memory`)
//! ```
//! A session always gets its own two: one is filled while the other is written. Of the common ones
//! it gets more as long as it holds fewer of them than are left ("dynamic thresholds", Choudhury
//! and Hahne 1998), so that readers that stall leave room to those that do not.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use remora_agent_common::SESSION_SLOTS;

/// Bytes from which on a batch is handed over; it can exceed them by one packet.
pub const BATCH_BYTES: usize = 256 << 10;
/// Batches of all sessions: 64 MiB.
pub const BATCHES: usize = 256;
/// Batches that are a session's alone.
pub const OWN_BATCHES: usize = 2;
/// Batches that whoever needs them gets, usually.
pub const COMMON_BATCHES: usize = BATCHES - OWN_BATCHES * SESSION_SLOTS as usize;
/// Empty buffers that are kept for the next batches: 8 MiB.
const SPARE_BUFFERS: usize = 32;

/// Room for the batches of all sessions.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    common_left: AtomicUsize,
    spare: Mutex<Vec<Vec<u8>>>,
}

/// A session's part of it.
#[derive(Clone, Debug)]
pub struct Share {
    pool: Arc<Pool>,
    own_left: Arc<AtomicUsize>,
    common_held: Arc<AtomicUsize>,
}

/// One batch may exist.
#[derive(Debug)]
pub struct Permit {
    share: Share,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Own,
    Common,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(COMMON_BATCHES)
    }
}

impl Memory {
    /// With so many batches for whoever needs them.
    #[must_use]
    pub fn new(common_batches: usize) -> Self {
        Self(Arc::new(Pool {
            common_left: AtomicUsize::new(common_batches),
            spare: Mutex::default(),
        }))
    }

    /// For a session; there are no more of them than slots.
    #[must_use]
    pub fn share(&self) -> Share {
        Share {
            pool: Arc::clone(&self.0),
            own_left: Arc::new(AtomicUsize::new(OWN_BATCHES)),
            common_held: Arc::default(),
        }
    }
}

impl Share {
    /// `None` when the session has its part: its packet is dropped and counted.
    #[must_use]
    pub fn permit(&self) -> Option<Permit> {
        let kind = if take(&self.own_left, 0) {
            Kind::Own
        } else if take(&self.pool.common_left, self.common_held.load(Relaxed)) {
            self.common_held.fetch_add(1, Relaxed);
            Kind::Common
        } else {
            return None;
        };
        Some(Permit {
            share: self.clone(),
            kind,
        })
    }

    /// It would get another now.
    #[must_use]
    pub fn has_more(&self) -> bool {
        let Self {
            pool,
            own_left,
            common_held,
        } = self;
        own_left.load(Relaxed) > 0 || pool.common_left.load(Relaxed) > common_held.load(Relaxed)
    }

    /// An empty buffer, if one is spare with its room.
    #[must_use]
    pub fn buffer(&self) -> Vec<u8> {
        let mut spare = self
            .pool
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        spare.pop().unwrap_or_default()
    }

    /// Keeps a buffer for the next batch of any session, or frees it.
    pub fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut spare = self
            .pool
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    }
}

/// Takes one if more than `least` are left.
fn take(left: &AtomicUsize, least: usize) -> bool {
    left.fetch_update(Relaxed, Relaxed, |left| (left > least).then(|| left - 1))
        .is_ok()
}

impl Permit {
    #[must_use]
    pub fn share(&self) -> &Share {
        &self.share
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Share {
            pool,
            own_left,
            common_held,
        } = &self.share;
        match self.kind {
            Kind::Own => {
                own_left.fetch_add(1, Relaxed);
            }
            Kind::Common => {
                common_held.fetch_sub(1, Relaxed);
                pool.common_left.fetch_add(1, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(share: &Share) -> Vec<Permit> {
        std::iter::from_fn(|| share.permit()).collect()
    }

    #[test]
    fn permits_end_and_come_back() {
        let memory = Memory::default();
        let share = memory.share();
        let first = all(&share);
        assert!(first.len() > OWN_BATCHES);
        let count = first.len();
        drop(first);
        assert_eq!(all(&share).len(), count);
    }

    #[test]
    fn all_sessions_that_stall_leave_each_other_their_own_and_never_exceed_the_whole() {
        let memory = Memory::default();
        let stalled: Vec<_> = (1..SESSION_SLOTS).map(|_| memory.share()).collect();
        let held: Vec<_> = stalled.iter().map(all).collect();
        assert!(held.iter().all(|held| held.len() >= OWN_BATCHES));
        let last = all(&memory.share());
        assert!(last.len() >= OWN_BATCHES);
        let sum: usize = held.iter().map(Vec::len).sum();
        assert!(sum + last.len() <= BATCHES);
    }

    #[test]
    fn eight_sessions_that_stall_leave_a_ninth_more_than_its_own() {
        let memory = Memory::default();
        let stalled: Vec<_> = (0..8).map(|_| memory.share()).collect();
        // They fill at the same pace.
        let mut held: Vec<Permit> = Vec::new();
        for _ in 0..BATCHES {
            held.extend(stalled.iter().filter_map(Share::permit));
        }
        let ninth = all(&memory.share());
        assert!(
            ninth.len() > OWN_BATCHES,
            "{} and {}",
            held.len(),
            ninth.len()
        );
    }

    #[test]
    fn spare_buffers_are_bounded_over_all_sessions() {
        let memory = Memory::default();
        for _ in 0..SESSION_SLOTS {
            let share = memory.share();
            for _ in 0..SPARE_BUFFERS {
                share.give_back(Vec::with_capacity(1));
            }
        }
        let share = memory.share();
        let spare = std::iter::from_fn(|| Some(share.buffer()).filter(|b| b.capacity() > 0));
        assert_eq!(spare.count(), SPARE_BUFFERS);
    }
}
