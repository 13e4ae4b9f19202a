//! The manifest: all that is said of a finished capture, in an in-toto statement.
//!
//! ```text
//! envelope (DSSE) ▶ statement: subject  = each file and the account, with its SHA-256
//!                              predicate = the manifest
//! ```

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Digest, EnvelopeError, FileDigest, KeyId, Link, PublicKey, SecretKey,
    statement::{self, Predicate, Subject},
};
use crate::{
    amendment::Amendments,
    filter::{Filter, Meaning},
    session::{
        CaptureId, Counts, Direction, Limits, Phase, PodIdentity, Removed, StopReason,
        SuperPackets, TapInfo, Target, Trigger, Writing,
    },
    sidecar::{CaptureFile, Gap, Recovered, Sidecar, Tool},
    upload::SinkName,
};

/// What the statement is about: this layout of the manifest.
pub const PREDICATE_TYPE: &str = "https://remora.dev/capture/v1";
/// Ends the name of a manifest's file, after the capture's id.
pub const MANIFEST_ENDING: &str = ".manifest.json";
/// Ends the name of a time stamp of a manifest (RFC 3161), after the capture's id.
pub const STAMP_ENDING: &str = ".manifest.json.tsr";
/// Ends the name of a file that is encrypted, after the name that it had (age-encryption.org/v1).
pub const ENCRYPTED_ENDING: &str = ".age";
/// Largest signed document that is read, in bytes: the list of the largest set of files in base64.
pub const DOCUMENT_BYTES_MAX: usize = 16 << 20;

/// A file is not a manifest that one of the keys signed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error("it is signed, but it is not what its name says: {0}")]
    Statement(String),
}

/// What the agent that signs says of itself.
#[derive(Clone, Debug)]
pub struct Origin {
    pub node: String,
    /// Of the machine's present boot.
    pub boot_id: String,
    /// Of the eBPF programs' object.
    pub bpf_object: Digest,
}

/// All that is said of a capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub capture_id: CaptureId,
    pub node: String,
    pub chain: Link,
    /// Of the key that signs it.
    pub key_id: KeyId,
    /// With the whole alert.
    pub trigger: Trigger,
    /// Of the alert as it came, if there was one.
    pub alert_sha256: Option<Digest>,
    /// Who called, as the agent saw it, and was let in.
    pub caller: String,
    pub target: Target,
    /// The target as it was found on the node.
    pub resolved_target: String,
    /// The pod that it is, or is a part of, if the node's pods were known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Box<PodIdentity>>,
    pub taps: Vec<TapInfo>,
    pub labels: BTreeMap<String, String>,
    pub filter: String,
    /// Of the programs that libpcap makes of the filter; none if it is typed terms alone.
    pub programs: Option<ProgramDigests>,
    pub direction: Direction,
    pub snaplen: u32,
    pub look_back: Duration,
    pub limits: Limits,
    pub writing: Writing,
    /// Where its files are to be uploaded; whether they were is told by the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sink: Option<SinkName>,
    pub super_packets: SuperPackets,
    pub clock: ClockRecord,
    pub started: Timestamp,
    pub finished: Option<Timestamp>,
    pub first_packet: Option<Timestamp>,
    pub last_packet: Option<Timestamp>,
    pub phase: Phase,
    pub stop_reason: Option<StopReason>,
    pub message: String,
    pub counts: Counts,
    /// Every packet that matched within the limits is in the files.
    pub complete: bool,
    /// What a ring of files removed: part of `counts.written`.
    pub removed: Removed,
    pub gaps: Vec<Gap>,
    pub recovered: Option<Recovered>,
    /// Oldest first.
    pub files: Vec<FileRecord>,
    /// The account `<id>.json`.
    pub account: FileRecord,
    /// Alerts that joined it while it ran, and what made it longer.
    #[serde(default, skip_serializing_if = "Amendments::is_empty")]
    pub amendments: Amendments,
    pub tool: Tool,
    pub bpf_object_sha256: Digest,
    /// Oldest first.
    pub custody: Vec<Custody>,
}

/// SHA-256 of a filter's programs, each as [`Program::to_bytes`](crate::filter::Program::to_bytes)
/// has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramDigests {
    pub ethernet: Digest,
    pub raw: Option<Digest>,
}

/// How packet times were made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockRecord {
    pub source: String,
    /// UTC minus CLOCK_MONOTONIC in nanoseconds; a text, for JSON's numbers end before it.
    pub offset_ns: String,
    /// The offset is known to within this, in nanoseconds; how far UTC is off is not in it.
    pub error_ns: i64,
}

/// A file of the capture, as it lies there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Of one that is encrypted, `<id>.pcapng.age`.
    pub name: String,
    pub packets: u64,
    /// Packet blocks: more than packets where super-packets were cut into segments.
    pub blocks: u64,
    /// None if it was not there any more when the manifest was made.
    pub digest: Option<FileDigest>,
    /// What it was before it was encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<PlainRecord>,
}

/// A file before it was encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlainRecord {
    /// `<id>.pcapng`.
    pub name: String,
    pub digest: FileDigest,
    /// Public keys, any of whose secret keys decrypts it, as age writes them: `age1…`.
    pub recipients: Vec<String>,
}

