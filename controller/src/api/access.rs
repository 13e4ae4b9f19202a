//! Who may do what: asked before anything is done.

use remora_proto::reason::{Reason, status};
use tonic::{
    Code, Extensions, Status,
    metadata::MetadataMap,
    transport::server::{TcpConnectInfo, UdsConnectInfo},
};

pub use crate::access::ALLOW_FOR;
use crate::access::Known;

/// Who calls, as it stands in the captures that he starts.
#[derive(Clone, Debug)]
pub struct Caller {
    pub name: String,
    /// What the API server says of him, where it is asked.
    pub known: Option<Known>,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Start,
    Stop,
    /// That there is a capture, and how it goes.
    See,
    /// Its packets.
    Read,
    Delete,
    Hold,
    Release,
}

/// Whose packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach<'a> {
    /// Of pods of one namespace.
    Namespace(&'a str),
    /// Of a node, or of all namespaces.
    Cluster,
}

/// What is asked of [`Access`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish<'a> {
    pub verb: Verb,
    pub reach: Reach<'a>,
    /// The capture's id, once it has one.
    pub capture: &'a str,
    /// The selector and the filter, as text, for the account.
    pub target: &'a str,
    pub filter: &'a str,
}

impl<'a> Wish<'a> {
    /// `namespace`: `None` or empty for what is in none.
    #[must_use]
    pub fn new(verb: Verb, namespace: Option<&'a str>, capture: &'a str) -> Self {
        let namespace = namespace.filter(|name| !name.is_empty());
        Self {
            verb,
            reach: namespace.map_or(Reach::Cluster, Reach::Namespace),
            capture,
            target: "",
            filter: "",
        }
    }

    /// With what it is about.
    #[must_use]
    pub fn about(self, target: &'a str, filter: &'a str) -> Self {
        Self {
            target,
            filter,
            ..self
        }
    }
}

/// Decides, and keeps account of what it decided.
#[tonic::async_trait]
pub trait Access: Send + Sync + 'static {
    /// Who calls.
    ///
    /// # Errors
    /// UNAUTHENTICATED, or PERMISSION_DENIED for who may do nothing at all.
    async fn caller(
        &self,
        metadata: &MetadataMap,
        connection: &Extensions,
    ) -> Result<Caller, Status>;

    /// Lets him, or not.
    ///
    /// # Errors
    /// PERMISSION_DENIED with the right that is missing.
    async fn allow(&self, caller: &Caller, wish: Wish<'_>) -> Result<(), Status>;

    /// What lasts asks again, every [`ALLOW_FOR`], whether he still may.
    ///
    /// # Errors
    /// As [`Access::allow`].
    async fn still(&self, caller: &Caller, wish: Wish<'_>) -> Result<(), Status>;

    /// A read that was allowed is over.
    async fn read(&self, caller: &Caller, wish: Wish<'_>, bytes: u64, fault: &str);
}

/// Everybody who reaches the socket: its mode says who does. Or who is on this machine, where the
/// address is a loopback one.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalAccess;

#[tonic::async_trait]
impl Access for LocalAccess {
    async fn caller(&self, _: &MetadataMap, connection: &Extensions) -> Result<Caller, Status> {
        let unix = connection
            .get::<UdsConnectInfo>()
            .and_then(|info| info.peer_cred);
        if let Some(peer) = unix {
            let name = format!("uid={} gid={}", peer.uid(), peer.gid());
            return Ok(Caller { name, known: None });
        }
        let remote = connection
            .get::<TcpConnectInfo>()
            .and_then(TcpConnectInfo::remote_addr);
        match remote {
            Some(address) if address.ip().is_loopback() => Ok(Caller {
                name: "this machine".to_owned(),
                known: None,
            }),
            _ => Err(status(
                Code::PermissionDenied,
                Reason::PermissionDenied,
                "callers from other machines are not known here",
            )),
        }
    }

    async fn allow(&self, _: &Caller, _: Wish<'_>) -> Result<(), Status> {
        Ok(())
    }

    async fn still(&self, _: &Caller, _: Wish<'_>) -> Result<(), Status> {
        Ok(())
    }

    async fn read(&self, _: &Caller, _: Wish<'_>, _: u64, _: &str) {}
}
