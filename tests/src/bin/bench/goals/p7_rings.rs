//! P7: what two CPUs lose by sharing one ring.

use std::fs;

use anyhow::{Context as _, Result};
use remora_tests::{
    name,
    run::{self, Place, Rights},
};
use serde_json::Value;

use crate::{Bench, figures::median, table::Table};

const TOOL: &str = "ringtwin";
/// What is measured of each, with the tool's arguments.
const CASES: [(&str, &[&str]); 4] = [
    ("-s 96, back to back", &["--snaplen", "96"]),
    ("whole, back to back", &[]),
    (
        "-s 96, a call each",
        &["--snaplen", "96", "--spaced", "--packets", "3000"],
    ),
    (
        "-s 96, nobody reads",
        &["--snaplen", "96", "--packets", "100000", "--bursts", "5"],
    ),
];
/// As the tool names them.
const ROWS: [&str; 6] = [
    "one",
    "one, read",
    "shared",
    "apart",
    "one, missed",
    "apart, missed",
];

/// Medians of the runs, ns.
pub(super) fn table(bench: &Bench) -> Result<Table> {
    // Where the agent's user can execute it.
    let directory = name::directory()?;
    let tool = directory.path().join(TOOL);
    fs::copy(run::tool(TOOL)?, &tool).context("failed to copy the tool")?;
    let place = Place {
        rights: Rights::Agent,
        ..Place::default()
    };
    let rounds = bench.plan.runs.to_string();
    let mut lines = Vec::new();
    let mut raw = Vec::new();
    for (case, arguments) in CASES {
        let mut command = place.command(&tool);
        command
            .args(["--size", "1400", "--rounds", &rounds])
            .args(arguments);
        let told: Value = serde_json::from_str(&run::output(&mut command)?)?;
        let figure = |row: &str| -> Result<String> {
            let values = told["ns"][row].as_array().context("no such row")?;
            let values: Vec<f64> = values.iter().filter_map(Value::as_f64).collect();
            Ok(format!("{:.0}", median(&values)))
        };
        let mut line = vec![case.to_owned()];
        for row in ROWS {
            line.push(figure(row)?);
        }
        lines.push(line);
        raw.push(told);
    }
    Ok(Table {
        title: "The capture programs by test run, ns a packet of 1400 bytes on each CPU".into(),
        columns: [""].into_iter().chain(ROWS).collect(),
        lines,
        raw: raw.into(),
    })
}
