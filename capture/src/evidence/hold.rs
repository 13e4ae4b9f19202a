//! The hold: that a capture must not be deleted, since when, why and on whose word.
//!
//! It is signed, so that a file that somebody put there holds nothing, and a link of the chain, so that one
//! that somebody took away is missed. What ends it is a [`Release`](super::Release).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Envelope, EnvelopeError, Link, ManifestError, PublicKey, SecretKey};
use crate::{session::CaptureId, text::shown};

/// Ends the name of a hold's file, after the capture's id.
pub const HOLD_ENDING: &str = ".hold.json";
/// DSSE's type of a signed hold.
const HOLD_TYPE: &str = "application/vnd.remora.hold+json";

/// All that is said of a hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    pub capture_id: CaptureId,
    /// Its place; none of one that was made before holds had places, or that was only told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Link>,
    pub since: Timestamp,
    /// As who asked for it says; may be empty.
    pub why: String,
    /// Who asked, as the agent saw them.
    pub by: String,
}

impl Hold {
    /// Since when, by whom and why, for a person; what others said is in it as they said it.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { since, by, why, .. } = self;
        let why = match why.as_str() {
            "" => String::new(),
            why => format!(": {why}"),
        };
        format!("held since {since} by {by}{why}")
    }

    /// The file `<id>.hold.json`.
    ///
    /// # Errors
    /// It has no canonical form.
    pub fn to_signed(&self, key: &SecretKey) -> Result<Vec<u8>, EnvelopeError> {
        Ok(Envelope::sign(self, HOLD_TYPE, key)?.to_bytes())
    }

    /// Reads a file that one of the keys signed.
    ///
    /// # Errors
    /// None did, or what it signed is no hold.
    pub fn from_signed(bytes: &[u8], keys: &[PublicKey]) -> Result<Self, ManifestError> {
        Self::of_payload(Envelope::from_bytes(bytes)?.open(HOLD_TYPE, keys)?)
    }

    /// Reads a file, whoever signed it: to be shown, not to be believed.
    ///
    /// # Errors
    /// It is no hold.
    pub fn unverified(bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::of_payload(Envelope::from_bytes(bytes)?.unverified())
    }

    fn of_payload(payload: &[u8]) -> Result<Self, ManifestError> {
        serde_json::from_slice(payload)
            .map_err(|error| ManifestError::Statement(shown(&error.to_string()).to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::manifest::tests::key;

    #[test]
    fn a_hold_reads_back_with_its_key_alone() {
        let key = key();
        let hold = Hold {
            capture_id: CaptureId::generate(),
            chain: Some(Link::after(None)),
            since: Timestamp::UNIX_EPOCH,
            why: "case 42".to_owned(),
            by: "uid=0".to_owned(),
        };
        let signed = hold.to_signed(&key).expect("signed");
        assert_eq!(
            Hold::from_signed(&signed, &[key.public()]).expect("own"),
            hold
        );
        assert!(Hold::from_signed(&signed, &[]).is_err());
        assert!(Hold::from_signed(b"{}", &[key.public()]).is_err());
        assert_eq!(
            hold.text(),
            "held since 1970-01-01T00:00:00Z by uid=0: case 42"
        );
    }
}
