//! A node's clock, held against the clock of who merges.

use std::fmt;

/// How far a node's clock is from ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeClock {
    /// The node's UTC less ours, in nanoseconds.
    pub offset_ns: i64,
    /// How far that may be off, in nanoseconds.
    pub error_ns: u64,
}

impl NodeClock {
    /// From one question and its answer: the node read its clock somewhere between the two, so at
    /// half of their time, give or take that half. All in nanoseconds of UTC; `node_error_ns` is what
    /// the node says of its own reading.
    #[must_use]
    pub fn from_exchange(
        asked_ns: i64,
        answered_ns: i64,
        node_ns: i64,
        node_error_ns: u64,
    ) -> Self {
        let took = answered_ns.saturating_sub(asked_ns).max(0);
        let middle = asked_ns.saturating_add(took / 2);
        Self {
            offset_ns: node_ns.saturating_sub(middle),
            error_ns: took
                .unsigned_abs()
                .div_ceil(2)
                .saturating_add(node_error_ns),
        }
    }

    /// The one that is known best.
    #[must_use]
    pub fn best(samples: impl IntoIterator<Item = Self>) -> Option<Self> {
        samples.into_iter().min_by_key(|sample| sample.error_ns)
    }

    /// What is taken off the node's times: nothing where the clocks may well agree.
    #[must_use]
    pub fn correction_ns(self) -> i64 {
        if self.offset_ns.unsigned_abs() > self.error_ns {
            self.offset_ns
        } else {
            0
        }
    }
}

/// For an interface's description.
impl fmt::Display for NodeClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = Milliseconds(self.error_ns);
        match self.correction_ns() {
            0 => write!(f, "clock within {error} ms of the controller's"),
            offset => {
                let side = if offset > 0 { "ahead of" } else { "behind" };
                let offset = Milliseconds(offset.unsigned_abs());
                write!(
                    f,
                    "clock {offset} ms {side} the controller's, give or take {error} ms; times here \
                     are the controller's"
                )
            }
        }
    }
}

/// Nanoseconds, shown as milliseconds to the microsecond.
struct Milliseconds(u64);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.div_ceil(1000);
        write!(f, "{}.{:03}", micros / 1000, micros % 1000)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn clocks_that_may_agree_are_left_alone() {
        let near = NodeClock {
            offset_ns: -900_000,
            error_ns: 1_000_000,
        };
        assert_eq!(near.correction_ns(), 0);
        assert_eq!(
            near.to_string(),
            "clock within 1.000 ms of the controller's"
        );
        let ahead = NodeClock {
            offset_ns: 250_000_500,
            error_ns: 400_001,
        };
        assert_eq!(ahead.correction_ns(), 250_000_500);
        assert!(
            ahead
                .to_string()
                .starts_with("clock 250.001 ms ahead of the controller's, give or take 0.401 ms"),
            "{ahead}"
        );
    }

    proptest! {
        /// Whenever the node reads its clock, and however long the ways there and back take.
        #[test]
        fn the_true_offset_is_within_the_error(
            offset in -10_000_000_000i64..10_000_000_000,
            asked in 0i64..1 << 60,
            there in 0i64..3_000_000_000,
            back in 0i64..3_000_000_000,
        ) {
            let node = asked + there + offset;
            let clock = NodeClock::from_exchange(asked, asked + there + back, node, 0);
            prop_assert!(clock.offset_ns.abs_diff(offset) <= clock.error_ns);
            // What is left after the correction is within twice the error.
            let left = offset.abs_diff(clock.correction_ns());
            prop_assert!(left <= 2 * clock.error_ns);
        }
    }
}
