//! Sends UDP packets over two paths in turn and says what a packet cost on each.
//!
//! Time is cut into slices; each slice belongs to one path, the next to the other. Every
//! `sendmmsg(2)` is timed: where the packet crosses veths to a socket of the same machine, its whole
//! way runs inside that call. What disturbs the machine disturbs both paths alike, so the difference
//! of the two medians is what the first path has and the second has not.
#![forbid(unsafe_code)]

use std::{
    io::IoSlice,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg},
};
use remora_tests::{
    numbered::{HEADERS, Number, PAYLOAD_MIN},
    twin::{Paths, enter, told},
};
use serde_json::{Value, json};

/// Datagrams of one system call.
const BATCH: usize = 64;
/// How long one path has its turn.
const SLICE: Duration = Duration::from_millis(5);

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    paths: Paths,
    /// Bytes of the Ethernet frame (without FCS), 64 to 1514
    #[arg(long, default_value_t = 64)]
    size: usize,
}

/// One of the two.
struct Sender {
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
    args.paths.prepare()?;
    let [first, twin] = send(&args)?;
    println!(
        "{}",
        json!({ "first": first.told()?, "twin": twin.told()? })
    );
    Ok(())
}

impl Sender {
    fn new(netns: &Path, to: SocketAddrV4) -> Result<Self> {
        enter(netns)?;
        Ok(Self {
            // It stays in the namespace in which it was made.
            socket: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("failed to bind")?,
            to: to.into(),
            sent: 0,
            calls: Vec::new(),
        })
    }

    fn told(self) -> Result<Value> {
        told(self.sent, self.calls, BATCH as f64)
    }
}

fn send(args: &Args) -> Result<[Sender; 2]> {
    let mut payloads = vec![vec![0u8; args.size - HEADERS]; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let Paths {
        first,
        twin,
        first_netns,
        twin_netns,
        seconds,
        ..
    } = &args.paths;
    let mut paths = [
        Sender::new(first_netns, *first)?,
        Sender::new(twin_netns, *twin)?,
    ];
    let mut turn = 0u16;
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(*seconds);
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
