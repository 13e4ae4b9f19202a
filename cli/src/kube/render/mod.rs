//! What `kubectl remora` prints, made by pure functions. Every text from outside is escaped here.

mod status;

use std::time::Duration;

use jiff::Timestamp;
use remora_capture::text;

pub(super) use status::{silent_nodes, status};

use super::{
    feed::Progress,
    state::{ClusterCapture, ClusterPart},
};
use crate::{
    args::Format,
    commands::Outcome,
    follow::End,
    output::Written,
    render::{closing, columns, json, phase, shown, unit},
    terminal,
};

/// Parts that are listed one by one; of more, those that miss something come first.
const PARTS_SHOWN: usize = 32;
/// Characters of a cell whose text has no bound of its own.
const CELL_MAX: usize = 48;

/// The line on a terminal while a capture runs.
pub(super) fn live(
    state: Option<&ClusterCapture>,
    packets: u64,
    bytes: u64,
    left: Option<Duration>,
) -> String {
    let mut line = String::new();
    if let Some(state) = state {
        let (reached, all) = state.nodes();
        line += &format!("Nodes: {reached}/{all} ");
    }
    line += &format!("Packets: {packets} ({})", unit::bytes(bytes));
    if let Some(state) = state {
        line += &format!(" Lost: {}", state.counts.missing());
    }
    if let Some(left) = left {
        line += &format!(" Left: {}", unit::age(left));
    }
    line
}

/// Tells that a capture runs, and what of it does not, on standard error.
pub(super) fn tell_start(state: &ClusterCapture) {
    terminal::note(&start_line(state));
    for line in missing(state) {
        terminal::note(&line);
    }
}

fn start_line(state: &ClusterCapture) -> String {
    let (reached, _) = state.nodes();
    let parts = state.parts.iter().filter(|part| part.state.is_some());
    let pods = parts.filter(|part| part.pod.is_some()).count();
    let pods = match pods {
        0 => String::new(),
        1 => "1 pod on ".into(),
        pods => format!("{pods} pods on "),
    };
    let nodes = if reached == 1 { "node" } else { "nodes" };
    format!(
        "capturing on {}: {pods}{reached} {nodes}, capture {}",
        target(state),
        state.id
    )
}

fn target(state: &ClusterCapture) -> String {
    let selector = state.selector.to_string();
    match state.selector.namespace() {
        Some(namespace) => format!("{} in {}", shown(&selector), shown(namespace)),
        None => shown(&selector).to_string(),
    }
}

/// What is missing, a line each.
fn missing(state: &ClusterCapture) -> Vec<String> {
    let mut lines: Vec<String> = state
        .missing()
        .take(PARTS_SHOWN)
        .map(|part| {
            let why = match (part.error.as_str(), &part.state) {
                ("", Some(state)) => state.message.as_str(),
                ("", None) => "no reason was told",
                (error, _) => error,
            };
            format!(
                "remora: missing: {} on {}: {}",
                shown(&part.name()),
                shown(&part.node),
                shown(why)
            )
        })
        .collect();
    let more = state.missing().count().saturating_sub(PARTS_SHOWN);
    if more > 0 {
        lines.push(format!("remora: {more} more parts are missing"));
    }
    if !state.message.is_empty() {
        lines.push(format!("remora: {}", shown(&state.message)));
    }
    lines
}

/// All parts are there, or not.
pub(super) fn outcome(state: &ClusterCapture) -> Outcome {
    match (state.missing().count(), state.parts.len()) {
        (0, _) => Outcome::Done,
        (missing, all) if missing == all => Outcome::Faulty,
        _ => Outcome::Partly,
    }
}

/// Tells how a capture ended, on standard error.
pub(super) fn tell_end(
    written: &Written,
    end: &End<ClusterCapture>,
    progress: &Progress,
) -> Outcome {
    let (lines, outcome) = end_lines(written, end, progress.last().as_ref());
    for line in lines {
        terminal::note(&line);
    }
    outcome
}

/// The closing lines: in sum as tcpdump has them, then per pod; `last` is what was known before the
/// end.
pub(super) fn end_lines(
    written: &Written,
    end: &End<ClusterCapture>,
    last: Option<&ClusterCapture>,
) -> (Vec<String>, Outcome) {
    let mut lines = closing::captured(written);
    let mut result = match end {
        End::Finished(state) => {
            lines.extend(closing::sums(&state.counts, written));
            if state.parts.len() > 1 {
                lines.extend(parts(state));
            }
            lines.extend(missing(state));
            let counts = &state.counts;
            match closing::incomplete("controller", counts, removed(state), written) {
                Some(line) => {
                    lines.push(line);
                    Outcome::Faulty
                }
                None => outcome(state),
            }
        }
        End::Left | End::Broken(_) => {
            lines.extend(closing::unfinished(written, end));
            lines.extend(last.into_iter().flat_map(missing));
            Outcome::Faulty
        }
    };
    if let Some(line) = closing::failed_output(written) {
        result = Outcome::Faulty;
        lines.push(line);
    }
    (lines, result)
}

