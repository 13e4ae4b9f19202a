//! P9: the agent's way from ring records to a file, without a kernel before it.

mod dumpcap;
mod ours;
mod records;

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike as _,
    },
    unistd::Pid,
};
use remora_tests::wire;
use serde_json::json;

use super::Part;
use crate::{
    Bench,
    figures::median,
    outcome::{Bound, Outcome, Unit},
    table::Table,
};

pub(super) const METHOD: &str = "\
Packets of 1400 bytes go from ring records in memory (16 MiB of them, again and again) through the
agent's consumer, lane, encoder and writer thread into a pcapng file on tmpfs, closed with its
statistics; in this program, not in an agent. Beside it `write(2)` of 1 MiB pieces of memory to a file
of the same size, and `dumpcap -i - -w` that gets the same packets as a pcap file through a pipe of
1 MiB. All may use both CPUs; MiB are the files'. *CPU* is the writer's: of this
program, or of dumpcap without who feeds it.
";

/// Frames of a run: 400 MB.
const PACKETS: u64 = 300_000;
const FRAME: usize = 1400;
const PIECE: usize = 1 << 20;

/// One run.
#[derive(Clone, Copy, Debug)]
struct Written {
    bytes: u64,
    wall: Duration,
    cpu: Duration,
}

impl Written {
    fn mib_per_s(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / self.wall.as_secs_f64()
    }

    fn cpu_s_per_gib(&self) -> f64 {
        self.cpu.as_secs_f64() / (self.bytes as f64 / f64::from(1 << 30))
    }
}

pub(super) fn measure(bench: &Bench) -> Result<Part> {
    let directory = bench.directory.path();
    let (mut ours, mut raw, mut dumpcap) = (vec![], vec![], vec![]);
    for number in 1..=bench.plan.runs {
        eprintln!("  round {number} of {}", bench.plan.runs);
        let written = on_all_cpus(|| ours::write(directory, PACKETS, FRAME))?;
        ours.push(written);
        raw.push(on_all_cpus(|| raw_write(directory, written.bytes))?);
        dumpcap.push(on_all_cpus(|| dumpcap::write(directory, PACKETS, FRAME))?);
    }
    let speeds = |runs: &[Written]| runs.iter().map(Written::mib_per_s).collect::<Vec<_>>();
    let outcome = |least: f64, name: &str, reference: &[Written]| {
        let what = "agent's writer, 1400 B to pcapng on tmpfs";
        let bound = Bound::RatioAtLeast(least);
        Outcome::new(what, Unit::MiBPerSecond, bound, speeds(&ours))
            .against(name, speeds(reference))
    };
    let outcomes = vec![
        outcome(0.75, "write(2) of 1 MiB", &raw),
        outcome(5.0, "dumpcap", &dumpcap),
    ];
    let all = [
        ("agent's writer", &ours),
        ("write(2) of 1 MiB", &raw),
        ("dumpcap", &dumpcap),
    ];
    let line = |(who, runs): &(&str, &Vec<Written>)| {
        let cpu: Vec<f64> = runs.iter().map(Written::cpu_s_per_gib).collect();
        vec![
            (*who).to_owned(),
            format!("{:.0}", median(&speeds(runs))),
            format!("{:.2}", median(&cpu)),
        ]
    };
    let json = |(who, runs): &(&str, &Vec<Written>)| {
        let runs = runs.iter().map(|run| {
            json!({
                "bytes": run.bytes,
                "wall_s": run.wall.as_secs_f64(),
                "cpu_s": run.cpu.as_secs_f64(),
            })
        });
        json!({ "who": who, "runs": runs.collect::<Vec<_>>() })
    };
    let tables = vec![Table {
        title: "Packets of 1400 bytes to a file".into(),
        columns: vec!["", "MiB/s", "CPU s/GiB"],
        lines: all.iter().map(line).collect(),
        raw: all.iter().map(json).collect(),
    }];
    Ok(Part {
        outcomes,
        tables,
        ..Part::default()
    })
}

/// On a thread that all CPUs may run, with those that it makes.
fn on_all_cpus<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut cpus = CpuSet::new();
            for cpu in 0..CpuSet::count() {
                cpus.set(cpu)?;
            }
            sched_setaffinity(Pid::from_raw(0), &cpus)?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Times `work`, which answers with the bytes that it wrote, and whose CPU time is that of this program
/// or of the processes that it started and waited for.
fn timed(who: UsageWho, work: impl FnOnce() -> Result<u64>) -> Result<Written> {
    let (begun, before) = (Instant::now(), cpu(who)?);
    let bytes = work()?;
    Ok(Written {
        bytes,
        wall: begun.elapsed(),
        cpu: cpu(who)?.saturating_sub(before),
    })
}

/// User and system time.
fn cpu(who: UsageWho) -> Result<Duration> {
    let usage = getrusage(who)?;
    let time = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(time.num_microseconds().try_into()?))
}

fn raw_write(directory: &Path, bytes: u64) -> Result<Written> {
    let path = directory.join("raw");
    let piece = vec![0x5a; PIECE];
    let written = timed(UsageWho::RUSAGE_SELF, || {
        let mut file = File::create(&path)?;
        let mut left = bytes;
        while left > 0 {
            let now = left.min(PIECE as u64);
            file.write_all(&piece[..usize::try_from(now)?])?;
            left -= now;
        }
        Ok(bytes)
    })?;
    std::fs::remove_file(&path)?;
    Ok(written)
}

/// A file must have all packets, or its time is no time.
fn ensure_whole(file: &Path, packets: u64) -> Result<()> {
    let found = wire::capinfos_count(file)?;
    ensure!(
        found == packets,
        "{} has {found} of {packets} packets",
        file.display()
    );
    Ok(())
}
