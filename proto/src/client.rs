//! The way to an agent: its address, a connection with deadlines, an error that says what to do.

use std::{fmt, io, net::Ipv6Addr, path::PathBuf, str::FromStr, time::Duration};

use tonic::transport::{Channel, Endpoint};

#[cfg(feature = "tls")]
use crate::tls::{self, TlsIdentity};
use crate::{
    limits::{REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, STREAM_MESSAGE_BYTES_MAX},
    v1::{capture_client::CaptureClient, node_client::NodeClient, uploads_client::UploadsClient},
};

/// Socket of an agent that was not told another.
pub const DEFAULT_SOCKET: &str = "/run/remora/agent.sock";

/// How long a connection may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Silence of the agent after which it is asked for a sign of life, and how long that may take:
/// a connection to an agent that hangs fails after their sum.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Port of an agent that was not told another.
pub const DEFAULT_AGENT_PORT: u16 = 2804;
/// Port of a controller that was not told another.
pub const DEFAULT_CONTROLLER_PORT: u16 = 2805;

/// Longest host name, in bytes.
const HOST_MAX: usize = 253;

/// Longest path of a Unix socket, in bytes (`sun_path` of unix(7), less its final NUL).
const SOCKET_PATH_MAX: usize = 107;

/// Where an agent listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AgentAddress {
    /// Path of a Unix socket; written `unix:PATH`.
    Unix(PathBuf),
    /// TLS; written `https://HOST:PORT`.
    Https {
        /// A DNS name or an IP address, IPv6 without brackets.
        host: String,
        port: u16,
    },
}

/// A text is not an [`AgentAddress`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    #[error(
        "`{0}` is not an agent's address; use unix:PATH, for example unix:{DEFAULT_SOCKET}, or \
         https://HOST:PORT"
    )]
    Scheme(String),
    #[error("`{0}` is not https://HOST:PORT, for example https://worker-1:{DEFAULT_AGENT_PORT}")]
    Host(String),
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

    /// `unix:PATH`, gRPC's other spelling `unix:///PATH`, an absolute path alone, or
    /// `https://HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(authority) = text.strip_prefix("https://") {
            return https(authority).ok_or_else(|| AddressError::Host(short(text)));
        }
        let path = text
            .strip_prefix("unix://")
            .or_else(|| text.strip_prefix("unix:"));
        let path = match path {
            Some(path) => path,
            None if text.starts_with('/') => text,
            None => return Err(AddressError::Scheme(short(text))),
        };
        if !(1..=SOCKET_PATH_MAX).contains(&path.len()) {
            return Err(AddressError::PathLength(path.len()));
        }
        Ok(Self::Unix(path.into()))
    }
}

/// The start of a text that came from outside, for an error.
fn short(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    short.escape_debug().to_string()
}

/// `HOST:PORT` or `[IPv6]:PORT`, perhaps with the `/` of a URL behind it.
fn https(authority: &str) -> Option<AgentAddress> {
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = authority.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[') {
        Some(host) => host
            .strip_suffix(']')?
            .parse::<Ipv6Addr>()
            .ok()?
            .to_string(),
        None => host.to_owned(),
    };
    let is_host = (1..=HOST_MAX).contains(&host.len())
        && (host.parse::<Ipv6Addr>().is_ok()
            || host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)));
    (is_host && (authority.starts_with('[') || !host.contains(':')))
        .then_some(AgentAddress::Https { host, port })
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => {
                write!(f, "unix:{}", path.to_string_lossy().escape_debug())
            }
            Self::Https { host, port } if host.contains(':') => {
                write!(f, "https://[{host}]:{port}")
            }
            Self::Https { host, port } => write!(f, "https://{host}:{port}"),
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
    #[error(
        "{address} is reached by TLS: give the CA that signed its certificate, and a certificate of \
         your own (--tls-ca, --tls-cert, --tls-key)"
    )]
    NoIdentity { address: AgentAddress },
    /// What it showed does not prove that it is who was meant.
    #[error(
        "{address} is not who it should be: its certificate is refused ({reason}: {told}); {remedy}"
    )]
    Untrusted {
        address: AgentAddress,
        /// A stable word.
        reason: &'static str,
        told: String,
        remedy: &'static str,
    },
    /// It does not take ours.
    #[error(
        "{address} refused our certificate ({told}): its log says why; the certificate must be valid, \
         be signed by its --tls-ca, be for clients (clientAuth) and have a name of its \
         --tls-client-san"
    )]
    NotLetIn { address: AgentAddress, told: String },
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
    in_time(address, endpoint(address)?.connect()).await
}

async fn in_time(
    address: &AgentAddress,
    connecting: impl Future<Output = Result<Channel, tonic::transport::Error>>,
) -> Result<Channel, ConnectError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(connected) => connected.map_err(|error| connect_error(address, error)),
        Err(_elapsed) => Err(ConnectError::Timeout {
            address: address.clone(),
        }),
    }
}

