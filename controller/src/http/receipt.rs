//! The law of alerts, held by a type: what was received is decided once.

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;

use crate::{
    metrics::Metrics,
    outcome::{Outcome, Refusal, RefusalCode},
};

/// An alert that came in and is not decided yet. One that is dropped undecided (its sender left)
/// counts as refused.
#[derive(Debug)]
pub(super) struct Receipt {
    metrics: Arc<Metrics>,
    start: Instant,
    /// When the request's head was there.
    pub(super) received: Timestamp,
    settled: bool,
}

impl Receipt {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        metrics.receive();
        Self {
            metrics,
            start: Instant::now(),
            received: Timestamp::now(),
            settled: false,
        }
    }

    pub(super) fn settle(mut self, outcome: &Outcome) {
        self.settled = true;
        self.metrics.settle(outcome, self.start.elapsed());
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.settled {
            let gone = Refusal::new(RefusalCode::SenderGone, "the sender left");
            self.metrics
                .settle(&Outcome::Refused(gone), self.start.elapsed());
        }
    }
}
