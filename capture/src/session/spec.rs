//! The request: what to capture, how much of it, and why.

use std::{collections::BTreeMap, fmt, net::IpAddr, num::NonZeroU64, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Part, SelectorError, SuperPackets, Target, TargetError, Writing};
use crate::{alert::ALERT_BYTES_MAX, filter::Filter, upload::SinkName};

/// Largest snaplen, in bytes (libpcap's `MAXIMUM_SNAPLEN`).
pub const SNAPLEN_MAX: u32 = 262_144;
/// Labels a capture can have.
pub const LABELS_MAX: usize = 32;
/// Name hints a capture can have.
pub const NAMES_MAX: usize = 256;
/// Longest label key or value, and longest text of a trigger, in bytes.
const TEXT_MAX: usize = 1024;
/// Longest capture: 7 days.
pub const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Smallest file limit, in bytes: the blocks before and after the packets have room in it.
const FILE_BYTES_MIN: u64 = 1024;

/// A spec has a value that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Selector(#[from] SelectorError),
    #[error("snaplen {0} is out of range; use 1 to {SNAPLEN_MAX}")]
    Snaplen(u64),
    #[error("a capture lasts more than 0 and at most 7 days, not {0:?}")]
    Duration(Duration),
    #[error("a file limit of {0} bytes leaves no room for packets; use {FILE_BYTES_MIN} or more")]
    FileBytes(u64),
    #[error(
        "a capture has at most {LABELS_MAX} labels, each key and value at most {TEXT_MAX} bytes"
    )]
    Labels,
    #[error("{0}")]
    Writing(&'static str),
    #[error(transparent)]
    Sink(#[from] crate::upload::SinkNameError),
    #[error("a streamed capture is not kept, so there is nothing to upload to `{0}`; store it")]
    SinkOfStream(SinkName),
    #[error("a capture has at most {NAMES_MAX} names")]
    Names,
    #[error("`{0}` is not a host name; use letters, digits, `-` and `.`, at most 63 characters")]
    Name(String),
    #[error("the trigger's {field} has {len} bytes; at most {max} are kept")]
    Trigger {
        field: &'static str,
        len: usize,
        max: usize,
    },
}

/// Bytes kept of each packet: 1 to [`SNAPLEN_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Snaplen(u32);

impl Snaplen {
    pub const MAX: Self = Self(SNAPLEN_MAX);

    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Snaplen {
    fn default() -> Self {
        Self::MAX
    }
}

impl TryFrom<u32> for Snaplen {
    type Error = SpecError;

    fn try_from(bytes: u32) -> Result<Self, SpecError> {
        if (1..=SNAPLEN_MAX).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(SpecError::Snaplen(bytes.into()))
        }
    }
}

impl From<Snaplen> for u32 {
    fn from(snaplen: Snaplen) -> Self {
        snaplen.0
    }
}

impl fmt::Display for Snaplen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// As the target sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    #[default]
    Both,
    /// Into the target.
    Ingress,
    /// Out of the target.
    Egress,
}

/// Where the packets go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// A file in the agent's data directory.
    #[default]
    Store,
    /// The one reader of the capture's stream.
    Stream,
}

/// When a capture ends by itself. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Packets in the capture, exactly.
    pub packets: Option<NonZeroU64>,
    /// Bytes of the pcapng file, before compression; it never grows beyond.
    pub file_bytes: Option<NonZeroU64>,
    /// From the moment of arming.
    pub duration: Option<Duration>,
}

impl Limits {
    /// # Errors
    /// A limit that cannot be.
    pub fn validate(&self) -> Result<(), SpecError> {
        if let Some(duration) = self.duration
            && (duration.is_zero() || duration > DURATION_MAX)
        {
            return Err(SpecError::Duration(duration));
        }
        if let Some(bytes) = self.file_bytes
            && bytes.get() < FILE_BYTES_MIN
        {
            return Err(SpecError::FileBytes(bytes.get()));
        }
        Ok(())
    }
}

/// Who asked, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trigger {
    /// "cli", "falco", "talon", "grpc", "capture-cr".
    pub source: String,
    /// Name of the rule that decided.
    pub rule: String,
    pub priority: String,
    /// The alert as it came, or empty.
    pub alert: String,
    /// Who asked, by the trigger's own word.
    pub requester: String,
    pub reason: String,
    /// When the thing happened, by the trigger's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// W3C trace id.
    pub trace_id: String,
}

