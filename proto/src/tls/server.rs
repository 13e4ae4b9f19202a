//! The server's side: its certificate, and whom it lets in.

use std::sync::Arc;

use rustls::{
    ServerConfig, server::NoServerSessionStorage, sign::SingleCertAndKey, version::TLS13,
};
use tokio_rustls::TlsAcceptor;

use super::{
    chain::Chain,
    files::{self, TlsError, TlsFiles},
    name::Names,
    refused::TlsCounts,
    reload::Reloading,
};

/// Whom a server lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Who has a certificate by the CA file with one of these names.
    Named(Names),
    /// Those, and who shows no certificate: he is to be authenticated by what he says. A
    /// certificate that is shown and is none of those is refused.
    NamedOrAnonymous(Names),
    /// Nobody is asked for a certificate.
    Anonymous,
}

/// What is spoken inside, told by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2.
    Grpc,
    /// HTTP/2 or HTTP/1.1, as the client likes.
    Http,
}

impl Protocol {
    pub(super) fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Grpc => vec![b"h2".to_vec()],
            Self::Http => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        }
    }
}

/// What a server needs for TLS; read from its files again when they change.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<Reloading<ServerConfig>>,
    clients: Clients,
    counts: Arc<TlsCounts>,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// One is missing or wrong.
    pub fn new(files: TlsFiles, clients: Clients, speaks: Protocol) -> Result<Self, TlsError> {
        let counts = Arc::new(TlsCounts::default());
        let paths = files.paths();
        let wanted = clients.clone();
        let config = Reloading::new(paths, Arc::clone(&counts), move || {
            config(&files, &wanted, speaks)
        })?;
        Ok(Self {
            config: Arc::new(config),
            clients,
            counts,
        })
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> &Arc<TlsCounts> {
        &self.counts
    }

    pub(super) async fn acceptor(&self) -> TlsAcceptor {
        self.config.current().await.into()
    }

    pub(super) fn names(&self) -> Option<&Names> {
        match &self.clients {
            Clients::Named(names) | Clients::NamedOrAnonymous(names) => Some(names),
            Clients::Anonymous => None,
        }
    }
}

fn config(files: &TlsFiles, clients: &Clients, speaks: Protocol) -> Result<ServerConfig, TlsError> {
    let setup = |what: &str| TlsError::Setup(what.to_owned());
    let (cert, key) = files
        .own
        .as_ref()
        .ok_or_else(|| setup("a server needs a certificate"))?;
    let own = files::certified_key(cert, key)?;
    let chain = |names: &Names| {
        let ca = files
            .ca
            .as_ref()
            .ok_or_else(|| setup("clients' certificates need a CA file"))?;
        Ok::<_, TlsError>(Chain::new(files::anchors(ca)?, Some(names.clone())))
    };
    let builder = ServerConfig::builder_with_provider(Arc::new(files::provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| TlsError::Setup(error.to_string()))?;
    let builder = match clients {
        Clients::Named(names) => builder.with_client_cert_verifier(Arc::new(chain(names)?)),
        Clients::NamedOrAnonymous(names) => {
            builder.with_client_cert_verifier(Arc::new(chain(names)?.optional()))
        }
        Clients::Anonymous => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = speaks.alpn();
    // A resumed session would keep a certificate that has expired since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls")
            .field("clients", &self.clients)
            .finish_non_exhaustive()
    }
}
