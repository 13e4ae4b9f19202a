//! The JSON beside each finished file: what was asked, what became of it, and every count.
//!
//! Not signed and not chained: that is the task of the [manifest](crate::evidence::Manifest), which is made
//! of it and has its digest.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    amendment::Amendments,
    session::{CaptureState, Counts},
};

/// Name and version of the layout.
pub const SCHEMA: &str = "remora.dev/capture/v0";
/// Largest sidecar that is read, in bytes: alert, labels and names at their bounds, with every
/// character escaped, and a set's list of files are less.
pub const SIDECAR_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A sidecar is not one.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    #[error("the sidecar has {0} bytes; at most {SIDECAR_BYTES_MAX} are read")]
    TooLarge(usize),
    #[error("the sidecar is not valid JSON of `{SCHEMA}`")]
    Json(#[from] serde_json::Error),
    #[error("the sidecar's schema is `{0}`; this version reads `{SCHEMA}`")]
    Schema(String),
}

/// All that is told of a finished capture. Unknown members are skipped, so that a later version's
/// sidecar can be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sidecar {
    /// [`SCHEMA`].
    pub schema: String,
    /// The file; of a set that rotated, its first, with the bytes and packets of the whole set.
    pub file: CaptureFile,
    /// Each file of a set that rotated, oldest first: `file.packets` are theirs and those of
    /// `capture.files.removed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<CaptureFile>,
    pub capture: CaptureState,
    pub clock: Clock,
    pub tool: Tool,
    /// Only for a capture that an agent left open when it died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered: Option<Recovered>,
    /// Where packets are missing, as far as it is known; the counts tell how many.
    #[serde(default)]
    pub gaps: Vec<Gap>,
    /// What was asked of it while it ran.
    #[serde(default, skip_serializing_if = "Amendments::is_empty")]
    pub amendments: Amendments,
}

/// The file as it was closed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureFile {
    /// File name, without a directory.
    pub name: String,
    pub bytes: u64,
    /// Packets in it.
    pub packets: u64,
    /// Packet blocks in it: more than packets where super-packets were cut into segments.
    #[serde(default)]
    pub blocks: u64,
}

/// How packet times were made from the kernel's monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC at the capture's start, in nanoseconds.
    pub offset_ns: i64,
    /// The offset is known to within this, in nanoseconds.
    pub error_ns: i64,
}

/// What made the capture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    pub name: String,
    pub version: String,
    /// Release of the kernel it ran on.
    pub kernel: String,
}

/// What a later agent found of a capture whose agent died.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recovered {
    /// When the counts were last noted.
    pub last_checkpoint: Option<Timestamp>,
    pub counts_at_checkpoint: Option<Counts>,
    /// What may be missing, for a person.
    pub statement: String,
    /// Bytes of a torn block that were cut off.
    pub truncated_bytes: u64,
}

/// A stretch in which packets are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gap {
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    /// Packets that are missing, if that is known.
    pub packets: Option<u64>,
    /// Why, for a person.
    pub reason: String,
}

impl Sidecar {
    /// The account of `capture`, whose file is `file`.
    #[must_use]
    pub fn new(file: CaptureFile, capture: CaptureState, clock: Clock, tool: Tool) -> Self {
        let schema = SCHEMA.to_owned();
        Self {
            schema,
            file,
            files: Vec::new(),
            capture,
            clock,
            tool,
            recovered: None,
            gaps: Vec::new(),
            amendments: Amendments::default(),
        }
    }

    /// # Errors
    /// Too large, no JSON, or of another schema.
    pub fn from_json(json: &[u8]) -> Result<Self, SidecarError> {
        /// Read first, so that another schema is told as such.
        #[derive(Deserialize)]
        struct Schema {
            #[serde(default)]
            schema: String,
        }
        if json.len() > SIDECAR_BYTES_MAX {
            return Err(SidecarError::TooLarge(json.len()));
        }
        let Schema { schema } = serde_json::from_slice(json)?;
        if schema != SCHEMA {
            return Err(SidecarError::Schema(
                crate::text::excerpt(&schema, 80).to_string(),
            ));
        }
        Ok(serde_json::from_slice(json)?)
    }

    /// Indented, with a line break at its end.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self)
            .expect("maps have strings for keys, and memory takes all bytes");
        json.push(b'\n');
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amendment::{AMENDMENTS_MAX, Amendment, JOINED_BYTES_MAX, JoinedAlert};
    use crate::session::{CaptureId, Files, Phase, SessionSpec, StopReason, Target};

