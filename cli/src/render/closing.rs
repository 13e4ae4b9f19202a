//! The last lines of a capture, in tcpdump's manner.

use remora_capture::{
    pcapng::Finished,
    session::{CaptureState, Counts, Phase, StopReason},
};

use super::{shown, unit::packets};
use crate::{
    commands::Outcome,
    follow::{End, Ownership},
    output::Written,
    terminal,
};

/// Tells how the capture ended, on standard error.
pub(crate) fn tell(written: &Written, end: &End, ownership: Ownership) -> Outcome {
    let (lines, outcome) = lines(written, end, ownership);
    for line in lines {
        terminal::note(&line);
    }
    outcome
}

pub(super) fn lines(written: &Written, end: &End, ownership: Ownership) -> (Vec<String>, Outcome) {
    let mut lines = captured(written);
    let mut outcome = Outcome::Done;
    match end {
        End::Finished(state) => {
            let counts = &state.counts;
            lines.extend(sums(counts, written));
            lines.extend(ending(state));
            // Of what the agent stored, a ring may have removed files.
            let removed = state.files.removed.packets;
            if let Some(line) = incomplete("agent", counts, removed, written) {
                outcome = Outcome::Faulty;
                lines.push(line);
            }
            // The copy of a capture that failed is a whole copy.
            if state.phase == Phase::Failed && ownership == Ownership::Own {
                outcome = Outcome::Faulty;
            }
        }
        End::Left | End::Broken(_) => {
            outcome = Outcome::Faulty;
            lines.extend(unfinished(written, end));
        }
    }
    if let Some(line) = failed_output(written) {
        outcome = Outcome::Faulty;
        lines.push(line);
    }
    (lines, outcome)
}

/// The first lines: what is in the output.
pub(crate) fn captured(written: &Written) -> Vec<String> {
    let mut lines = vec![format!("{} captured", packets(written.packets))];
    lines.extend(files(&written.files));
    lines
}

/// Where the others went, by the final counts.
pub(crate) fn sums(counts: &Counts, written: &Written) -> Vec<String> {
    let within = counts.matched.saturating_sub(counts.over_budget);
    let dropped = counts.dropped().saturating_add(written.dropped);
    let mut lines = vec![
        format!("{} matched", packets(within)),
        format!("{} lost in kernel", packets(counts.lost_in_kernel())),
        format!("{} dropped by writer", packets(dropped)),
    ];
    if counts.over_budget > 0 {
        let more = packets(counts.over_budget).replacen(' ', " more ", 1);
        lines.push(format!("{more} matched after the limit"));
    }
    lines
}

/// Packets that were sent and did not come; `removed` of those written need not.
pub(crate) fn incomplete(
    sender: &str,
    counts: &Counts,
    removed: u64,
    written: &Written,
) -> Option<String> {
    let came = written.packets.saturating_add(written.dropped);
    let there = counts.written - removed.min(counts.written);
    (!(there..=counts.written).contains(&came)).then(|| {
        format!(
            "remora: the {sender} sent {} and {came} came: the output is not complete",
            packets(counts.written)
        )
    })
}

/// An end without final counts.
pub(crate) fn unfinished<S>(written: &Written, end: &End<S>) -> Vec<String> {
    match end {
        End::Finished(_) => vec![],
        End::Left => vec!["remora: left before its end; the output is not complete".into()],
        End::Broken(error) => {
            let mut lines = Vec::new();
            if written.dropped > 0 {
                lines.push(format!("{} dropped by writer", packets(written.dropped)));
            }
            lines.push(format!("remora: {error:#}"));
            lines.push("remora: the output ends there; what was lost is not known".into());
            lines
        }
    }
}

/// That the output failed; whoever reads a pipe may have seen enough.
pub(crate) fn failed_output(written: &Written) -> Option<String> {
    let error = written.failure.as_ref()?;
    (error.kind() != std::io::ErrorKind::BrokenPipe).then(|| {
        format!(
            "remora: the output failed ({error}): it ends with its last whole packet, {} \
             after it {} dropped by writer",
            packets(written.dropped),
            if written.dropped == 1 { "was" } else { "were" }
        )
    })
}

/// Files that rotated.
fn files(finished: &Finished) -> Option<String> {
    let Finished { files, removed } = finished;
    let (first, last) = (files.first()?, files.last()?);
    if files.len() == 1 && removed.files == 0 {
        return None;
    }
    let mut line = format!("{} files, {} to {}", files.len(), first.name, last.name);
    if removed.files > 0 {
        line += &format!(
            "; {} older ones with {} removed",
            removed.files,
            packets(removed.packets)
        );
    }
    Some(shown(&line).to_string())
}

/// Why it ended, unless the user asked for just that.
fn ending(state: &CaptureState) -> Option<String> {
    let reason = match state.stop_reason {
        None
        | Some(
            StopReason::Requested
            | StopReason::Packets
            | StopReason::FileBytes
            | StopReason::Duration,
        ) => None,
        Some(reason) => Some(reason.text()),
    };
    match (reason, state.message.as_str()) {
        (None, "") => None,
        (None, message) => Some(format!("remora: {}", shown(message))),
        (Some(reason), "") => Some(format!("remora: ended early: {reason}")),
        (Some(reason), message) => {
            Some(format!("remora: ended early: {reason}: {}", shown(message)))
        }
    }
}
