//! The metrics, made anew from a snapshot at each scrape.
//!
//! A capture's counters have its id as a label; the agent knows at most 64 running and 1024
//! finished ones, of which the running and the newest [`CAPTURES_MAX`] are told.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use remora_capture::session::{CaptureState, LookBackMode};

use crate::{
    node::{NodeNumbers, PodCounts, RetentionNumbers, TlsNumbers, UploadNumbers},
    session::StartNumbers,
};

/// Captures with series of their own.
const CAPTURES_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PacketLabels {
    capture: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InterfaceLabels {
    interface: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CaptureLabels {
    capture: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabel {
    decision: &'static str,
}

/// Prometheus' text (OpenMetrics 1.0).
pub(super) fn render(
    captures: &[CaptureState],
    node: &NodeNumbers,
    starts: &StartNumbers,
) -> String {
    let mut registry = Registry::with_prefix("remora");

    let packets = Family::<PacketLabels, Counter>::default();
    let bytes = Family::<CaptureLabels, Counter>::default();
    let oldest = captures.len().saturating_sub(CAPTURES_MAX);
    let told = captures
        .iter()
        .enumerate()
        .filter(|(at, state)| *at >= oldest || !state.phase.is_final())
        .map(|(_, state)| state);
    for CaptureState { id, counts, .. } in told {
        for (state, value) in counts.by_name() {
            let labels = PacketLabels {
                capture: id.to_string(),
                state,
            };
            packets.get_or_create(&labels).inc_by(value);
        }
        bytes
            .get_or_create(&CaptureLabels {
                capture: id.to_string(),
            })
            .inc_by(counts.written_bytes);
    }
    registry.register(
        "capture_packets",
        "Packets of a capture by where they went; see the conservation law",
        packets,
    );
    registry.register(
        "capture_written_bytes",
        "Bytes of a capture's file or stream",
        bytes,
    );

    let reach = Family::<InterfaceLabels, Gauge<f64, AtomicU64>>::default();
    let look_back_bytes = Family::<InterfaceLabels, Gauge>::default();
    for tap in &node.taps {
        let ring = tap.look_back.filter(|ring| ring.mode != LookBackMode::Off);
        let Some(ring) = ring else { continue };
        let labels = InterfaceLabels {
            interface: tap.interface.clone(),
        };
        reach
            .get_or_create(&labels)
            .set(Duration::from_millis(ring.reach_ms).as_secs_f64());
        look_back_bytes
            .get_or_create(&labels)
            .set(i64::try_from(ring.bytes).unwrap_or(i64::MAX));
    }
    registry.register(
        "look_back_reach_seconds",
        "How far back a pod's look-back ring reaches",
        reach,
    );
    registry.register(
        "look_back_bytes",
        "Memory of a pod's look-back ring",
        look_back_bytes,
    );

    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    let running = captures
        .iter()
        .filter(|state| !state.phase.is_final())
        .count();
    gauge("sessions_running", "Captures that run", running as u64);
    gauge(
        "sessions_limit",
        "Captures that can run at a time",
        node.sessions_limit.into(),
    );
    gauge("ring_bytes", "Size of the kernel's ring", node.ring_bytes);
    gauge(
        "store_bytes",
        "Bytes of captures in the data directory",
        node.store_bytes,
    );
    gauge(
        "store_quota_bytes",
        "Bytes that captures may take there",
        node.store_quota_bytes,
    );

    if let Some(pods) = node.pods {
        pod_metrics(&mut registry, pods);
    }

    let mut counter = |name: &str, help: &str, value: u64| {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    };
    counter(
        "records_stale",
        "Ring records of no running session",
        node.records_stale,
    );
    counter(
        "filter_programs_loaded",
        "Programs of machine code that were made of a tap's filters and loaded",
        node.filters_loaded,
    );
    counter(
        "filter_programs_refused",
        "Taps' filters that stay with the interpreter: too long together, or refused by the kernel",
        node.filters_refused,
    );
    counter(
        "records_malformed",
        "Ring records that did not parse",
        node.records_malformed,
    );

    register_starts(&mut registry, starts);
    register_retention(&mut registry, &node.retention);
    register_uploads(&mut registry, &node.uploads);
    if let Some(tls) = &node.tls {
        register_tls(&mut registry, tls);
    }

    let mut text = String::new();
    // Writing into a string does not fail.
    if let Err(error) = encode(&mut text, &registry) {
        tracing::error!(%error, "failed to encode the metrics");
    }
    text
}

/// `starts_received = starts`, once none is under way, and `starts{decision="refused"}` is all
/// `start_refusals`.
fn register_starts(registry: &mut Registry, starts: &StartNumbers) {
    let StartNumbers {
        received,
        accepted,
        coalesced,
        existing,
        refused,
    } = starts;
    let all = Counter::<u64>::default();
    all.inc_by(*received);
    registry.register("starts_received", "Starts that were asked for", all);
    let decided = Family::<DecisionLabel, Counter>::default();
    for (decision, value) in [
        ("accepted", *accepted),
        ("coalesced", *coalesced),
        ("existing", *existing),
        ("refused", refused.values().sum()),
    ] {
        let label = DecisionLabel { decision };
        decided.get_or_create(&label).inc_by(value);
    }
    registry.register(
        "starts",
        "Starts by what became of them: a capture began, one that ran was joined, the key was known, \
         or none",
        decided,
    );
    let refusals = Family::<ReasonLabel, Counter>::default();
    for (reason, value) in refused {
        refusals
            .get_or_create(&ReasonLabel { reason })
            .inc_by(*value);
    }
    registry.register("start_refusals", "Refused starts by reason", refusals);
}

fn pod_metrics(registry: &mut Registry, pods: PodCounts) {
    let PodCounts {
        known,
        refused,
        listed,
        checks_agreed,
        checks_differed,
    } = pods;
    for (name, help, value) in [
        (
            "pods_known",
            "Pods of the node that are known, those included that are gone and still remembered",
            known,
        ),
        (
            "pods_listed",
            "1 once the API server has told of all pods and namespaces",
            listed.into(),
        ),
    ] {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    }
    let counter = Counter::<u64>::default();
    counter.inc_by(refused);
    registry.register("pods_refused", "Pods that there was no room for", counter);
    let checks = Family::<CheckLabels, Counter>::default();
    for (result, value) in [("agreed", checks_agreed), ("differed", checks_differed)] {
        checks.get_or_create(&CheckLabels { result }).inc_by(value);
    }
    registry.register(
        "pod_address_checks",
        "Times that a pod's address of the API server was looked for where its cgroup's processes are",
        checks,
    );
}

fn register_retention(registry: &mut Registry, retention: &RetentionNumbers) {
    let RetentionNumbers {
        deleted,
        held,
        kept,
        kept_bytes,
    } = retention;
    let captures = Family::<ReasonLabel, Counter>::default();
    let bytes = Family::<ReasonLabel, Counter>::default();
    for (reason, count, sum) in deleted {
        captures
            .get_or_create(&ReasonLabel { reason })
            .inc_by(*count);
        bytes.get_or_create(&ReasonLabel { reason }).inc_by(*sum);
    }
    registry.register(
        "captures_deleted",
        "Captures whose files were deleted, by reason",
        captures,
    );
    registry.register(
        "captures_deleted_bytes",
        "Bytes of packets that were deleted with their captures, by reason",
        bytes,
    );
    for (name, help, value) in [
        ("captures_held", "Captures that nobody deletes", held),
        ("captures_kept", "Signed captures that are there", kept),
        (
            "captures_kept_bytes",
            "Bytes of packets of the signed captures that are there",
            kept_bytes,
        ),
    ] {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(*value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    }
}

fn register_uploads(registry: &mut Registry, uploads: &UploadNumbers) {
    let UploadNumbers {
        results,
        bytes,
        waiting,
        waiting_bytes,
    } = uploads;
    let tries = Family::<ResultLabel, Counter>::default();
    for result in UploadNumbers::RESULTS {
        let count = results.get(result).copied().unwrap_or_default();
        tries.get_or_create(&ResultLabel { result }).inc_by(count);
    }
    registry.register(
        "uploads",
        "Tries to upload a file, by what became of them",
        tries,
    );
    let sum = Counter::<u64>::default();
    sum.inc_by(*bytes);
    registry.register(
        "uploads_bytes",
        "Bytes of files that their store has verified",
        sum,
    );
    for (name, help, value) in [
        (
            "upload_pending",
            "Captures that are not in their sink yet, and stay until they are",
            waiting,
        ),
        (
            "upload_pending_bytes",
            "Bytes of the packets of captures that are not in their sink yet",
            waiting_bytes,
        ),
    ] {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(*value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    }
}

fn register_tls(registry: &mut Registry, tls: &TlsNumbers) {
    let TlsNumbers {
        accepted,
        refused,
        reloads_loaded,
        reloads_refused,
        is_stale,
    } = tls;
    let connections = Counter::<u64>::default();
    connections.inc_by(*accepted);
    registry.register(
        "tls_connections",
        "Connections by TLS that were let in",
        connections,
    );
    let refusals = Family::<ReasonLabel, Counter>::default();
    for (reason, count) in refused {
        refusals
            .get_or_create(&ReasonLabel { reason })
            .inc_by(*count);
    }
    registry.register(
        "tls_refusals",
        "Connections by TLS that were not let in, by reason",
        refusals,
    );
    let reloads = Family::<ResultLabel, Counter>::default();
    for (result, count) in [("loaded", reloads_loaded), ("refused", reloads_refused)] {
        reloads
            .get_or_create(&ResultLabel { result })
            .inc_by(*count);
    }
    registry.register(
        "tls_reloads",
        "Readings of changed certificates by their result",
        reloads,
    );
    let stale = Gauge::<i64>::default();
    stale.set(i64::from(*is_stale));
    registry.register(
        "tls_stale",
        "1 while the certificates' files are wrong and older ones are in use",
        stale,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_help_are_prometheus_ones() {
        let text = render(
            &[],
            &NodeNumbers {
                sessions_limit: 64,
                records_stale: 3,
                ..NodeNumbers::default()
            },
            &StartNumbers {
                received: 3,
                accepted: 1,
                refused: [("node_rate", 2)].into(),
                ..StartNumbers::default()
            },
        );
        assert!(
            text.contains("\nremora_starts_received_total 3\n"),
            "{text}"
        );
        let refused = "\nremora_starts_total{decision=\"refused\"} 2\n";
        assert!(text.contains(refused), "{text}");
        let reason = "\nremora_start_refusals_total{reason=\"node_rate\"} 2\n";
        assert!(text.contains(reason), "{text}");
        assert!(
            text.contains("# TYPE remora_records_stale counter\n"),
            "{text}"
        );
        assert!(text.contains("\nremora_records_stale_total 3\n"), "{text}");
        assert!(text.contains("\nremora_sessions_running 0\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
