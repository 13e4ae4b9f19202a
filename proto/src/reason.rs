//! Why a call failed, as a stable word beside the gRPC code and the message for a person.
//!
//! A status carries the word in its metadata under [`METADATA_KEY`]. Words are never renamed and
//! never reused; a client that meets one it does not know goes by the gRPC code.

use std::{fmt, str::FromStr};

use tonic::{Code, Status, metadata::MetadataValue};

/// Metadata key of a status under which the word stands.
pub const METADATA_KEY: &str = "remora-reason";

/// Longest message of a status, in bytes: gRPC sends it in a header, percent-encoded to at most
/// three times its length, and HTTP/2 peers refuse long headers (16 KiB in hyper).
pub const MESSAGE_MAX: usize = 4096;

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A value of the spec cannot be.
    InvalidSpec,
    /// The filter text is not one, or is beyond the language of this version.
    InvalidFilter,
    /// Nothing on this node answers to the target.
    TargetNotFound,
    /// The target is there, but packets cannot be taken from it.
    TargetUnsupported,
    /// The node's limit of running sessions is reached.
    SessionLimit,
    /// No capture has this id.
    CaptureNotFound,
    /// This version of the agent lacks it.
    Unimplemented,
    /// The store's quota is reached.
    QuotaExceeded,
    /// The kernel refused.
    Kernel,
    /// The capture's stream has its one reader already.
    StreamTaken,
    /// The agent is about to end.
    Draining,
    /// The caller may not do this.
    PermissionDenied,
    /// The capture has ended, and cannot be lengthened.
    CaptureEnded,
    /// Too many new captures by alerts on this node in a short time.
    NodeRate,
    /// Too many of them of one namespace.
    NamespaceRate,
    /// Too many of them by one rule.
    RuleRate,
    /// The capture is not finished.
    CaptureRunning,
    /// The capture is held, and nobody may delete it.
    CaptureHeld,
    /// The capture's files were deleted.
    CaptureDeleted,
    /// The capture is not held.
    CaptureNotHeld,
    /// The capture's files are not in the store yet that it was captured for.
    CaptureNotUploaded,
    /// The privacy level of its namespace lets nothing of it be captured, whoever asks.
    NamespacePrivate,
    /// The capture's files are encrypted: the node cannot read them.
    CaptureEncrypted,
}

/// A word is not a [`Reason`] of this version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown reason")]
pub struct UnknownReason;

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 23] = [
        Self::InvalidSpec,
        Self::InvalidFilter,
        Self::TargetNotFound,
        Self::TargetUnsupported,
        Self::SessionLimit,
        Self::CaptureNotFound,
        Self::Unimplemented,
        Self::QuotaExceeded,
        Self::Kernel,
        Self::StreamTaken,
        Self::Draining,
        Self::PermissionDenied,
        Self::CaptureEnded,
        Self::NodeRate,
        Self::NamespaceRate,
        Self::RuleRate,
        Self::CaptureRunning,
        Self::CaptureHeld,
        Self::CaptureDeleted,
        Self::CaptureNotHeld,
        Self::CaptureNotUploaded,
        Self::NamespacePrivate,
        Self::CaptureEncrypted,
    ];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidSpec => "invalid_spec",
            Self::InvalidFilter => "invalid_filter",
            Self::TargetNotFound => "target_not_found",
            Self::TargetUnsupported => "target_unsupported",
            Self::SessionLimit => "session_limit",
            Self::CaptureNotFound => "capture_not_found",
            Self::Unimplemented => "unimplemented",
            Self::QuotaExceeded => "quota_exceeded",
            Self::Kernel => "kernel",
            Self::StreamTaken => "stream_taken",
            Self::Draining => "draining",
            Self::PermissionDenied => "permission_denied",
            Self::CaptureEnded => "capture_ended",
            Self::NodeRate => "node_rate",
            Self::NamespaceRate => "namespace_rate",
            Self::RuleRate => "rule_rate",
            Self::CaptureRunning => "capture_running",
            Self::CaptureHeld => "capture_held",
            Self::CaptureDeleted => "capture_deleted",
            Self::CaptureNotHeld => "capture_not_held",
            Self::CaptureNotUploaded => "capture_not_uploaded",
            Self::NamespacePrivate => "namespace_private",
            Self::CaptureEncrypted => "capture_encrypted",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(word: &str) -> Result<Self, UnknownReason> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == word)
            .ok_or(UnknownReason)
    }
}

/// A status with its reason. A message over [`MESSAGE_MAX`] bytes is cut at a character.
#[must_use]
pub fn status(code: Code, reason: Reason, message: impl Into<String>) -> Status {
    let mut message = message.into();
    message.truncate(message.floor_char_boundary(MESSAGE_MAX));
    let mut status = Status::new(code, message);
    status
        .metadata_mut()
        .insert(METADATA_KEY, MetadataValue::from_static(reason.as_str()));
    status
}

/// The reason of a status, if it carries one that this version knows.
#[must_use]
pub fn reason_of(status: &Status) -> Option<Reason> {
    status
        .metadata()
        .get(METADATA_KEY)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn words_are_those_of_the_proto_file() {
        for reason in Reason::ALL {
            let name = format!("REASON_{}", reason.as_str().to_ascii_uppercase());
            assert!(
                v1::Reason::from_str_name(&name).is_some(),
                "{name} is not in the proto file"
            );
        }
        // Numbers there are dense: one more than ours is the unspecified 0.
        assert!(v1::Reason::try_from(Reason::ALL.len() as i32).is_ok());
        assert!(v1::Reason::try_from(Reason::ALL.len() as i32 + 1).is_err());
    }

    #[test]
    fn a_status_gives_back_its_reason() {
        for reason in Reason::ALL {
            let status = status(Code::NotFound, reason, "no such thing");
            assert_eq!(reason_of(&status), Some(reason));
            assert_eq!(
                (status.code(), status.message()),
                (Code::NotFound, "no such thing")
            );
        }
        assert_eq!(reason_of(&Status::internal("other")), None);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let status = status(Code::Internal, Reason::Kernel, "é".repeat(MESSAGE_MAX));
        assert_eq!(status.message().len(), MESSAGE_MAX);
    }
}