/// Packets that were written and removed again: agents may keep rings of files.
fn removed(state: &ClusterCapture) -> u64 {
    let parts = state.parts.iter().filter_map(|part| part.state.as_ref());
    parts.map(|state| state.files.removed.packets).sum()
}

fn parts(state: &ClusterCapture) -> Vec<String> {
    let mut there: Vec<&ClusterPart> = state.parts.iter().collect();
    there.retain(|part| part.state.is_some());
    let more = there.len().saturating_sub(PARTS_SHOWN);
    let mut lines: Vec<String> = there
        .into_iter()
        .take(PARTS_SHOWN)
        .filter_map(|part| {
            let counts = &part.state.as_ref()?.counts;
            Some(format!(
                "  {} on {}: {} captured, {} lost in kernel, {} dropped",
                shown(&part.name()),
                shown(&part.node),
                unit::packets(counts.written),
                counts.lost_in_kernel(),
                counts.dropped(),
            ))
        })
        .collect();
    if more > 0 {
        lines.push(format!(
            "  and {more} more: kubectl remora show {}",
            state.id
        ));
    }
    lines
}

/// # Errors
/// A state that is no JSON.
pub(super) fn list(
    mut captures: Vec<ClusterCapture>,
    format: Format,
    now: Timestamp,
) -> anyhow::Result<String> {
    captures.sort_by_key(|capture| capture.id);
    if format == Format::Json {
        return Ok(json(&captures)?);
    }
    if captures.is_empty() {
        return Ok("no captures\n".into());
    }
    let heading = [
        "ID",
        "NAMESPACE",
        "TARGET",
        "PHASE",
        "PARTS",
        "PACKETS",
        "LOST",
        "AGE",
    ];
    let mut rows = vec![heading.map(String::from).to_vec()];
    rows.extend(captures.iter().map(|capture| {
        let there = capture.parts.len() - capture.missing().count();
        vec![
            capture.id.to_string(),
            shown(capture.selector.namespace().unwrap_or("-")).to_string(),
            text::excerpt(&capture.selector.to_string(), CELL_MAX).to_string(),
            phase(capture.phase).into(),
            format!("{there}/{}", capture.parts.len()),
            capture.counts.written.to_string(),
            capture.counts.missing().to_string(),
            capture.started.map_or_else(
                || "-".into(),
                |started| unit::age(now.duration_since(started).unsigned_abs()),
            ),
        ]
    }));
    Ok(columns(&rows))
}

/// # Errors
/// A state that is no JSON.
pub(super) fn show(state: &ClusterCapture, format: Format) -> anyhow::Result<String> {
    if format == Format::Json {
        return Ok(json(state)?);
    }
    let row = |name: &str, value: String| vec![format!("{name}:"), value];
    let (reached, all) = state.nodes();
    let mut rows = vec![
        row("Capture", state.id.to_string()),
        row("Phase", phase(state.phase).into()),
        row("Target", target(state)),
        row(
            "Members",
            if state.fixed {
                "those of the start".into()
            } else {
                "those of the start, and what joins".into()
            },
        ),
        row("Nodes", format!("{reached} of {all}")),
    ];
    if let Some(spec) = state.parts.iter().find_map(|part| part.state.as_ref()) {
        rows.push(row(
            "Filter",
            match spec.spec.filter.text() {
                "" => "none: all packets".into(),
                filter => shown(filter).to_string(),
            },
        ));
    }
    for (name, time) in [("Started", state.started), ("Finished", state.finished)] {
        rows.extend(time.map(|time| row(name, time.to_string())));
    }
    if !state.message.is_empty() {
        rows.push(row("Message", shown(&state.message).to_string()));
    }
    let mut text = columns(&rows);
    let heading = ["POD", "NODE", "PHASE", "PACKETS", "LOST", "DROPPED", "WHY"];
    let mut table = vec![heading.map(String::from).to_vec()];
    table.extend(state.parts.iter().map(part_row));
    let counts = &state.counts;
    table.push(vec![
        "sum".into(),
        String::new(),
        String::new(),
        counts.written.to_string(),
        counts.lost_in_kernel().to_string(),
        counts.dropped().to_string(),
    ]);
    text.push('\n');
    text.push_str(&columns(&table));
    Ok(text)
}

fn part_row(part: &ClusterPart) -> Vec<String> {
    let mut row = vec![
        shown(&part.name()).to_string(),
        shown(&part.node).to_string(),
    ];
    match &part.state {
        Some(state) => {
            let counts = &state.counts;
            let why = match (part.error.as_str(), state.stop_reason) {
                ("", Some(reason)) => reason.text().to_owned(),
                (error, _) => shown(error).to_string(),
            };
            row.extend([
                phase(state.phase).into(),
                counts.written.to_string(),
                counts.lost_in_kernel().to_string(),
                counts.dropped().to_string(),
                why,
            ]);
        }
        None => {
            row.extend(["Missing", "-", "-", "-"].map(String::from));
            row.push(shown(&part.error).to_string());
        }
    }
    row
}

#[cfg(test)]
mod tests;
