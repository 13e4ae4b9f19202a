//! The upload of a capture's files to a store of objects, as the agent keeps it beside the capture.
//!
//! ```text
//! signed ─▶ Waiting ──URL from a controller──▶ put, then asked for ──same checksum──▶ Verified
//!              ▲                                        └─ failed: again after a while ─┘
//! ```
//! Verified is what the store itself told after the upload: the file's length and checksum. The manifest goes last,
//! so that whoever finds it in the store finds the files that it stands for.

use std::{fmt, str::FromStr, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    evidence::{Digest, FileDigest, MANIFEST_ENDING, Manifest},
    session::CaptureId,
};

/// Ends the name of the record's file, after the capture's id.
pub const UPLOAD_ENDING: &str = ".upload.json";
/// Largest record that is read, in bytes: the largest set of files has 9999.
pub const UPLOAD_BYTES_MAX: usize = 16 << 20;
/// Longest name of a sink, in bytes.
const NAME_MAX: usize = 63;
/// Longest error that is kept, in characters.
pub const ERROR_MAX: usize = 500;
/// Wait after the first failure, and the longest one.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(300);

/// Name of a sink that controllers know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SinkName(String);

/// A text is not a [`SinkName`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is no name of a sink; use lower-case letters, digits and `-`, at most {NAME_MAX}, a letter first"
)]
pub struct SinkNameError(String);

impl SinkName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SinkName {
    type Err = SinkNameError;

    fn from_str(text: &str) -> Result<Self, SinkNameError> {
        let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let starts = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        // Words that say that nothing is uploaded.
        let is_word = ["store", "stream"].contains(&text);
        if starts && text.len() <= NAME_MAX && text.bytes().all(is_plain) && !is_word {
            return Ok(Self(text.to_owned()));
        }
        let short: String = text.chars().take(80).collect();
        Err(SinkNameError(short.escape_debug().to_string()))
    }
}

impl TryFrom<String> for SinkName {
    type Error = SinkNameError;

    fn try_from(text: String) -> Result<Self, SinkNameError> {
        text.parse()
    }
}

impl From<SinkName> for String {
    fn from(name: SinkName) -> Self {
        name.0
    }
}

impl fmt::Display for SinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How far the upload of a capture is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    pub capture_id: CaptureId,
    pub sink: SinkName,
    /// In the order in which they go; the manifest last.
    pub files: Vec<UploadFile>,
    /// Tries that failed, of all files.
    pub failures: u64,
    /// Failures since the last success, which make the wait longer.
    pub in_a_row: u32,
    /// Not before.
    pub next_try: Option<Timestamp>,
    /// The last failure's, for a person.
    pub error: String,
}

/// A file and its object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadFile {
    pub name: String,
    pub bytes: u64,
    pub sha256: Digest,
    /// What the store told of it, once it is there whole.
    pub object: Option<StoredObject>,
}

/// An object that the store has verified.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// Without what was signed.
    pub url: String,
    /// The checksum by which it is the file, as the store told it.
    pub checksum: String,
    pub etag: String,
    /// Empty where the store keeps no versions.
    pub version: String,
    pub at: Timestamp,
}

impl Upload {
    /// Of a capture that was just signed. `manifest` is the file's digest.
    #[must_use]
    pub fn new(sink: SinkName, of: &Manifest, manifest: FileDigest) -> Self {
        let file = |name: &str, digest: &FileDigest| UploadFile {
            name: name.to_owned(),
            bytes: digest.bytes,
            sha256: digest.sha256,
            object: None,
        };
        let records = of.records();
        let mut files: Vec<_> = records
            .filter_map(|record| Some(file(&record.name, record.digest.as_ref()?)))
            .collect();
        files.push(file(
            &format!("{}{MANIFEST_ENDING}", of.capture_id),
            &manifest,
        ));
        Self {
            capture_id: of.capture_id,
            sink,
            files,
            failures: 0,
            in_a_row: 0,
            next_try: None,
            error: String::new(),
        }
    }

