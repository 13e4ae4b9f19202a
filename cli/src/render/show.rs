//! `remora show`: one capture, with where each of its packets went.

use jiff::Timestamp;
use remora_capture::session::{
    CaptureState, Counts, Destination, Direction, Files, Limits, StopReason, Trigger,
};

use super::{Kept, columns, json, list::phase, shown, unit};
use crate::args::Format;

/// Characters of an alert that are shown; JSON has all of it.
const ALERT_MAX: usize = 200;

/// # Errors
/// A state that is no JSON.
pub(crate) fn show(kept: &Kept, format: Format) -> anyhow::Result<String> {
    match format {
        Format::Json => Ok(json(kept)?),
        Format::Table => Ok(describe(kept, Timestamp::now())),
    }
}

pub(super) fn describe(kept: &Kept, now: Timestamp) -> String {
    let state = &kept.capture;
    let spec = &state.spec;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![format!("{name}:"), value]);
        }
    };
    row("Capture", state.id.to_string());
    row("Phase", phase_and_reason(state));
    let hold = kept.hold.as_ref().map(|hold| hold.text());
    row("Hold", shown(&hold.unwrap_or_default()).to_string());
    let upload = kept.upload.as_ref().map(|upload| upload.text());
    row("Upload", upload.unwrap_or_default());
    row("Message", shown(&state.message).to_string());
    row("Target", shown(&spec.target.to_string()).to_string());
    row("Resolved", shown(&state.resolved_target).to_string());
    row("Node", shown(&state.node).to_string());
    row(
        "Filter",
        match spec.filter.text() {
            "" => "none: all packets".into(),
            filter => shown(filter).to_string(),
        },
    );
    row(
        "Direction",
        match spec.direction {
            Direction::Both => "in and out",
            Direction::Ingress => "in",
            Direction::Egress => "out",
        }
        .into(),
    );
    row("Snaplen", spec.snaplen.to_string());
    row("Limits", limits(&spec.limits));
    row(
        "Destination",
        match spec.destination {
            Destination::Stream => "stream".into(),
            Destination::Store => format!("store, file {}", shown(&state.file)),
        },
    );
    row("Files", files(state));
    if state.files.blocks > state.counts.written {
        row(
            "Segments",
            format!("{} of the packets written", state.files.blocks),
        );
    }
    row(
        "Started",
        format!("{} ({} ago)", state.started, ago(now, state.started)),
    );
    if let Some(finished) = state.finished {
        row(
            "Finished",
            format!("{finished} (after {})", ago(finished, state.started)),
        );
    }
    row(
        "First packet",
        state
            .first_packet
            .map(|t| t.to_string())
            .unwrap_or_default(),
    );
    row(
        "Last packet",
        state.last_packet.map(|t| t.to_string()).unwrap_or_default(),
    );
    row("Trigger", trigger(&spec.trigger));
    row(
        "Alert",
        remora_capture::text::excerpt(&spec.trigger.alert, ALERT_MAX).to_string(),
    );
    row("Caller", shown(&state.caller).to_string());
    for (key, value) in &spec.labels {
        row("Label", format!("{}={}", shown(key), shown(value)));
    }
    for tap in &state.taps {
        row(
            "Tap",
            format!(
                "{} {} (ifindex {}, cgroup {}) {}",
                shown(&tap.hook),
                shown(&tap.interface),
                tap.ifindex,
                tap.cgroup_id,
                shown(&tap.description)
            ),
        );
    }
    format!("{}\n{}", columns(&rows), accounting(state))
}

/// Files that rotate, and what they came to.
fn files(state: &CaptureState) -> String {
    let rotation = state.spec.writing.rotation;
    if !rotation.is_on() {
        return String::new();
    }
    let Files { count, removed, .. } = state.files;
    let mut parts = Vec::new();
    if let Some(bytes) = rotation.file_bytes {
        parts.push(format!("another after {} bytes", bytes.get()));
    }
    if let Some(interval) = rotation.interval {
        parts.push(format!("another every {interval:?}"));
    }
    if let Some(files) = rotation.files {
        let what = if rotation.is_ring() {
            "the last"
        } else {
            "at most"
        };
        parts.push(format!("{what} {files}"));
    }
    if state.phase.is_final() {
        parts.push(format!("{count} are there"));
    }
    if removed.files > 0 {
        parts.push(format!(
            "{} removed with {} of those written",
            removed.files,
            unit::packets(removed.packets)
        ));
    }
    parts.join(", ")
}

fn phase_and_reason(state: &CaptureState) -> String {
    let phase = phase(state.phase);
    state.stop_reason.map_or_else(
        || phase.to_owned(),
        |reason: StopReason| format!("{phase}: {}", reason.text()),
    )
}

fn limits(limits: &Limits) -> String {
    let Limits {
        packets,
        file_bytes,
        duration,
    } = limits;
    let all = [
        packets.map(|n| unit::packets(n.get())),
        file_bytes.map(|n| format!("{} bytes of file", n.get())),
        duration.map(|duration| format!("{duration:?}")),
    ];
    let all: Vec<_> = all.into_iter().flatten().collect();
    if all.is_empty() {
        "none".into()
    } else {
        all.join(", ")
    }
}

fn trigger(trigger: &Trigger) -> String {
    let Trigger {
        source,
        rule,
        priority,
        requester,
        reason,
        time,
        trace_id,
        alert: _,
    } = trigger;
    let parts = [
        ("", source),
        ("by ", requester),
        ("rule ", rule),
        ("priority ", priority),
        ("because ", reason),
        ("trace ", trace_id),
        (
            "at ",
            &time.map(|time| time.to_string()).unwrap_or_default(),
        ),
    ];
    let parts = parts.iter().filter(|(_, text)| !text.is_empty());
    parts
        .map(|(word, text)| format!("{word}{}", shown(text)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The conservation law with this capture's numbers.
fn accounting(state: &CaptureState) -> String {
    let Counts {
        seen,
        matched,
        submitted,
        lost,
        over_budget,
        copy_error,
        read,
        written,
        dropped_queue,
        dropped_io,
        malformed,
        stale,
        lost_on_crash,
        written_bytes,
    } = state.counts;
    let row =
        |name: &str, count: u64, sum: String| vec![format!("  {name}"), count.to_string(), sum];
    let table = columns(&[
        row("seen", seen, String::new()),
        row(
            "matched",
            matched,
            format!(
                "= submitted {submitted} + lost {lost} + over budget {over_budget} + copy error {copy_error}"
            ),
        ),
        row(
            "submitted",
            submitted,
            format!("= read {read} + lost on crash {lost_on_crash}"),
        ),
        row(
            "read",
            read,
            format!(
                "= written {written} + dropped queue {dropped_queue} + dropped I/O {dropped_io} + malformed {malformed} + stale {stale}"
            ),
        ),
        row("written", written, unit::bytes(written_bytes)),
    ]);
    let verdict = if state.counts.balanced() {
        "The counts balance."
    } else if state.phase.is_final() {
        "THE COUNTS DO NOT BALANCE: packets are unaccounted for."
    } else {
        "The counts of a running capture are a moment's snapshot."
    };
    format!("Packets:\n{table}  {verdict}\n")
}

fn ago(now: Timestamp, then: Timestamp) -> String {
    unit::age(now.duration_since(then).unsigned_abs())
}
