//! Falco's alerts, as Falco, Falcosidekick and Falco Talon send them.
//!
//! [`Alert::from_json`] takes what the three really send: keys and priorities in any case, `null`,
//! `""` and `"<NA>"` for what is absent, numbers as strings, unknown keys. Numbers keep their
//! text, so no digit of `evt.time` is lost. What an alert asks to capture is in [`mapping`].
//!
//! All texts are untrusted: nothing of them is escaped here.

mod json;
pub mod mapping;

use std::{collections::BTreeMap, fmt, str::FromStr};

use jiff::Timestamp;

use crate::text;
pub use json::FieldValue;

/// Largest alert, in bytes: one that fits into a file's comment.
pub const ALERT_BYTES_MAX: usize = 64 * 1024 - 16;
/// Deepest nesting of lists and objects in an alert.
pub const ALERT_DEPTH_MAX: usize = 32;
/// Characters of a bad value shown in an error.
const SHOWN_MAX: usize = 80;

/// Bytes are not an alert.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum AlertError {
    #[error("the alert is empty; send Falco's JSON (falco.yaml: `json_output: true`)")]
    Empty,
    #[error("the alert has {0} bytes; at most {ALERT_BYTES_MAX} are taken")]
    TooLarge(usize),
    #[error("the alert nests lists and objects deeper than {ALERT_DEPTH_MAX}")]
    TooDeep,
    #[error("the alert is not JSON: {0}")]
    NotJson(String),
    #[error("the alert is not a JSON object; send one alert a request")]
    NotAnObject,
    #[error("the alert's `{field}` is not {expected}")]
    WrongType {
        field: &'static str,
        expected: &'static str,
    },
    #[error("the alert has no `rule`")]
    MissingRule,
    #[error(
        "`{0}` is not a priority; Falco's are Emergency, Alert, Critical, Error, Warning, Notice, Informational and Debug"
    )]
    Priority(String),
    #[error("`{0}` is not a time like 2026-11-24T03:00:05.478445995Z")]
    Time(String),
}

/// Falco's priorities; the more urgent is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    Debug,
    Informational,
    Notice,
    Warning,
    Error,
    Critical,
    Alert,
    Emergency,
}

impl Priority {
    pub const ALL: [Self; 8] = [
        Self::Emergency,
        Self::Alert,
        Self::Critical,
        Self::Error,
        Self::Warning,
        Self::Notice,
        Self::Informational,
        Self::Debug,
    ];

    /// As Falco writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debug => "Debug",
            Self::Informational => "Informational",
            Self::Notice => "Notice",
            Self::Warning => "Warning",
            Self::Error => "Error",
            Self::Critical => "Critical",
            Self::Alert => "Alert",
            Self::Emergency => "Emergency",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Priority {
    type Err = AlertError;

    /// Any case; "Info", too, as Falcosidekick takes it.
    fn from_str(text: &str) -> Result<Self, AlertError> {
        if text.eq_ignore_ascii_case("info") {
            return Ok(Self::Informational);
        }
        Self::ALL
            .into_iter()
            .find(|priority| priority.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| AlertError::Priority(text::excerpt(text, SHOWN_MAX).to_string()))
    }
}

/// One alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    pub rule: String,
    pub priority: Option<Priority>,
    /// When it happened; the field to trust, for `evt.time` may be rounded on its way.
    pub time: Option<Timestamp>,
    /// "syscall" where the sender left it empty or wrote "syscalls", as Falcosidekick does.
    pub source: String,
    /// The node, by Falco's word.
    pub hostname: Option<String>,
    /// Falcosidekick's id of the event.
    pub uuid: Option<String>,
    /// W3C trace id, from Talon.
    pub trace_id: Option<String>,
    pub output: String,
    pub tags: Vec<String>,
    pub fields: BTreeMap<String, FieldValue>,
}

impl Alert {
    /// Reads an alert from a request's body.
    ///
    /// Keys of the alert itself are taken in any case; of a key that comes more than once the last
    /// counts. Keys of `output_fields` are taken as they stand.
    ///
    /// # Errors
    /// [`AlertError`]; for untrusted bytes, so bounded in size and depth before they are parsed.
    pub fn from_json(bytes: &[u8]) -> Result<Self, AlertError> {
        json::parse(bytes)
    }

    /// The text of an output field: a string, or the exact text of a number or a bool. `None`
    /// where it is absent: no such key, `null`, `""`, `"<NA>"`, a list or an object.
    #[must_use]
    pub fn field(&self, key: &str) -> Option<&str> {
        self.fields.get(key)?.text()
    }
}
