//! Entries, and the lines they become.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{evidence::Digest, text::one_line};

/// Longest line, in bytes, without its end. Entries' texts are cut so that it holds.
pub const LINE_MAX: usize = 64 * 1024;

/// Longest texts of an entry, in bytes.
const NAME_MAX: usize = 512;
const FILTER_MAX: usize = 4096;
const REASON_MAX: usize = 2048;
/// Most namespaces that are named.
const NAMESPACES_MAX: usize = 64;

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    Allowed,
    Refused,
    /// A capture that runs already serves the trigger.
    Coalesced,
    /// What was allowed is over: a read, with its bytes.
    Done,
}

/// One decision, or the end of what was allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub time: Timestamp,
    /// "start", "stop", "read", "alert", …
    pub action: String,
    pub decision: Decision,
    /// The user, as the API server calls him; the requester of an alert.
    pub who: String,
    /// Where the call came from; empty if that is unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// The selector or target, as text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub filter: String,
    /// The capture's id, once it has one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub capture: String,
    /// Why it was refused, or wanted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Bytes of packets that were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl Entry {
    /// Of now, with nothing said but this.
    #[must_use]
    pub fn new(action: &str, decision: Decision, who: &str) -> Self {
        Self {
            time: Timestamp::now(),
            action: action.to_owned(),
            decision,
            who: who.to_owned(),
            address: String::new(),
            namespaces: Vec::new(),
            target: String::new(),
            filter: String::new(),
            capture: String::new(),
            reason: String::new(),
            bytes: None,
        }
    }

    /// Its texts on one line each, cut to their bounds.
    fn bounded(&self) -> Self {
        let name = |text: &str| one_line(text, NAME_MAX);
        Self {
            time: self.time,
            action: name(&self.action),
            decision: self.decision,
            who: name(&self.who),
            address: name(&self.address),
            namespaces: self
                .namespaces
                .iter()
                .take(NAMESPACES_MAX)
                .map(|namespace| one_line(namespace, 64))
                .collect(),
            target: name(&self.target),
            filter: one_line(&self.filter, FILTER_MAX),
            capture: name(&self.capture),
            reason: one_line(&self.reason, REASON_MAX),
            bytes: self.bytes,
        }
    }
}

/// An entry in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// From 1 on, without a gap.
    pub number: u64,
    /// SHA-256 of the line before, without its line end; of zeroes for the first.
    pub previous: Digest,
    #[serde(flatten)]
    pub entry: Entry,
}

/// The last line of a log; as text `NUMBER:SHA256`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Head {
    pub number: u64,
    pub line: Digest,
}

/// A text is not a [`Head`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a head is NUMBER:SHA256, as `remora audit verify` prints it")]
pub struct HeadError;

impl Head {
    /// Of a log that has no line yet.
    pub const START: Self = Self {
        number: 0,
        line: Digest::ZERO,
    };

    /// The line for `entry` behind this one, with its end, and the head that it makes.
    #[must_use]
    pub fn append(&self, entry: &Entry) -> (Vec<u8>, Self) {
        let line = Line {
            number: self.number + 1,
            previous: self.line,
            entry: entry.bounded(),
        };
        let mut bytes = serde_json::to_vec(&line).expect("texts and numbers are JSON");
        let head = Self::of(line.number, &bytes);
        bytes.push(b'\n');
        (bytes, head)
    }

    /// Of a line, without its end.
    pub(super) fn of(number: u64, line: &[u8]) -> Self {
        Self {
            number,
            line: Digest::of(line),
        }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.line)
    }
}

impl FromStr for Head {
    type Err = HeadError;

    fn from_str(text: &str) -> Result<Self, HeadError> {
        let (number, line) = text.trim().split_once(':').ok_or(HeadError)?;
        Ok(Self {
            number: number.parse().map_err(|_not| HeadError)?,
            line: line.parse().map_err(|_not| HeadError)?,
        })
    }
}