/// A name for an address, for the file's name resolution block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameHint {
    pub address: IpAddr,
    /// `[A-Za-z0-9._-]`, 1 to 63 characters: Wireshark cuts there and prints anything raw.
    pub name: String,
}

impl NameHint {
    /// The name is what [`NameHint::name`] promises.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        (1..=63).contains(&self.name.len())
            && self
                .name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    }
}

/// All that makes a session. Valid by construction only after [`SessionSpec::validate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSpec {
    pub target: Target,
    #[serde(default)]
    pub filter: Filter,
    #[serde(default)]
    pub snaplen: Snaplen,
    #[serde(default)]
    pub direction: Direction,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub destination: Destination,
    /// Where its files are uploaded when it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sink: Option<SinkName>,
    #[serde(default)]
    pub writing: Writing,
    #[serde(default)]
    pub super_packets: SuperPackets,
    /// Length of the window before the trigger that goes into the capture; zero for none.
    #[serde(default)]
    pub look_back: Duration,
    #[serde(default)]
    pub trigger: Trigger,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub names: Vec<NameHint>,
    /// The capture over several nodes that this is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
}

impl SessionSpec {
    /// A spec that captures everything of `target`, without limits, into the store.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            filter: Filter::default(),
            snaplen: Snaplen::default(),
            direction: Direction::default(),
            limits: Limits::default(),
            destination: Destination::default(),
            sink: None,
            writing: Writing::default(),
            super_packets: SuperPackets::default(),
            look_back: Duration::ZERO,
            trigger: Trigger::default(),
            labels: BTreeMap::new(),
            names: Vec::new(),
            part: None,
        }
    }

    /// Would the other take the same packets of the same target, and keep them in the same way? Limits,
    /// look-back and who asked may differ.
    #[must_use]
    pub fn takes_what(&self, other: &Self) -> bool {
        let Self {
            target,
            filter,
            snaplen,
            direction,
            destination,
            sink,
            writing,
            super_packets,
            limits: _,
            look_back: _,
            trigger: _,
            labels: _,
            names: _,
            part: _,
        } = self;
        *target == other.target
            && filter.text() == other.filter.text()
            && *snaplen == other.snaplen
            && *direction == other.direction
            && *destination == other.destination
            && *sink == other.sink
            && *writing == other.writing
            && *super_packets == other.super_packets
    }

    /// Checks every bound that the types do not carry.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.target.validate()?;
        if let Some(part) = &self.part {
            part.selector.validate()?;
        }
        self.limits.validate()?;
        self.writing.validate(&self.limits)?;
        if self.destination == Destination::Stream && self.writing != Writing::default() {
            return Err(SpecError::Writing(
                "a stream is one plain pcapng; its reader rotates and compresses it",
            ));
        }
        if self.destination == Destination::Stream
            && let Some(sink) = &self.sink
        {
            return Err(SpecError::SinkOfStream(sink.clone()));
        }
        if self.super_packets == SuperPackets::Segmented && self.limits.file_bytes.is_some() {
            return Err(SpecError::Writing(
                "how large a file gets is not known beforehand when super-packets are cut into \
                 segments; use a number of packets (-c) or a time (-a duration)",
            ));
        }
        if self.labels.len() > LABELS_MAX
            || self
                .labels
                .iter()
                .any(|(k, v)| k.len() > TEXT_MAX || v.len() > TEXT_MAX)
        {
            return Err(SpecError::Labels);
        }
        if self.names.len() > NAMES_MAX {
            return Err(SpecError::Names);
        }
        for hint in &self.names {
            if !hint.is_usable() {
                let short: String = hint.name.chars().take(80).collect();
                return Err(SpecError::Name(short.escape_debug().to_string()));
            }
        }
        let trigger = &self.trigger;
        for (field, text, max) in [
            ("source", &trigger.source, TEXT_MAX),
            ("rule", &trigger.rule, TEXT_MAX),
            ("priority", &trigger.priority, TEXT_MAX),
            ("alert", &trigger.alert, ALERT_BYTES_MAX),
            ("requester", &trigger.requester, TEXT_MAX),
            ("reason", &trigger.reason, TEXT_MAX),
            ("trace_id", &trigger.trace_id, TEXT_MAX),
        ] {
            if text.len() > max {
                return Err(SpecError::Trigger {
                    field,
                    len: text.len(),
                    max,
                });
            }
        }
        Ok(())
    }
}
