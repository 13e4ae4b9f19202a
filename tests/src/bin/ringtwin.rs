//! Runs the capture program in the kernel by BPF_PROG_TEST_RUN, on one CPU or two, into one ring or two,
//! and says what a packet costs: what two CPUs lose by sharing a ring. Prints JSON.
//!
//! ```text
//! one            CPU 0 ─▶ ring 0
//! one, read      CPU 0 ─▶ ring 0 ─▶ CPU 1, as the agent's reader does
//! shared         CPU 0 and 1 ─▶ ring 0
//! apart          CPU 0 ─▶ ring 0, CPU 1 ─▶ ring 1     the object loaded twice: no map in common
//! apart, missed  the same of a packet that the filter does not take
//! ```
//! A burst lies in the ring below the mark that wakes a reader, if `--packets` does not say more; rings are
//! emptied between bursts, and what comes out of them must be what went in. To be run with the agent's
//! rights: with more the verifier makes other code.
#![forbid(unsafe_code)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Parser;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use remora_agent::{
    kernel::{
        self, KernelSide, LoadOptions, LookBackOptions,
        look_back::Budget,
        program::Program,
        ring::{Ring, WAKE_PARTS},
    },
    session::{Arming, BoundTap, InterfacePlace, LinkEnd, Place, Slot, Taps as _, View},
    writer::RecordSource as _,
};
use remora_agent_common::record::{HEADER_LEN, SIZE_CLASSES};
use remora_capture::{
    filter::Filter,
    session::{LookBackMode, SessionSpec, Snaplen, Target},
};
use remora_tests::{cgroup, wait};
use serde_json::json;

const RING_BYTES: u32 = 64 << 20;
/// The network namespace's `lo`, which test runs are on; nothing is attached to it.
const LOOPBACK: u32 = 1;
const SLOT: Slot = Slot(0);
const FILTER: &str = "udp port 9000";
const PORT: u16 = 9000;
/// Most packets of a burst.
const BURST_MAX: usize = 20_000;
/// How long machine code for the filter may be in coming.
const TIER_LIMIT: Duration = Duration::from_secs(3);
/// As `writer::consumer::LOOK_AGAIN`.
const LOOK_AGAIN: Duration = Duration::from_millis(6);
/// What a reader copies packets to, as lanes do.
const BATCH: usize = 256 << 10;

#[derive(Parser)]
struct Args {
    /// Bytes of the Ethernet frame, 64 to 1514
    #[arg(long, default_value_t = 1400)]
    size: usize,
    #[arg(long, default_value_t = 262_144)]
    snaplen: u32,
    /// Packets of a burst [default: as many as do not wake a reader]
    #[arg(long)]
    packets: Option<usize>,
    /// Each packet by a call of its own, so that a microsecond or two of other work lies between two
    #[arg(long)]
    spaced: bool,
    /// Figures of each row
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Bursts of a figure, which is their median
    #[arg(long, default_value_t = 40)]
    bursts: usize,
}

/// The object, loaded, with one session armed on `lo`.
struct Kernel {
    side: KernelSide,
    entry: Program,
    ring: Ring,
}

/// Who runs what, and who reads.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    /// The ring of each CPU.
    rings: &'static [usize],
    is_read: bool,
    port: u16,
}

const ROWS: [Row; 6] = [
    row("one", &[0], false, PORT),
    row("one, read", &[0], true, PORT),
    row("shared", &[0, 0], false, PORT),
    row("apart", &[0, 1], false, PORT),
    row("one, missed", &[0], false, PORT + 1),
    row("apart, missed", &[0, 1], false, PORT + 1),
];

const fn row(name: &'static str, rings: &'static [usize], is_read: bool, port: u16) -> Row {
    Row {
        name,
        rings,
        is_read,
        port,
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        (64..=1514).contains(&args.size),
        "a frame has 64 to 1514 bytes"
    );
    let mut kernels = [Kernel::load(args.snaplen)?, Kernel::load(args.snaplen)?];
    let packets = args
        .packets
        .unwrap_or_else(|| burst_packets(args.size.min(args.snaplen as usize)));
    let mut figures = vec![Vec::new(); ROWS.len()];
    for _ in 0..args.rounds {
        for (row, figures) in ROWS.iter().zip(&mut figures) {
            let frame = udp(args.size, row.port);
            let mut costs = Vec::new();
            for _ in 0..args.bursts {
                costs.push(burst(&mut kernels, *row, &frame, packets, args.spaced)?);
            }
            figures.push(median(costs));
        }
    }
    let rows: serde_json::Map<_, _> = ROWS
        .iter()
        .zip(figures)
        .map(|(row, figures)| (row.name.to_owned(), json!(figures)))
        .collect();
    println!("{}", json!({ "packets": packets, "ns": rows }));
    Ok(())
}

impl Kernel {
    fn load(snaplen: u32) -> Result<Self> {
        let loaded = kernel::load(LoadOptions {
            ring_bytes: RING_BYTES,
            log: log::LevelFilter::Off,
            pins: None,
        })?;
        loaded.tables.bind_interface(LOOPBACK, LinkEnd::Other)?;
        let off = LookBackOptions {
            budget: Budget::new(0, 0)?,
            flow_cutoff: 0,
            keep: Duration::ZERO,
        };
        let mut programs = loaded.programs;
        let cgroups = programs.cgroup_hooks(cgroup::root()?)?;
        let side = KernelSide::new(
            loaded.tables,
            programs,
            cgroups,
            loaded.filters,
            loaded.look_back,
            off,
        )?;
        let taps = side.bind(&Place {
            interfaces: vec![InterfacePlace {
                ifindex: LOOPBACK,
                name: "lo".into(),
                end: LinkEnd::Other,
                view: View::Interface,
            }],
            cgroup: None,
            left: Vec::new(),
            description: String::new(),
            notes: Vec::new(),
            level: LookBackMode::default(),
            pod: None,
        })?;
        let kernel = Self {
            side,
            entry: loaded.entry,
            ring: loaded.ring,
        };
        kernel.arm(snaplen, &taps)?;
        Ok(kernel)
    }

