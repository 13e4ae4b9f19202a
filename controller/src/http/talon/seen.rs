//! Signatures of invocations that were taken, for as long as their time is taken. Pure.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use jiff::Timestamp;

use crate::sigv4::Proof;

/// Most signatures that are remembered: some 50 a second over the ten minutes that the usual clock skew
/// makes. When there are more, the oldest goes; its replay has the capture of its invocation id then.
const SEEN_MAX: usize = 32 * 1024;

#[derive(Debug, Default)]
pub(super) struct Seen {
    signatures: HashSet<[u8; 32]>,
    order: VecDeque<Proof>,
}

impl Seen {
    /// Remembers it; `false` if it was there.
    pub(super) fn insert(&mut self, proof: Proof, now: Timestamp, skew: Duration) -> bool {
        while let Some(oldest) = self.order.front() {
            let age = Duration::try_from(now.duration_since(oldest.time)).unwrap_or_default();
            if age <= skew && self.order.len() < SEEN_MAX {
                break;
            }
            self.signatures.remove(&oldest.signature);
            self.order.pop_front();
        }
        let is_new = self.signatures.insert(proof.signature);
        if is_new {
            self.order.push_back(proof);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof(n: u32, second: i64) -> Proof {
        let mut signature = [0; 32];
        signature[..4].copy_from_slice(&n.to_be_bytes());
        let time = Timestamp::from_second(second).unwrap();
        Proof { signature, time }
    }

    #[test]
    fn a_signature_is_remembered_as_long_as_its_time_is_taken() {
        let (mut seen, skew) = (Seen::default(), Duration::from_secs(300));
        let at = |second| Timestamp::from_second(second).unwrap();
        // Signed by a clock that is ahead.
        let early = proof(1, 1_100);
        assert!(seen.insert(early, at(1_000), skew));
        for now in [1_000, 1_300, 1_400] {
            assert!(!seen.insert(early, at(now), skew), "{now}");
        }
        assert!(seen.insert(proof(2, 1_400), at(1_401), skew));
        assert_eq!(
            seen.order.len(),
            1,
            "what nobody takes any more is forgotten"
        );
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes() {
        let mut seen = Seen::default();
        let most = u32::try_from(SEEN_MAX).unwrap();
        for n in 0..most + 10 {
            assert!(seen.insert(proof(n, 0), Timestamp::UNIX_EPOCH, Duration::MAX));
        }
        assert_eq!(seen.order.len(), SEEN_MAX);
        assert_eq!(seen.signatures.len(), SEEN_MAX);
        let newest = proof(most + 9, 0);
        assert!(!seen.insert(newest, Timestamp::UNIX_EPOCH, Duration::MAX));
    }
}
