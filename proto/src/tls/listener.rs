//! Connections that have proved who they are.
//!
//! ```text
//! accept ─▶ handshake (at most HANDSHAKES_MAX, each HANDSHAKE_TIMEOUT) ─▶ place (CONNECTIONS_MAX) ─▶ TlsIo
//!              └─ one too many: the oldest goes                              └─ none free: refused
//! ```
//! Nobody waits for a handshake of another: each is a task.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::Stream;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::{
    name::Name,
    refused::{self, Refused, TlsCounts},
    server::ServerTls,
};

/// Most handshakes at once; the oldest goes for one more.
pub const HANDSHAKES_MAX: usize = 64;
/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most connections at once of peers with a certificate.
pub const CONNECTIONS_MAX: usize = 256;
/// Most connections at once of peers without one: they cannot crowd out the others.
pub const ANONYMOUS_MAX: usize = 128;

/// How long, and for how many bytes, a refused peer may take to read why.
const ALERT_TIMEOUT: Duration = Duration::from_secs(1);
const REST_MAX: u64 = 64 * 1024;
/// Pause after a failed accept: out of file descriptors is not better at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Most lines a second about refused peers; the others are counted only.
const LINES_MAX: u32 = 10;

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub address: SocketAddr,
    /// The listed name that its certificate has; `None` for one without a certificate.
    pub name: Option<Name>,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct TlsIo {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

/// Listens for TLS.
#[derive(Debug)]
pub struct TlsListener {
    tcp: TcpListener,
    tls: ServerTls,
    shaking: JoinSet<Option<TlsIo>>,
    /// Handshakes under way, the oldest first.
    order: VecDeque<AbortHandle>,
    named: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
    log: Arc<LogBudget>,
}

impl TlsListener {
    /// # Errors
    /// The address cannot be listened on.
    pub async fn bind(address: SocketAddr, tls: ServerTls) -> io::Result<Self> {
        Ok(Self {
            tcp: TcpListener::bind(address).await?,
            tls,
            shaking: JoinSet::new(),
            order: VecDeque::new(),
            named: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            anonymous: Arc::new(Semaphore::new(ANONYMOUS_MAX)),
            log: Arc::default(),
        })
    }

    /// What becomes of those who connect.
    #[must_use]
    pub fn counts(&self) -> &Arc<TlsCounts> {
        self.tls.counts()
    }

    /// Where it listens; tells the port if that was left open.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The next connection that was let in. May be dropped while it waits.
    pub async fn accept(&mut self) -> TlsIo {
        loop {
            tokio::select! {
                accepted = self.tcp.accept() => match accepted {
                    Ok((stream, address)) => self.begin(stream, address),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = self.shaking.join_next() => {
                    self.order.retain(|handshake| !handshake.is_finished());
                    match ended {
                        Ok(Some(io)) => return io,
                        Ok(None) => {}
                        // It was crowded out.
                        Err(error) if error.is_cancelled() => {}
                        Err(error) => tracing::error!(%error, "a handshake broke off"),
                    }
                }
            }
        }
    }

    /// All connections that are let in, for a server of tonic's.
    pub fn connections(self) -> impl Stream<Item = io::Result<TlsIo>> {
        futures_util::stream::unfold(self, |mut listener| async move {
            let io = listener.accept().await;
            Some((Ok(io), listener))
        })
    }

    fn begin(&mut self, stream: TcpStream, address: SocketAddr) {
        if self.order.len() >= HANDSHAKES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            // It counts itself, unless it was settled already.
            oldest.abort();
        }
        let handshake = Handshake {
            unsettled: Unsettled(Some(Arc::clone(self.tls.counts()))),
            tls: self.tls.clone(),
            named: Arc::clone(&self.named),
            anonymous: Arc::clone(&self.anonymous),
            log: Arc::clone(&self.log),
            address,
        };
        self.order
            .push_back(self.shaking.spawn(handshake.run(stream)));
    }
}

/// A handshake that counts as crowded out if it is dropped so.
struct Unsettled(Option<Arc<TlsCounts>>);

impl Drop for Unsettled {
    fn drop(&mut self) {
        if let Some(counts) = &self.0 {
            counts.refuse(Refused::CrowdedOut);
        }
    }
}

/// One handshake.
struct Handshake {
    unsettled: Unsettled,
    tls: ServerTls,
    named: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
    log: Arc<LogBudget>,
    address: SocketAddr,
}

impl Handshake {
    async fn run(mut self, stream: TcpStream) -> Option<TlsIo> {
        // Messages are small and complete: nothing is gained by waiting for more.
        let _unsupported = stream.set_nodelay(true);
        let shaken = timeout(HANDSHAKE_TIMEOUT, async {
            let acceptor = self.tls.acceptor().await;
            acceptor.accept(stream).into_fallible().await
        });
        match shaken.await {
            Ok(Ok(stream)) => self.place(stream),
            Ok(Err((error, stream))) => {
                let refused = self.refuse(Refused::of(&error), &refused::told(&error));
                let _gone = timeout(ALERT_TIMEOUT, read_rest(stream)).await;
                refused
            }
            Err(_elapsed) => {
                let why = format!("no handshake within {HANDSHAKE_TIMEOUT:?}");
                self.refuse(Refused::Slow, &why)
            }
        }
    }

    fn place(mut self, stream: TlsStream<TcpStream>) -> Option<TlsIo> {
        let certificate = stream.get_ref().1.peer_certificates();
        let name = certificate.and_then(|chain| {
            let names = self.tls.names()?;
            names.found_in_der(chain.first()?).cloned()
        });
        // The handshake has judged it; a second look that finds nothing must not let it in.
        if certificate.is_some() && name.is_none() {
            return self.refuse(Refused::WrongName, "its names are not among those let in");
        }
        let (places, most) = match name {
            Some(_) => (&self.named, CONNECTIONS_MAX),
            None => (&self.anonymous, ANONYMOUS_MAX),
        };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            return self.refuse(Refused::TooMany, &format!("{most} connections are open"));
        };
        self.unsettled.0 = None;
        self.tls.counts().accept();
        let peer = Peer {
            address: self.address,
            name,
        };
        Some(TlsIo {
            stream,
            peer,
            _place: place,
        })
    }

    fn refuse(&mut self, why: Refused, told: &str) -> Option<TlsIo> {
        self.unsettled.0 = None;
        self.tls.counts().refuse(why);
        // Who only looks whether somebody listens (a probe) is no news.
        if why == Refused::Gone || !self.log.take() {
            tracing::debug!(peer = %self.address, reason = why.as_str(), error = told, "no TLS connection");
        } else {
            tracing::warn!(
                peer = %self.address, reason = why.as_str(), error = told,
                "refused a TLS connection: {}", why.remedy()
            );
        }
        None
    }
}

/// Reads what the peer still sends, to its end: closing a socket with unread bytes resets the connection, and
/// then the peer may never read the alert that says why it was refused.
async fn read_rest(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = stream.take(REST_MAX);
    tokio::io::copy(&mut rest, &mut tokio::io::sink())
        .await
        .map(|_| ())
}

/// Lines that may still be written this second: who may not come in must not fill the log.
#[derive(Debug)]
struct LogBudget(std::sync::Mutex<(Instant, u32)>);

impl Default for LogBudget {
    fn default() -> Self {
        Self(std::sync::Mutex::new((Instant::now(), LINES_MAX)))
    }
}

impl LogBudget {
    fn take(&self) -> bool {
        let mut budget = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if budget.0.elapsed() >= Duration::from_secs(1) {
            *budget = (Instant::now(), LINES_MAX);
        }
        let is_left = budget.1 > 0;
        budget.1 = budget.1.saturating_sub(1);
        is_left
    }
}

impl TlsIo {
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// HTTP/2 was agreed on, by ALPN.
    #[must_use]
    pub fn speaks_http2(&self) -> bool {
        self.stream.get_ref().1.alpn_protocol() == Some(b"h2")
    }
}

impl Connected for TlsIo {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
