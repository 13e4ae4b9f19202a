//! Failures as statuses.

use remora_capture::session::CaptureId;
use remora_proto::reason::{Reason, status};
use tonic::{Code, Status};

use crate::{cluster::index::NoMembers, fleet::AgentError};

pub(super) fn invalid(message: impl Into<String>) -> Status {
    status(Code::InvalidArgument, Reason::InvalidSpec, message)
}

pub(super) fn no_members(error: &NoMembers) -> Status {
    match error {
        NoMembers::TooMany { .. } | NoMembers::Labels(_) => invalid(error.to_string()),
        _ => status(Code::NotFound, Reason::TargetNotFound, error.to_string()),
    }
}

pub(super) fn not_synced() -> Status {
    Status::unavailable(
        "the cluster is not known yet: the API server has not answered since this controller \
         started; captures by node and those of alerts work",
    )
}

pub(super) fn not_found(id: CaptureId, silent: &str) -> Status {
    let mut message = format!("no agent has capture {id}");
    if !silent.is_empty() {
        message = format!("{message}; {silent}");
    }
    status(Code::NotFound, Reason::CaptureNotFound, message)
}

/// No part could be started: the first reason that an agent gave, or that none could be reached.
pub(super) fn none_started(errors: &[AgentError]) -> Status {
    let told = errors.iter().find(|error| error.reason.is_some());
    match told.or(errors.first()) {
        Some(AgentError {
            reason: Some(reason),
            code,
            text,
        }) => status(*code, *reason, text),
        Some(error) => Status::new(error.code, &error.text),
        None => Status::internal("there was nothing to start"),
    }
}
