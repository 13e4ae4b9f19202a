//! The services on the network, for controllers: mutual TLS, or not at all.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use remora_proto::tls::{
    Clients, Name, Names, Protocol, Refused, ServerTls, TlsCounts, TlsFiles, TlsListener,
};
use tonic::transport::Server;

use super::server::Services;
use crate::node::TlsNumbers;

/// Calls under way on one connection: a controller's, of all its users.
const STREAMS_MAX: u32 = 64;
/// Largest head of a call, in bytes.
const HEAD_MAX: u32 = 16 * 1024;
/// Silence after which a client is asked for a sign of life, and how long that may take.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls begun and taken back that may wait to be noticed (CVE-2023-44487).
const RESETS_MAX: usize = 20;

/// Where to listen, as what, and for whom.
#[derive(Clone, Debug)]
pub struct NetworkParts {
    pub address: SocketAddr,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
    /// Names of which a client's certificate must have one.
    pub clients: Vec<String>,
}

/// The bound address.
#[derive(Debug)]
pub struct Network {
    listener: TlsListener,
    counts: Arc<TlsCounts>,
}

impl Network {
    /// # Errors
    /// A name or a file is wrong, or the address cannot be listened on.
    pub async fn bind(parts: NetworkParts) -> anyhow::Result<Self> {
        let NetworkParts {
            address,
            cert,
            key,
            ca,
            clients,
        } = parts;
        let names: Result<Vec<Name>, _> = clients.iter().map(|name| name.parse()).collect();
        let names = names.and_then(Names::new).context("--tls-client-san")?;
        let files = TlsFiles {
            own: Some((cert, key)),
            ca: Some(ca),
        };
        let told = names.to_string();
        let tls = ServerTls::new(files, Clients::Named(names), Protocol::Grpc)
            .context("cannot serve TLS")?;
        let counts = Arc::clone(tls.counts());
        let listener = TlsListener::bind(address, tls)
            .await
            .with_context(|| format!("failed to listen on {address}"))?;
        let address = listener.address()?;
        tracing::info!(%address, clients = told, "serving by mutual TLS");
        Ok(Self { listener, counts })
    }

    /// Tells what became of those who connected.
    pub fn numbers(&self) -> impl Fn() -> TlsNumbers + Send + Sync + use<> {
        let counts = Arc::clone(&self.counts);
        move || {
            let (reloads_loaded, reloads_refused) = counts.reloads();
            TlsNumbers {
                accepted: counts.accepted(),
                refused: Refused::ALL
                    .map(|why| (why.as_str(), counts.refused(why)))
                    .to_vec(),
                reloads_loaded,
                reloads_refused,
                is_stale: counts.is_stale(),
            }
        }
    }

    /// Serves until `stop`, then lets calls under way end.
    ///
    /// # Errors
    /// The transport fails.
    pub async fn serve(
        self,
        services: Services,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_header_list_size(HEAD_MAX)
            .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
            .add_routes(services.routes())
            .serve_with_incoming_shutdown(self.listener.connections(), stop)
            .await?;
        Ok(())
    }
}
