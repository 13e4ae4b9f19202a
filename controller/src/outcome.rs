//! What became of an alert.

use remora_capture::session::CaptureId;
use remora_proto::reason::Reason;

/// Every alert has exactly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The agent captures.
    Accepted(CaptureId),
    /// A capture of the same packets ran, which it joined.
    Coalesced(CaptureId),
    /// The same alert came before: this is its capture.
    Existing(CaptureId),
    /// The rules want no capture; why.
    Ignored(String),
    Refused(Refusal),
}

/// Why an alert that should start a capture did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: RefusalCode,
    /// For a person; escaped, on one line.
    pub reason: String,
}

impl Refusal {
    pub(crate) fn new(code: RefusalCode, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }
}

/// A stable word for each kind of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// The sender did not show the secret.
    Unauthenticated,
    /// It was signed too long ago, or in the future.
    ClockSkew,
    /// The same signed request came before.
    Replayed,
    /// The body is not said to be JSON, or is compressed.
    NotJson,
    TooLarge,
    /// The request comes out of a web page.
    FromBrowser,
    /// The body did not come in time.
    SlowBody,
    /// The body ended too early, or the sender left before it was read.
    SenderGone,
    InvalidAlert,
    /// The alert names nothing that can be captured.
    NoTarget,
    /// The rule asks for what only the cluster part can do.
    NeedsCluster,
    /// The alert lacks what the rule's filter asks for.
    MissingValue,
    /// Rule and alert together make no capture.
    InvalidSpec,
    /// The audit log cannot be written.
    Audit,
    /// Too many alerts are being handled.
    Busy,
    /// The agent is not there or is out of reach.
    AgentAway,
    /// The agent did not answer in time.
    AgentTimeout,
    /// The agent gave a reason of its own.
    Agent(Reason),
    /// The agent failed, or answered what is no answer.
    AgentFailed,
}

impl RefusalCode {
    /// All that are the controller's own.
    pub(crate) const OWN: [Self; 18] = [
        Self::Unauthenticated,
        Self::ClockSkew,
        Self::Replayed,
        Self::NotJson,
        Self::TooLarge,
        Self::FromBrowser,
        Self::SlowBody,
        Self::SenderGone,
        Self::InvalidAlert,
        Self::NoTarget,
        Self::NeedsCluster,
        Self::MissingValue,
        Self::InvalidSpec,
        Self::Audit,
        Self::Busy,
        Self::AgentAway,
        Self::AgentTimeout,
        Self::AgentFailed,
    ];

    /// The word, as in answers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::ClockSkew => "clock_skew",
            Self::Replayed => "replayed",
            Self::NotJson => "not_json",
            Self::TooLarge => "too_large",
            Self::FromBrowser => "from_browser",
            Self::SlowBody => "slow_body",
            Self::SenderGone => "sender_gone",
            Self::InvalidAlert => "invalid_alert",
            Self::NoTarget => "no_target",
            Self::NeedsCluster => "needs_cluster",
            Self::MissingValue => "missing_value",
            Self::InvalidSpec => "invalid_spec",
            Self::Audit => "audit",
            Self::Busy => "busy",
            Self::AgentAway => "agent_away",
            Self::AgentTimeout => "agent_timeout",
            Self::Agent(reason) => reason.as_str(),
            Self::AgentFailed => "agent_failed",
        }
    }
}

impl Outcome {
    /// The word, as in answers and metrics.
    #[must_use]
    pub fn decision(&self) -> Decision {
        match self {
            Self::Accepted(_) => Decision::Accepted,
            Self::Coalesced(_) => Decision::Coalesced,
            Self::Existing(_) => Decision::Existing,
            Self::Ignored(_) => Decision::Ignored,
            Self::Refused(_) => Decision::Refused,
        }
    }

    /// The capture, if there is one.
    #[must_use]
    pub fn capture(&self) -> Option<CaptureId> {
        match self {
            Self::Accepted(id) | Self::Coalesced(id) | Self::Existing(id) => Some(*id),
            Self::Ignored(_) | Self::Refused(_) => None,
        }
    }
}

/// Kinds of [`Outcome`], the most welcome first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Decision {
    Accepted,
    Coalesced,
    Existing,
    Refused,
    Ignored,
}

impl Decision {
    pub(crate) const ALL: [Self; 5] = [
        Self::Accepted,
        Self::Coalesced,
        Self::Existing,
        Self::Refused,
        Self::Ignored,
    ];

    /// The word, as in answers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Coalesced => "coalesced",
            Self::Existing => "existing",
            Self::Refused => "refused",
            Self::Ignored => "ignored",
        }
    }
}
