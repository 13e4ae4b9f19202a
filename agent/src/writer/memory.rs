//! What all batches together may take.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Bytes from which on a batch is handed over; it can exceed them by one packet.
pub const BATCH_BYTES: usize = 256 << 10;
/// Batches of all sessions: 64 MiB.
pub const BATCHES: usize = 256;

/// Permits for batches.
#[derive(Clone, Debug)]
pub struct Memory(Arc<AtomicUsize>);

/// One batch may exist.
#[derive(Debug)]
pub struct Permit(Arc<AtomicUsize>);

impl Default for Memory {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(BATCHES)))
    }
}

impl Memory {
    /// `None` when all are out: whoever asked drops its packet and counts it.
    #[must_use]
    pub fn permit(&self) -> Option<Permit> {
        self.0
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
            .ok()
            .map(|_| Permit(Arc::clone(&self.0)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Self(left) = self;
        left.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_end_and_come_back() {
        let memory = Memory::default();
        let permits: Vec<_> = std::iter::from_fn(|| memory.permit()).collect();
        assert_eq!(permits.len(), BATCHES);
        assert!(memory.permit().is_none());
        drop(permits);
        assert!(memory.permit().is_some());
    }
}
