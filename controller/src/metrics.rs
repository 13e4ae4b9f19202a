//! Counters, in Prometheus' text form.
//!
//! Labels have a fixed set of values each: nothing from an alert is a label.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use remora_proto::{
    reason::Reason,
    tls::{Refused, TlsCounts},
};

use crate::{
    notify::Notified,
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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TalonLabels {
    call: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AccessLabels {
    action: &'static str,
    result: &'static str,
}

/// Which listener.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TlsLabel {
    listener: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TlsRefusalLabels {
    listener: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TlsReloadLabels {
    listener: &'static str,
    result: &'static str,
}

/// What becomes of connections by TLS, and of certificates.
#[derive(Debug, Default)]
struct Tls {
    followed: Mutex<Vec<(&'static str, Arc<TlsCounts>)>>,
    connections: Family<TlsLabel, Counter>,
    refusals: Family<TlsRefusalLabels, Counter>,
    reloads: Family<TlsReloadLabels, Counter>,
    stale: Family<TlsLabel, Gauge>,
}

/// What the controller counts.
///
/// `received = accepted + coalesced + existing + ignored + refused`, once no alert is being handled.
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
    access: Family<AccessLabels, Counter>,
    talon: Family<TalonLabels, Counter>,
    sink_urls: Family<ResultLabel, Counter>,
    notifications: Family<ResultLabel, Counter>,
    tls: Tls,
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
            access: Family::default(),
            talon: Family::default(),
            sink_urls: Family::default(),
            notifications: Family::default(),
            tls: Tls::default(),
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
        for result in Notified::ALL {
            let result = result.as_str();
            metrics
                .notifications
                .get_or_create(&ResultLabel { result })
                .inc_by(0);
        }
        for call in ["get_caller_identity", "get_function", "invoke"] {
            for result in ["answered", "refused"] {
                let labels = TalonLabels { call, result };
                metrics.talon.get_or_create(&labels).inc_by(0);
            }
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
        registry.register(
            "access",
            "Calls by what was wanted, and whether it was allowed or why not",
            self.access.clone(),
        );
        registry.register(
            "talon_calls",
            "Calls of Falco Talon's aws:lambda by what became of them",
            self.talon.clone(),
        );
        registry.register(
            "sink_urls",
            "Files that agents offered to upload, by whether they got a URL or why not",
            self.sink_urls.clone(),
        );
        registry.register(
            "notifications",
            "Notifications of captures that ended, by what became of them at a receiver",
            self.notifications.clone(),
        );
        self.tls.register(registry);
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

    /// A decision about a call; `result`: "allowed", or why not.
    pub(crate) fn access(&self, action: &'static str, result: &'static str) {
        let labels = AccessLabels { action, result };
        self.access.get_or_create(&labels).inc();
    }

    /// A call of Talon's `aws:lambda`; `result`: "answered" or "refused".
    pub(crate) fn talon(&self, call: &'static str, result: &'static str) {
        self.talon
            .get_or_create(&TalonLabels { call, result })
            .inc();
    }

    /// An offered file; `result`: "signed", or why there is no URL.
    pub(crate) fn sink_url(&self, result: &'static str) {
        self.sink_urls.get_or_create(&ResultLabel { result }).inc();
    }

    pub(crate) fn notified(&self, result: Notified) {
        let label = ResultLabel {
            result: result.as_str(),
        };
        self.notifications.get_or_create(&label).inc();
    }

    /// Tells what `counts` has, as of `listener`.
    pub(crate) fn follow_tls(&self, listener: &'static str, counts: Arc<TlsCounts>) {
        let mut followed = self
            .tls
            .followed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        followed.push((listener, counts));
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
        self.tls.update();
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes all that is written to it");
        text
    }
}

impl Tls {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "tls_connections",
            "Connections by TLS that were let in",
            self.connections.clone(),
        );
        registry.register(
            "tls_refusals",
            "Connections by TLS that were not let in, by reason",
            self.refusals.clone(),
        );
        registry.register(
            "tls_reloads",
            "Readings of changed certificates by their result",
            self.reloads.clone(),
        );
        registry.register(
            "tls_stale",
            "1 while the certificates' files are wrong and older ones are in use",
            self.stale.clone(),
        );
    }

    fn update(&self) {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        for (listener, counts) in followed.iter() {
            let label = TlsLabel { listener };
            let set = |counter: &Counter, value| counter.inner().store(value, Ordering::Relaxed);
            set(&self.connections.get_or_create(&label), counts.accepted());
            for why in Refused::ALL {
                let reason = why.as_str();
                let labels = TlsRefusalLabels { listener, reason };
                set(&self.refusals.get_or_create(&labels), counts.refused(why));
            }
            let (loaded, refused) = counts.reloads();
            for (result, value) in [("loaded", loaded), ("refused", refused)] {
                let labels = TlsReloadLabels { listener, result };
                set(&self.reloads.get_or_create(&labels), value);
            }
            self.stale
                .get_or_create(&label)
                .set(i64::from(counts.is_stale()));
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
