//! Between the messages of [`v1`](crate::v1) and the vocabulary of `remora-capture`.
//!
//! Inward (`TryFrom<v1::…>`) nothing is trusted: every field is checked, and what comes out passes
//! [`SessionSpec::validate`](remora_capture::session::SessionSpec::validate). Outward (`From<&…>`) nothing can fail. A value that went out comes
//! in again as it was. Texts in an answer of the agent are bounded by its message alone
//! ([`crate::limits`]) and not escaped: who prints them does that.

mod selector;
mod spec;
mod state;
mod time;
mod writing;

#[cfg(test)]
mod tests;

use remora_capture::{
    filter::{FilterError, program::ProgramError},
    session::{IdError, SpecError},
};
use tonic::{Code, Status};

use crate::reason::{self, Reason};

pub use spec::{Extend, Start};
pub use state::hold_of;

/// A message has a value that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConvertError {
    /// One field, by its path in the request: `spec.limits.duration: negative`.
    #[error("{field}: {problem}")]
    Field { field: String, problem: Problem },
    /// The filter text, with the two lines of [`FilterError::pointer`].
    #[error("{error}\n{pointer}")]
    Filter { error: FilterError, pointer: String },
    #[error("spec.programs.{link}: {error}")]
    Program {
        link: &'static str,
        error: ProgramError,
    },
    #[error("spec.terms: {0}")]
    Terms(String),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Id(#[from] IdError),
}

/// What is wrong with a field.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Problem {
    #[error("missing")]
    Missing,
    #[error("negative")]
    Negative,
    #[error("out of range")]
    OutOfRange,
    #[error("unknown value {0}")]
    Unknown(i32),
    #[error("not UTF-8")]
    NotUtf8,
    #[error("`{0}` is not an address")]
    NotAnAddress(String),
    #[error("{len} bytes; at most {max} are taken")]
    TooLong { len: usize, max: usize },
    #[error("has other characters than visible ASCII ones")]
    NotVisible,
}

impl ConvertError {
    /// The reason that goes into the status.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Filter { .. } | Self::Terms(_) | Self::Program { .. } => Reason::InvalidFilter,
            Self::Field { .. } | Self::Spec(_) | Self::Id(_) => Reason::InvalidSpec,
        }
    }
}

impl From<ConvertError> for Status {
    fn from(error: ConvertError) -> Self {
        reason::status(Code::InvalidArgument, error.reason(), error.to_string())
    }
}

/// The message in a field that must be there.
fn required<T>(field: &str, value: Option<T>) -> Result<T, ConvertError> {
    value.ok_or_else(|| invalid(field, Problem::Missing))
}

/// The known value of an enum's field.
fn known<T: TryFrom<i32>>(field: &str, value: i32) -> Result<T, ConvertError> {
    T::try_from(value).map_err(|_unknown| invalid(field, Problem::Unknown(value)))
}

fn invalid(field: impl Into<String>, problem: Problem) -> ConvertError {
    ConvertError::Field {
        field: field.into(),
        problem,
    }
}
