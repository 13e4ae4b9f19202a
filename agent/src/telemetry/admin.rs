//! `GET /metrics` and `GET /healthz`, on a Unix socket or on loopback.

use std::{
    fs, io, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::PathBuf, str::FromStr,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, header},
    response::IntoResponse,
    routing::get,
};
use remora_capture::exposition::exposition;
use tokio::net::{TcpListener, UnixListener};

use super::metrics::render;
use crate::{node::AskNumbers, session::DriverHandle};

/// Where the admin server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    Unix(PathBuf),
    /// A loopback address.
    Tcp(SocketAddr),
}

/// An address is not one that the admin server may listen on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    #[error("`{0}` is not an address; use unix:PATH or 127.0.0.1:PORT")]
    Unknown(String),
    #[error("{0} can be reached from outside and nobody is asked who they are; use 127.0.0.1")]
    NotLoopback(SocketAddr),
}

impl FromStr for AdminAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_neither| AddressError::Unknown(text.escape_debug().to_string()))?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(AddressError::NotLoopback(address))
        }
    }
}

/// What the answers are made from.
#[derive(Clone)]
pub struct AdminParts {
    pub driver: DriverHandle,
    pub numbers: AskNumbers,
}

/// The bound socket.
#[derive(Debug)]
pub enum AdminSocket {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl AdminSocket {
    /// Binds the address. A socket file that is there is replaced: the agent's lock says that no
    /// other agent of this directory runs.
    ///
    /// # Errors
    /// The system's.
    pub async fn bind(address: &AdminAddress) -> io::Result<Self> {
        match address {
            AdminAddress::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            AdminAddress::Unix(path) => {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let listener = UnixListener::bind(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
                Ok(Self::Unix(listener, path.clone()))
            }
        }
    }

    /// Where it can be reached.
    #[must_use]
    pub fn address(&self) -> String {
        match self {
            Self::Unix(_, path) => format!("unix:{}", path.display()),
            Self::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|error| error.to_string(), |a| a.to_string()),
        }
    }

    /// Serves until it fails.
    ///
    /// # Errors
    /// The transport's.
    pub async fn serve(
        self,
        parts: AdminParts,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(async || "ok\n"))
            .with_state(parts);
        match self {
            Self::Tcp(listener) => {
                axum::serve(listener, router)
                    .with_graceful_shutdown(stop)
                    .await?;
            }
            Self::Unix(listener, path) => {
                axum::serve(listener, router)
                    .with_graceful_shutdown(stop)
                    .await?;
                let _gone = fs::remove_file(path);
            }
        }
        Ok(())
    }
}

async fn metrics(State(parts): State<AdminParts>, headers: HeaderMap) -> impl IntoResponse {
    let AdminParts { driver, numbers } = parts;
    let captures = driver.list().await;
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    let starts = driver.tally().numbers();
    let text = render(&captures, &numbers(), &starts);
    let told = exposition(text, accept.unwrap_or_default());
    ([(header::CONTENT_TYPE, told.content_type)], told.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_listens_where_outsiders_reach() {
        assert!("127.0.0.1:0".parse::<AdminAddress>().is_ok());
        assert!("[::1]:9".parse::<AdminAddress>().is_ok());
        assert!("unix:/run/x".parse::<AdminAddress>().is_ok());
        for bad in ["0.0.0.0:9", "[::]:9", "192.0.2.1:9"] {
            assert!(matches!(
                bad.parse::<AdminAddress>(),
                Err(AddressError::NotLoopback(_))
            ));
        }
        for bad in ["", "unix:", "localhost:9", "9"] {
            assert!(matches!(
                bad.parse::<AdminAddress>(),
                Err(AddressError::Unknown(_))
            ));
        }
    }
}
