//! How far a capture is on its way to its sink.

use remora_proto::v1;
use serde::Serialize;

use super::{shown, unit};

/// As the agent tells it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Upload {
    pub(crate) sink: String,
    pub(crate) phase: &'static str,
    pub(crate) files: u64,
    pub(crate) files_verified: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_verified: u64,
    pub(crate) failures: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) error: String,
    /// Of the manifest in the store.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) url: String,
}

impl From<v1::Upload> for Upload {
    fn from(told: v1::Upload) -> Self {
        let phase = match told.phase() {
            v1::UploadPhase::Running => "running",
            v1::UploadPhase::Verified => "verified",
            v1::UploadPhase::Waiting | v1::UploadPhase::Unspecified => "waiting",
        };
        Self {
            phase,
            sink: told.sink,
            files: told.files,
            files_verified: told.files_verified,
            bytes: told.bytes,
            bytes_verified: told.bytes_verified,
            failures: told.failures,
            error: told.error,
            url: told.url,
        }
    }
}

impl Upload {
    /// On one line, for a person.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{} to {}: {} of {} files, {} of {}",
            self.phase,
            shown(&self.sink),
            self.files_verified,
            self.files,
            unit::bytes(self.bytes_verified),
            unit::bytes(self.bytes),
        );
        if !self.url.is_empty() {
            text += &format!("; {}", shown(&self.url));
        }
        if !self.error.is_empty() {
            let times = self.failures;
            text += &format!("; failed {times} times, last: {}", shown(&self.error));
        } else if self.phase == "waiting" {
            text += "; for a controller that knows this sink (--sink)";
        }
        text
    }
}
