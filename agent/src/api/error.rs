//! Errors of the driver as gRPC statuses: the right code, a stable reason, a message for a person.

use remora_proto::reason::{Reason, status};
use tonic::{Code, Status};

use crate::session::{LookupError, StartError};

pub(super) fn start(error: &StartError) -> Status {
    let (code, reason) = match error {
        StartError::Spec(_) | StartError::IdempotencyKey(_) => {
            (Code::InvalidArgument, Reason::InvalidSpec)
        }
        StartError::Filter { .. } => (Code::InvalidArgument, Reason::InvalidFilter),
        StartError::TargetNotFound(_) => (Code::NotFound, Reason::TargetNotFound),
        StartError::TargetUnsupported(_) => (Code::FailedPrecondition, Reason::TargetUnsupported),
        StartError::Private(_) => (Code::PermissionDenied, Reason::PermissionDenied),
        StartError::SessionLimit(_) => (Code::ResourceExhausted, Reason::SessionLimit),
        StartError::Quota(_) => (Code::ResourceExhausted, Reason::QuotaExceeded),
        StartError::Output(_) | StartError::Kernel(_) | StartError::Elsewhere(_) => {
            (Code::Internal, Reason::Kernel)
        }
        StartError::Draining => (Code::Unavailable, Reason::Draining),
    };
    status(code, reason, error.to_string())
}

pub(super) fn lookup(error: &LookupError) -> Status {
    let (code, reason) = match error {
        LookupError::NotFound(_) | LookupError::NotKept(_) => {
            (Code::NotFound, Reason::CaptureNotFound)
        }
        LookupError::StreamTaken(_) => (Code::FailedPrecondition, Reason::StreamTaken),
        LookupError::Draining => (Code::Unavailable, Reason::Draining),
    };
    status(code, reason, error.to_string())
}
