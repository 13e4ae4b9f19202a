//! The `remora.v1` API: what triggers, agents and the command line say to each other.
//!
//! [`v1`] is generated from `proto/proto/remora/v1/remora.proto` by `cargo xtask codegen` and
//! committed; `cargo xtask lint` fails when the two differ. By hand:
//!
//! - [`convert`]: to and from the vocabulary of `remora-capture`, every bound checked.
//! - [`reason`]: why a call failed, as a stable word in a status.
//! - [`limits`]: sizes of messages.
//! - `client` (feature of the same name): connecting to an agent.
//! - `tls` (feature of the same name): TLS 1.3 for both sides, identities by name.
#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;
pub mod convert;
pub mod limits;
pub mod reason;
#[cfg(feature = "tls")]
pub mod tls;

/// Messages, clients and servers of package `remora.v1`, as generated.
#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::uninlined_format_args,
    clippy::unused_trait_names,
    reason = "generated code"
)]
pub mod v1 {
    include!("gen/remora.v1.rs");
}

/// Encoded `google.protobuf.FileDescriptorSet` of the API, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/remora.v1.bin");
