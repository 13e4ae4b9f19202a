//! A receiver: one request a connection, with a deadline.

use std::{fs, io, path::PathBuf, time::Duration};

use remora_capture::text::{one_line, with_causes};
use reqwest::{Certificate, StatusCode, header, redirect::Policy};

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
    #[error("--notify-ca {}: {source}", path.display())]
    Ca { path: PathBuf, source: io::Error },
    #[error("--notify-ca {} has no certificate in PEM", .0.display())]
    NoCertificate(PathBuf),
    #[error("failed to make a client for receivers: {0}")]
    Client(String),
    #[error(
        "--notify {0}: give --notify-ca, the CA certificates that may sign it (those of the system are in \
         /etc/ssl/certs/ca-certificates.crt)"
    )]
    NoCa(ReceiverUrl),
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
    client: reqwest::Client,
    secret: Option<PathBuf>,
}

impl Receiver {
    /// # Errors
    /// A secret or certificates that cannot be read.
    pub(super) fn all(args: &NotifyArgs) -> Result<Vec<Self>, ReceiverError> {
        if let Some(path) = &args.notify_secret {
            secret::signature(path, b"")?;
        }
        let client = client(args)?;
        let receiver = |url: &ReceiverUrl| {
            if url.is_tls() && args.notify_ca.is_none() {
                return Err(ReceiverError::NoCa(url.clone()));
            }
            if !url.is_tls() && !["localhost", "127.0.0.1", "::1"].contains(&url.host()) {
                tracing::warn!(receiver = %url, "notifications go over the network in clear text");
            }
            Ok(Self {
                url: url.clone(),
                client: client.clone(),
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
        let status = match self.exchange(body).await {
            Ok(status) => status,
            Err(why) => return Delivery::Failed(why),
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

    /// The status; what the answer says besides is nothing to us.
    async fn exchange(&self, body: &str) -> Result<StatusCode, String> {
        let mut request = self
            .client
            .post(self.url.whole())
            .header(header::CONTENT_TYPE, "application/json; charset=utf-8");
        if let Some(path) = &self.secret {
            let signature = secret::signature(path, body.as_bytes());
            let signature = signature.map_err(|error| with_causes(&error))?;
            request = request.header(secret::HEADER, signature);
        }
        let answer = request.body(body.to_owned()).send().await;
        // A URL may have a secret in it.
        let failed = |error: reqwest::Error| one_line(&with_causes(&error.without_url()), 400);
        Ok(answer.map_err(failed)?.status())
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("url", &self.url.to_string())
            .finish_non_exhaustive()
    }
}

/// Of this machine's certificates none is believed.
fn client(args: &NotifyArgs) -> Result<reqwest::Client, ReceiverError> {
    // Somebody else may have set it to the same.
    let _set = rustls::crypto::ring::default_provider().install_default();
    let mut roots = Vec::new();
    if let Some(path) = &args.notify_ca {
        let pem = fs::read(path).map_err(|source| ReceiverError::Ca {
            path: path.clone(),
            source,
        })?;
        roots = Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if roots.is_empty() {
            return Err(ReceiverError::NoCertificate(path.clone()));
        }
    }
    reqwest::Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .timeout(DEADLINE)
        .pool_max_idle_per_host(0)
        .user_agent("remora-controller")
        .tls_certs_only(roots)
        .build()
        .map_err(|error| ReceiverError::Client(with_causes(&error)))
}
