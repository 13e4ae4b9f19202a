//! A receiver: one request a connection, with a deadline.

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use remora_proto::tls::{TlsError, root_store};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{secret, secret::SecretError, url::ReceiverUrl};
use crate::args::NotifyArgs;

/// How long a connection and its answer may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Before the second attempt, and the longest before any.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(500);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A receiver cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(
        "--notify {0}: give --notify-ca, the CA certificates that may sign it (those of the system are in \
         /etc/ssl/certs/ca-certificates.crt)"
    )]
    NoCa(ReceiverUrl),
    #[error("--notify {0} has no name that a certificate could have")]
    NoName(ReceiverUrl),
}

/// What came of an attempt.
#[derive(Debug)]
pub(super) enum Delivery {
    Taken,
    /// It would be the same again.
    Refused(StatusCode),
    Failed(String),
}

/// Who is told.
pub(super) struct Receiver {
    url: ReceiverUrl,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    secret: Option<PathBuf>,
}

impl Receiver {
    /// # Errors
    /// A secret or certificates that cannot be read.
    pub(super) fn all(args: &NotifyArgs) -> Result<Vec<Self>, ReceiverError> {
        if let Some(path) = &args.notify_secret {
            secret::signature(path, b"")?;
        }
        let connector = match &args.notify_ca {
            Some(path) => Some(connector(path)?),
            None => None,
        };
        let receiver = |url: &ReceiverUrl| {
            let tls = if url.is_tls() {
                let connector = connector.clone();
                let connector = connector.ok_or_else(|| ReceiverError::NoCa(url.clone()))?;
                let name = ServerName::try_from(url.host().to_owned());
                let name = name.map_err(|_no_name| ReceiverError::NoName(url.clone()))?;
                Some((connector, name))
            } else {
                if !["localhost", "127.0.0.1", "::1"].contains(&url.host()) {
                    tracing::warn!(receiver = %url, "notifications go over the network in clear text");
                }
                None
            };
            Ok(Self {
                url: url.clone(),
                tls,
                secret: args.notify_secret.clone(),
            })
        };
        args.notify.iter().map(receiver).collect()
    }

    pub(super) fn url(&self) -> &ReceiverUrl {
        &self.url
    }

    /// Posts once.
    pub(super) async fn post(&self, body: &str) -> Delivery {
        let status = match timeout(DEADLINE, self.exchange(body)).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return Delivery::Failed(format!("{error:#}")),
            Err(_elapsed) => return Delivery::Failed(format!("no answer within {DEADLINE:?}")),
        };
        let later = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
        match status {
            status if status.is_success() => Delivery::Taken,
            status if status.is_client_error() && !later.contains(&status) => {
                Delivery::Refused(status)
            }
            status => Delivery::Failed(format!("it answered {status}")),
        }
    }

    async fn exchange(&self, body: &str) -> anyhow::Result<StatusCode> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(self.url.path())
            .header(header::HOST, self.url.authority())
            .header(header::USER_AGENT, "remora-controller")
            .header(header::CONTENT_TYPE, "application/json; charset=utf-8");
        if let Some(path) = &self.secret {
            request = request.header(secret::HEADER, secret::signature(path, body.as_bytes())?);
        }
        let request = request.body(Body::from(body.to_owned()))?;
        let stream = TcpStream::connect((self.url.host(), self.url.port())).await?;
        match &self.tls {
            Some((connector, name)) => {
                answer(connector.connect(name.clone(), stream).await?, request).await
            }
            None => answer(stream, request).await,
        }
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("url", &self.url.to_string())
            .finish_non_exhaustive()
    }
}

/// The status; what the answer says besides is nothing to us.
async fn answer<S>(stream: S, request: Request<Body>) -> anyhow::Result<StatusCode>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answered = async { anyhow::Ok(sender.send_request(request).await?.status()) };
    let mut answered = std::pin::pin!(answered);
    tokio::select! {
        answer = &mut answered => answer,
        // With its last bytes the answer may have come, or why there is none.
        _ended = connection => answered.await,
    }
}

fn connector(ca: &std::path::Path) -> Result<TlsConnector, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Setup(error.to_string()))?
        .with_root_certificates(root_store(ca)?)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
