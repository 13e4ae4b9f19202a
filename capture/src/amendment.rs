//! What is asked of a capture while it runs: alerts that join it, and a longer time.
//!
//! They go into its account and its [manifest](crate::evidence::Manifest). Their number is bounded; what
//! goes beyond is counted.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::evidence::Digest;

/// Amendments that are kept of a capture.
pub const AMENDMENTS_MAX: usize = 1024;
/// Bytes of joined alerts that are kept in full, all together; of the others the digest is.
pub const JOINED_BYTES_MAX: usize = 64 << 10;

/// Amendments of a capture, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amendments {
    pub kept: Vec<Amendment>,
    /// Those for which there was no room.
    pub left_out: u64,
}

/// One amendment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amendment {
    pub at: Timestamp,
    /// Who called, as the agent saw it.
    pub caller: String,
    /// How long the capture lasts in all as of then, from its start on; none: without limit.
    pub duration: Option<Duration>,
    /// The alert that joined it; none if it was only made longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<JoinedAlert>,
}

/// An alert for which a capture ran already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedAlert {
    /// Of the alert as it came.
    pub sha256: Digest,
    /// The idempotency key of its request; empty if it had none.
    pub key: String,
    /// When what it tells happened, by its own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// As it came; empty if there was no room for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

impl Amendments {
    /// How many alerts joined.
    #[must_use]
    pub fn alerts(&self) -> u64 {
        let kept = self.kept.iter().filter(|one| one.alert.is_some()).count();
        kept as u64 + self.left_out
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.left_out == 0
    }
}

impl Amendment {
    /// One line of JSON.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("strings and numbers have a JSON");
        line.push(b'\n');
        line
    }

    /// What [`Amendment::to_line`] made, or nothing if it is not whole.
    #[must_use]
    pub fn from_line(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

impl JoinedAlert {
    /// The alert of a request, in full.
    #[must_use]
    pub fn new(alert: &str, key: Option<&str>, time: Option<Timestamp>) -> Self {
        Self {
            sha256: Digest::of(alert.as_bytes()),
            key: key.unwrap_or_default().to_owned(),
            time,
            text: alert.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_whatever_the_alert_says_and_reads_back() {
        let alert = "{\"rule\":\"a\nb\u{1b}[2J\u{2028}\"}";
        let amendment = Amendment {
            at: Timestamp::UNIX_EPOCH,
            caller: "uid=0".to_owned(),
            duration: Some(Duration::from_millis(1500)),
            alert: Some(JoinedAlert::new(alert, Some("key"), None)),
        };
        let line = amendment.to_line();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(Amendment::from_line(&line), Some(amendment));
        assert_eq!(Amendment::from_line(&line[..line.len() - 2]), None);
    }
}
