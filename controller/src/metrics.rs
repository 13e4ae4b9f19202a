//! Counters, in Prometheus' text form.
//!
//! Labels have a fixed set of values each: nothing from an alert is a label.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use remora_proto::reason::Reason;

use crate::{
    outcome::{Decision, Outcome, RefusalCode},
    reload::Reload,
};

/// Bounds of the latency histogram, in seconds: fine around the milliseconds that an answer
/// takes, the last at the agent's deadline.
const ANSWER_BUCKETS: [f64; 12] = [
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DecisionLabel {
    decision: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

/// What the controller counts.
///
/// `received = accepted + existing + ignored + refused`, once no alert is being handled.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    received: Counter,
    decided: Family<DecisionLabel, Counter>,
    refused: Family<CodeLabel, Counter>,
    answer: Histogram,
    in_flight: Gauge,
    rules: Gauge,
    reloads: Family<ResultLabel, Counter>,
    rules_stale: Gauge,
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("remora_controller"),
            received: Counter::default(),
            decided: Family::default(),
            refused: Family::default(),
            answer: Histogram::new(ANSWER_BUCKETS),
            in_flight: Gauge::default(),
            rules: Gauge::default(),
            reloads: Family::default(),
            rules_stale: Gauge::default(),
        };
        // A counter that is not there cannot be told from one that nobody asked for.
        for decision in Decision::ALL {
            metrics
                .decided
                .get_or_create(&DecisionLabel {
                    decision: decision.as_str(),
                })
                .inc_by(0);
        }
        for result in Reload::ALL {
            let result = result.as_str();
            metrics
                .reloads
                .get_or_create(&ResultLabel { result })
                .inc_by(0);
        }
        let codes = RefusalCode::OWN
            .into_iter()
            .chain(Reason::ALL.map(RefusalCode::Agent));
        for code in codes {
            metrics
                .refused
                .get_or_create(&CodeLabel {
                    code: code.as_str(),
                })
                .inc_by(0);
        }
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register(
            "alerts_received",
            "Alerts that came in",
            self.received.clone(),
        );
        registry.register(
            "alerts",
            "Alerts by what became of them",
            self.decided.clone(),
        );
        registry.register("refusals", "Refused alerts by reason", self.refused.clone());
        registry.register_with_unit(
            "answer",
            "From an alert's request head to its decision",
            Unit::Seconds,
            self.answer.clone(),
        );
        registry.register(
            "alerts_in_flight",
            "Alerts being handled",
            self.in_flight.clone(),
        );
        registry.register("rules", "Rules in use", self.rules.clone());
        registry.register(
            "rules_reloads",
            "Readings of changed rule files by their result",
            self.reloads.clone(),
        );
        registry.register(
            "rules_stale",
            "1 while the rule files are wrong and older rules are in use",
            self.rules_stale.clone(),
        );
        self
    }

    /// The rules in use, at the start and after each change.
    pub(crate) fn rules(&self, count: usize) {
        self.rules.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn reload(&self, result: Reload) {
        let label = ResultLabel {
            result: result.as_str(),
        };
        self.reloads.get_or_create(&label).inc();
        self.rules_stale.set(i64::from(result == Reload::Refused));
    }

    pub(crate) fn receive(&self) {
        self.received.inc();
        self.in_flight.inc();
    }

    pub(crate) fn settle(&self, outcome: &Outcome, took: Duration) {
        let decision = outcome.decision().as_str();
        self.decided
            .get_or_create(&DecisionLabel { decision })
            .inc();
        if let Outcome::Refused(refusal) = outcome {
            self.refused
                .get_or_create(&CodeLabel {
                    code: refusal.code.as_str(),
                })
                .inc();
        }
        self.answer.observe(took.as_secs_f64());
        self.in_flight.dec();
    }

    /// The exposition, as OpenMetrics 1.0 text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes all that is written to it");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
