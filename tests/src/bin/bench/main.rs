//! The benchmark: what Remora costs and how fast it is, by the goals P1 to P9, beside the field's own
//! tools in the same run.
//!
//! Most of it is measured on two paths that are alike but for the capture:
//!
//! ```text
//!                node: agent or tcpdump, of this pod on veth-subject only
//!          eth0 ── veth-subject ── br0 10.77.0.1
//!  pod "subject"
//!          eth1 ── veth-subject ── br0 10.78.0.1
//!                twin node: nobody looks here
//! ```
//! `udptwin` sends on both paths in turn, from the nodes to the pod or the other way, 5 ms each, and
//! times every `sendmmsg(2)`: the whole way to the socket, which drops it, runs inside the call.
//! Within one run the difference of the two medians is what the capture adds to a packet, whatever else
//! the machine does meanwhile. The row `control`, with nothing on either path, says how far that holds.
//!
//! - [`bed`]: the two paths. [`subject`]: what can be on them; [`agents`], [`peer`]: how it is run.
//! - [`twin`]: rounds of runs; [`row`]: what they give.
//! - [`goals`]: what is measured for each goal; [`outcome`]: a goal and its figures.
//! - [`table`], [`report`]: how it is told.
//!
//! It says what it measured and judges nothing: it ends well when everything could be measured.
#![forbid(unsafe_code)]

mod agents;
mod bed;
mod document;
mod figures;
mod goals;
mod machine;
mod outcome;
mod peer;
mod report;
mod row;
mod subject;
mod table;
mod twin;
mod usage;

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bed::{Bed, Way};
use clap::Parser;
use goals::Goal;
use machine::Machine;
use remora_tests::{name, signals, wait};
use report::{Measured, Report};

/// Longest single run: what it captures must fit into memory.
const SECONDS_MAX: f64 = 5.0;
const RUNS_MAX: usize = 100;
/// As many as the agent has places for, less those that the bed itself needs.
const PODS_MAX: usize = 4000;
/// Where all capturers write, so that no disk is measured.
const TMPFS: &str = "/dev/shm";

/// Measures the goals P1 to P9 of Remora's data path against tcpdump and others
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench")]
struct Args {
    /// Which goals [default: all]
    #[arg(value_enum, ignore_case = true)]
    goals: Vec<Goal>,
    /// 3 runs of 0.5 s a row, into the pod; without it 5 of 1 s, P1 and P2 both ways
    #[arg(long)]
    quick: bool,
    /// Runs of each row
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// Length of each run, at most 5
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Which way the packets of P1 and P2 go [default: in with --quick, else both]
    #[arg(long, value_enum)]
    way: Option<Way>,
    /// Pods that the agent of P1 knows, without traffic
    #[arg(long, value_name = "N", default_value_t = 100)]
    pods: usize,
    /// Print JSON instead of the tables
    #[arg(long)]
    json: bool,
    /// Write the document with the figures, too
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "docs/performance.md")]
    markdown: Option<PathBuf>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Plan {
    quick: bool,
    /// That P1's agent knows.
    pods: usize,
    ways: &'static [Way],
    runs: usize,
    length: Duration,
}

/// What all goals are measured with.
#[derive(Debug)]
struct Bench {
    bed: Bed,
    plan: Plan,
    /// On tmpfs.
    directory: tempfile::TempDir,
}

impl Args {
    fn plan(&self) -> Result<Plan> {
        let (runs, seconds) = if self.quick { (3, 0.5) } else { (5, 1.0) };
        let (runs, seconds) = (self.runs.unwrap_or(runs), self.seconds.unwrap_or(seconds));
        ensure!(
            (1..=RUNS_MAX).contains(&runs),
            "--runs must be 1 to {RUNS_MAX}"
        );
        ensure!(
            (0.05..=SECONDS_MAX).contains(&seconds),
            "--seconds must be 0.05 to {SECONDS_MAX}"
        );
        ensure!(self.pods <= PODS_MAX, "--pods must be 0 to {PODS_MAX}");
        let ways: &[Way] = match self.way {
            Some(Way::In) => &[Way::In],
            Some(Way::Out) => &[Way::Out],
            None if self.quick => &[Way::In],
            None => &[Way::In, Way::Out],
        };
        Ok(Plan {
            quick: self.quick,
            pods: self.pods,
            ways,
            runs,
            length: Duration::from_secs_f64(seconds),
        })
    }

    /// In order, each once.
    fn goals(&self) -> Vec<Goal> {
        let wanted = |goal: &Goal| self.goals.is_empty() || self.goals.contains(goal);
        Goal::ALL.into_iter().filter(wanted).collect()
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match signals::interrupt_waits().and_then(|()| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if wait::is_interrupted() => {
            eprintln!("bench: interrupted; all that it made is removed");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let plan = args.plan()?;
    let machine = Machine::look()?;
    eprintln!("{machine}");
    let measured = measure(args, plan)?;
    let left = name::left();
    ensure!(left.is_empty(), "left behind: {left:?}");

    let report = Report {
        machine,
        load_after: machine::load()?,
        plan,
        measured,
    };
    let json = report.json()?;
    if args.json {
        println!("{json}");
    } else {
        print!("{}", report.text());
    }
    let directory = Path::new(&std::env::var_os("REMORA_BIN_DIR").context("no REMORA_BIN_DIR")?)
        .parent()
        .context("REMORA_BIN_DIR has no parent")?
        .join("bench");
    let file = directory.join(format!("{}.json", report.machine.date_for_files()));
    write(&file, &format!("{json}\n"))?;
    eprintln!("JSON: {}", file.display());
    if let Some(file) = &args.markdown {
        write(file, &report.markdown())?;
        eprintln!("document: {}", file.display());
    }
    Ok(())
}

fn measure(args: &Args, plan: Plan) -> Result<Vec<Measured>> {
    let bench = Bench {
        bed: Bed::lay()?,
        plan,
        directory: tempfile::Builder::new()
            .prefix("remora-bench-")
            .tempdir_in(TMPFS)?,
    };
    let mut measured = Vec::new();
    for goal in args.goals() {
        eprintln!("{}", goal.title());
        let part = goal.measure(&bench);
        ensure!(!wait::is_interrupted(), "interrupted");
        if let Some(problem) = &part.problem {
            eprintln!("  {problem}");
        }
        measured.push(Measured { goal, part });
    }
    Ok(measured)
}

/// Writes a file that belongs to whoever the directory belongs to, not to root.
fn write(file: &Path, text: &str) -> Result<()> {
    let failed = || format!("failed to write {}", file.display());
    let directory = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    if !directory.exists() {
        let above = directory.parent().with_context(failed)?;
        let owner = fs::metadata(above).with_context(failed)?;
        fs::create_dir(directory).with_context(failed)?;
        chown(directory, Some(owner.uid()), Some(owner.gid())).with_context(failed)?;
    }
    fs::write(file, text).with_context(failed)?;
    let owner = fs::metadata(directory).with_context(failed)?;
    chown(file, Some(owner.uid()), Some(owner.gid())).with_context(failed)
}
