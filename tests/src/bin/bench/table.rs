//! Tables of figures, for a terminal and for the document.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::{
    bed::Path,
    figures::median,
    row::{Row, Run},
};

/// A heading and lines of cells, the first of which is a name.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<&'static str>,
    pub(crate) lines: Vec<Vec<String>>,
    /// All that was measured, for machines.
    pub(crate) raw: Value,
}

impl Table {
    /// What was measured on two paths.
    pub(crate) fn of_paths<'a>(title: &str, rows: impl Iterator<Item = &'a Row> + Clone) -> Self {
        Self {
            title: title.to_owned(),
            columns: vec![
                "on the captured path",
                "ns added",
                "(p25)",
                "speed",
                "twin ns",
                "sent",
                "captured",
                "lost",
                "CPU s/Mpkt",
                "RSS MiB",
            ],
            lines: rows.clone().map(of_row).collect(),
            raw: rows.map(row_json).collect(),
        }
    }

    /// Aligned, for a terminal.
    pub(crate) fn text(&self) -> String {
        let mut widths: Vec<_> = self.columns.iter().map(|c| c.chars().count()).collect();
        for line in &self.lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = format!("\n{}\n", self.title);
        let heading = self.columns.iter().map(|&column| column.to_owned());
        for line in std::iter::once(&heading.collect()).chain(&self.lines) {
            for (number, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let _ = match number {
                    0 => write!(text, "  {cell:<width$}"),
                    _ => write!(text, "  {cell:>width$}"),
                };
            }
            text.push('\n');
        }
        text
    }

    /// A table of Markdown, with its title as a heading.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("\n### {}\n\n", self.title);
        let _ = writeln!(text, "| {} |", self.columns.join(" | "));
        let _ = writeln!(text, "|---{}|", "|--:".repeat(self.columns.len() - 1));
        for line in &self.lines {
            let _ = writeln!(text, "| {} |", line.join(" | "));
        }
        text
    }
}

fn of_row(row: &Row) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let caught = row.caught();
    let lost = caught.map(|caught| match row.unaccounted() {
        Some(unaccounted @ 1..) => format!("{} + {unaccounted} untold", caught.lost),
        _ => caught.lost.to_string(),
    });
    let cpu = row.cpu_s_per_million();
    vec![
        row.subject.clone(),
        format!("{:+.0}", row.median(Run::ns_added)),
        format!("({:+.0})", row.median(Run::ns_added_p25)),
        format!("{:.3}", row.median(Run::speed_ratio)),
        format!("{:.0}", row.median(|run| run.sample.twin.median_ns)),
        row.sent().to_string(),
        or_dash(caught.map(|caught| caught.captured.to_string())),
        or_dash(lost),
        or_dash(cpu.map(|cpu| format!("{:.2}", median(&cpu)))),
        or_dash(row.rss_mib().map(|rss| format!("{rss:.0}"))),
    ]
}

fn row_json(row: &Row) -> Value {
    let runs: Vec<Value> = row
        .runs
        .iter()
        .map(|run| {
            let path = |path: Path| {
                json!({ "sent": path.sent, "median_ns": path.median_ns, "p25_ns": path.p25_ns })
            };
            json!({
                "captured_path": path(run.sample.captured),
                "twin_path": path(run.sample.twin),
                "captured": run.caught.map(|caught| caught.captured),
                "lost": run.caught.map(|caught| caught.lost),
                "cpu_s": run.usage.map(|usage| usage.cpu.as_secs_f64()),
                "rss_kib": run.usage.map(|usage| usage.rss_kib),
            })
        })
        .collect();
    json!({
        "load": row.load.to_string(),
        "subject": row.subject,
        "ns_added": row.median(Run::ns_added),
        "ns_added_p25": row.median(Run::ns_added_p25),
        "speed_ratio": row.median(Run::speed_ratio),
        "twin_ns": row.median(|run| run.sample.twin.median_ns),
        "sent": row.sent(),
        "captured": row.caught().map(|caught| caught.captured),
        "lost": row.caught().map(|caught| caught.lost),
        "unaccounted": row.unaccounted(),
        "cpu_s_per_million_packets": row.cpu_s_per_million().map(|cpu| median(&cpu)),
        "rss_mib": row.rss_mib(),
        "runs": runs,
    })
}
