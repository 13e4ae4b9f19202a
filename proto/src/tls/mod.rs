//! TLS between agents, controllers and people: version 1.3 alone, peers known by name.
//!
//! ```text
//!            client: TlsIdentity                                server: ServerTls
//!   CA file ─▶ who may have signed the server  ◀──TLS 1.3──▶  who may have signed clients ◀─ CA file
//!   names   ─▶ which names it may have                        which names they may have   ◀─ names
//!   cert, key ─▶ own certificate                              own certificate             ◀─ cert, key
//! ```
//! - [`Name`], [`Names`]: a name of a certificate's subjectAltName, and the list of those let in.
//! - [`TlsFiles`]: where certificates and keys lie. They are looked at again with each handshake (at
//!   most once a [`LOOK_EVERY`]); what was changed is used from the next handshake on, and a
//!   connection goes on with what it began with. Files that are wrong leave those before in use.
//! - [`TlsIdentity`]: the client's side. [`ServerTls`], [`TlsListener`]: the server's.
//!
//! Invariants:
//! - A certificate is taken if a chain leads to the CA file, it is valid now, is meant for the use
//!   (EKU `clientAuth` or `serverAuth`, which must be there) and has a listed name. The subject's
//!   common name is nothing.
//! - No session is resumed: each connection's certificate is judged anew.
//! - A peer that says nothing, too much or nonsense costs one of [`HANDSHAKES_MAX`] places for
//!   [`HANDSHAKE_TIMEOUT`], and others get in all the same.

mod chain;
mod client;
mod files;
mod listener;
mod name;
mod refused;
mod reload;
mod server;

#[cfg(test)]
mod tests;

pub use client::TlsIdentity;
pub(crate) use client::{Connector, failure};
pub use files::{TlsError, TlsFiles, root_store};
pub use listener::{
    ANONYMOUS_MAX, CONNECTIONS_MAX, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, Peer, TlsIo, TlsListener,
};
pub use name::{Name, NameError, Names};
pub use refused::{Refused, TlsCounts};
pub use reload::LOOK_EVERY;
pub use server::{Clients, Protocol, ServerTls};
