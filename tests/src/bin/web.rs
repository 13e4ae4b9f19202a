//! The demo's cast: a web server, a visitor who browses it, and malware that calls home.
//!
//! Each says "ready" when it is. The visitor and the malware take orders on standard input: one
//! request a line, answered by a line; they end with it.
#![forbid(unsafe_code)]

use std::{
    io::{BufRead, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Longest head of a request or an answer, in bytes.
const HEAD_MAX: u64 = 8192;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer every request with a page
    Serve { at: SocketAddr },
    /// GET a page for each line of standard input
    Browse { at: SocketAddr },
    /// POST a beacon for each line of standard input
    Beacon { at: SocketAddr },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Serve { at } => serve(at),
        Command::Browse { at } => on_order(at, "GET /catalogue HTTP/1.1", ""),
        Command::Beacon { at } => on_order(
            at,
            "POST /gate HTTP/1.1",
            "id=cart-7d9f8c6b5&task=none&hashrate=0",
        ),
    }
}

fn serve(at: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(at).with_context(|| format!("failed to listen at {at}"))?;
    println!("ready");
    for stream in listener.incoming() {
        // A visitor who leaves early is no reason to close the shop.
        let _ = answer(stream?);
    }
    Ok(())
}

fn answer(stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(&stream);
    let body_len = content_length(&read_head(&mut reader)?);
    std::io::copy(&mut reader.by_ref().take(body_len), &mut std::io::sink())?;
    let page = "<!doctype html><title>shop</title><p>Nothing to see here.\n";
    // One segment each: a conversation that fits on a screen.
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{page}",
        page.len()
    );
    (&stream).write_all(answer.as_bytes())?;
    // The client closes first: its port waits, not the server's.
    reader.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Reads up to the empty line.
fn read_head(reader: &mut impl BufRead) -> Result<String> {
    let mut reader = reader.take(HEAD_MAX);
    let mut head = String::new();
    while reader.read_line(&mut head)? > 0 && !head.ends_with("\r\n\r\n") {}
    Ok(head)
}

fn content_length(head: &str) -> u64 {
    head.lines()
        .find_map(|line| line.strip_prefix("Content-Length: ")?.trim().parse().ok())
        .unwrap_or(0)
}

/// One request for each line of standard input; says from which port.
fn on_order(at: SocketAddr, request_line: &str, body: &str) -> Result<()> {
    println!("ready");
    for order in BufReader::new(std::io::stdin()).lines() {
        order?;
        let stream = TcpStream::connect_timeout(&at, LIMIT)
            .with_context(|| format!("failed to connect to {at}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let request = format!(
            "{request_line}\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{body}",
            at.ip(),
            body.len()
        );
        (&stream).write_all(request.as_bytes())?;
        let mut reader = BufReader::new(&stream);
        let head = read_head(&mut reader)?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{at} answered {head}");
        let mut page = vec![0; usize::try_from(content_length(&head))?];
        reader.read_exact(&mut page)?;
        let port = stream.local_addr()?.port();
        stream.shutdown(Shutdown::Write)?;
        reader.read_to_end(&mut Vec::new())?;
        println!("{port}");
    }
    Ok(())
}