    /// The same files of the same capture, however far they are.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        let same = |(a, b): (&UploadFile, &UploadFile)| {
            a.name == b.name && a.bytes == b.bytes && a.sha256 == b.sha256
        };
        self.capture_id == other.capture_id
            && self.sink == other.sink
            && self.files.len() == other.files.len()
            && self.files.iter().zip(&other.files).all(same)
    }

    /// All of it is in the store; what has no files, as only a record that somebody put there can say, is not.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.verified_at().is_some()
    }

    /// When the store told of the last object, if it has told of all.
    #[must_use]
    pub fn verified_at(&self) -> Option<Timestamp> {
        let told = self.files.iter().map(|file| Some(file.object.as_ref()?.at));
        told.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// The file that goes next, if it is time.
    #[must_use]
    pub fn next(&self, now: Timestamp) -> Option<&UploadFile> {
        let is_early = self.next_try.is_some_and(|next| {
            // A clock that was set back does not hold it up for longer than the longest wait.
            let wait = next.duration_since(now);
            wait.is_positive() && wait.unsigned_abs() <= WAIT_MAX
        });
        let next = self.files.iter().find(|file| file.object.is_none());
        next.filter(|_| !is_early)
    }

    /// The store has a file whole.
    pub fn verified(&mut self, name: &str, object: StoredObject) {
        if let Some(file) = self.files.iter_mut().find(|file| file.name == name) {
            file.object = Some(object);
            self.in_a_row = 0;
            self.next_try = None;
            self.error.clear();
        }
    }

    /// A try failed; the next one is after a while.
    pub fn failed(&mut self, error: &str, now: Timestamp) {
        let wait = WAIT_MIN
            .saturating_mul(1 << self.in_a_row.min(16))
            .min(WAIT_MAX);
        self.failures += 1;
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.next_try = now.checked_add(wait).ok();
        self.error = crate::text::one_line(error, ERROR_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload() -> Upload {
        let file = |name: &str| UploadFile {
            name: name.to_owned(),
            bytes: 1,
            sha256: Digest::of(name.as_bytes()),
            object: None,
        };
        Upload {
            capture_id: CaptureId::generate(),
            sink: "evidence".parse().expect("a name"),
            files: vec![file("a"), file("b")],
            failures: 0,
            in_a_row: 0,
            next_try: None,
            error: String::new(),
        }
    }

    fn after(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).expect("in range")
    }

    #[test]
    fn files_go_in_their_order_until_all_are_verified() {
        let mut upload = upload();
        for name in ["a", "b"] {
            let next = upload.next(after(0)).map(|file| file.name.clone());
            assert_eq!(next.as_deref(), Some(name));
            assert!(!upload.is_verified());
            upload.verified(name, StoredObject::default());
        }
        assert!(upload.is_verified());
        assert_eq!(upload.next(after(0)), None);
        upload.files.clear();
        assert!(!upload.is_verified(), "nothing is there");
    }

    #[test]
    fn each_failure_doubles_the_wait_up_to_five_minutes_for_ever() {
        let mut upload = upload();
        let mut now = 0;
        for n in 0..400_u32 {
            upload.failed("away", after(now));
            let wait = 1_i64 << n.min(16);
            let wait = wait.min(300);
            assert_eq!(upload.next(after(now + wait - 1)), None, "{n}");
            now += wait;
            assert!(upload.next(after(now)).is_some(), "{n}");
        }
        assert!(now > 24 * 3600);
        assert_eq!(upload.failures, 400);
        upload.verified("a", StoredObject::default());
        assert!(upload.next(after(now)).is_some());
        upload.failed("away", after(now));
        assert!(upload.next(after(now + 1)).is_some(), "it begins anew");
        assert!(
            upload.next(after(now - 100_000)).is_some(),
            "the clock went back"
        );
    }

    #[test]
    fn a_record_reads_back_and_names_are_plain() {
        let mut upload = upload();
        upload.failed("no\nroute", after(0));
        let json = serde_json::to_vec(&upload).expect("JSON");
        assert_eq!(
            serde_json::from_slice::<Upload>(&json).expect("own"),
            upload
        );
        for name in [
            "", "S3", "a b", "../x", "-a", "1a", "store", "stream", "a_b",
        ] {
            assert!(name.parse::<SinkName>().is_err(), "{name}");
        }
        assert!("a".repeat(64).parse::<SinkName>().is_err());
        "evidence-2".parse::<SinkName>().expect("a name");
    }
}