/// What was done with the capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Custody {
    pub at: Timestamp,
    pub who: String,
    pub action: String,
}

impl FileRecord {
    #[must_use]
    pub fn new(file: &CaptureFile, digest: Option<FileDigest>) -> Self {
        Self {
            name: file.name.clone(),
            packets: file.packets,
            blocks: file.blocks,
            digest,
            plain: None,
        }
    }

    /// Of a file that was encrypted; `stored`: what lies there instead.
    #[must_use]
    pub fn encrypted(file: &CaptureFile, stored: FileDigest, plain: PlainRecord) -> Self {
        Self {
            name: format!("{}{ENCRYPTED_ENDING}", file.name),
            plain: Some(plain),
            ..Self::new(file, Some(stored))
        }
    }

    /// Name and digest of what a reader of packets can read.
    #[must_use]
    pub fn readable(&self) -> (&str, Option<FileDigest>) {
        match &self.plain {
            Some(plain) => (&plain.name, Some(plain.digest)),
            None => (&self.name, self.digest),
        }
    }
}

impl ProgramDigests {
    /// Those of a filter whose meaning is known.
    #[must_use]
    pub fn of(filter: &Filter) -> Option<Self> {
        let Meaning::Programs(programs) = filter.meaning() else {
            return None;
        };
        Some(Self {
            ethernet: Digest::of(&programs.ethernet.to_bytes()),
            raw: programs.raw.as_ref().map(|raw| Digest::of(&raw.to_bytes())),
        })
    }
}

impl Manifest {
    /// The manifest of an account and of what was found of its files. `account` has the digest of the
    /// account's file.
    #[must_use]
    pub fn new(
        sidecar: Sidecar,
        (account, files): (FileRecord, Vec<FileRecord>),
        origin: &Origin,
        chain: Link,
        key_id: KeyId,
        sealed: Timestamp,
    ) -> Self {
        let Sidecar {
            capture,
            clock,
            tool,
            recovered,
            gaps,
            amendments,
            schema: _,
            file: _,
            files: _,
        } = sidecar;
        let spec = capture.spec;
        let agent = |boot: &str| format!("agent of {}{boot}", origin.node);
        let mut custody = vec![Custody {
            at: capture.started,
            who: agent(""),
            action: "began to capture".to_owned(),
        }];
        for longer in amendments.kept.iter().filter(|one| one.alert.is_none()) {
            let action = match longer.duration {
                Some(duration) => format!("made it last {} s in all", duration.as_secs_f64()),
                None => "made it last until it is stopped".to_owned(),
            };
            custody.push(Custody {
                at: longer.at,
                who: longer.caller.clone(),
                action,
            });
        }
        if let Some(at) = capture.finished {
            let action = if recovered.is_some() {
                "repaired and closed what an agent that died had left open"
            } else {
                "closed the files"
            };
            custody.push(Custody {
                at,
                who: agent(""),
                action: action.to_owned(),
            });
        }
        custody.push(Custody {
            at: sealed,
            who: agent(&format!(", boot {}", origin.boot_id)),
            action: "hashed the files and signed this manifest".to_owned(),
        });
        let counts = capture.counts;
        let is_there = files.iter().all(|file| file.digest.is_some());
        let complete = counts.balanced()
            && counts.missing() == 0
            && capture.files.removed == Removed::default()
            && recovered.is_none()
            && is_there;
        let alert = &spec.trigger.alert;
        Self {
            capture_id: capture.id,
            node: capture.node,
            chain,
            key_id,
            alert_sha256: (!alert.is_empty()).then(|| Digest::of(alert.as_bytes())),
            trigger: spec.trigger,
            caller: capture.caller,
            target: spec.target,
            resolved_target: capture.resolved_target,
            pod: capture.pod,
            taps: capture.taps,
            labels: spec.labels,
            programs: ProgramDigests::of(&spec.filter),
            filter: spec.filter.text().to_owned(),
            direction: spec.direction,
            snaplen: spec.snaplen.get(),
            look_back: spec.look_back,
            limits: spec.limits,
            writing: spec.writing,
            sink: spec.sink,
            super_packets: spec.super_packets,
            clock: ClockRecord {
                source: "CLOCK_MONOTONIC + offset".to_owned(),
                offset_ns: clock.offset_ns.to_string(),
                error_ns: clock.error_ns,
            },
            started: capture.started,
            finished: capture.finished,
            first_packet: capture.first_packet,
            last_packet: capture.last_packet,
            phase: capture.phase,
            stop_reason: capture.stop_reason,
            message: capture.message,
            counts,
            complete,
            removed: capture.files.removed,
            gaps,
            recovered,
            amendments,
            files,
            account,
            tool,
            bpf_object_sha256: origin.bpf_object,
            custody,
        }
    }

    /// The files that it stands for, its account last.
    pub fn records(&self) -> impl Iterator<Item = &FileRecord> {
        self.files.iter().chain([&self.account])
    }

    /// The file `<id>.manifest.json`.
    ///
    /// # Errors
    /// It has no canonical form.
    pub fn sign(self, key: &SecretKey) -> Result<Vec<u8>, EnvelopeError> {
        statement::sign(self, key)
    }

