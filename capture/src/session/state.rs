//! A capture's life as others see it.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Counts, LookBackMode, PodIdentity, SessionSpec};

/// Name of a capture: a ULID in its canonical 26 characters, so ids sort by time and are safe in
/// a file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaptureId(ulid::Ulid);

/// A text is not a capture id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a capture id; `remora list --all` shows them")]
pub struct IdError(String);

impl CaptureId {
    /// A new id for this moment.
    #[must_use]
    pub fn generate() -> Self {
        Self(ulid::Ulid::generate())
    }

    /// The same id for the same time and key: whoever makes it, it means the same capture.
    #[must_use]
    pub fn derived(time: Timestamp, key: &[u8]) -> Self {
        let millisecond = u64::try_from(time.as_millisecond()).unwrap_or(0);
        let digest = Sha256::digest(key);
        let mut random = [0; 16];
        random[6..].copy_from_slice(&digest[..10]);
        Self(ulid::Ulid::from_parts(
            millisecond,
            u128::from_be_bytes(random),
        ))
    }

    /// As two words, the low half first.
    #[must_use]
    pub fn words(self) -> [u64; 2] {
        [self.0.0 as u64, (self.0.0 >> 64) as u64]
    }
}

impl fmt::Display for CaptureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for CaptureId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let id = ulid::Ulid::from_string(text).map_err(|_invalid| {
            IdError(
                text.chars()
                    .take(40)
                    .collect::<String>()
                    .escape_debug()
                    .to_string(),
            )
        })?;
        Ok(Self(id))
    }
}

impl Serialize for CaptureId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CaptureId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Capturing,
    Draining,
    Finished,
    Failed,
}

impl Phase {
    /// Nothing changes any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Failed)
    }
}

/// Why a capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    Requested,
    Packets,
    FileBytes,
    Duration,
    TargetGone,
    ReaderGone,
    NoSpace,
    IoError,
    Shutdown,
    CrashRecovered,
}

impl StopReason {
    /// For a person.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Requested => "stopped on request",
            Self::Packets => "packet limit reached",
            Self::FileBytes => "file size limit reached",
            Self::Duration => "time limit reached",
            Self::TargetGone => "the target is gone",
            Self::ReaderGone => "the reader went away",
            Self::NoSpace => "no space left",
            Self::IoError => "the output failed",
            Self::Shutdown => "the agent was stopped",
            Self::CrashRecovered => "the agent died; closed at its next start",
        }
    }
}

/// One place where a capture's packets are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TapInfo {
    /// "tcx" or "cgroup".
    pub hook: String,
    pub interface: String,
    pub ifindex: u32,
    pub cgroup_id: u64,
    pub description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub look_back: Option<LookBackRing>,
}

/// A tap's look-back ring at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LookBackRing {
    /// What goes into it; of one that is off there is nothing.
    pub mode: LookBackMode,
    /// Memory it takes.
    pub bytes: u64,
    /// How far back it reaches, in milliseconds.
    pub reach_ms: u64,
    /// Packets recorded since it was made, overwritten ones included.
    pub packets: u64,
    /// What the flow cutoff left out since then.
    pub cut_packets: u64,
    pub cut_bytes: u64,
}

/// What a finished capture's packets went into, beside its counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Files {
    /// Files that are there.
    pub count: u64,
    /// What a ring of files removed: it is part of what was written.
    pub removed: Removed,
    /// Packet blocks that were written: more than packets where super-packets were cut into
    /// segments.
    pub blocks: u64,
}

/// Files of a ring that are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Removed {
    pub files: u64,
    pub packets: u64,
    pub blocks: u64,
    pub bytes: u64,
}

/// A capture as `Get` and the sidecar tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureState {
    pub id: CaptureId,
    pub spec: SessionSpec,
    pub phase: Phase,
    pub stop_reason: Option<StopReason>,
    /// What went wrong or is to be known of the packets, for a person; mostly empty.
    #[serde(default)]
    pub message: String,
    pub counts: Counts,
    pub started: Timestamp,
    pub finished: Option<Timestamp>,
    pub first_packet: Option<Timestamp>,
    pub last_packet: Option<Timestamp>,
    /// File name in the data directory, of files that rotate the first one's; empty for a streamed
    /// capture.
    #[serde(default)]
    pub file: String,
    #[serde(default)]
    pub files: Files,
    #[serde(default)]
    pub taps: Vec<TapInfo>,
    pub node: String,
    /// Who called, as the agent saw it.
    #[serde(default)]
    pub caller: String,
    /// The target as it was found on the node.
    #[serde(default)]
    pub resolved_target: String,
    /// The pod that it is, or is a part of, if the node's pods are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Box<PodIdentity>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_id_is_of_its_time_and_its_key() {
        let time: Timestamp = "2026-11-24T03:00:05.478Z".parse().unwrap();
        let id = CaptureId::derived(time, b"alert-1");
        assert_eq!(id, CaptureId::derived(time, b"alert-1"));
        assert_ne!(id, CaptureId::derived(time, b"alert-2"));
        let later = time + jiff::SignedDuration::from_millis(1);
        assert!(CaptureId::derived(later, b"alert-1") > id);
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}
