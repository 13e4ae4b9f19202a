//! Why a target was not found.

use std::io;

use remora_capture::{session::TargetError, text::excerpt};

/// Longest name from outside that an error shows, in characters.
const SHOWN_MAX: usize = 256;

/// A target cannot be captured, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The target's text is not one.
    #[error(transparent)]
    Invalid(#[from] TargetError),
    /// There is no such thing on this node (any more).
    #[error("there is no {what} on this node; {next}")]
    NotFound { what: String, next: String },
    /// Several fit.
    #[error("{what} may be any of {}; use one of these", candidates.join(", "))]
    Ambiguous {
        what: String,
        /// Targets in the user's words, escaped.
        candidates: Vec<String>,
    },
    /// It is there but its packets cannot be told from others.
    #[error("{reason}; {next}")]
    Unsupported { reason: String, next: String },
    /// The kernel refused something that it should not.
    #[error("failed to {action}")]
    Io {
        action: String,
        #[source]
        source: io::Error,
    },
}

impl ResolveError {
    pub(super) fn not_found(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::NotFound {
            what: what.into(),
            next: next.into(),
        }
    }

    pub(super) fn unsupported(reason: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Unsupported {
            reason: reason.into(),
            next: next.into(),
        }
    }

    /// For `map_err`: what was being done when the kernel said no.
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

/// A name from outside, harmless and of bounded length.
pub(super) fn shown(name: &str) -> String {
    excerpt(name, SHOWN_MAX).to_string()
}
