//! The gRPC services on the agent's Unix socket: decode, check the caller, ask the driver, encode.
//!
//! - [`capture`] is the service `remora.v1.Capture`.
//! - [`node`] is the service `remora.v1.Node`.
//! - [`peer`]: who may call.
//! - [`server`]: the socket and its services, with health and reflection.

mod capture;
mod error;
mod evidence;
mod node;
pub mod peer;
pub mod server;
mod stored;

pub use node::StatusSource;
pub use peer::PeerPolicy;
pub use server::{ServerParts, serve};
