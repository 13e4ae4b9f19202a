//! Where the service is reached: a Unix socket or a loopback address, in plain text; nothing else.

use std::{
    fmt, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::PathBuf,
    str::FromStr,
};

use remora_proto::{
    limits::{REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, STREAM_MESSAGE_BYTES_MAX},
    v1::cluster_server::ClusterServer,
};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;

use super::ClusterService;

/// Calls under way on one connection.
const STREAMS_MAX: u32 = 64;

/// An address of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrpcAddress {
    /// Written `unix:PATH`.
    Unix(PathBuf),
    Loopback(SocketAddr),
}

/// A text is no [`GrpcAddress`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is not unix:PATH or a loopback ADDRESS:PORT; other machines could reach it, and callers \
     are not authenticated there: use 127.0.0.1:2805"
)]
pub struct GrpcAddressError(String);

impl FromStr for GrpcAddress {
    type Err = GrpcAddressError;

    fn from_str(text: &str) -> Result<Self, GrpcAddressError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Loopback(address)),
            _ => Err(GrpcAddressError(
                remora_capture::text::shown(text).to_string(),
            )),
        }
    }
}

impl fmt::Display for GrpcAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Loopback(address) => address.fmt(f),
        }
    }
}

/// A bound address. A socket goes with it.
#[derive(Debug)]
pub enum GrpcListener {
    Unix(UnixListener, PathBuf),
    Loopback(TcpListener),
}

impl GrpcListener {
    /// A socket is made with mode 0660; one that a dead controller left is replaced.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn bind(address: &GrpcAddress) -> io::Result<Self> {
        let path = match address {
            GrpcAddress::Loopback(address) => {
                return Ok(Self::Loopback(TcpListener::bind(address).await?));
            }
            GrpcAddress::Unix(path) => path,
        };
        let there = std::fs::symlink_metadata(path);
        if there.is_ok_and(|there| there.file_type().is_socket())
            && tokio::net::UnixStream::connect(path).await.is_err()
        {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        Ok(Self::Unix(listener, path.clone()))
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
            .add_service(service);
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_other_machines_reach() {
        for text in [
            "unix:/run/remora/controller.sock",
            "127.0.0.1:2805",
            "[::1]:0",
        ] {
            assert_eq!(text.parse::<GrpcAddress>().unwrap().to_string(), text);
        }
        for text in [
            "0.0.0.0:2805",
            "[::]:1",
            "192.0.2.1:2805",
            "unix:",
            "localhost:2805",
            "",
        ] {
            let error = text.parse::<GrpcAddress>().unwrap_err().to_string();
            assert!(error.contains("127.0.0.1:2805"), "{error}");
        }
    }
}
