//! Both sides against each other, over loopback.

#[path = "../../../../tests/src/certificates.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "other crates' tests use the rest"
)]
mod certificates;

mod abuse;
mod judged;
mod reloaded;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{task::JoinHandle, time::timeout};
use tonic::{
    Code,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    service::Routes,
    transport::{Channel, Server},
};
use tonic_prost::ProstCodec;

use self::certificates::{Ca, Files, Wanted};
use super::{Clients, Names, Protocol, ServerTls, TlsCounts, TlsFiles, TlsIdentity, TlsListener};
use crate::client::{AgentAddress, ConnectError, connect_tls};

const LIMIT: Duration = Duration::from_secs(60);
const AGENT: &str = "agent.remora.svc";
const CONTROLLER: &str = "spiffe://cluster.local/ns/remora/sa/remora-controller";

/// A CA, certificates by it, and a server of gRPC that answers every call with UNIMPLEMENTED.
struct Bed {
    directory: TempDir,
    ca: Ca,
    address: SocketAddr,
    counts: Arc<TlsCounts>,
    server: JoinHandle<()>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn names(of: &[&str]) -> Names {
    Names::new(of.iter().map(|name| name.parse().unwrap())).unwrap()
}

fn files(own: Option<Files>, ca: &Path) -> TlsFiles {
    TlsFiles {
        own: own.map(|own| (own.cert, own.key)),
        ca: Some(ca.to_owned()),
    }
}

impl Bed {
    async fn new() -> Self {
        Self::with(
            |_, good| good,
            Clients::Named(names(&[CONTROLLER, "other.svc"])),
        )
        .await
    }

    /// `server` makes another certificate for the server, or takes the good one.
    async fn with(server: impl FnOnce(&Ca, Files) -> Files, clients: Clients) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca = Ca::new("ca");
        let good = ca.sign(directory.path(), "server", &Wanted::server(&[AGENT]));
        let own = server(&ca, good);
        let tls = ServerTls::new(
            files(Some(own), &ca.file(directory.path(), "ca")),
            clients,
            Protocol::Grpc,
        )
        .unwrap();
        let counts = Arc::clone(tls.counts());
        let listener = TlsListener::bind((Ipv4Addr::LOCALHOST, 0).into(), tls)
            .await
            .unwrap();
        let address = listener.address().unwrap();
        let server = tokio::spawn(async move {
            let served = Server::builder()
                .add_routes(Routes::default())
                .serve_with_incoming(listener.connections());
            served.await.unwrap();
        });
        Self {
            directory,
            ca,
            address,
            counts,
            server,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn agent(&self) -> AgentAddress {
        format!("https://{}", self.address).parse().unwrap()
    }

    /// A client with this certificate, that takes the server by its name.
    fn identity(&self, own: Option<Files>) -> TlsIdentity {
        let ca = self.ca.file(self.path(), "ca-of-servers");
        TlsIdentity::new(files(own, &ca), Some(names(&[AGENT]))).unwrap()
    }

    fn good(&self) -> TlsIdentity {
        let own = Wanted::client(&[CONTROLLER]);
        self.identity(Some(self.ca.sign(self.path(), "good", &own)))
    }

    async fn connect(&self, identity: &TlsIdentity) -> Result<Channel, ConnectError> {
        timeout(LIMIT, connect_tls(&self.agent(), identity))
            .await
            .expect("an answer in time")
    }
}

/// A call arrives, is answered, and the answer comes back.
async fn works(channel: &Channel) {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/remora.v1.Node/Status");
    let call = tonic::Request::new(());
    let answer: Result<tonic::Response<()>, _> =
        grpc.unary(call, path, ProstCodec::default()).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, waiting).await.expect(what);
}
