//! What the sender of an alert reads.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use remora_proto::reason::Reason;
use serde::Serialize;

use crate::{
    ingest::Handled,
    outcome::{Outcome, RefusalCode},
};

/// The body of the answer to an alert, as JSON.
///
/// ```json
/// {"decision":"accepted","capture_id":"01JD…","received_unix_ns":1795489205478445995}
/// {"decision":"ignored","reason":"no rule matches","received_unix_ns":…}
/// {"decision":"refused","code":"target_not_found","reason":"…","received_unix_ns":…}
/// ```
#[derive(Debug, Serialize)]
pub struct Answer {
    /// "accepted", "coalesced" (a capture of the same packets ran, and lasts longer now), "existing" (the
    /// same alert came before), "ignored" or "refused".
    decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    capture_id: Option<String>,
    /// For a program: a stable word.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    /// For a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// When the request's head was there, in nanoseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    received_unix_ns: Option<i128>,
    /// Each capture's own answer, when the rules asked for more than one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    captures: Vec<Answer>,
}

impl Answer {
    pub(super) fn new(outcome: &Outcome) -> Self {
        let (code, reason) = match outcome {
            Outcome::Accepted(_) | Outcome::Coalesced(_) | Outcome::Existing(_) => (None, None),
            Outcome::Ignored(reason) => (None, Some(reason.clone())),
            Outcome::Refused(refusal) => {
                (Some(refusal.code.as_str()), Some(refusal.reason.clone()))
            }
        };
        Self {
            decision: outcome.decision().as_str(),
            capture_id: outcome.capture().map(|id| id.to_string()),
            code,
            reason,
            received_unix_ns: None,
            captures: Vec::new(),
        }
    }
}

/// The answer to an alert that was received at `received`.
pub(super) fn answer(handled: &Handled, received: Timestamp) -> Response {
    (status(&handled.outcome), Json(told(handled, received))).into_response()
}

/// What is told of an alert that was received at `received`.
pub(super) fn told(handled: &Handled, received: Timestamp) -> Answer {
    let mut answer = Answer::new(&handled.outcome);
    answer.received_unix_ns = Some(received.as_nanosecond());
    if handled.captures.len() > 1 {
        answer.captures = handled.captures.iter().map(Answer::new).collect();
    }
    answer
}

/// Falcosidekick takes 200, 201, 202 and 204 for success and logs all else as an error.
pub(super) fn status(outcome: &Outcome) -> StatusCode {
    let refusal = match outcome {
        Outcome::Accepted(_) | Outcome::Coalesced(_) | Outcome::Existing(_) => {
            return StatusCode::ACCEPTED;
        }
        Outcome::Ignored(_) => return StatusCode::OK,
        Outcome::Refused(refusal) => refusal,
    };
    match refusal.code {
        RefusalCode::Unauthenticated => StatusCode::UNAUTHORIZED,
        RefusalCode::InvalidAlert | RefusalCode::SenderGone => StatusCode::BAD_REQUEST,
        RefusalCode::FromBrowser | RefusalCode::ClockSkew | RefusalCode::Replayed => {
            StatusCode::FORBIDDEN
        }
        RefusalCode::SlowBody => StatusCode::REQUEST_TIMEOUT,
        RefusalCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        RefusalCode::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        RefusalCode::NoTarget
        | RefusalCode::NeedsCluster
        | RefusalCode::MissingValue
        | RefusalCode::InvalidSpec => StatusCode::UNPROCESSABLE_ENTITY,
        RefusalCode::Audit
        | RefusalCode::Busy
        | RefusalCode::AgentAway
        | RefusalCode::AgentTimeout
        | RefusalCode::AgentFailed => StatusCode::SERVICE_UNAVAILABLE,
        RefusalCode::Agent(reason) => agent_status(reason),
    }
}

fn agent_status(reason: Reason) -> StatusCode {
    match reason {
        Reason::InvalidSpec
        | Reason::InvalidFilter
        | Reason::TargetUnsupported
        | Reason::Unimplemented => StatusCode::UNPROCESSABLE_ENTITY,
        // True of the node at this moment, not of the alert.
        Reason::TargetNotFound
        | Reason::CaptureNotFound
        | Reason::CaptureEnded
        | Reason::StreamTaken
        | Reason::CaptureRunning
        | Reason::CaptureHeld
        | Reason::CaptureDeleted
        | Reason::CaptureNotHeld
        | Reason::CaptureNotUploaded
        | Reason::CaptureEncrypted
        | Reason::NamespacePrivate => StatusCode::CONFLICT,
        Reason::SessionLimit
        | Reason::QuotaExceeded
        | Reason::NodeRate
        | Reason::NamespaceRate
        | Reason::RuleRate => StatusCode::TOO_MANY_REQUESTS,
        Reason::Kernel | Reason::Draining | Reason::PermissionDenied => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}
