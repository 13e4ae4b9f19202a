//! Where the service is reached: a Unix socket or a loopback address in plain text, or by TLS.

use std::{
    fmt, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use remora_proto::{
    limits::{REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, STREAM_MESSAGE_BYTES_MAX},
    tls::{TlsCounts, TlsListener},
    v1::cluster_server::ClusterServer,
};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{service::Routes, transport::Server};

use super::ClusterService;
use crate::{
    args::TlsArgs,
    network::{self, NetworkError},
};

/// Calls under way on one connection.
const STREAMS_MAX: u32 = 64;

/// An address of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrpcAddress {
    /// Written `unix:PATH`.
    Unix(PathBuf),
    /// In plain text on a loopback address, unless there is a certificate; elsewhere by TLS alone.
    Tcp(SocketAddr),
}

/// A text is no [`GrpcAddress`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not unix:PATH or ADDRESS:PORT; use 127.0.0.1:2805")]
pub struct GrpcAddressError(String);

impl FromStr for GrpcAddress {
    type Err = GrpcAddressError;

    fn from_str(text: &str) -> Result<Self, GrpcAddressError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) => Ok(Self::Tcp(address)),
            Err(_) => Err(GrpcAddressError(
                remora_capture::text::shown(text).to_string(),
            )),
        }
    }
}

impl fmt::Display for GrpcAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// A bound address. A socket goes with it.
#[derive(Debug)]
pub enum GrpcListener {
    Unix(UnixListener, PathBuf),
    Loopback(TcpListener),
    Tls(Box<TlsListener>),
}

/// The service's address cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum GrpcListenError {
    #[error(
        "other machines could reach {0}, and callers are not authenticated there: use 127.0.0.1:{port}, or TLS \
         (--tls-cert, --tls-key, --tls-ca)",
        port = .0.port()
    )]
    InTheClear(SocketAddr),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("cannot listen on {address}; is another remora-controller running?")]
    Bind {
        address: GrpcAddress,
        source: io::Error,
    },
}

impl GrpcListener {
    /// A socket is made with mode 0660; one that a dead controller left is replaced.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn bind(address: &GrpcAddress, tls: &TlsArgs) -> Result<Self, GrpcListenError> {
        let bind = |source| GrpcListenError::Bind {
            address: address.clone(),
            source,
        };
        match address {
            GrpcAddress::Unix(path) => Self::bind_unix(path).await.map_err(bind),
            GrpcAddress::Tcp(address) if tls.tls_cert.is_some() => {
                let listener = network::listen(*address, tls).await?;
                Ok(Self::Tls(Box::new(listener)))
            }
            GrpcAddress::Tcp(address) if !address.ip().is_loopback() => {
                Err(GrpcListenError::InTheClear(*address))
            }
            GrpcAddress::Tcp(address) => {
                let listener = TcpListener::bind(address).await.map_err(bind)?;
                Ok(Self::Loopback(listener))
            }
        }
    }

    async fn bind_unix(path: &Path) -> io::Result<Self> {
        let there = std::fs::symlink_metadata(path);
        if there.is_ok_and(|there| there.file_type().is_socket())
            && tokio::net::UnixStream::connect(path).await.is_err()
        {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        Ok(Self::Unix(listener, path.to_owned()))
    }

    /// What becomes of connections, if it is by TLS.
    #[must_use]
    pub fn counts(&self) -> Option<&Arc<TlsCounts>> {
        match self {
            Self::Tls(listener) => Some(listener.counts()),
            Self::Unix(..) | Self::Loopback(_) => None,
        }
    }

    /// Serves until `stop`, then lets calls under way end.
    ///
    /// # Errors
    /// The transport fails.
    pub async fn serve(
        self,
        service: ClusterService,
        stop: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let service = ClusterServer::new(service)
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(RESPONSE_BYTES_MAX.max(STREAM_MESSAGE_BYTES_MAX));
        let server = Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .add_service(service.clone());
        match self {
            Self::Unix(listener, path) => {
                let served = server
                    .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
                    .await;
                let _gone = std::fs::remove_file(path);
                served
            }
            Self::Loopback(listener) => {
                let incoming = TcpListenerStream::new(listener);
                server.serve_with_incoming_shutdown(incoming, stop).await
            }
            Self::Tls(listener) => {
                let routes = Routes::new(service);
                network::serve(*listener, routes, stop).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_that_other_machines_reach_is_in_plain_text() {
        let none = TlsArgs::default();
        for text in ["127.0.0.1:0", "[::1]:0"] {
            let address: GrpcAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            GrpcListener::bind(&address, &none).await.unwrap();
        }
        for text in ["0.0.0.0:0", "[::]:0", "192.0.2.1:2805"] {
            let address = text.parse().unwrap();
            let error = GrpcListener::bind(&address, &none).await.unwrap_err();
            assert!(matches!(error, GrpcListenError::InTheClear(_)), "{error}");
            assert!(error.to_string().contains("--tls-cert"), "{error}");
        }
        for text in ["unix:", "localhost:2805", ""] {
            let error = text.parse::<GrpcAddress>().unwrap_err().to_string();
            assert!(error.contains("127.0.0.1:2805"), "{error}");
        }
    }
}
