//! Moves a known gigabyte over one TCP connection; the receiver compares every byte.
//!
//! The stream is a row of chunks, each its number and then fixed pseudo-random filling: a byte
//! that is lost, doubled, changed or out of place does not compare. That is stronger than a
//! checksum, and costs one `memcmp`.
#![forbid(unsafe_code)]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};

/// Bytes of a chunk.
const CHUNK: usize = 64 << 10;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Take one connection and compare
    Receive {
        at: SocketAddr,
        #[arg(long, default_value_t = 1 << 30)]
        bytes: u64,
    },
    /// Connect and send
    Send {
        to: SocketAddr,
        #[arg(long, default_value_t = 1 << 30)]
        bytes: u64,
        /// Bytes per second; 0: as fast as it goes
        #[arg(long, default_value_t = 0)]
        rate: u64,
    },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Receive { at, bytes } => receive(at, bytes),
        Command::Send { to, bytes, rate } => send(to, bytes, rate),
    }
}

/// A chunk without its number: xorshift64 from a fixed seed.
fn filling() -> Vec<u8> {
    let mut state = 0x5265_6d6f_7261_3137_u64;
    let mut chunk = Vec::with_capacity(CHUNK);
    while chunk.len() < CHUNK {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.extend_from_slice(&state.to_le_bytes());
    }
    chunk
}

fn send(to: SocketAddr, bytes: u64, rate: u64) -> Result<()> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("failed to reach {to}"))?;
    let mut chunk = filling();
    let begun = Instant::now();
    let mut left = bytes;
    for number in 0u64.. {
        if left == 0 {
            break;
        }
        if rate > 0 {
            let due = std::time::Duration::from_secs_f64((bytes - left) as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
        chunk[..8].copy_from_slice(&number.to_be_bytes());
        let len = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        stream.write_all(&chunk[..len]).context("failed to send")?;
        left -= len as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // The receiver's verdict.
    let mut verdict = String::new();
    stream.read_to_string(&mut verdict)?;
    ensure!(verdict == "same", "the receiver says: {verdict}");
    report(bytes, begun);
    Ok(())
}

fn receive(at: SocketAddr, bytes: u64) -> Result<()> {
    let listener = TcpListener::bind(at).context("failed to bind")?;
    println!("ready");
    let (mut stream, _) = listener.accept()?;
    let begun = Instant::now();
    let mut expected = filling();
    let mut chunk = vec![0u8; CHUNK];
    let mut left = bytes;
    for number in 0u64.. {
        if left == 0 {
            break;
        }
        let len = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        stream
            .read_exact(&mut chunk[..len])
            .with_context(|| format!("the stream ended {left} bytes early"))?;
        expected[..8].copy_from_slice(&number.to_be_bytes());
        ensure!(chunk[..len] == expected[..len], "chunk {number} differs");
        left -= len as u64;
    }
    ensure!(stream.read(&mut chunk)? == 0, "the stream is too long");
    stream.write_all(b"same")?;
    report(bytes, begun);
    Ok(())
}

fn report(bytes: u64, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{}",
        serde_json::json!({ "bytes": bytes, "seconds": seconds })
    );
}
