//! The controller on the network: its gRPC server by TLS, and its way to the agents by mutual TLS.

use std::{net::SocketAddr, time::Duration};

use remora_proto::tls::{
    Clients, Name, NameError, Names, Protocol, ServerTls, TlsError, TlsFiles, TlsIdentity,
    TlsListener,
};
use tonic::{service::Routes, transport::Server};

use crate::args::TlsArgs;

/// Calls under way on one connection.
const STREAMS_MAX: u32 = 64;
/// Largest head of a call, in bytes: a token is the largest part of it.
const HEAD_MAX: u32 = 16 * 1024;
/// Silence after which a client is asked for a sign of life, and how long that may take.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls begun and taken back that may wait to be noticed (CVE-2023-44487).
const RESETS_MAX: usize = 20;

/// TLS cannot be had as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("{0} needs --tls-cert, --tls-key and --tls-ca: there is no gRPC in the clear")]
    NoCertificate(&'static str),
    #[error("{flag}: {source}")]
    Name {
        flag: &'static str,
        source: NameError,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot listen on {address}; is another remora-controller running?")]
    Bind {
        address: SocketAddr,
        source: std::io::Error,
    },
}

/// Who the controller is to agents, and whom it takes for one.
///
/// # Errors
/// A file or a name is missing or wrong.
pub fn agents(args: &TlsArgs) -> Result<TlsIdentity, NetworkError> {
    let servers = names("--agent-san", &args.agent_san)?;
    Ok(TlsIdentity::new(
        files("calling agents by https", args)?,
        Some(servers),
    )?)
}

/// The gRPC server's address, bound. Who shows no certificate is let in, to show a token.
///
/// # Errors
/// A file or a name is missing or wrong, or the address is taken.
pub async fn listen(address: SocketAddr, args: &TlsArgs) -> Result<TlsListener, NetworkError> {
    let files = files("the gRPC server", args)?;
    let clients = if args.tls_client_san.is_empty() {
        Clients::Anonymous
    } else {
        Clients::NamedOrAnonymous(names("--tls-client-san", &args.tls_client_san)?)
    };
    let tls = ServerTls::new(files, clients, Protocol::Grpc)?;
    TlsListener::bind(address, tls)
        .await
        .map_err(|source| NetworkError::Bind { address, source })
}

/// Serves `routes` until `stop`, then lets calls under way end.
///
/// # Errors
/// The transport fails.
pub async fn serve(
    listener: TlsListener,
    routes: Routes,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEAD_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .add_routes(routes)
        .serve_with_incoming_shutdown(listener.connections(), stop)
        .await
}

fn files(what: &'static str, args: &TlsArgs) -> Result<TlsFiles, NetworkError> {
    let own = args.tls_cert.clone().zip(args.tls_key.clone());
    match (own, &args.tls_ca) {
        (Some(own), Some(ca)) => Ok(TlsFiles {
            own: Some(own),
            ca: Some(ca.clone()),
        }),
        _ => Err(NetworkError::NoCertificate(what)),
    }
}

fn names(flag: &'static str, texts: &[String]) -> Result<Names, NetworkError> {
    let names: Result<Vec<Name>, _> = texts.iter().map(|text| text.parse()).collect();
    names
        .and_then(Names::new)
        .map_err(|source| NetworkError::Name { flag, source })
}
