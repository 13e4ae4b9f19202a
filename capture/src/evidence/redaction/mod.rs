//! The redaction: what a part of a capture's file was made from, signed by who made it.
//!
//! ```text
//! <id>.pcapng ─ chunk tree ─▶ manifest, signed by the node ─┐ (whole, in it)
//!      │ chosen packets, cut                                 ▼
//!      └──────▶ OUT.pcapng ─ SHA-256 ─▶ OUT.pcapng.redaction.json, signed by who redacts
//! ```
//! Of each packet the redaction tells where in the original its block begins, and of each of those
//! chunks the audit path to the root that the node signed. So without the original it is proved from
//! which file it was made, and that nothing was changed since; that the packets are the original's is
//! the word of who redacted, until the original is at hand: then all of it is compared.

mod cut;
mod make;
mod verify;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::{
    cut::Cut,
    make::{Made, Order, PacketSeen, RedactError, redact},
    verify::{RedactionKeys, verify_redaction},
};
use super::{
    Digest, EnvelopeError, FileDigest, KeyId, ManifestError, PublicKey, SecretKey,
    statement::{self, Predicate, Subject},
};
use crate::{session::CaptureId, sidecar::Tool};

/// What the statement is about: this layout of the redaction.
pub const REDACTION_TYPE: &str = "https://remora.dev/redaction/v1";
/// Ends the name of a redaction's file, after that of the file of packets.
pub const REDACTION_ENDING: &str = ".redaction.json";

/// All that is said of a redaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redaction {
    pub capture_id: CaptureId,
    /// Of the key that signs it.
    pub key_id: KeyId,
    pub original: Original,
    pub redacted: Redacted,
    /// How the packets were chosen, for a person.
    pub chosen: String,
    pub cut: Cut,
    /// Those that the kept packets were in, by their number.
    pub chunks: Vec<SourceChunk>,
    pub made: Timestamp,
    /// As who redacts says; may be empty.
    pub why: String,
    pub tool: Tool,
}

/// The file that it was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    pub name: String,
    pub digest: FileDigest,
    /// Packet blocks in it.
    pub packets: u64,
    /// The file of the capture's manifest, as the node signed it.
    pub manifest: String,
}

/// The file that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redacted {
    pub name: String,
    pub digest: FileDigest,
    /// Packet blocks in it.
    pub packets: u64,
}

/// A chunk of the original that packets were taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceChunk {
    /// From 0.
    pub index: u64,
    pub leaf: Digest,
    /// From the leaf up, as RFC 6962 has it.
    pub path: Vec<Digest>,
    /// Where in the chunk the kept packets' blocks begin, in bytes; none if one only goes on in it.
    pub packets: Vec<u32>,
}

impl Redaction {
    /// The file `OUT.redaction.json`.
    ///
    /// # Errors
    /// It has no canonical form.
    pub fn sign(self, key: &SecretKey) -> Result<Vec<u8>, EnvelopeError> {
        statement::sign(self, key)
    }

    /// Reads a file that one of the keys signed.
    ///
    /// # Errors
    /// None did, or what it signed is no redaction.
    pub fn open(bytes: &[u8], keys: &[PublicKey]) -> Result<Self, ManifestError> {
        statement::open(bytes, keys)
    }

    /// Where the kept packets' blocks begin in the original, in order.
    pub fn offsets(&self) -> impl Iterator<Item = u64> + '_ {
        let size = self.original.digest.chunks.size;
        self.chunks.iter().flat_map(move |chunk| {
            let begin = chunk.index.saturating_mul(size);
            let packets = chunk.packets.iter();
            packets.map(move |at| begin.saturating_add(u64::from(*at)))
        })
    }
}

impl Predicate for Redaction {
    const TYPE: &'static str = REDACTION_TYPE;

    fn subject(&self) -> Vec<Subject> {
        vec![Subject::new(
            &self.redacted.name,
            self.redacted.digest.sha256,
        )]
    }

    fn key_id(&self) -> KeyId {
        self.key_id
    }
}

#[cfg(test)]
mod tests;