    fn arm(&self, snaplen: u32, taps: &[BoundTap]) -> Result<()> {
        let mut spec = SessionSpec::new(Target::Interface("lo".into()));
        spec.filter = Filter::parse(FILTER)?;
        spec.snaplen = Snaplen::try_from(snaplen)?;
        let arming = Arming {
            slot: SLOT,
            generation: 1,
            spec: Arc::new(spec),
            byte_limit: None,
            deadline_ns: None,
        };
        self.side.arm(&arming, taps)?;
        wait::until(TIER_LIMIT, "the filter as machine code", || {
            Ok(self.side.upgrade().loaded() > 0)
        })
    }
}

/// Nanoseconds of a packet, on each of the CPUs on average.
fn burst(
    kernels: &mut [Kernel; 2],
    row: Row,
    frame: &[u8],
    packets: usize,
    spaced: bool,
) -> Result<f64> {
    let before = submitted(kernels);
    let ready = AtomicUsize::new(0);
    let running = AtomicBool::new(true);
    let parties = row.rings.len() + usize::from(row.is_read);
    let (calls, repeat) = if spaced {
        (packets, 1)
    } else {
        (1, u32::try_from(packets)?)
    };
    let begin = |cpu: usize| -> Result<()> {
        let mut cpus = CpuSet::new();
        cpus.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
        // Not asleep, so that all begin within a microsecond.
        ready.fetch_add(1, SeqCst);
        while ready.load(SeqCst) < parties {
            std::hint::spin_loop();
        }
        Ok(())
    };
    let [first, second] = kernels;
    let (entries, rings) = ([&first.entry, &second.entry], row.rings);
    let mut read = 0;
    let costs = thread::scope(|scope| -> Result<Vec<Duration>> {
        let producers: Vec<_> = (0..)
            .zip(rings)
            .map(|(cpu, &ring)| {
                let (entry, begin) = (entries[ring], &begin);
                scope.spawn(move || -> Result<Duration> {
                    begin(cpu)?;
                    let mut took = Duration::ZERO;
                    for _ in 0..calls {
                        took += entry.run(frame, repeat)?.took;
                    }
                    Ok(took)
                })
            })
            .collect();
        let reader = row.is_read.then(|| {
            let (ring, begin, running) = (&mut first.ring, &begin, &running);
            scope.spawn(move || -> Result<u64> {
                begin(1)?;
                let mut batch = Vec::with_capacity(BATCH);
                let mut records = 0;
                while running.load(SeqCst) {
                    records += drain(ring, &mut batch);
                    ring.wait(Some(LOOK_AGAIN));
                }
                Ok(records)
            })
        });
        let costs = producers.into_iter().map(|producer| {
            let cost = producer
                .join()
                .map_err(|_panic| anyhow!("a producer panicked"))?;
            cost.context("a test run failed")
        });
        let costs = costs.collect();
        running.store(false, SeqCst);
        if let Some(reader) = reader {
            read += reader
                .join()
                .map_err(|_panic| anyhow!("the reader panicked"))??;
        }
        costs
    })?;
    let mut batch = Vec::with_capacity(BATCH);
    for kernel in &mut *kernels {
        read += drain(&mut kernel.ring, &mut batch);
    }
    let submitted = submitted(kernels) - before;
    let matched = if row.port == PORT {
        packets * row.rings.len()
    } else {
        0
    };
    ensure!(
        read == submitted && submitted == matched as u64,
        "{}: {matched} packets, {submitted} submitted, {read} read",
        row.name
    );
    let sum: Duration = costs.iter().sum();
    Ok(sum.as_nanos() as f64 / costs.len() as f64 / calls as f64)
}

/// Takes all records out of the ring; tells how many.
fn drain(ring: &mut Ring, batch: &mut Vec<u8>) -> u64 {
    let mut records = 0;
    let mut take = |_: u64, record: &[u8]| {
        if batch.len() + record.len() > BATCH {
            batch.clear();
        }
        batch.extend_from_slice(record);
    };
    while ring.next(&mut take) {
        records += 1;
    }
    records
}

fn submitted(kernels: &[Kernel; 2]) -> u64 {
    let counts = kernels.iter().map(|kernel| kernel.side.counts(SLOT));
    counts.map(|counts| counts.submitted).sum()
}

/// So many that two CPUs' lie in one ring below the mark.
fn burst_packets(caplen: usize) -> usize {
    let class = SIZE_CLASSES
        .into_iter()
        .find(|&class| class >= caplen + HEADER_LEN);
    let record = class.unwrap_or(SIZE_CLASSES[5]) + 8;
    BURST_MAX.min(RING_BYTES as usize / WAKE_PARTS as usize / record / 2)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// An Ethernet frame with a UDP packet from 10.0.0.1 to `port` of 10.0.0.2.
fn udp(size: usize, port: u16) -> Vec<u8> {
    let mut frame = vec![0x5a; size];
    frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0x00]);
    frame[16..18].copy_from_slice(&((size - 14) as u16).to_be_bytes());
    frame[18..26].copy_from_slice(&[0, 1, 0, 0, 64, 17, 0, 0]);
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame[34..36].copy_from_slice(&40_000_u16.to_be_bytes());
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    frame[38..42].copy_from_slice(&[((size - 34) >> 8) as u8, (size - 34) as u8, 0, 0]);
    frame
}
