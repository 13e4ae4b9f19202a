//! `remora list`.

use jiff::Timestamp;
use remora_capture::{session::Phase, text};

use super::{Kept, columns, json, unit::age};
use crate::args::Format;

/// Characters of a cell whose text has no bound of its own.
const CELL_MAX: usize = 48;

/// # Errors
/// A state that is no JSON.
pub(crate) fn list(mut captures: Vec<Kept>, format: Format) -> anyhow::Result<String> {
    captures.sort_by_key(|kept| kept.capture.id);
    match format {
        Format::Json => Ok(json(&captures)?),
        Format::Table => Ok(table(&captures, Timestamp::now())),
    }
}

pub(super) fn table(captures: &[Kept], now: Timestamp) -> String {
    if captures.is_empty() {
        return "no captures\n".into();
    }
    let heading = ["ID", "TARGET", "FILTER", "PHASE", "PACKETS", "LOST", "AGE"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    rows.extend(captures.iter().map(|Kept { capture, hold, .. }| {
        let held = if hold.is_some() { ", held" } else { "" };
        vec![
            capture.id.to_string(),
            text::excerpt(&capture.spec.target.to_string(), CELL_MAX).to_string(),
            match capture.spec.filter.text() {
                "" => "-".into(),
                filter => text::excerpt(filter, CELL_MAX).to_string(),
            },
            format!("{}{held}", phase(capture.phase)),
            capture.counts.written.to_string(),
            capture.counts.missing().to_string(),
            age(now.duration_since(capture.started).unsigned_abs()),
        ]
    }));
    columns(&rows)
}

pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Capturing => "Capturing",
        Phase::Draining => "Draining",
        Phase::Finished => "Finished",
        Phase::Failed => "Failed",
    }
}