/// As [`connect`], by TLS where the address says so; a Unix socket needs none.
///
/// # Errors
/// [`ConnectError`], at the latest after [`CONNECT_TIMEOUT`].
#[cfg(feature = "tls")]
pub async fn connect_tls(
    address: &AgentAddress,
    identity: &TlsIdentity,
) -> Result<Channel, ConnectError> {
    match secured(address, identity)? {
        Some((endpoint, connector)) => {
            in_time(address, endpoint.connect_with_connector(connector)).await
        }
        None => connect(address).await,
    }
}

/// As [`connect_lazy`], by TLS where the address says so; a Unix socket needs none.
///
/// # Errors
/// The address cannot be used.
#[cfg(feature = "tls")]
pub fn connect_lazy_tls(
    address: &AgentAddress,
    identity: &TlsIdentity,
) -> Result<Channel, ConnectError> {
    match secured(address, identity)? {
        Some((endpoint, connector)) => {
            let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT);
            Ok(endpoint.connect_with_connector_lazy(connector))
        }
        None => connect_lazy(address),
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
    let AgentAddress::Unix(path) = address else {
        return Err(ConnectError::NoIdentity {
            address: address.clone(),
        });
    };
    let path = path
        .to_str()
        .ok_or_else(|| other("the path is not UTF-8".into()))?;
    let endpoint = Endpoint::from_shared(format!("unix:{path}"));
    Ok(kept_alive(endpoint.map_err(|error| other(error.into()))?))
}

fn kept_alive(endpoint: Endpoint) -> Endpoint {
    endpoint
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
}

/// How `address` is reached by TLS; `None` for a Unix socket.
#[cfg(feature = "tls")]
fn secured(
    address: &AgentAddress,
    identity: &TlsIdentity,
) -> Result<Option<(Endpoint, tls::Connector)>, ConnectError> {
    let AgentAddress::Https { host, port } = address else {
        return Ok(None);
    };
    let other = |source: Box<dyn std::error::Error + Send + Sync>| ConnectError::Other {
        address: address.clone(),
        source,
    };
    let text = address.to_string();
    let origin = text
        .parse()
        .map_err(|error: tonic::codegen::http::uri::InvalidUri| other(error.into()))?;
    // The connector does the TLS; tonic would want to do it itself for `https`.
    let plain = text.replacen("https:", "http:", 1);
    let endpoint = Endpoint::from_shared(plain).map_err(|error| other(error.into()))?;
    let connector = tls::Connector {
        identity: identity.clone(),
        host: host.clone(),
        port: *port,
    };
    Ok(Some((kept_alive(endpoint.origin(origin)), connector)))
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
    #[cfg(feature = "tls")]
    if let Some((why, told)) = tls::failure(error) {
        return Some(match why {
            tls::Refused::ByPeer => ConnectError::NotLetIn { address, told },
            why => ConnectError::Untrusted {
                address,
                reason: why.as_str(),
                told,
                remedy: why.remedy(),
            },
        });
    }
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

/// The `Uploads` service of an agent, with the limits of [`crate::limits`].
#[must_use]
pub fn uploads_client(channel: Channel) -> UploadsClient<Channel> {
    UploadsClient::new(channel)
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
        for text in [
            "unix:/run/remora/agent.sock",
            "unix:relative/a.sock",
            "https://worker-1:2804",
            "https://192.0.2.7:1",
            "https://[2001:db8::7]:65535",
        ] {
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
        assert_eq!(
            "https://a.svc:2804/".parse::<AgentAddress>(),
            "https://a.svc:2804".parse()
        );
    }

    #[test]
    fn a_host_without_port_or_with_more_than_a_port_is_refused() {
        for text in [
            "https://",
            "https://a",
            "https://a:",
            "https://a:0",
            "https://a:65536",
            "https://:1",
            "https://2001:db8::7:1",
            "https://[a]:1",
            "https://a:1/path",
            "https://user@a:1",
            "https://a b:1",
        ] {
            let error = text.parse::<AgentAddress>().unwrap_err();
            assert_eq!(error, AddressError::Host(text.into()), "{text}");
        }
        for text in ["http://a:1", "tcp://a:1", "a:1"] {
            let error = text.parse::<AgentAddress>().unwrap_err();
            assert!(matches!(error, AddressError::Scheme(_)), "{text}");
        }
    }

    #[tokio::test]
    async fn tls_without_an_identity_says_what_to_give() {
        let address: AgentAddress = "https://worker-1:2804".parse().unwrap();
        let error = connect(&address).await.unwrap_err();
        assert!(error.to_string().contains("--tls-ca"), "{error}");
        assert!(connect_lazy(&address).is_err());
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
