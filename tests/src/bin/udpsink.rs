//! Takes UDP packets: counts the numbered ones, or drops them all by a socket filter.
//!
//! Prints "ready" when bound. With `--count` it ends after a line, or the end, of standard input
//! and prints what it counted.
#![forbid(unsafe_code)]

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use remora_tests::numbered::{Number, Numbers};
use socket2::{Domain, SockFilter, Socket, Type};

/// Receive buffer that is asked for, in bytes.
const RECEIVE_BUFFER: usize = 64 << 20;
/// How often a quiet counter looks whether it should end.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Parser)]
struct Args {
    /// First port
    port: u16,
    /// Bind this many ports, from the first on
    #[arg(long, default_value_t = 1)]
    ports: u16,
    /// Read and count (one port); without it, a filter drops every packet at the socket
    #[arg(long)]
    count: bool,
    /// Number of the generator's run
    #[arg(long, default_value_t = 1)]
    run: u16,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let ports = if args.count { 1 } else { args.ports };
    let mut sockets = Vec::new();
    for port in (args.port..).take(ports.into()) {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
        if !args.count {
            // BPF_RET | BPF_K, 0: the packet crosses the whole receive path and is then dropped.
            socket.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)])?;
        }
        sockets.push(socket);
    }
    if !args.count {
        println!("ready");
        wait_for_line();
        return Ok(());
    }

    let socket = sockets.remove(0);
    // Best effort: the system's limit may be lower.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    let socket = std::net::UdpSocket::from(socket);
    socket.set_read_timeout(Some(LOOK))?;
    let stop = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            wait_for_line();
            stop.store(true, Ordering::Relaxed);
        }
    });
    println!("ready");

    let mut numbers = Numbers::default();
    let mut payload = vec![0u8; 65_536];
    loop {
        match socket.recv(&mut payload) {
            Ok(len) => match Number::decode(&payload[..len]) {
                Some(number) if number.run == args.run => numbers.insert(number),
                _ => numbers.foreign += 1,
            },
            Err(error) if is_quiet(&error) => {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            Err(error) => return Err(error).context("failed to receive"),
        }
    }
    println!(
        "{}",
        serde_json::json!({
            "received": numbers.distinct(),
            "duplicates": numbers.duplicates(),
            "foreign": numbers.foreign,
        })
    );
    Ok(())
}

fn is_quiet(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

fn wait_for_line() {
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}
