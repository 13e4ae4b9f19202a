//! How much of its packets look-back keeps of a target.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// From the least strict to the strictest.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum LookBackMode {
    /// Whole packets.
    #[default]
    Payload,
    /// Each packet up to the end of its transport header.
    Headers,
    /// Nothing.
    Off,
}

/// A text is not a mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a look-back mode; use payload, headers or off")]
pub struct NoMode;

impl LookBackMode {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Payload => "payload",
            Self::Headers => "headers",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for LookBackMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LookBackMode {
    type Err = NoMode;

    fn from_str(text: &str) -> Result<Self, NoMode> {
        [Self::Payload, Self::Headers, Self::Off]
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or(NoMode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_reads_as_it_is_written_and_off_is_the_strictest() {
        for mode in [
            LookBackMode::Payload,
            LookBackMode::Headers,
            LookBackMode::Off,
        ] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert!(mode <= LookBackMode::Off);
        }
        assert_eq!("Headers".parse::<LookBackMode>(), Err(NoMode));
    }
}
