//! A proxy before a store, on a node's loopback, that does wrong as it is told.
//!
//! ```text
//! client ─ one request a connection ─▶ proxy ─ the fault for this request ─▶ store
//! ```

use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::host::Host;

/// What is done to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An answer without asking the store.
    Answer(u16),
    /// The connection breaks after so many bytes of the body.
    Cut(u64),
    /// One bit of the body at this place is another.
    Flip(u64),
    /// It waits before the store gets it.
    Late(Duration),
    /// The store gets it, and its answer is lost.
    Unanswered,
    /// The body goes on at so many bytes in a second.
    Slow(u64),
}

/// A request that came by, and the store's answer if there was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub status: Option<u16>,
}

#[derive(Debug, Default)]
struct State {
    /// For the next PUTs, one each.
    next: VecDeque<Fault>,
    /// For each PUT after those.
    always: Option<Fault>,
    seen: Vec<Seen>,
}

/// Runs until it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    state: Arc<Mutex<State>>,
    is_over: Arc<AtomicBool>,
    address: SocketAddr,
}

/// How often it is looked whether it is over.
const LOOK: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(60);
const HEAD_MAX: usize = 64 << 10;
const PIECE: usize = 64 << 10;

impl FaultProxy {
    /// Listens on the node's loopback.
    ///
    /// # Errors
    /// It cannot.
    pub fn start(node: &dyn Host, port: u16, store: SocketAddr) -> Result<Self> {
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        let listener = node
            .netns()
            .enter(|| TcpListener::bind(address).context("the proxy cannot listen"))?;
        listener.set_nonblocking(true)?;
        let proxy = Self {
            state: Arc::default(),
            is_over: Arc::default(),
            address,
        };
        let path = node.netns().path().to_owned();
        let (state, is_over) = (Arc::clone(&proxy.state), Arc::clone(&proxy.is_over));
        // Its own connections are made in the node's namespace as well.
        thread::spawn(move || {
            let served = crate::netns::enter(&path, || {
                serve(&listener, store, &state, &is_over);
                Ok(())
            });
            if let Err(error) = served {
                eprintln!("the proxy ended: {error:#}");
            }
        });
        Ok(proxy)
    }

    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// For the next PUTs, one each.
    pub fn next(&self, faults: &[Fault]) {
        self.state().next.extend(faults);
    }

    /// For each PUT from now on, or for none.
    pub fn always(&self, fault: Option<Fault>) {
        self.state().always = fault;
    }

    /// All requests so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// Faults that are still to come.
    #[must_use]
    pub fn left(&self) -> usize {
        self.state().next.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
    }
}

fn serve(
    listener: &TcpListener,
    store: SocketAddr,
    state: &Arc<Mutex<State>>,
    is_over: &AtomicBool,
) {
    while !is_over.load(Relaxed) {
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(LOOK);
            continue;
        };
        let state = Arc::clone(state);
        // In this thread's namespace.
        thread::spawn(move || {
            let at = state.lock().map_or(0, |state| state.seen.len());
            if let Err(error) = exchange(&client, store, &state) {
                eprintln!("the proxy's request after {at}: {error}");
            }
            let _closed = client.shutdown(Shutdown::Both);
        });
    }
}

fn exchange(mut client: &TcpStream, store: SocketAddr, state: &Mutex<State>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(PATIENCE))?;
    let (head, begun) = head(client)?;
    let mut words = head.split([' ', '?']);
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().to_owned();
    let length: u64 = header(&head, "content-length").map_or(0, |n| n.parse().unwrap_or(0));
    let (fault, at) = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = (method == "PUT")
            .then(|| state.next.pop_front().or(state.always))
            .flatten();
        state.seen.push(Seen {
            method: method.clone(),
            path,
            status: None,
        });
        (fault, state.seen.len() - 1)
    };
    match fault {
        Some(Fault::Answer(status)) => {
            // All of it is taken, so that the answer is read.
            let mut left = length.saturating_sub(begun.len() as u64);
            let mut piece = vec![0; PIECE];
            while left > 0 {
                let n = client.read(&mut piece)?;
                if n == 0 {
                    break;
                }
                left = left.saturating_sub(n as u64);
            }
            let text = "<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>";
            let answer = format!(
                "HTTP/1.1 {status} Fault\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                text.len()
            );
            return client.write_all(answer.as_bytes());
        }
        Some(Fault::Late(time)) => thread::sleep(time),
        _ => {}
    }
    let mut upstream = TcpStream::connect_timeout(&store, PATIENCE)?;
    upstream.set_read_timeout(Some(PATIENCE))?;
    upstream.write_all(head.as_bytes())?;
    let mut sent = 0;
    let mut piece = begun;
    loop {
        if let Some(Fault::Flip(at)) = fault
            && let Some(at) = at.checked_sub(sent)
            && let Some(byte) = usize::try_from(at).ok().and_then(|at| piece.get_mut(at))
        {
            *byte ^= 1;
        }
        if let Some(Fault::Cut(at)) = fault
            && sent + piece.len() as u64 >= at
        {
            piece.truncate(usize::try_from(at - sent).unwrap_or(0));
            upstream.write_all(&piece)?;
            return Ok(());
        }
        if let Some(Fault::Slow(rate)) = fault {
            let time = piece.len() as f64 / rate as f64;
            thread::sleep(Duration::from_secs_f64(time));
        }
        upstream.write_all(&piece)?;
        sent += piece.len() as u64;
        if sent >= length {
            break;
        }
        piece.resize(PIECE, 0);
        let n = client.read(&mut piece)?;
        if n == 0 {
            return Ok(());
        }
        piece.truncate(n);
    }
    let (answer, begun) = self::head(&upstream)?;
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    state.lock().unwrap_or_else(PoisonError::into_inner).seen[at].status = status;
    if fault == Some(Fault::Unanswered) {
        return Ok(());
    }
    // One request a connection.
    let (line, rest) = answer.split_once("\r\n").unwrap_or((&answer, ""));
    client.write_all(format!("{line}\r\nconnection: close\r\n{rest}").as_bytes())?;
    client.write_all(&begun)?;
    if method != "HEAD" {
        let length: u64 = header(&answer, "content-length").map_or(0, |n| n.parse().unwrap_or(0));
        let left = length.saturating_sub(begun.len() as u64);
        io::copy(&mut (&upstream).take(left), &mut client)?;
    }
    Ok(())
}

/// A head, and what came after it.
fn head(mut stream: &TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            let head = String::from_utf8_lossy(&bytes).into_owned();
            return Ok((head, rest));
        }
        let n = stream.read(&mut piece)?;
        if n == 0 || bytes.len() > HEAD_MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&piece[..n]);
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
