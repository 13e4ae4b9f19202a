//! The receipt: that a store of objects has a capture whole, where, and by which checksums.
//!
//! A link of the chain, signed when the store has told the checksum of the last file. It is the node's word for what
//! the store said then; what the store has now is asked of the store.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Envelope, EnvelopeError, Link, Manifest, ManifestError, PublicKey, SecretKey};
use crate::{
    session::CaptureId,
    text::shown,
    upload::{SinkName, UploadFile},
};

/// Ends the name of a receipt's file, after the capture's id.
pub const RECEIPT_ENDING: &str = ".receipt.json";
/// DSSE's type of a signed receipt.
const RECEIPT_TYPE: &str = "application/vnd.remora.receipt+json";

/// All that is said of an upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    pub capture_id: CaptureId,
    pub chain: Link,
    pub sink: SinkName,
    /// When the store told of the last object.
    pub uploaded: Timestamp,
    /// Each with its object; the manifest's last.
    pub files: Vec<UploadFile>,
}

impl Receipt {
    /// It is of the manifest's files, all of them, each with the digest that the manifest has, and of the manifest.
    #[must_use]
    pub fn is_of(&self, manifest: &Manifest) -> bool {
        let signed = manifest
            .records()
            .filter_map(|record| Some((record.name.as_str(), record.digest?.sha256)));
        let told = self.files.iter();
        let told = told.map(|file| (file.name.as_str(), file.sha256));
        let all = self.files.iter().all(|file| file.object.is_some());
        let files = self.files.len().saturating_sub(1);
        self.capture_id == manifest.capture_id && all && signed.eq(told.take(files))
    }

    /// Where it is and since when, for a person; what others said is in it as they said it.
    #[must_use]
    pub fn text(&self) -> String {
        let place = self.files.last().and_then(|file| file.object.as_ref());
        let place = place.map_or("", |object| object.url.as_str());
        let (folder, _) = place.rsplit_once('/').unwrap_or((place, ""));
        format!(
            "uploaded to {} ({folder}) until {}, {} objects with the checksums that the store told",
            self.sink,
            self.uploaded,
            self.files.len()
        )
    }

    /// The file `<id>.receipt.json`.
    ///
    /// # Errors
    /// It has no canonical form.
    pub fn to_signed(&self, key: &SecretKey) -> Result<Vec<u8>, EnvelopeError> {
        Ok(Envelope::sign(self, RECEIPT_TYPE, key)?.to_bytes())
    }

    /// Reads a file that one of the keys signed.
    ///
    /// # Errors
    /// None did, or what it signed is no receipt.
    pub fn from_signed(bytes: &[u8], keys: &[PublicKey]) -> Result<Self, ManifestError> {
        let envelope = Envelope::from_bytes(bytes)?;
        serde_json::from_slice(envelope.open(RECEIPT_TYPE, keys)?)
            .map_err(|error| ManifestError::Statement(shown(&error.to_string()).to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        evidence::manifest::tests::{capture, digest, key},
        upload::{StoredObject, Upload},
    };

    #[test]
    fn a_receipt_reads_back_and_is_of_one_manifest_alone() {
        let key = key();
        let manifest = |bytes: &[u8]| {
            let files = capture(None, bytes, &key);
            let (_, signed) = files.last().expect("a manifest");
            let manifest = Manifest::open(signed, &[key.public()]).expect("own");
            (manifest, digest(signed))
        };
        let (of, signed) = manifest(b"packets");
        let sink: SinkName = "evidence".parse().expect("a name");
        let mut upload = Upload::new(sink.clone(), &of, signed);
        let receipt = |upload: &Upload| Receipt {
            capture_id: of.capture_id,
            chain: Link::after(None),
            sink: sink.clone(),
            uploaded: Timestamp::UNIX_EPOCH,
            files: upload.files.clone(),
        };
        assert!(!receipt(&upload).is_of(&of), "nothing is there yet");
        let names: Vec<_> = upload.files.iter().map(|file| file.name.clone()).collect();
        for name in names {
            let object = StoredObject {
                url: format!("https://s3.example/b/{name}"),
                ..StoredObject::default()
            };
            upload.verified(&name, object);
        }
        let receipt = receipt(&upload);
        assert!(receipt.is_of(&of) && !receipt.is_of(&manifest(b"others").0));
        assert!(receipt.text().contains("(https://s3.example/b)"));
        let file = receipt.to_signed(&key).expect("signed");
        let read = Receipt::from_signed(&file, &[key.public()]).expect("own");
        assert_eq!(read, receipt);
        assert!(Receipt::from_signed(&file, &[]).is_err());
        let mut less = receipt;
        less.files.remove(0);
        assert!(!less.is_of(&of));
    }
}