    fn sidecar() -> Sidecar {
        let state = CaptureState {
            id: CaptureId::generate(),
            spec: SessionSpec::new(Target::Pid(7)),
            phase: Phase::Finished,
            stop_reason: Some(StopReason::CrashRecovered),
            message: String::new(),
            counts: Counts {
                matched: u64::MAX,
                ..Counts::default()
            },
            started: Timestamp::from_nanosecond(1_795_489_205_478_445_995).expect("time"),
            finished: None,
            first_packet: None,
            last_packet: None,
            file: "x.pcapng".to_owned(),
            files: Files::default(),
            taps: Vec::new(),
            node: "worker-1".to_owned(),
            caller: String::new(),
            resolved_target: String::new(),
            pod: None,
        };
        let file = CaptureFile {
            name: "x.pcapng".to_owned(),
            bytes: 3,
            packets: 0,
            blocks: 0,
        };
        Sidecar::new(
            file,
            state,
            Clock {
                offset_ns: -1,
                error_ns: 40,
            },
            Tool::default(),
        )
    }

    #[test]
    fn sidecar_reads_back_to_the_last_nanosecond_and_count() {
        let mut sidecar = sidecar();
        assert_eq!(
            Sidecar::from_json(&sidecar.to_json()).expect("own"),
            sidecar
        );
        sidecar.recovered = Some(Recovered {
            truncated_bytes: 9,
            ..Recovered::default()
        });
        sidecar.gaps.push(Gap {
            packets: Some(2),
            ..Gap::default()
        });
        assert_eq!(
            Sidecar::from_json(&sidecar.to_json()).expect("own"),
            sidecar
        );
    }

    #[test]
    fn unknown_members_are_skipped() {
        let sidecar = sidecar();
        let json = String::from_utf8(sidecar.to_json()).expect("UTF-8");
        let json = json.replace(
            "\"tool\": {",
            "\"later\": {\"a\": [1]}, \"tool\": {\"new\": 1,",
        );
        assert_eq!(
            Sidecar::from_json(json.as_bytes()).expect("tolerated"),
            sidecar
        );
    }

    #[test]
    fn what_is_no_sidecar_is_told_why() {
        let json = String::from_utf8(sidecar().to_json()).expect("UTF-8");
        let other = json.replace(SCHEMA, "remora.dev/capture/v9\\u001b");
        let error = Sidecar::from_json(other.as_bytes()).expect_err("schema");
        assert!(
            error.to_string().contains("`remora.dev/capture/v9\\u{1b}`"),
            "{error}"
        );
        let half = &json.as_bytes()[..json.len() / 2];
        assert!(matches!(
            Sidecar::from_json(half),
            Err(SidecarError::Json(_))
        ));
        let large = vec![b' '; SIDECAR_BYTES_MAX + 1];
        assert!(matches!(
            Sidecar::from_json(&large),
            Err(SidecarError::TooLarge(_))
        ));
    }

    #[test]
    fn largest_spec_fits() {
        let mut sidecar = sidecar();
        let spec = &mut sidecar.capture.spec;
        spec.trigger.alert = "\u{1}".repeat(crate::alert::ALERT_BYTES_MAX);
        for i in 0..crate::session::LABELS_MAX {
            spec.labels
                .insert(format!("{i}{}", "\u{1}".repeat(1020)), "\u{1}".repeat(1024));
        }
        spec.validate().expect("within bounds");
        let file = CaptureFile {
            name: "01J9ZQ3C7M8N4R5T6V7W8X9YZA_000001_20261124112233.pcapng.zst".to_owned(),
            bytes: u64::MAX,
            packets: u64::MAX,
            blocks: u64::MAX,
        };
        sidecar.files = vec![file; crate::pcapng::FILES_MAX as usize];
        let amendment = |text: String| Amendment {
            at: Timestamp::MAX,
            caller: "x".repeat(256),
            duration: Some(std::time::Duration::MAX),
            alert: Some(JoinedAlert {
                time: Some(Timestamp::MAX),
                ..JoinedAlert::new(&text, Some(&"k".repeat(128)), None)
            }),
        };
        let kept = &mut sidecar.amendments.kept;
        kept.push(amendment("\u{1}".repeat(JOINED_BYTES_MAX)));
        kept.resize(AMENDMENTS_MAX, amendment(String::new()));
        assert!(Sidecar::from_json(&sidecar.to_json()).is_ok());
    }
}
