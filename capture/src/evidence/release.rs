//! The release: that a hold ended, when and on whose word.
//!
//! A link of the chain as the hold is one. It has the hold's file in it, which goes when the release is
//! there: so the hold's place in the chain stays proved, and its story told.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    DOCUMENT_BYTES_MAX, Envelope, EnvelopeError, Hold, Link, ManifestError, PublicKey, SecretKey,
};
use crate::{session::CaptureId, text::shown};

/// Ends the name of a release's file, after the capture's id and the release's number in the chain.
pub const RELEASE_ENDING: &str = ".release.json";
/// DSSE's type of a signed release.
const RELEASE_TYPE: &str = "application/vnd.remora.release+json";

/// All that is said of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    pub capture_id: CaptureId,
    pub chain: Link,
    pub released: Timestamp,
    /// Who asked, as the agent saw them.
    pub by: String,
    /// The hold's file as it was; none if what held could not be read.
    pub hold: Option<String>,
}

impl Release {
    /// The name of its file: a capture may be held and released more than once.
    #[must_use]
    pub fn file_name(&self) -> String {
        let (id, sequence) = (self.capture_id, self.chain.sequence);
        format!("{id}.{sequence}{RELEASE_ENDING}")
    }

    /// The capture that a release's file is of, by the file's name.
    #[must_use]
    pub fn capture_of(name: &str) -> Option<CaptureId> {
        let (id, sequence) = name.strip_suffix(RELEASE_ENDING)?.split_once('.')?;
        let _number: u64 = sequence.parse().ok()?;
        id.parse().ok()
    }

    /// It ends the hold whose file this is.
    #[must_use]
    pub fn ends(&self, hold: &[u8]) -> bool {
        self.hold.as_deref().map(str::as_bytes) == Some(hold)
    }

    /// The hold that it ends, if one of the keys signed it; none if it could not be read.
    ///
    /// # Errors
    /// No key signed it, or it is of another capture.
    pub fn held(&self, keys: &[PublicKey]) -> Result<Option<Hold>, ManifestError> {
        let Some(hold) = &self.hold else {
            return Ok(None);
        };
        let hold = Hold::from_signed(hold.as_bytes(), keys)?;
        if hold.capture_id != self.capture_id {
            let other = format!("the hold in it is of {}", hold.capture_id);
            return Err(ManifestError::Statement(other));
        }
        Ok(Some(hold))
    }

    /// When and by whom, for a person; what others said is in it as they said it.
    #[must_use]
    pub fn text(&self) -> String {
        format!("released on {} by {}", self.released, self.by)
    }

    /// Its file.
    ///
    /// # Errors
    /// It has no canonical form.
    pub fn to_signed(&self, key: &SecretKey) -> Result<Vec<u8>, EnvelopeError> {
        Ok(Envelope::sign(self, RELEASE_TYPE, key)?.to_bytes())
    }

    /// Reads a file that one of the keys signed.
    ///
    /// # Errors
    /// None did, or what it signed is no release.
    pub fn from_signed(bytes: &[u8], keys: &[PublicKey]) -> Result<Self, ManifestError> {
        Self::of_payload(Envelope::from_bytes(bytes)?.open(RELEASE_TYPE, keys)?)
    }

    /// Reads a file, whoever signed it: to be shown, not to be believed.
    ///
    /// # Errors
    /// It is no release.
    pub fn unverified(bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::of_payload(Envelope::from_bytes(bytes)?.unverified())
    }

    fn of_payload(payload: &[u8]) -> Result<Self, ManifestError> {
        let release: Self = serde_json::from_slice(payload)
            .map_err(|error| ManifestError::Statement(shown(&error.to_string()).to_string()))?;
        match &release.hold {
            Some(hold) if hold.len() > DOCUMENT_BYTES_MAX => Err(ManifestError::Statement(
                "the hold in it is too large".to_owned(),
            )),
            _ => Ok(release),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::manifest::tests::key;

    #[test]
    fn a_release_reads_back_with_the_hold_that_it_ends() {
        let key = key();
        let keys = [key.public()];
        let hold = Hold {
            capture_id: CaptureId::generate(),
            chain: Some(Link::after(None)),
            since: Timestamp::UNIX_EPOCH,
            why: "case 42".to_owned(),
            by: "uid=0".to_owned(),
        };
        let signed = hold.to_signed(&key).expect("signed");
        let mut release = Release {
            capture_id: hold.capture_id,
            chain: Link::after(None),
            released: Timestamp::UNIX_EPOCH,
            by: "uid=1".to_owned(),
            hold: Some(String::from_utf8(signed.clone()).expect("JSON")),
        };
        let file = release.to_signed(&key).expect("signed");
        let read = Release::from_signed(&file, &keys).expect("own");
        assert_eq!(read, release);
        assert_eq!(read.held(&keys).expect("own"), Some(hold));
        assert!(read.ends(&signed) && !read.ends(b"another"));
        assert!(Release::from_signed(&file, &[]).is_err());
        assert!(Release::from_signed(&signed, &keys).is_err());
        assert!(Hold::from_signed(&file, &keys).is_err());
        let name = release.file_name();
        assert_eq!(Release::capture_of(&name), Some(release.capture_id));
        for other in [&name[1..], &name.replace(".1.", ".x."), "x.release.json"] {
            assert_eq!(Release::capture_of(other), None, "{other}");
        }
        release.capture_id = CaptureId::generate();
        assert!(release.held(&keys).is_err());
        assert_eq!(release.text(), "released on 1970-01-01T00:00:00Z by uid=1");
    }
}
