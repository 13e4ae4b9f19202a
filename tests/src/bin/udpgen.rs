//! Sends numbered UDP packets and says how many it really sent.
//!
//! Each packet is one of `remora_tests::numbered`. A datagram counts as sent when the kernel took
//! it (`sendmmsg(2)`); numbers are given only to those, so they have no gap at the source.
#![forbid(unsafe_code)]

use std::{
    fs,
    io::IoSlice,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg},
    unistd::Pid,
};
use remora_tests::numbered::{HEADERS, Number, PAYLOAD_MIN};

/// Datagrams of one system call.
const BATCH: usize = 64;
/// How long a neighbour may take to answer.
const NEIGHBOUR_LIMIT: Duration = Duration::from_secs(20);
/// Largest UDP payload over IPv4.
const PAYLOAD_MAX: usize = 65_507;

#[derive(Parser)]
struct Args {
    /// Where to: address and first port
    to: SocketAddrV4,
    /// Send to this many ports in turn, from the first on
    #[arg(long, default_value_t = 1)]
    ports: u16,
    /// From this address
    #[arg(long, default_value_t = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))]
    from: SocketAddrV4,
    /// Bytes of the Ethernet frame (without FCS), 64 or more
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Packets to send; 0: until a line, or the end, of standard input
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Packets per second; 0: as fast as it goes
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Number of this run, in each payload
    #[arg(long, default_value_t = 1)]
    run: u16,
    /// Run on this CPU alone
    #[arg(long)]
    cpu: Option<usize>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        (HEADERS + PAYLOAD_MIN..=HEADERS + PAYLOAD_MAX).contains(&args.size),
        "a numbered frame has {} to {} bytes",
        HEADERS + PAYLOAD_MIN,
        HEADERS + PAYLOAD_MAX
    );
    ensure!(args.ports > 0, "--ports must be 1 or more");
    if let Some(cpu) = args.cpu {
        let mut cpus = CpuSet::new();
        cpus.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)
            .with_context(|| format!("cannot run on CPU {cpu}"))?;
    }
    let socket = UdpSocket::bind(SocketAddr::V4(args.from)).context("failed to bind")?;

    let stop = Arc::new(AtomicBool::new(false));
    if args.count == 0 {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let mut line = String::new();
            let _ = std::io::stdin().read_line(&mut line);
            stop.store(true, Ordering::Relaxed);
        });
    }

    let begun = Instant::now();
    let sent = send(&args, &socket, &stop)?;
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{}",
        serde_json::json!({ "sent": sent, "seconds": seconds })
    );
    Ok(())
}

/// Sends until the count is reached or `stop` is set; answers how many.
fn send(args: &Args, socket: &UdpSocket, stop: &AtomicBool) -> Result<u64> {
    let total = if args.count == 0 {
        u64::MAX
    } else {
        args.count
    };
    let begun = Instant::now();
    let mut payloads = vec![vec![0u8; args.size - HEADERS]; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let mut sent = 0u64;
    while sent < total && !stop.load(Ordering::Relaxed) {
        let mut batch = BATCH.min(usize::try_from(total - sent).unwrap_or(BATCH));
        if sent == 0 {
            batch = 1;
        }
        if let Some(behind) = behind(args.rate, sent, begun) {
            if behind == 0 {
                thread::sleep(Duration::from_nanos(1_000_000_000 / args.rate));
                continue;
            }
            batch = batch.min(usize::try_from(behind).unwrap_or(BATCH));
        }
        let sent_ns = epoch_ns()?;
        let mut addresses = Vec::with_capacity(batch);
        for (sequence, payload) in (sent..).zip(&mut payloads[..batch]) {
            Number {
                run: args.run,
                sequence,
                sent_ns,
            }
            .encode(payload);
            let port = args.to.port() + u16::try_from(sequence % u64::from(args.ports))?;
            addresses.push(Some(SockaddrIn::from(SocketAddrV4::new(
                *args.to.ip(),
                port,
            ))));
        }
        let slices: Vec<_> = payloads[..batch]
            .iter()
            .map(|payload| [IoSlice::new(payload)])
            .collect();
        match sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices,
            &addresses,
            [],
            MsgFlags::empty(),
        ) {
            Ok(results) => {
                let is_first = sent == 0;
                sent += results.count() as u64;
                if is_first {
                    wait_for_neighbours()?;
                }
            }
            // A full queue, or an ICMP error of an earlier packet: nothing of this batch is sent.
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED | Errno::EINTR) => {}
            Err(error) => return Err(error).context("failed to send"),
        }
    }
    Ok(sent)
}

/// Until a neighbour's address is known some hundred packets wait for it, and the sender's own stack
/// drops the others: on a busy machine, where that takes long.
fn wait_for_neighbours() -> Result<()> {
    // IP address, hardware type, flags (0x2: complete), … (net/ipv4/arp.c, arp_format_neigh_entry).
    let unknown = |table: &str| {
        let mut lines = table.lines().skip(1);
        lines.any(|line| line.split_whitespace().nth(2) == Some("0x0"))
    };
    let until = Instant::now() + NEIGHBOUR_LIMIT;
    while unknown(&fs::read_to_string("/proc/net/arp")?) && Instant::now() < until {
        thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// How many packets the pace is behind; `None` without a pace.
fn behind(rate: u64, sent: u64, begun: Instant) -> Option<u64> {
    if rate == 0 {
        return None;
    }
    let due = begun.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000 + 1;
    Some(u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(sent))
}

fn epoch_ns() -> Result<u64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_nanos())?)
}
