//! Where alerts come in, and who may send them: nothing is open to other machines without TLS and a proof.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use axum::http::HeaderName;
use remora_proto::tls::{
    Clients, Name, NameError, Names, Peer, Protocol, ServerTls, TlsCounts, TlsError, TlsFiles,
    TlsListener,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};

use super::{
    secret::{Secret, SecretError},
    serve::Version,
    talon::Lambda,
};

pub use super::talon::LambdaParts;

/// What is configured about the senders of alerts.
#[derive(Clone, Debug)]
pub struct ListenParts {
    pub address: SocketAddr,
    /// A file with the secret that each request shows, and the header that has it.
    pub secret: Option<(PathBuf, HeaderName)>,
    pub tls: Option<TlsParts>,
    /// The key pair of Talon's `aws:lambda`; without it there are no such routes.
    pub lambda: Option<LambdaParts>,
}

/// What is configured about TLS.
#[derive(Clone, Debug)]
pub struct TlsParts {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The CA of the senders' certificates, and the names of which each must have one.
    pub clients: Option<(PathBuf, Vec<String>)>,
}

/// Alerts cannot be taken as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "other machines could reach {0}, and alerts would be taken without authentication; use 127.0.0.1:{port} or \
         [::1]:{port}, with the sender on this machine, or TLS (--alerts-tls-cert, --alerts-tls-key) \
         with a secret (--alerts-secret) or the senders' certificates (--alerts-tls-ca, \
         --alerts-tls-client-san)",
        port = .0.port()
    )]
    Unauthenticated(SocketAddr),
    #[error(
        "other machines could reach {0}, and a secret that goes there in the clear is none; add \
         --alerts-tls-cert and --alerts-tls-key"
    )]
    InTheClear(SocketAddr),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(
        "stock Falco Talon has no certificate to show, so with --alerts-tls-ca it would not get in; use \
         --alerts-secret in place of --alerts-tls-ca, or leave --talon-access-key-file out"
    )]
    TalonWithoutCertificate,
    #[error("--alerts-tls-client-san: {0}")]
    Name(#[from] NameError),
    #[error("alerts cannot be taken by TLS")]
    Tls(#[from] TlsError),
    #[error("cannot listen on {address}; is another remora-controller running, or Falco Talon?")]
    Bind {
        address: SocketAddr,
        source: io::Error,
    },
}

impl ListenParts {
    /// May that be listened on? Pure.
    ///
    /// # Errors
    /// It would be open to strangers.
    pub fn check(&self) -> Result<(), ListenError> {
        let Self {
            address,
            secret,
            tls,
            lambda,
        } = self;
        let has_clients = tls.as_ref().is_some_and(|tls| tls.clients.is_some());
        if has_clients && lambda.is_some() {
            return Err(ListenError::TalonWithoutCertificate);
        }
        if address.ip().is_loopback() {
            return Ok(());
        }
        match (tls, secret) {
            (None, Some(_)) => Err(ListenError::InTheClear(*address)),
            (None, None) => Err(ListenError::Unauthenticated(*address)),
            (Some(_), None) if !has_clients => Err(ListenError::Unauthenticated(*address)),
            (Some(_), _) => Ok(()),
        }
    }
}

/// The bound address.
#[derive(Debug)]
pub struct Listener {
    way: Way,
    counts: Option<Arc<TlsCounts>>,
    pub(super) secret: Option<Arc<Secret>>,
    pub(super) lambda: Option<Arc<Lambda>>,
}

#[derive(Debug)]
enum Way {
    /// Loopback.
    Plain(TcpListener),
    Tls(Box<TlsListener>),
}

/// A connection, by whichever way.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

impl Listener {
    /// # Errors
    /// It would be open to strangers, a file is wrong, or the address is taken.
    pub async fn bind(parts: ListenParts) -> Result<Self, ListenError> {
        parts.check()?;
        let ListenParts {
            address,
            secret,
            tls,
            lambda,
        } = parts;
        let lambda = lambda.map(|parts| Lambda::load(&parts)).transpose()?;
        let secret = secret
            .map(|(path, header)| Secret::load(&path, header))
            .transpose()?
            .map(Arc::new);
        let bind = |source| ListenError::Bind { address, source };
        let (way, counts) = match tls {
            None => {
                let listener = TcpListener::bind(address).await.map_err(bind)?;
                (Way::Plain(listener), None)
            }
            Some(tls) => {
                let tls = server(tls)?;
                let counts = Arc::clone(tls.counts());
                let listener = TlsListener::bind(address, tls).await.map_err(bind)?;
                (Way::Tls(Box::new(listener)), Some(counts))
            }
        };
        Ok(Self {
            way,
            counts,
            secret,
            lambda: lambda.map(Arc::new),
        })
    }

    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        match &self.way {
            Way::Plain(listener) => listener.local_addr(),
            Way::Tls(listener) => listener.address(),
        }
    }

    /// What becomes of connections, if it is by TLS.
    #[must_use]
    pub fn counts(&self) -> Option<&Arc<TlsCounts>> {
        self.counts.as_ref()
    }

    /// The next connection. May be dropped while it waits.
    pub(super) async fn accept(&mut self) -> io::Result<(Box<dyn Connection>, Peer, Version)> {
        match &mut self.way {
            Way::Plain(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are small and complete: nothing is gained by waiting for more.
                let _unsupported = stream.set_nodelay(true);
                let peer = Peer {
                    address,
                    name: None,
                };
                Ok((Box::new(stream), peer, Version::Http1))
            }
            Way::Tls(listener) => {
                let stream = listener.accept().await;
                let peer = stream.peer().clone();
                let version = match stream.speaks_http2() {
                    true => Version::Http2,
                    false => Version::Http1,
                };
                Ok((Box::new(stream), peer, version))
            }
        }
    }
}

