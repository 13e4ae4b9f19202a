//! The tombstone: that a capture's files were deleted, when, why and by whom.
//!
//! A link of the chain as a manifest is one. The manifest stays: with the tombstone it tells what there
//! was, and that it did not just get lost.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Digest, EnvelopeError, FileRecord, KeyId, Link, MANIFEST_ENDING, Manifest, ManifestError,
    PublicKey, SecretKey,
    manifest::subject,
    statement::{self, Predicate, Subject},
};
use crate::session::CaptureId;

/// What the statement is about: this layout of the tombstone.
pub const TOMBSTONE_TYPE: &str = "https://remora.dev/tombstone/v1";
/// Ends the name of a tombstone's file, after the capture's id.
pub const TOMBSTONE_ENDING: &str = ".tombstone.json";
/// Longest reason for a deletion or a hold, in bytes.
pub const WHY_BYTES_MAX: usize = 1024;

/// What a capture was deleted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It was older than captures are kept.
    Age,
    /// All captures took more than they may.
    Room,
    /// Those of its namespace did.
    NamespaceRoom,
    /// Somebody asked for it.
    Requested,
}

impl Cause {
    pub const ALL: [Self; 4] = [Self::Age, Self::Room, Self::NamespaceRoom, Self::Requested];

    /// One word for metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Room => "room",
            Self::NamespaceRoom => "namespace_room",
            Self::Requested => "requested",
        }
    }

    /// For a person.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Age => "it was older than captures are kept",
            Self::Room => "captures took more room than they may",
            Self::NamespaceRoom => "captures of its namespace took more room than they may",
            Self::Requested => "it was asked for",
        }
    }
}

/// All that is said of a deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    pub capture_id: CaptureId,
    pub node: String,
    pub chain: Link,
    /// Of the key that signs it.
    pub key_id: KeyId,
    /// SHA-256 of the file of the capture's manifest, which stays.
    pub manifest: Digest,
    /// What was deleted: the packets' files, the account last, as the manifest has them.
    pub files: Vec<FileRecord>,
    pub deleted: Timestamp,
    pub cause: Cause,
    /// As who asked for it says; empty if nobody did.
    pub why: String,
    /// Who asked, as the agent saw them, or the agent itself.
    pub by: String,
}

impl Tombstone {
    /// Of the capture whose manifest's file has this digest, deleted now.
    #[must_use]
    pub fn new(
        (manifest, digest): (&Manifest, Digest),
        node: &str,
        chain: Link,
        key_id: KeyId,
        deleted: Timestamp,
        (cause, why, by): (Cause, &str, &str),
    ) -> Self {
        Self {
            capture_id: manifest.capture_id,
            node: node.to_owned(),
            chain,
            key_id,
            manifest: digest,
            files: manifest.records().cloned().collect(),
            deleted,
            cause,
            why: why.to_owned(),
            by: by.to_owned(),
        }
    }

    /// It is of the capture whose manifest this is, and of all its files.
    #[must_use]
    pub fn is_of(&self, manifest: &Manifest, digest: Digest) -> bool {
        self.capture_id == manifest.capture_id
            && self.manifest == digest
            && self.files.iter().eq(manifest.records())
    }

    /// When, by whom and why, for a person; what others said is in it as they said it.
    #[must_use]
    pub fn text(&self) -> String {
        let Self {
            deleted,
            by,
            cause,
            why,
            ..
        } = self;
        let why = match why.as_str() {
            "" => String::new(),
            why => format!(": {why}"),
        };
        format!(
            "deleted on {deleted} by {by}, because {}{why}",
            cause.text()
        )
    }

    /// The file `<id>.tombstone.json`.
    ///
    /// # Errors
    /// It has no canonical form.
    pub fn sign(self, key: &SecretKey) -> Result<Vec<u8>, EnvelopeError> {
        statement::sign(self, key)
    }

    /// Reads a file that one of the keys signed.
    ///
    /// # Errors
    /// None did, or what it signed is no tombstone.
    pub fn open(bytes: &[u8], keys: &[PublicKey]) -> Result<Self, ManifestError> {
        statement::open(bytes, keys)
    }

    /// Reads a file, whoever signed it: to be shown, not to be believed.
    ///
    /// # Errors
    /// It is no tombstone.
    pub fn unverified(bytes: &[u8]) -> Result<Self, ManifestError> {
        statement::unverified(bytes)
    }
}

impl Predicate for Tombstone {
    const TYPE: &'static str = TOMBSTONE_TYPE;

    fn subject(&self) -> Vec<Subject> {
        let name = format!("{}{MANIFEST_ENDING}", self.capture_id);
        let mut all = vec![Subject::new(&name, self.manifest)];
        all.extend(subject(self.files.iter()));
        all
    }

    fn key_id(&self) -> KeyId {
        self.key_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::manifest::tests::{capture, key};

    #[test]
    fn a_tombstone_reads_back_and_is_no_manifest_nor_the_other_way_round() {
        let key = key();
        let keys = [key.public()];
        let files = capture(None, b"packets", &key);
        let (_, bytes) = files.last().expect("manifest");
        let manifest = Manifest::open(bytes, &keys).expect("own");
        let digest = Digest::of(bytes);
        let tombstone = Tombstone::new(
            (&manifest, digest),
            "node-a",
            Link::after(Some(&manifest.chain.head(digest))),
            keys[0].id(),
            Timestamp::UNIX_EPOCH,
            (Cause::Requested, "the case is closed", "uid=0"),
        );
        assert!(tombstone.is_of(&manifest, digest));
        assert!(!tombstone.is_of(&manifest, Digest::of(b"other")));
        assert_eq!(
            tombstone.text(),
            "deleted on 1970-01-01T00:00:00Z by uid=0, because it was asked for: the case is closed"
        );
        let signed = tombstone.clone().sign(&key).expect("signed");
        assert_eq!(Tombstone::open(&signed, &keys).expect("own"), tombstone);
        assert!(Manifest::open(&signed, &keys).is_err());
        assert!(Tombstone::open(bytes, &keys).is_err());
        assert!(Tombstone::open(&signed, &[]).is_err());
    }
}
