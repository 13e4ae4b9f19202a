//! Evidence outside of the agent: read for verification, and packed into an archive.
//!
//! ```text
//! FILE.tar[.zst]: README.txt, captures.txt (the ids), public keys, chain.head,
//!                 then of each capture its manifest, account and packets; plain names alone
//! ```
//! A store of objects is read as it lies there ([`Place`]). An archive is never unpacked: it is read once, from its first byte to its last.

mod archive;
mod decrypt;
mod gather;
mod objects;

pub(crate) use archive::Archive;
pub(crate) use decrypt::Identities;
pub(crate) use gather::gather;
pub use gather::read_archive;
pub(crate) use objects::Place;

/// The archive's list of captures.
const LIST: &str = "captures.txt";
/// The archive's word to the auditor.
const README: &str = "README.txt";
