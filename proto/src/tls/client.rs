//! The client's side: whom it takes for the server, and its own certificate.

use std::{
    error, fmt, io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig,
    client::Resumption,
    pki_types::{ServerName, TrustAnchor},
    sign::SingleCertAndKey,
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::codegen::{Service, http::Uri};

use super::{
    chain::Chain,
    files::{self, TlsError, TlsFiles},
    name::Names,
    refused::{self, Refused, TlsCounts},
    reload::Reloading,
    server::Protocol,
};

/// How long a server that has our certificate may take to say its first word. One that waits for
/// ours gets it after this.
const FIRST_WORD_TIMEOUT: Duration = Duration::from_secs(1);
/// Most bytes of it that are read ahead.
const FIRST_WORD_MAX: usize = 256;

/// Who a client is, and whom it takes for the server. Cheap to clone; files are read again when they
/// change.
#[derive(Clone)]
pub struct TlsIdentity {
    config: Arc<Reloading<ClientConfig>>,
    counts: Arc<TlsCounts>,
}

impl TlsIdentity {
    /// Takes a server whose certificate is by the CA file and has one of the names `servers`;
    /// without those, the name or address that it is dialled by.
    ///
    /// # Errors
    /// A file is missing or wrong.
    pub fn new(files: TlsFiles, servers: Option<Names>) -> Result<Self, TlsError> {
        let counts = Arc::new(TlsCounts::default());
        let config = Reloading::new(files.paths(), Arc::clone(&counts), move || {
            let setup = "a client needs the CA file of its servers";
            let ca = files
                .ca
                .as_ref()
                .ok_or_else(|| TlsError::Setup(setup.to_owned()))?;
            config(files::anchors(ca)?, &files, servers.clone())
        })?;
        Ok(Self {
            config: Arc::new(config),
            counts,
        })
    }

    /// Takes a server by these CA certificates (PEM), and shows none itself.
    ///
    /// # Errors
    /// They are none.
    pub fn trusting(ca: &[u8], servers: Option<Names>) -> Result<Self, TlsError> {
        let counts = Arc::new(TlsCounts::default());
        let anchors = files::anchors_of(Path::new("the CA"), ca)?;
        let none = TlsFiles {
            own: None,
            ca: None,
        };
        let config = Reloading::new(Vec::new(), Arc::clone(&counts), move || {
            config(anchors.clone(), &none, servers.clone())
        })?;
        Ok(Self {
            config: Arc::new(config),
            counts,
        })
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> &Arc<TlsCounts> {
        &self.counts
    }

    async fn connect(&self, host: &str, port: u16) -> io::Result<FirstRead> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let tcp = TcpStream::connect((host, port)).await?;
        let _unsupported = tcp.set_nodelay(true);
        let connector = TlsConnector::from(self.config.current().await);
        let shaken = connector.connect(name, tcp).await;
        let connected = match shaken {
            Ok(stream) => FirstRead::of(stream).await,
            Err(error) => Err(error),
        };
        match &connected {
            Ok(_) => self.counts.accept(),
            Err(error) => self.counts.refuse(Refused::of(error)),
        }
        connected
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

fn config(
    anchors: Vec<TrustAnchor<'static>>,
    files: &TlsFiles,
    servers: Option<Names>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(files::provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| TlsError::Setup(error.to_string()))?
        // Its verdict is stricter than rustls' own: see `chain`.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Chain::new(anchors, servers)));
    let mut config = match &files.own {
        Some((cert, key)) => {
            let own = files::certified_key(cert, key)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = Protocol::Grpc.alpn();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A connection whose first bytes were read already.
///
/// In TLS 1.3 a client is done before the server has judged its certificate: a refusal comes as the
/// first thing it reads. A server of HTTP/2 speaks first, so waiting for that makes the refusal an
/// error of the connection, with its reason, and not one of the first call.
#[derive(Debug)]
pub(crate) struct FirstRead {
    stream: TlsStream<TcpStream>,
    read: Vec<u8>,
    given: usize,
}

impl FirstRead {
    async fn of(mut stream: TlsStream<TcpStream>) -> io::Result<Self> {
        let mut read = Vec::with_capacity(FIRST_WORD_MAX);
        match timeout(FIRST_WORD_TIMEOUT, stream.read_buf(&mut read)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(_)) | Err(_) => {}
        }
        Ok(Self {
            stream,
            read,
            given: 0,
        })
    }
}

impl AsyncRead for FirstRead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let left = &this.read[this.given..];
        if left.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let now = left.len().min(buf.remaining());
        buf.put_slice(&left[..now]);
        this.given += now;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FirstRead {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Connects tonic's channels.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    pub(crate) identity: TlsIdentity,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<FirstRead>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self {
            identity,
            host,
            port,
        } = self.clone();
        Box::pin(async move { Ok(TokioIo::new(identity.connect(&host, port).await?)) })
    }
}

/// Why a handshake failed, if that is what `error` or one of its causes tells.
pub(crate) fn failure(error: &(dyn error::Error + 'static)) -> Option<(Refused, String)> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && refused::tls_error(io).is_some()
        {
            return Some((Refused::of(io), refused::told(io)));
        }
        cause = error.source();
    }
    None
}
