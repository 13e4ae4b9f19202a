//! Moves bulk over two TCP connections in turn and says what a MiB took on each.
//!
//! One transfer on the first path, the next on its twin; a transfer is over when the receiver says
//! that it has it all, so nothing of one is under way in the time of the next. Sender and receivers
//! share one CPU. What disturbs the machine disturbs both paths alike.
#![forbid(unsafe_code)]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use remora_tests::twin::{Paths, enter, told};
use serde_json::{Value, json};

/// Bytes of a transfer: some milliseconds.
const TRANSFER: usize = 8 << 20;
/// Bytes of a system call.
const CHUNK: usize = 256 << 10;
/// Transfers of each path that are not counted: its window is still opening.
const WARM_UP: usize = 4;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    paths: Paths,
    /// Network namespace that both lead to
    #[arg(long, value_name = "FILE")]
    receiver_netns: PathBuf,
}

/// One of the two.
struct Connection {
    stream: TcpStream,
    /// Nanoseconds of each transfer.
    transfers: Vec<u64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let paths = &args.paths;
    paths.prepare()?;
    enter(&args.receiver_netns)?;
    let listeners = [paths.first, paths.twin]
        .map(|at| TcpListener::bind(at).with_context(|| format!("failed to listen at {at}")));
    for listener in listeners {
        let listener = listener?;
        // Ends with its connection, or with the process.
        thread::spawn(move || receive(&listener));
    }
    let mut connections = [
        Connection::new(&paths.first_netns, paths.first)?,
        Connection::new(&paths.twin_netns, paths.twin)?,
    ];
    send(&mut connections, Duration::from_secs_f64(paths.seconds))?;
    let [first, twin] = connections.map(Connection::told);
    println!("{}", json!({ "first": first?, "twin": twin? }));
    Ok(())
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

    fn told(mut self) -> Result<Value> {
        self.transfers.drain(..WARM_UP.min(self.transfers.len()));
        let mib = (TRANSFER >> 20) as f64;
        told(self.transfers.len() as u64, self.transfers, mib)
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