fn server(parts: TlsParts) -> Result<ServerTls, ListenError> {
    let TlsParts { cert, key, clients } = parts;
    let (ca, clients) = match clients {
        Some((ca, names)) => {
            let names: Result<Vec<Name>, _> = names.iter().map(|name| name.parse()).collect();
            (Some(ca), Clients::Named(Names::new(names?)?))
        }
        None => (None, Clients::Anonymous),
    };
    let files = TlsFiles {
        own: Some((cert, key)),
        ca,
    };
    Ok(ServerTls::new(files, clients, Protocol::Http)?)
}

#[cfg(test)]
mod tests {
    use axum::http::header;

    use super::*;

    #[test]
    fn nothing_is_open_to_other_machines_without_tls_and_a_proof() {
        let secret = || Some((PathBuf::from("s"), header::AUTHORIZATION));
        let tls = |clients| {
            Some(TlsParts {
                cert: "c".into(),
                key: "k".into(),
                clients,
            })
        };
        let clients = || Some((PathBuf::from("ca"), vec!["falco".to_owned()]));
        for (secret, tls, may) in [
            (None, None, false),
            (secret(), None, false),
            (None, tls(None), false),
            (secret(), tls(None), true),
            (None, tls(clients()), true),
            (secret(), tls(clients()), true),
        ] {
            for (address, is_loopback) in [
                ("127.0.0.1:1", true),
                ("[::1]:1", true),
                ("0.0.0.0:1", false),
                ("[::]:1", false),
                ("192.0.2.1:1", false),
                ("[::ffff:127.0.0.1]:1", false),
            ] {
                let parts = ListenParts {
                    address: address.parse().unwrap(),
                    secret: secret.clone(),
                    tls: tls.clone(),
                    lambda: None,
                };
                let checked = parts.check();
                assert_eq!(checked.is_ok(), may || is_loopback, "{parts:?}");
                if let Err(error) = checked {
                    assert!(error.to_string().contains("--alerts-tls-cert"), "{error}");
                }
            }
        }
    }
}
