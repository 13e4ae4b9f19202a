//! Sends UDP packets over two paths in turn and says what a packet cost on each.
//!
//! Time is cut into slices; each slice belongs to one path, the next to the other. Every
//! `sendmmsg(2)` is timed: where the packet crosses veths to a socket of the same machine, its whole
//! way runs inside that call. What disturbs the machine disturbs both paths alike, so the difference
//! of the two medians is what the first path has and the second has not.
#![forbid(unsafe_code)]

use std::{
    fs::File,
    io::IoSlice,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::{
    errno::Errno,
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns},
    sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg},
    unistd::Pid,
};
use remora_tests::numbered::{HEADERS, Number, PAYLOAD_MIN};
use serde_json::json;

/// Datagrams of one system call.
const BATCH: usize = 64;
/// How long one path has its turn.
const SLICE: Duration = Duration::from_millis(5);
/// Longest run, in seconds: each call of it is remembered.
const SECONDS_MAX: f64 = 60.0;

#[derive(Parser)]
struct Args {
    /// Where the first path leads: address and port
    first: SocketAddrV4,
    /// Where its twin leads
    twin: SocketAddrV4,
    /// Network namespace the first path starts in, like /run/netns/NAME
    #[arg(long, value_name = "FILE")]
    first_netns: PathBuf,
    /// Network namespace its twin starts in
    #[arg(long, value_name = "FILE")]
    twin_netns: PathBuf,
    /// Bytes of the Ethernet frame (without FCS), 64 to 1514
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// How long, in all
    #[arg(long, default_value_t = 0.6)]
    seconds: f64,
    /// Run on this CPU
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

/// One of the two.
struct Path {
    socket: UdpSocket,
    to: SockaddrIn,
    sent: u64,
    /// Nanoseconds of each whole batch.
    calls: Vec<u64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        (HEADERS + PAYLOAD_MIN..=1514).contains(&args.size),
        "a frame has {} to 1514 bytes",
        HEADERS + PAYLOAD_MIN
    );
    ensure!(
        args.seconds > 0.0 && args.seconds <= SECONDS_MAX,
        "--seconds must be above 0 and at most {SECONDS_MAX}"
    );
    let mut cpus = CpuSet::new();
    cpus.set(args.cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)
        .with_context(|| format!("cannot run on CPU {}", args.cpu))?;

    let [first, twin] = send(&args)?;
    println!("{}", json!({ "first": told(first)?, "twin": told(twin)? }));
    Ok(())
}

impl Path {
    fn new(netns: &PathBuf, to: SocketAddrV4) -> Result<Self> {
        let file =
            File::open(netns).with_context(|| format!("no namespace {}", netns.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter {}", netns.display()))?;
        Ok(Self {
            // It stays in the namespace in which it was made.
            socket: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("failed to bind")?,
            to: to.into(),
            sent: 0,
            calls: Vec::new(),
        })
    }
}

fn told(mut path: Path) -> Result<serde_json::Value> {
    path.calls.sort_unstable();
    let quantile = |part: f64| -> Result<f64> {
        let at = (path.calls.len() as f64 * part) as usize;
        let call = path.calls.get(at).context("not one whole batch was sent")?;
        Ok(*call as f64 / BATCH as f64)
    };
    Ok(json!({
        "sent": path.sent,
        "median_ns": quantile(0.5)?,
        "p25_ns": quantile(0.25)?,
    }))
}

fn send(args: &Args) -> Result<[Path; 2]> {
    let mut payloads = vec![vec![0u8; args.size - HEADERS]; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let mut paths = [
        Path::new(&args.first_netns, args.first)?,
        Path::new(&args.twin_netns, args.twin)?,
    ];
    let mut turn = 0u16;
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(args.seconds);
    while Instant::now() < end {
        let path = &mut paths[usize::from(turn % 2)];
        let addresses = [Some(path.to); BATCH];
        let slice_end = Instant::now() + SLICE;
        while Instant::now() < slice_end {
            for (sequence, payload) in (path.sent..).zip(&mut payloads) {
                Number {
                    run: turn % 2,
                    sequence,
                    sent_ns: 0,
                }
                .encode(payload);
            }
            let slices: Vec<_> = payloads
                .iter()
                .map(|payload| [IoSlice::new(payload)])
                .collect();
            let call = Instant::now();
            let result = sendmmsg(
                path.socket.as_raw_fd(),
                &mut headers,
                &slices,
                addresses,
                [],
                MsgFlags::empty(),
            );
            let took = call.elapsed();
            match result {
                Ok(results) => {
                    let sent = results.count();
                    path.sent += sent as u64;
                    if sent == BATCH {
                        path.calls.push(u64::try_from(took.as_nanos())?);
                    }
                }
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => {}
                Err(error) => return Err(error).context("failed to send"),
            }
        }
        turn = turn.wrapping_add(1);
    }
    Ok(paths)
}
