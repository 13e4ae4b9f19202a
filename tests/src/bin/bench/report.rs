//! The figures as a table, as JSON, and as a document.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    Plan,
    bed::{Path, Way},
    machine::Machine,
    rounds::SIZES,
    row::{Row, Run, Subject},
};

/// The control's speed ratio of a machine that can be measured on.
const CONTROL: std::ops::RangeInclusive<f64> = 0.98..=1.02;

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) load_after: f64,
    pub(crate) plan: Plan,
    /// In the order of [`Subject::ALL`], by size.
    pub(crate) rows: Vec<Row>,
}

const COLUMNS: [&str; 10] = [
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
];

/// One line of the table.
fn cells(row: &Row) -> [String; 10] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let caught = row.caught();
    let lost = caught.map(|caught| match row.unaccounted() {
        Some(unaccounted @ 1..) => format!("{} + {unaccounted} untold", caught.lost),
        _ => caught.lost.to_string(),
    });
    [
        row.subject.name().to_owned(),
        format!("{:+.0}", row.median(Run::ns_added)),
        format!("({:+.0})", row.median(Run::ns_added_p25)),
        format!("{:.3}", row.median(Run::speed_ratio)),
        format!("{:.0}", row.median(|run| run.sample.twin.median_ns)),
        row.sent().to_string(),
        or_dash(caught.map(|caught| caught.captured.to_string())),
        or_dash(lost),
        or_dash(row.cpu_s_per_million().map(|cpu| format!("{cpu:.2}"))),
        or_dash(row.rss_mib().map(|rss| format!("{rss:.0}"))),
    ]
}

impl Report {
    /// One table each: its heading and its rows.
    fn tables(&self) -> impl Iterator<Item = (String, impl Iterator<Item = &Row>)> {
        let kinds = |&way: &Way| SIZES.map(|size| (way, size));
        self.plan.ways.iter().flat_map(kinds).map(|(way, size)| {
            let rows = self.rows.iter();
            (
                format!("Frames of {size} bytes, {}", way.name()),
                rows.filter(move |row| (row.way, row.size) == (way, size)),
            )
        })
    }

    /// What the controls say of this measurement.
    fn verdict(&self) -> String {
        let off: Vec<String> = self
            .rows
            .iter()
            .filter(|row| row.subject == Subject::Control)
            .map(|row| (row, row.median(Run::speed_ratio)))
            .filter(|(_, ratio)| !CONTROL.contains(ratio))
            .map(|(row, ratio)| format!("{ratio:.3} at {} B {}", row.size, row.way.name()))
            .collect();
        if off.is_empty() {
            "Control within 2 %: the figures hold.".into()
        } else {
            format!(
                "Control off by more than 2 % ({}): other work disturbs this machine, measure \
                 again.",
                off.join(", ")
            )
        }
    }

    fn conditions(&self) -> String {
        format!(
            "{} runs of {:.1} s a row; load {:.2} before, {:.2} after; {}; agent with its \
             defaults, ring 16 MiB",
            self.plan.runs,
            self.plan.length.as_secs_f64(),
            self.machine.load_before,
            self.load_after,
            self.machine.tcpdump,
        )
    }

