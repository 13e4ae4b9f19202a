//! Rounds on two paths: in each, every subject has one run with each load.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use remora_tests::{bpf::ForeignTcx, wait};

use crate::{
    Bench,
    agents::{self, Agents},
    bed::{Load, Sample},
    figures::median,
    peer::Peer,
    row::{Caught, Row, Run},
    subject::{Capture, OnPath, Subject, Takes},
    table::Table,
    usage::{self, Usage},
};

/// The rows of all subjects, and of the control.
#[derive(Debug)]
pub(crate) struct Rows(Vec<Row>);

impl Rows {
    /// A subject's row.
    ///
    /// # Errors
    /// It was not measured.
    pub(crate) fn get(&self, load: Load, subject: &str) -> Result<&Row> {
        let Self(rows) = self;
        rows.iter()
            .find(|row| row.load == load && row.subject == subject)
            .with_context(|| format!("no row {subject}, {load}"))
    }

    /// Speed ratio of the path without anything on it, which must be near 1.
    ///
    /// # Errors
    /// It was not measured.
    pub(crate) fn control(&self, load: Load) -> Result<f64> {
        Ok(self.get(load, Subject::CONTROL)?.median(Run::speed_ratio))
    }

    /// One table for each load, whose title begins with what they have in common.
    pub(crate) fn tables(&self, common: &str, loads: &[Load]) -> Vec<Table> {
        let Self(rows) = self;
        let table = |&load: &Load| {
            let of_load = rows.iter().filter(move |row| row.load == load);
            Table::of_paths(&format!("{common}: {load}"), of_load)
        };
        loads.iter().map(table).collect()
    }

    /// By how much both paths' time is another with a subject than with nothing, in each round: what
    /// a capturer costs that is not on the captured path alone.
    ///
    /// # Errors
    /// One was not measured.
    pub(crate) fn ns_on_both_paths(&self, load: Load, subject: &str) -> Result<f64> {
        let twin = |run: &Run| run.sample.twin.median_ns;
        let with = self.get(load, subject)?.each(twin);
        let without = self.get(load, Subject::CONTROL)?.each(twin);
        let more: Vec<f64> = with.iter().zip(&without).map(|(a, b)| a - b).collect();
        Ok(median(&more))
    }
}

/// Measures the subjects, and before them in each round the control.
///
/// # Errors
/// A capturer fails.
pub(crate) fn measure(bench: &Bench, loads: &[Load], subjects: &[Subject]) -> Result<Rows> {
    let subjects = [&[Subject::control()], subjects].concat();
    let mut rows: Vec<Row> = Vec::new();
    for load in loads {
        rows.extend(subjects.iter().map(|subject| Row {
            load: *load,
            subject: subject.name.clone(),
            takes: subject.takes,
            runs: Vec::new(),
        }));
    }
    for number in 1..=bench.plan.runs {
        eprintln!("  round {number} of {}", bench.plan.runs);
        let mut agents = Agents::new(&bench.bed);
        for (at, subject) in subjects.iter().enumerate() {
            if !matches!(subject.on_path, OnPath::Agent(_)) {
                agents.end()?;
            }
            for (block, load) in loads.iter().enumerate() {
                ensure!(!wait::is_interrupted(), "interrupted");
                let run = run(bench, &mut agents, subject, *load)
                    .with_context(|| format!("{}, {load}", subject.name))?;
                rows[block * subjects.len() + at].runs.push(run);
            }
        }
        agents.end()?;
    }
    Ok(Rows(rows))
}

fn run<'a>(
    bench: &'a Bench,
    agents: &mut Agents<'a>,
    subject: &Subject,
    load: Load,
) -> Result<Run> {
    let send = || bench.bed.run(load, bench.plan.length);
    let plain = |sample| Run {
        sample,
        caught: None,
        usage: None,
    };
    match &subject.on_path {
        OnPath::Nothing => send().map(plain),
        OnPath::EmptyTcx => {
            let bed = &bench.bed;
            let program = ForeignTcx::attach_empty(bed.node().netns(), bed.interface())?;
            let sample = send()?;
            program.detach()?;
            Ok(plain(sample))
        }
        OnPath::Agent(capture) => {
            let agent = agents.get(capture.agent)?;
            let Capture { sessions, .. } = capture;
            let started = agents::begin(agent, capture)?;
            let pids = [agent.pid()?];
            let before = usage::cpu(&pids)?;
            let sample = send()?;
            // With the end of the capture: its packets are in the file only then.
            let caught = agents::end(agent, &started)?;
            Ok(Run {
                sample,
                caught: (!sessions.is_empty()).then_some(caught),
                usage: Some(used(&pids, before)?),
            })
        }
        OnPath::Peer(peer) => run_peer(bench, peer, subject.takes, send),
    }
}

fn run_peer(
    bench: &Bench,
    peer: &Peer,
    takes: Takes,
    send: impl FnOnce() -> Result<Sample>,
) -> Result<Run> {
    let bed = &bench.bed;
    let running = peer.start(bed.node(), bed.interface(), bench.directory.path())?;
    let pids: Vec<u32> = running
        .pids()
        .into_iter()
        .flat_map(usage::with_children)
        .collect();
    let before = usage::cpu(&pids)?;
    let sample = send()?;
    if takes == Takes::All {
        running.wait_for_block(sample.captured.sent)?;
    }
    let usage = used(&pids, before)?;
    let caught: Caught = running.stop()?;
    Ok(Run {
        sample,
        caught: Some(caught),
        usage: Some(usage),
    })
}

fn used(pids: &[u32], before: Duration) -> Result<Usage> {
    Ok(Usage {
        cpu: usage::cpu(pids)?.saturating_sub(before),
        rss_kib: usage::rss_kib(pids)?,
    })
}
