//! `remora.v1.Cluster`: captures over the nodes of a cluster.
//!
//! ```text
//! request ──Access: who, and may he?──▶ View: who is selected ──▶ Fleet: each node's agent ──▶ answer
//! ```
//! Nothing is done before [`access::Access`] was asked for the namespace that is touched, or for the
//! whole cluster where it is a node's.

pub mod access;
mod custody;
mod error;
pub mod listen;
mod relay;
mod request;
mod service;
mod stream;

pub(crate) use request::Start;
pub use service::ClusterService;
