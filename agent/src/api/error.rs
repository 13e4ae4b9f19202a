//! Errors of the driver as gRPC statuses: the right code, a stable reason, a message for a person.

use remora_capture::text::escape;
use remora_proto::reason::{Reason, status};
use tonic::{Code, Status};

use crate::{
    custody::CustodyError,
    session::{ExtendError, LookupError, Of, StartError},
};

pub(super) fn start(error: &StartError) -> (Reason, Status) {
    let (code, reason) = match error {
        StartError::Spec(_) | StartError::Key { .. } => {
            (Code::InvalidArgument, Reason::InvalidSpec)
        }
        StartError::Filter { .. } => (Code::InvalidArgument, Reason::InvalidFilter),
        StartError::TargetNotFound(_) => (Code::NotFound, Reason::TargetNotFound),
        StartError::TargetUnsupported(_) => (Code::FailedPrecondition, Reason::TargetUnsupported),
        StartError::Private(_) => (Code::PermissionDenied, Reason::NamespacePrivate),
        StartError::SessionLimit(_) => (Code::ResourceExhausted, Reason::SessionLimit),
        StartError::Rate(limited) => {
            let reason = match limited.of {
                Of::Node => Reason::NodeRate,
                Of::Namespace => Reason::NamespaceRate,
                Of::Rule => Reason::RuleRate,
            };
            (Code::ResourceExhausted, reason)
        }
        StartError::Quota(_) => (Code::ResourceExhausted, Reason::QuotaExceeded),
        StartError::Output(_) | StartError::Kernel(_) | StartError::Elsewhere(_) => {
            (Code::Internal, Reason::Kernel)
        }
        StartError::Draining => (Code::Unavailable, Reason::Draining),
    };
    (reason, status(code, reason, error.to_string()))
}

pub(super) fn extend(error: &ExtendError) -> Status {
    let (code, reason) = match error {
        ExtendError::Lookup(error) => return lookup(error),
        ExtendError::Ended(_) => (Code::FailedPrecondition, Reason::CaptureEnded),
        ExtendError::Files(_) => (Code::FailedPrecondition, Reason::InvalidSpec),
        ExtendError::Kernel(_) => (Code::Internal, Reason::Kernel),
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

pub(super) fn custody(error: &CustodyError) -> Status {
    let (code, reason) = match error {
        CustodyError::NotFound(_) => (Code::NotFound, Reason::CaptureNotFound),
        CustodyError::NotKept(_) => (Code::FailedPrecondition, Reason::CaptureNotFound),
        CustodyError::Running(_) => (Code::FailedPrecondition, Reason::CaptureRunning),
        CustodyError::Held(_) => (Code::FailedPrecondition, Reason::CaptureHeld),
        CustodyError::NotUploaded(_) => (Code::FailedPrecondition, Reason::CaptureNotUploaded),
        CustodyError::NotHeld(_) => (Code::FailedPrecondition, Reason::CaptureNotHeld),
        CustodyError::Deleted(_) => (Code::NotFound, Reason::CaptureDeleted),
        CustodyError::Busy => (Code::Unavailable, Reason::Draining),
        CustodyError::Io { .. } => (Code::Internal, Reason::Kernel),
    };
    let text = error.to_string();
    // What others said of it is in it.
    status(code, reason, escape(&text).to_string())
}
