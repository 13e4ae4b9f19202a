//! A query to an authority, and its response: HTTP without TLS, for the response proves itself.

use std::{
    io::{Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

use super::RESPONSE_BYTES_MAX;

const TIMEOUT: Duration = Duration::from_secs(20);
/// Largest head of a response, in bytes.
const HEAD_MAX: usize = 16 << 10;

/// `http://HOST[:PORT]/PATH`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    host: String,
    port: u16,
    path: String,
}

impl FromStr for Url {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let Some(rest) = text.strip_prefix("http://") else {
            bail!(
                "only http:// is spoken here (the response proves itself). For https: --request FILE.tsq, \
                 then curl -H 'Content-Type: application/timestamp-query' --data-binary @FILE.tsq URL -o FILE.tsr, \
                 then --response FILE.tsr"
            );
        };
        let plain = rest.bytes().all(|b| b.is_ascii_graphic());
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                (host, port.parse().context("no port after the host")?)
            }
            _ => (authority, 80),
        };
        ensure!(
            plain && !host.is_empty() && !host.contains('@'),
            "not http://HOST[:PORT]/PATH"
        );
        Ok(Self {
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        })
    }
}

/// Asks once.
///
/// # Errors
/// The authority cannot be reached, or does not answer with a response.
pub(crate) fn exchange(url: &Url, query: &[u8]) -> anyhow::Result<Vec<u8>> {
    let Url { host, port, path } = url;
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let cannot = || format!("the authority at {host}:{port} cannot be reached");
    let mut addresses = (name, *port).to_socket_addrs().with_context(cannot)?;
    let address = addresses.next().with_context(cannot)?;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).with_context(cannot)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // 1.0: the answer ends where the connection does.
    let head = format!(
        "POST {path} HTTP/1.0\r\nHost: {host}:{port}\r\nUser-Agent: remora\r\n\
         Content-Type: application/timestamp-query\r\nContent-Length: {}\r\n\r\n",
        query.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(query)?;
    let mut answer = Vec::new();
    let most = (HEAD_MAX + RESPONSE_BYTES_MAX) as u64;
    stream.take(most).read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.context("the authority's answer is not HTTP")?;
    let status = String::from_utf8_lossy(&answer[..end]);
    let status = status.lines().next().unwrap_or_default();
    ensure!(
        status.split(' ').nth(1) == Some("200"),
        "the authority answered `{status}`"
    );
    Ok(answer.split_off(end + 4))
}
