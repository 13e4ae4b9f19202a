//! The last lines of a capture, in tcpdump's manner.

use remora_capture::{
    pcapng::Finished,
    session::{CaptureState, Phase, StopReason},
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
    let mut lines = vec![format!("{} captured", packets(written.packets))];
    lines.extend(files(&written.files));
    let mut outcome = Outcome::Done;
    match end {
        End::Finished(state) => {
            let counts = &state.counts;
            let within = counts.matched.saturating_sub(counts.over_budget);
            let dropped = counts.dropped().saturating_add(written.dropped);
            lines.push(format!("{} matched", packets(within)));
            lines.push(format!(
                "{} lost in kernel",
                packets(counts.lost_in_kernel())
            ));
            lines.push(format!("{} dropped by writer", packets(dropped)));
            if counts.over_budget > 0 {
                let more = packets(counts.over_budget).replacen(' ', " more ", 1);
                lines.push(format!("{more} matched after the limit"));
            }
            lines.extend(ending(state));
            let came = written.packets.saturating_add(written.dropped);
            // Of what the agent stored, a ring may have removed files.
            let there = counts.written - state.files.removed.packets.min(counts.written);
            if !(there..=counts.written).contains(&came) {
                outcome = Outcome::Faulty;
                lines.push(format!(
                    "remora: the agent sent {} and {came} came: the output is not complete",
                    packets(counts.written)
                ));
            }
            // The copy of a capture that failed is a whole copy.
            if state.phase == Phase::Failed && ownership == Ownership::Own {
                outcome = Outcome::Faulty;
            }
        }
        End::Left => {
            outcome = Outcome::Faulty;
            lines.push("remora: left before its end; the output is not complete".into());
        }
        End::Broken(error) => {
            outcome = Outcome::Faulty;
            if written.dropped > 0 {
                lines.push(format!("{} dropped by writer", packets(written.dropped)));
            }
            lines.push(format!("remora: {error:#}"));
            lines.push("remora: the output ends there; what was lost is not known".into());
        }
    }
    match &written.failure {
        // Whoever reads a pipe may have seen enough.
        Some(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        Some(error) => {
            outcome = Outcome::Faulty;
            lines.push(format!(
                "remora: the output failed ({error}): it ends with its last whole packet, {} \
                 after it {} dropped by writer",
                packets(written.dropped),
                if written.dropped == 1 { "was" } else { "were" }
            ));
        }
        None => {}
    }
    (lines, outcome)
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
