//! Evidence: what proves, with a public key alone, that a capture is what the agent made.
//!
//! ```text
//! <id>.pcapng ─ SHA-256, chunk tree ─┐
//! <id>.json (the account) ─ SHA-256 ─┤
//!                                    ▼
//! manifest n-1 ─ SHA-256 ─▶ manifest n ─ SHA-256 ─▶ manifest n+1 … ─ SHA-256 ─▶ head (published)
//!                           canonical JSON in a signed envelope
//!                           tombstones of deleted captures, holds and releases are links, too
//! ```
//! - [`Digest`], [`Digester`]: SHA-256 of a file and of its chunks.
//! - [`canonical()`]: one form for each JSON value.
//! - [`SecretKey`], [`PublicKey`], [`Envelope`]: ed25519 signatures (DSSE).
//! - [`Manifest`]: what is said of a capture. [`Tombstone`]: that its files were deleted. [`Hold`]: that
//!   they must not be. [`Release`]: that they may again. [`Link`], [`Head`]: the chain of all these.
//! - [`Redaction`]: what a part of a capture was made from.
//! - [`verify()`]: what a set of files proves, and what not.
//!
//! Files that were cut, changed, left out, put in or put in another place are found by hashes; whole
//! manifests that are missing by the chain; a tail that is cut off only by a head that was published
//! elsewhere. What nothing here can prove: that the agent was honest when it signed.

mod canonical;
mod chain;
mod digest;
mod envelope;
mod hold;
mod key;
mod manifest;
mod path;
mod receipt;
mod redaction;
mod release;
mod statement;
mod tombstone;
mod verify;

pub use canonical::{CanonicalError, canonical};
pub use chain::{Head, HeadError, Link};
pub use digest::{CHUNK_BYTES, ChunkTree, Digest, DigestError, Digester, FileDigest};
pub use envelope::{Envelope, EnvelopeError};
pub use hold::{HOLD_ENDING, Hold};
pub use key::{KeyError, KeyId, PublicKey, SecretKey};
pub use manifest::{
    ClockRecord, Custody, DOCUMENT_BYTES_MAX, ENCRYPTED_ENDING, FileRecord, MANIFEST_ENDING,
    Manifest, ManifestError, Origin, PREDICATE_TYPE, PlainRecord, ProgramDigests, STAMP_ENDING,
};
pub use path::Paths;
pub use receipt::{RECEIPT_ENDING, Receipt};
pub use redaction::{
    Cut, Made, Order, PacketSeen, REDACTION_ENDING, REDACTION_TYPE, RedactError, Redaction,
    RedactionKeys, SourceChunk, redact, verify_redaction,
};
pub use release::{RELEASE_ENDING, Release};
pub use tombstone::{Cause, TOMBSTONE_ENDING, TOMBSTONE_TYPE, Tombstone, WHY_BYTES_MAX};
pub use verify::{Entry, Inventory, Report, Scope, Verdict, verify};
