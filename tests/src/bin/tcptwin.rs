//! Moves bulk over two TCP connections in turn and says what a MiB took on each.
//!
//! One transfer on the first path, the next on its twin; a transfer is over when the receiver says
//! that it has it all, so nothing of one is under way in the time of the next. Sender and receivers
//! share one CPU. What disturbs the machine disturbs both paths alike.
#![forbid(unsafe_code)]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns},
    unistd::Pid,
};
use serde_json::json;

/// Bytes of a transfer: some milliseconds.
const TRANSFER: usize = 8 << 20;
/// Bytes of a system call.
const CHUNK: usize = 256 << 10;
/// Transfers of each path that are not counted: its window is still opening.
const WARM_UP: usize = 4;
/// Longest run, in seconds.
const SECONDS_MAX: f64 = 60.0;

#[derive(Parser)]
struct Args {
    /// Where the first path leads: address and port of a receiver
    first: SocketAddrV4,
    /// Where its twin leads
    twin: SocketAddrV4,
    /// Network namespace the first path starts in, like /run/netns/NAME
    #[arg(long, value_name = "FILE")]
    first_netns: PathBuf,
    /// Network namespace its twin starts in
    #[arg(long, value_name = "FILE")]
    twin_netns: PathBuf,
    /// Network namespace that both lead to
    #[arg(long, value_name = "FILE")]
    receiver_netns: PathBuf,
    /// How long, in all
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Run on this CPU
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

/// One of the two.
struct Connection {
    stream: TcpStream,
    /// Nanoseconds of each transfer.
    transfers: Vec<u64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        args.seconds > 0.0 && args.seconds <= SECONDS_MAX,
        "--seconds must be above 0 and at most {SECONDS_MAX}"
    );
    let mut cpus = CpuSet::new();
    cpus.set(args.cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)
        .with_context(|| format!("cannot run on CPU {}", args.cpu))?;

    enter(&args.receiver_netns)?;
    let listeners = [args.first, args.twin]
        .map(|at| TcpListener::bind(at).with_context(|| format!("failed to listen at {at}")));
    for listener in listeners {
        let listener = listener?;
        // Ends with its connection, or with the process.
        thread::spawn(move || receive(&listener));
    }
    let mut connections = [
        Connection::new(&args.first_netns, args.first)?,
        Connection::new(&args.twin_netns, args.twin)?,
    ];
    send(&mut connections, Duration::from_secs_f64(args.seconds))?;
    let [first, twin] = connections.map(told);
    println!("{}", json!({ "first": first?, "twin": twin? }));
    Ok(())
}

fn enter(netns: &Path) -> Result<()> {
    let file = File::open(netns).with_context(|| format!("no namespace {}", netns.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter {}", netns.display()))
}

impl Connection {
    fn new(netns: &Path, to: SocketAddrV4) -> Result<Self> {
        enter(netns)?;
        Ok(Self {
            // It stays in the namespace in which it was made.
            stream: TcpStream::connect(to).with_context(|| format!("failed to reach {to}"))?,
            transfers: Vec::new(),
        })
    }

    fn transfer(&mut self, chunk: &[u8]) -> Result<()> {
        let begun = Instant::now();
        for _ in 0..TRANSFER / CHUNK {
            self.stream.write_all(chunk).context("failed to send")?;
        }
        self.stream.read_exact(&mut [0]).context("no answer")?;
        self.transfers
            .push(u64::try_from(begun.elapsed().as_nanos())?);
        Ok(())
    }
}

fn send(connections: &mut [Connection; 2], length: Duration) -> Result<()> {
    let chunk = vec![0x5a; CHUNK];
    let mut end = Instant::now() + length;
    for turn in 0.. {
        if turn == WARM_UP {
            end = Instant::now() + length;
        }
        for connection in &mut *connections {
            connection.transfer(&chunk)?;
        }
        if Instant::now() >= end {
            break;
        }
    }
    Ok(())
}

/// Takes one connection, and answers each transfer with a byte.
fn receive(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut chunk = vec![0; CHUNK];
    loop {
        let mut left = TRANSFER;
        while left > 0 {
            match stream.read(&mut chunk[..CHUNK.min(left)])? {
                0 => return Ok(()),
                read => left -= read,
            }
        }
        stream.write_all(&[1])?;
    }
}

fn told(connection: Connection) -> Result<serde_json::Value> {
    let mut transfers = connection.transfers;
    transfers.drain(..WARM_UP.min(transfers.len()));
    transfers.sort_unstable();
    let mib = (TRANSFER >> 20) as f64;
    let quantile = |part: f64| -> Result<f64> {
        let at = (transfers.len() as f64 * part) as usize;
        let transfer = transfers.get(at).context("not one transfer was counted")?;
        Ok(*transfer as f64 / mib)
    };
    Ok(json!({
        "sent": transfers.len(),
        "median_ns": quantile(0.5)?,
        "p25_ns": quantile(0.25)?,
    }))
}