    /// Reads a file that one of the keys signed.
    ///
    /// # Errors
    /// None did, or what it signed is no manifest.
    pub fn open(bytes: &[u8], keys: &[PublicKey]) -> Result<Self, ManifestError> {
        statement::open(bytes, keys)
    }

    /// Reads a file, whoever signed it: to be shown, not to be believed.
    ///
    /// # Errors
    /// It is no manifest.
    pub fn unverified(bytes: &[u8]) -> Result<Self, ManifestError> {
        statement::unverified(bytes)
    }
}

impl Predicate for Manifest {
    const TYPE: &'static str = PREDICATE_TYPE;

    fn subject(&self) -> Vec<Subject> {
        subject(self.records())
    }

    fn key_id(&self) -> KeyId {
        self.key_id
    }
}

/// The files that were there.
pub(super) fn subject<'a>(files: impl Iterator<Item = &'a FileRecord>) -> Vec<Subject> {
    files
        .filter_map(|file| Some(Subject::new(&file.name, file.digest?.sha256)))
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        evidence::{
            Digester, Envelope, Head,
            statement::{PAYLOAD_TYPE, Statement},
        },
        session::{CaptureState, Files, SessionSpec},
        sidecar::Clock,
    };

    pub(crate) fn digest(bytes: &[u8]) -> FileDigest {
        let mut digester = Digester::default();
        digester.update(bytes);
        digester.finish()
    }

    pub(crate) fn key() -> SecretKey {
        SecretKey::from_random(&[9; 32])
    }

    /// A capture of one file of these bytes: name and bytes of its files, the manifest last.
    pub(crate) fn capture(
        head: Option<&Head>,
        file: &[u8],
        key: &SecretKey,
    ) -> Vec<(String, Vec<u8>)> {
        let id = CaptureId::generate();
        let mut spec = SessionSpec::new(Target::Pid(7));
        spec.trigger.alert = "{\"rule\":\"x\u{1b}\"}".to_owned();
        let state = CaptureState {
            id,
            spec,
            phase: Phase::Finished,
            stop_reason: Some(StopReason::Requested),
            message: String::new(),
            counts: Counts::default(),
            started: Timestamp::UNIX_EPOCH,
            finished: Some(Timestamp::UNIX_EPOCH),
            first_packet: None,
            last_packet: None,
            file: format!("{id}.pcapng"),
            files: Files::default(),
            taps: Vec::new(),
            node: "node-a".to_owned(),
            caller: String::new(),
            resolved_target: String::new(),
            pod: None,
        };
        let name = state.file.clone();
        let told = CaptureFile {
            name: name.clone(),
            bytes: file.len() as u64,
            ..CaptureFile::default()
        };
        let sidecar = Sidecar::new(told.clone(), state, Clock::default(), Tool::default());
        let account = sidecar.to_json();
        let account_name = format!("{id}.json");
        let account_file = CaptureFile {
            name: account_name.clone(),
            ..CaptureFile::default()
        };
        let origin = Origin {
            node: "node-a".to_owned(),
            boot_id: "b".to_owned(),
            bpf_object: Digest::of(b""),
        };
        let manifest = Manifest::new(
            sidecar,
            (
                FileRecord::new(&account_file, Some(digest(&account))),
                vec![FileRecord::new(&told, Some(digest(file)))],
            ),
            &origin,
            Link::after(head),
            key.public().id(),
            Timestamp::UNIX_EPOCH,
        );
        vec![
            (name, file.to_vec()),
            (account_name, account),
            (
                format!("{id}{MANIFEST_ENDING}"),
                manifest.sign(key).expect("signed"),
            ),
        ]
    }

    #[test]
    fn a_manifest_reads_back_with_the_alert_as_it_came() {
        let key = key();
        let files = capture(None, b"packets", &key);
        let (_, bytes) = files.last().expect("manifest");
        let manifest = Manifest::open(bytes, &[key.public()]).expect("own");
        assert_eq!(manifest.trigger.alert, "{\"rule\":\"x\u{1b}\"}");
        assert_eq!(
            manifest.alert_sha256,
            Some(Digest::of(manifest.trigger.alert.as_bytes()))
        );
        assert!(manifest.complete);
        assert_eq!(manifest.clone().sign(&key).expect("signed"), *bytes);
        // A head that the same key signed is no manifest.
        let head = manifest.chain.head(Digest::of(bytes)).to_signed(&key);
        assert!(Manifest::open(&head, &[key.public()]).is_err());
    }

    #[test]
    fn the_subject_is_the_files_and_nothing_else() {
        let key = key();
        let files = capture(None, b"packets", &key);
        let manifest = Manifest::unverified(&files.last().expect("manifest").1).expect("own");
        let statement = Statement::about(Vec::new(), manifest);
        let signed = Envelope::sign(&statement, PAYLOAD_TYPE, &key)
            .expect("signed")
            .to_bytes();
        assert!(matches!(
            Manifest::open(&signed, &[key.public()]),
            Err(ManifestError::Statement(_))
        ));
    }
}
