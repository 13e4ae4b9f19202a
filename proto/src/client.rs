//! The way to an agent: its address, a connection with deadlines, an error that says what to do.

use std::{fmt, io, path::PathBuf, str::FromStr, time::Duration};

use tonic::transport::{Channel, Endpoint};

use crate::{
    limits::{REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, STREAM_MESSAGE_BYTES_MAX},
    v1::{capture_client::CaptureClient, node_client::NodeClient},
};

/// Socket of an agent that was not told another.
pub const DEFAULT_SOCKET: &str = "/run/remora/agent.sock";

/// How long a connection may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Silence of the agent after which it is asked for a sign of life, and how long that may take:
/// a connection to an agent that hangs fails after their sum.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest path of a Unix socket, in bytes (`sun_path` of unix(7), less its final NUL).
const SOCKET_PATH_MAX: usize = 107;

/// Where an agent listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AgentAddress {
    /// Path of a Unix socket; written `unix:PATH`.
    Unix(PathBuf),
}

/// A text is not an [`AgentAddress`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    #[error("`{0}` is not an agent's address; use unix:PATH, for example unix:{DEFAULT_SOCKET}")]
    Scheme(String),
    #[error("a socket's path has 1 to {SOCKET_PATH_MAX} bytes; this one has {0}")]
    PathLength(usize),
}

impl Default for AgentAddress {
    fn default() -> Self {
        Self::Unix(DEFAULT_SOCKET.into())
    }
}

impl FromStr for AgentAddress {
    type Err = AddressError;

    /// `unix:PATH`, gRPC's other spelling `unix:///PATH`, or an absolute path alone.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let path = text
            .strip_prefix("unix://")
            .or_else(|| text.strip_prefix("unix:"));
        let path = match path {
            Some(path) => path,
            None if text.starts_with('/') => text,
            None => {
                let short: String = text.chars().take(80).collect();
                return Err(AddressError::Scheme(short.escape_debug().to_string()));
            }
        };
        if !(1..=SOCKET_PATH_MAX).contains(&path.len()) {
            return Err(AddressError::PathLength(path.len()));
        }
        Ok(Self::Unix(path.into()))
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => {
                write!(f, "unix:{}", path.to_string_lossy().escape_debug())
            }
        }
    }
}

/// There is no connection to the agent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No socket there, or nobody listens on it.
    #[error("no agent at {address}: is remora-agent running? (remora-agent run)")]
    NoAgent { address: AgentAddress },
    #[error(
        "no permission for the agent's socket {address}: use sudo, or join the group that owns it \
         (ls -l shows it)"
    )]
    Permission { address: AgentAddress },
    #[error(
        "the agent at {address} did not take the connection within {CONNECT_TIMEOUT:?}: is it \
         stopped or overloaded?"
    )]
    Timeout { address: AgentAddress },
    #[error("no connection to the agent at {address}")]
    Other {
        address: AgentAddress,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Connects to an agent. The channel connects again by itself when a later call finds the
/// connection gone.
///
/// # Errors
/// [`ConnectError`], at the latest after [`CONNECT_TIMEOUT`].
pub async fn connect(address: &AgentAddress) -> Result<Channel, ConnectError> {
    let endpoint = endpoint(address)?;
    match tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
        Ok(connected) => connected.map_err(|error| connect_error(address, error)),
        Err(_elapsed) => Err(ConnectError::Timeout {
            address: address.clone(),
        }),
    }
}

/// A channel that connects at its first call, and again whenever the connection is gone: for a
/// client that outlives the agent. What fails then is the call, with `UNAVAILABLE`;
/// [`unreachable()`] tells why.
///
/// # Errors
/// The address cannot be used.
pub fn connect_lazy(address: &AgentAddress) -> Result<Channel, ConnectError> {
    let endpoint = endpoint(address)?.connect_timeout(CONNECT_TIMEOUT);
    Ok(endpoint.connect_lazy())
}

/// Why a call did not reach the agent at `address`, if that is why `status` failed.
#[must_use]
pub fn unreachable(address: &AgentAddress, status: &tonic::Status) -> Option<ConnectError> {
    use std::error::Error as _;
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::transport::Error>() {
            return Some(
                classify(address, error).unwrap_or_else(|| ConnectError::Other {
                    address: address.clone(),
                    source: status.message().into(),
                }),
            );
        }
        cause = error.source();
    }
    None
}

