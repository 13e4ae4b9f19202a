//! HTTP/1.1 with one request a connection: enough to be Falco, curl or Prometheus.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::netns::Netns;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub body: String,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub content_type: &'a str,
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    #[must_use]
    pub fn get(path: &'a str) -> Self {
        Self {
            method: "GET",
            path,
            content_type: "",
            body: b"",
        }
    }

    /// With a JSON body, as Falcosidekick sends it.
    #[must_use]
    pub fn post_json(path: &'a str, body: &'a [u8]) -> Self {
        Self {
            method: "POST",
            path,
            content_type: "application/json; charset=utf-8",
            body,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut head = format!(
            "{} {} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Falcosidekick\r\nConnection: close\r\n\
             Content-Length: {}\r\n",
            self.method,
            self.path,
            self.body.len()
        );
        if !self.content_type.is_empty() {
            head.push_str(&format!("Content-Type: {}\r\n", self.content_type));
        }
        head.push_str("\r\n");
        [head.as_bytes(), self.body].concat()
    }
}

/// Sends a request over TCP from a namespace.
///
/// # Errors
/// No connection, or no answer.
pub fn over_tcp(netns: &Netns, to: SocketAddr, request: Request<'_>) -> Result<Response> {
    bytes_over_tcp(netns, to, &request.bytes())
}

/// Sends a whole request that closes its connection, as it is, over TCP from a namespace.
///
/// # Errors
/// No connection, or no answer.
pub fn bytes_over_tcp(netns: &Netns, to: SocketAddr, message: &[u8]) -> Result<Response> {
    netns.enter(|| {
        let stream = TcpStream::connect_timeout(&to, LIMIT)
            .with_context(|| format!("failed to connect to {to}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        exchange(stream, message)
    })
}

/// Sends a request over a Unix socket.
///
/// # Errors
/// No connection, or no answer.
pub fn over_unix(socket: &Path, request: Request<'_>) -> Result<Response> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("failed to connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(LIMIT))?;
    exchange(stream, &request.bytes())
}

fn exchange(mut stream: impl Read + Write, message: &[u8]) -> Result<Response> {
    // A server that refuses a large body may answer and close before it took it all.
    let written = stream.write_all(message);
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    if bytes.is_empty() {
        written.context("failed to send")?;
        read.context("no answer")?;
    }
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("no end of the answer's head")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .with_context(|| format!("no status in {head}"))?;
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let body = if chunked {
        unchunked(body)
    } else {
        body.to_owned()
    };
    Ok(Response { status, body })
}

/// Joins the chunks of a body (RFC 9112, section 7.1).
fn unchunked(mut body: &str) -> String {
    let mut joined = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(..size).filter(|chunk| !chunk.is_empty()) else {
            break;
        };
        joined.push_str(chunk);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        assert_eq!(unchunked("4\r\nremo\r\n2\r\nra\r\n0\r\n\r\n"), "remora");
    }
}
