//! The chain of a node's manifests, and its head.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{Digest, Envelope, EnvelopeError, PublicKey, SecretKey};

/// DSSE's type of a signed head.
const HEAD_TYPE: &str = "application/vnd.remora.chain-head+json";

/// A manifest's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Name of the chain: one for each data directory.
    pub chain: Ulid,
    /// From 1, without a gap.
    pub sequence: u64,
    /// SHA-256 of the file of the manifest before it; none before the first.
    pub previous: Option<Digest>,
}

/// The last manifest of a chain at a moment. Whoever has it knows all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    pub chain: Ulid,
    pub sequence: u64,
    /// SHA-256 of the manifest's file.
    pub manifest: Digest,
}

/// A text or a file is not a head.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    #[error("not a chain's head; it is CHAIN:NUMBER:SHA256, as the agent's log and status show it")]
    Text,
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
}

impl Link {
    /// The place after `head`.
    #[must_use]
    pub fn after(head: Option<&Head>) -> Self {
        match head {
            None => Self {
                chain: Ulid::generate(),
                sequence: 1,
                previous: None,
            },
            Some(head) => Self {
                chain: head.chain,
                sequence: head.sequence + 1,
                previous: Some(head.manifest),
            },
        }
    }

    /// The head when this one's manifest is the last.
    #[must_use]
    pub fn head(&self, manifest: Digest) -> Head {
        Head {
            chain: self.chain,
            sequence: self.sequence,
            manifest,
        }
    }

    /// Its manifest comes right after the one that `head` tells of.
    #[must_use]
    pub fn follows(&self, head: &Head) -> bool {
        self.chain == head.chain
            && head.sequence.checked_add(1) == Some(self.sequence)
            && self.previous == Some(head.manifest)
    }
}

impl Head {
    /// The file `chain.head`.
    #[must_use]
    pub fn to_signed(self, key: &SecretKey) -> Vec<u8> {
        Envelope::sign(&self, HEAD_TYPE, key)
            .expect("numbers and texts have a canonical form")
            .to_bytes()
    }

    /// # Errors
    /// It is no signed head, or none of the keys signed it.
    pub fn from_signed(bytes: &[u8], keys: &[PublicKey]) -> Result<Self, HeadError> {
        let envelope = Envelope::from_bytes(bytes)?;
        let payload = envelope.open(HEAD_TYPE, keys)?;
        serde_json::from_slice(payload).map_err(|_other| HeadError::Text)
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            chain,
            sequence,
            manifest,
        } = self;
        write!(f, "{chain}:{sequence}:{manifest}")
    }
}

impl FromStr for Head {
    type Err = HeadError;

    fn from_str(text: &str) -> Result<Self, HeadError> {
        let mut parts = text.trim().splitn(3, ':');
        let mut part = || parts.next().ok_or(HeadError::Text);
        Ok(Self {
            chain: part()?.parse().map_err(|_other| HeadError::Text)?,
            sequence: part()?.parse().map_err(|_other| HeadError::Text)?,
            manifest: part()?.parse().map_err(|_other| HeadError::Text)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_back_as_text_and_signed() {
        let head = Link::after(None).head(Digest::of(b"x"));
        assert_eq!(head.to_string().parse::<Head>().expect("own"), head);
        let key = SecretKey::from_random(&[3; 32]);
        let signed = head.to_signed(&key);
        let read = Head::from_signed(&signed, &[key.public()]).expect("own");
        assert_eq!(read, head);
        assert!(Head::from_signed(&signed, &[]).is_err());
        for bad in ["", "a:1:b", &head.to_string()[1..], &format!("{head}0")] {
            assert!(bad.parse::<Head>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_place_follows_one_head_only() {
        let first = Link::after(None);
        let head = first.head(Digest::of(b"1"));
        let second = Link::after(Some(&head));
        assert!(second.follows(&head));
        assert!(!first.follows(&head));
        assert!(!second.follows(&first.head(Digest::of(b"2"))));
        assert!(!second.follows(&Link::after(None).head(Digest::of(b"1"))));
    }
}