fn endpoint(address: &AgentAddress) -> Result<Endpoint, ConnectError> {
    let other = |source: Box<dyn std::error::Error + Send + Sync>| ConnectError::Other {
        address: address.clone(),
        source,
    };
    let AgentAddress::Unix(path) = address;
    let path = path
        .to_str()
        .ok_or_else(|| other("the path is not UTF-8".into()))?;
    Ok(Endpoint::from_shared(format!("unix:{path}"))
        .map_err(|error| other(error.into()))?
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT))
}

fn connect_error(address: &AgentAddress, error: tonic::transport::Error) -> ConnectError {
    classify(address, &error).unwrap_or_else(|| ConnectError::Other {
        address: address.clone(),
        source: error.into(),
    })
}

/// The errors of which we know what to do.
fn classify(
    address: &AgentAddress,
    error: &(dyn std::error::Error + 'static),
) -> Option<ConnectError> {
    let address = address.clone();
    match io_kind(error)? {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Some(ConnectError::NoAgent { address })
        }
        io::ErrorKind::PermissionDenied => Some(ConnectError::Permission { address }),
        // A full backlog: nobody accepts.
        io::ErrorKind::WouldBlock => Some(ConnectError::Timeout { address }),
        _ => None,
    }
}

/// The `Capture` service of an agent, with the limits of [`crate::limits`].
#[must_use]
pub fn capture_client(channel: Channel) -> CaptureClient<Channel> {
    let answers = const {
        if RESPONSE_BYTES_MAX > STREAM_MESSAGE_BYTES_MAX {
            RESPONSE_BYTES_MAX
        } else {
            STREAM_MESSAGE_BYTES_MAX
        }
    };
    CaptureClient::new(channel)
        .max_encoding_message_size(REQUEST_BYTES_MAX)
        .max_decoding_message_size(answers)
}

/// The `Node` service of an agent, with the limits of [`crate::limits`].
#[must_use]
pub fn node_client(channel: Channel) -> NodeClient<Channel> {
    NodeClient::new(channel)
        .max_encoding_message_size(REQUEST_BYTES_MAX)
        .max_decoding_message_size(RESPONSE_BYTES_MAX)
}

/// The kind of the first I/O error among an error and its causes.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn addresses_read_back_as_written() {
        for text in ["unix:/run/remora/agent.sock", "unix:relative/a.sock"] {
            assert_eq!(text.parse::<AgentAddress>().unwrap().to_string(), text);
        }
        assert_eq!(
            "unix:///run/a.sock".parse(),
            Ok(AgentAddress::Unix("/run/a.sock".into()))
        );
        assert_eq!(
            "/run/a.sock".parse(),
            Ok(AgentAddress::Unix("/run/a.sock".into()))
        );
    }

    #[test]
    fn other_texts_are_refused_unprinted() {
        let error = "tcp:\u{1b}[31m".parse::<AgentAddress>().unwrap_err();
        assert!(!error.to_string().contains('\u{1b}'));
        assert_eq!(
            "unix:".parse::<AgentAddress>(),
            Err(AddressError::PathLength(0))
        );
        let long = format!("unix:/{}", "a".repeat(200));
        assert_eq!(
            long.parse::<AgentAddress>(),
            Err(AddressError::PathLength(201))
        );
    }

    #[tokio::test]
    async fn a_missing_socket_says_to_run_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let address = AgentAddress::Unix(dir.path().join("agent.sock"));
        let error = connect(&address).await.unwrap_err();
        assert!(matches!(error, ConnectError::NoAgent { .. }), "{error:?}");
        assert!(error.to_string().contains("remora-agent run"));
    }

    #[tokio::test]
    async fn a_socket_left_by_a_dead_agent_says_to_run_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        drop(UnixListener::bind(&path).unwrap());
        let error = connect(&AgentAddress::Unix(path)).await.unwrap_err();
        assert!(matches!(error, ConnectError::NoAgent { .. }), "{error:?}");
    }
}
