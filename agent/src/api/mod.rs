//! The gRPC services on the agent's Unix socket and, by mutual TLS, on the network: decode, check the caller, ask the driver, encode.
//!
//! - [`capture`] is the service `remora.v1.Capture`.
//! - [`node`] is the service `remora.v1.Node`.
//! - [`peer`]: who may call.
//! - [`server`]: the services, with health and reflection, and the socket; [`network`]: TLS.

mod capture;
mod custody;
mod error;
mod evidence;
pub mod network;
mod node;
pub mod peer;
pub mod server;
mod stored;
mod uploads;

pub use network::{Network, NetworkParts};
pub use node::StatusSource;
pub use peer::PeerPolicy;
pub use server::{ServerParts, Services, serve};
