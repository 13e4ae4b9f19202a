//! Capture filters in tcpdump's language.
use serde::{Deserialize, Serialize};

/// A capture filter (placeholder while the crate is laid out).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    text: String,
}
