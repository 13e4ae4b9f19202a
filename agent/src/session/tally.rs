//! The law of starts, held by a type: `received = accepted + coalesced + existing + refused`, once none is
//! under way.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Counts what becomes of starts.
#[derive(Debug, Default)]
pub struct Tally {
    received: AtomicU64,
    accepted: AtomicU64,
    coalesced: AtomicU64,
    existing: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

/// What a [`Tally`] tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartNumbers {
    pub received: u64,
    pub accepted: u64,
    pub coalesced: u64,
    pub existing: u64,
    /// By reason.
    pub refused: BTreeMap<&'static str, u64>,
}

/// What became of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// A capture began.
    Accepted,
    /// It joined one that ran.
    Coalesced,
    /// Its key was known.
    Existing,
    /// With the reason's word.
    Refused(&'static str),
}

/// Why a start without a key ends whose caller went away.
const CALLER_GONE: &str = "caller_gone";

/// A start that is not settled yet. One that is dropped so counts as refused.
#[derive(Debug)]
pub struct Receipt {
    tally: Arc<Tally>,
    settled: bool,
}

impl Tally {
    pub fn receive(self: &Arc<Self>) -> Receipt {
        self.received.fetch_add(1, Relaxed);
        Receipt {
            tally: Arc::clone(self),
            settled: false,
        }
    }

    fn settle(&self, settled: Settled) {
        let counter = match settled {
            Settled::Accepted => &self.accepted,
            Settled::Coalesced => &self.coalesced,
            Settled::Existing => &self.existing,
            Settled::Refused(reason) => {
                let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                *refused.entry(reason).or_default() += 1;
                return;
            }
        };
        counter.fetch_add(1, Relaxed);
    }

    #[must_use]
    pub fn numbers(&self) -> StartNumbers {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        StartNumbers {
            received: self.received.load(Relaxed),
            accepted: self.accepted.load(Relaxed),
            coalesced: self.coalesced.load(Relaxed),
            existing: self.existing.load(Relaxed),
            refused: refused.clone(),
        }
    }
}

impl Receipt {
    pub fn settle(mut self, settled: Settled) {
        self.settled = true;
        self.tally.settle(settled);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.settled {
            self.tally.settle(Settled::Refused(CALLER_GONE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_becomes_of_a_start_is_counted_once() {
        let tally = Arc::new(Tally::default());
        let all = [
            Settled::Accepted,
            Settled::Coalesced,
            Settled::Existing,
            Settled::Refused("node_rate"),
            Settled::Refused("node_rate"),
        ];
        for settled in all {
            tally.receive().settle(settled);
        }
        drop(tally.receive());
        let numbers = tally.numbers();
        let refused = [(CALLER_GONE, 1), ("node_rate", 2)];
        let expected = StartNumbers {
            received: 6,
            accepted: 1,
            coalesced: 1,
            existing: 1,
            refused: refused.into(),
        };
        assert_eq!(numbers, expected);
    }
}