    /// Aligned, for a terminal.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for (title, rows) in self.tables() {
            let lines: Vec<_> = rows.map(cells).collect();
            let mut widths = COLUMNS.map(|column| column.chars().count());
            for line in &lines {
                for (width, cell) in widths.iter_mut().zip(line) {
                    *width = (*width).max(cell.chars().count());
                }
            }
            let heading = COLUMNS.map(str::to_owned);
            let _ = writeln!(text, "\n{title}");
            for line in std::iter::once(&heading).chain(&lines) {
                let _ = write!(text, "  {:<width$}", line[0], width = widths[0]);
                for (cell, width) in line.iter().zip(widths).skip(1) {
                    let _ = write!(text, "  {cell:>width$}");
                }
                text.push('\n');
            }
        }
        let _ = writeln!(text, "\n{}\n{}", self.conditions(), self.verdict());
        text
    }

    /// Every run, and what the table says.
    ///
    /// # Errors
    /// A figure is not a number.
    pub(crate) fn json(&self) -> Result<String> {
        let rows: Vec<Value> = self.rows.iter().map(row_json).collect();
        let machine = &self.machine;
        Ok(serde_json::to_string_pretty(&json!({
            "date": machine.date.to_string(),
            "commit": machine.commit,
            "machine": { "cpu": machine.cpu, "cpus": machine.cpus, "kernel": machine.kernel },
            "tcpdump": machine.tcpdump,
            "load": { "before": machine.load_before, "after": self.load_after },
            "runs": self.plan.runs,
            "seconds": self.plan.length.as_secs_f64(),
            "rows": rows,
        }))?)
    }

    /// `docs/performance.md`.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from(INTRODUCTION);
        let machine = &self.machine;
        let _ = write!(
            text,
            "\n## Figures\n\n\
             - {}, commit {}\n\
             - {} × {}, kernel {}\n\
             - {}\n\
             - {}\n",
            machine.date.strftime("%Y-%m-%d %H:%M UTC"),
            machine.commit,
            machine.cpus,
            machine.cpu,
            machine.kernel,
            self.conditions(),
            self.verdict(),
        );
        for (title, rows) in self.tables() {
            let _ = write!(text, "\n### {title}\n\n");
            let _ = writeln!(text, "| {} |", COLUMNS.join(" | "));
            let _ = writeln!(text, "|---{}|", "|--:".repeat(COLUMNS.len() - 1));
            for row in rows {
                let _ = writeln!(text, "| {} |", cells(row).join(" | "));
            }
        }
        text
    }
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
        "way": row.way.name(),
        "subject": row.subject.name(),
        "frame_bytes": row.size,
        "ns_added": row.median(Run::ns_added),
        "ns_added_p25": row.median(Run::ns_added_p25),
        "speed_ratio": row.median(Run::speed_ratio),
        "twin_ns": row.median(|run| run.sample.twin.median_ns),
        "sent": row.sent(),
        "captured": row.caught().map(|caught| caught.captured),
        "lost": row.caught().map(|caught| caught.lost),
        "unaccounted": row.unaccounted(),
        "cpu_s_per_million_packets": row.cpu_s_per_million(),
        "rss_mib": row.rss_mib(),
        "runs": runs,
    })
}

const INTRODUCTION: &str = "\
# Performance

Written by `cargo xtask bench --markdown`; do not edit. `cargo xtask bench --quick` measures in under
a minute and prints the same table; each run also leaves its raw figures in `target/bench/`.

## Method

One generator sends UDP packets on two paths in turn, 5 ms each: socket, bridge, veth, and a socket
of a pod that drops them (*into the pod*), or from that pod to its nodes (*out of the pod*). Both
paths are alike, between the pod and two node namespaces with the same set-up, and only the first
one's veth is captured. Every `sendmmsg(2)` of 64 packets is timed; a packet's whole
way to the socket runs inside that call, on the generator's CPU 0. The capturer has CPU 1 and writes
to tmpfs. Medians of both paths within one run are compared, so what else the machine does cancels
out; the table has the median of several runs.

- **ns added**: median time of a packet on the captured path less that on its twin. **(p25)**: the
  same of lower quartiles, less moved by other work.
- **speed**: the twin's time divided by the captured path's; 1 is no cost. The *control* has nothing
  on either path and must be near 1.
- **twin ns**: time of a packet on the twin path in the same runs.
- **sent** on the captured path in all runs, **captured** in the files, **lost** as the capturer says
  itself (*untold*: in no file and no count). The captures also have a few packets of the path's
  neighbour discovery.
- **CPU s/Mpkt**: user and system time of the capturer's process for a million packets sent and not
  lost. What its kernel side takes of the generator's CPU is in *ns added*. The agent's includes
  closing the file; tcpdump's does not.
- **RSS**: resident memory after the run; the agent's ring of 16 MiB is mapped twice and counts twice.
  tcpdump's own ring has 2 MiB, its default.

What the figures do not tell:

- The agent also has programs at the cgroup2 root, which run for sockets on both paths: what they
  cost is in *twin ns* of the agent's rows, not in *ns added*.
- A packet that leaves an interface is cloned for tcpdump before its filter runs, one that comes in is
  not: tcpdump costs more *into the pod*, which leaves the node by the captured veth.
- One packet passes one captured veth here. Between two pods of a node it passes two, and the agent
  is on both.
- One sender on one CPU; no TCP, no segmentation offload, no disk.
";
