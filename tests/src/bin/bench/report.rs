//! All figures as tables, as JSON, and as a document.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    Plan,
    document::{INTRODUCTION, MISSED, ONE_RING, SIZES, WHERE_TIME_GOES},
    goals::{Goal, Part},
    machine::Machine,
    outcome::Outcome,
    table::Table,
};

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) load_after: f64,
    pub(crate) plan: Plan,
    pub(crate) measured: Vec<Measured>,
}

#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) goal: Goal,
    pub(crate) part: Part,
}

impl Report {
    /// A goal's outcomes.
    fn outcomes(measured: &Measured) -> Table {
        let Measured { goal, part } = measured;
        Table {
            title: goal.title().into(),
            columns: Outcome::COLUMNS.into(),
            lines: part.outcomes.iter().map(Outcome::cells).collect(),
            raw: part.outcomes.iter().map(Outcome::json).collect(),
        }
    }

    fn conditions(&self) -> String {
        format!(
            "{} runs of {:.1} s a row; load {:.2} before, {:.2} after",
            self.plan.runs,
            self.plan.length.as_secs_f64(),
            self.machine.load_before,
            self.load_after,
        )
    }

    /// For a terminal: the details, then the goals.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for Measured { goal, part } in &self.measured {
            let _ = writeln!(text, "\n== {}", goal.title());
            text.extend(part.tables.iter().map(Table::text));
        }
        let _ = writeln!(text, "\n== Goals");
        for measured in &self.measured {
            text += &Self::outcomes(measured).text();
            text += &problem(&measured.part);
        }
        let _ = writeln!(text, "\n{}", self.conditions());
        text
    }

    /// Every run, and what the tables say.
    ///
    /// # Errors
    /// A figure is not a number.
    pub(crate) fn json(&self) -> Result<String> {
        let measured: Vec<Value> = self
            .measured
            .iter()
            .map(|measured| {
                let tables = measured.part.tables.iter();
                let tables = tables.map(|table| json!({ "title": table.title, "raw": table.raw }));
                json!({
                    "goal": measured.goal.title(),
                    "problem": measured.part.problem,
                    "outcomes": Self::outcomes(measured).raw,
                    "tables": tables.collect::<Vec<_>>(),
                })
            })
            .collect();
        let machine = &self.machine;
        Ok(serde_json::to_string_pretty(&json!({
            "date": machine.date.to_string(),
            "commit": machine.commit,
            "machine": { "cpu": machine.cpu, "cpus": machine.cpus, "kernel": machine.kernel },
            "peers": machine.peers,
            "load": { "before": machine.load_before, "after": self.load_after },
            "runs": self.plan.runs,
            "seconds": self.plan.length.as_secs_f64(),
            "goals": measured,
        }))?)
    }

    /// `docs/performance.md`.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from(INTRODUCTION);
        let machine = &self.machine;
        let _ = write!(
            text,
            "\n## Goals\n\n\
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
            machine.peers.join("; "),
        );
        for measured in &self.measured {
            text += &Self::outcomes(measured).markdown();
            text += &problem(&measured.part);
        }
        text += MISSED;
        text += WHERE_TIME_GOES;
        text += SIZES;
        text += ONE_RING;
        text += "\n## Details\n";
        for Measured { goal, part } in &self.measured {
            let _ = write!(text, "\n## {}\n\n{}", goal.title(), goal.method());
            text.extend(part.tables.iter().map(Table::markdown));
        }
        text
    }
}

fn problem(part: &Part) -> String {
    let problem = part.problem.as_ref();
    problem.map_or(String::new(), |problem| format!("\n{problem}\n"))
}
