//! What commands print, made by pure functions. Every text of the agent is escaped here.

pub(crate) mod closing;
mod evidence;
mod list;
mod show;
mod status;
pub(crate) mod unit;
mod upload;

use remora_capture::{evidence::Hold, session::CaptureState, text};

pub(crate) use evidence::{custody, report};
pub(crate) use list::list;
#[cfg(feature = "kubernetes")]
pub(crate) use list::phase;
pub(crate) use show::show;
pub(crate) use status::status;
pub(crate) use upload::Upload;

/// A capture as it is kept.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Kept {
    #[serde(flatten)]
    pub(crate) capture: CaptureState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hold: Option<Hold>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upload: Option<Upload>,
}

/// Characters of one text that are shown.
const TEXT_MAX: usize = 1000;

pub(crate) fn shown(text: &str) -> text::Escaped<'_> {
    text::excerpt(text, TEXT_MAX)
}

/// Pretty JSON that a terminal can be shown too: within strings, where alone they can be, hostile
/// characters beyond those that JSON escapes anyway are `\u` escapes.
pub(crate) fn json(value: &impl serde::Serialize) -> serde_json::Result<String> {
    let mut json = String::new();
    for c in serde_json::to_string_pretty(value)?.chars() {
        if text::is_hostile(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                json.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            json.push(c);
        }
    }
    json.push('\n');
    Ok(json)
}

/// Rows under a heading, each column as wide as its widest cell.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let mut table = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(&format!(
                "{cell:<width$}   ",
                width = width(column).unwrap_or(0)
            ));
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests;
