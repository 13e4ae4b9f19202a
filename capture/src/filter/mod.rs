//! Capture filters in tcpdump's language.
//!
//! A [`Filter`] is pcap-filter text, and what it means, in one of two tiers:
//!
//! - [`Terms`], if the text is of the subset that terms can say ([`Filter::parse`]): the kernel
//!   compares them without a program. [`Terms::matches`] is the reference.
//! - [`Programs`](program::Programs), for all else: compiled by libpcap ([`Filter::compile`]), which
//!   knows the whole language. [`Program::run`](program::Program::run) is the reference.
//!
//! Both give libpcap's verdict on the frame that the file will hold. A refused text is a
//! [`FilterError`] that points at the word.

mod compile;
mod error;
mod parse;
pub mod program;
mod terms;
mod verdict;
mod words;

use std::{fmt, str::FromStr};

use program::Programs;
use serde::{Deserialize, Serialize};

pub use compile::{Compile, NESTING_MAX, Names, TOKENS_MAX, VALUES_MAX, compiler};
pub use error::{FilterError, FilterErrorKind, Word};
pub use terms::{
    ADDRESS_TERMS_MAX, AddressTerm, Family, PORT_TERMS_MAX, PortTerm, Prefix, PrefixError,
    Protocol, Side, Terms,
};

/// Longest filter text, in bytes.
pub const FILTER_BYTES_MAX: usize = 4096;

/// A filter. The default has no text and matches every packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Filter {
    /// Words parted by one blank; printable ASCII unless the meaning is [`Meaning::Unread`].
    text: String,
    meaning: Meaning,
}

/// What a filter's text means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Meaning {
    Terms(Terms),
    Programs(Programs),
    /// Not known here: the text of a capture that is told of, or text yet to be compiled.
    Unread,
}

impl Filter {
    /// Understands pcap-filter text: terms joined by `and` or `&&`, each one of
    ///
    /// - `tcp`, `udp`, `sctp`, `icmp`, `icmp6`, `ip`, `ip6`
    /// - `[ip|ip6] [src|dst|src or dst|src and dst] host ADDRESS` (`host` may be left out after
    ///   `src` or `dst`)
    /// - `[ip|ip6] [src|…] net ADDRESS/LENGTH`, also `net 10`, `net 10.1`
    /// - `[tcp|udp|sctp] [src|…] port NUMBER`
    /// - a bare address, network or number, which takes over what stood before the last one:
    ///   `port 80 and 443`
    ///
    /// No text, or blanks only, matches every packet.
    ///
    /// # Errors
    /// [`FilterError`] with the position of the word that is not understood, or of the term that
    /// no packet can match together with those before it.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let (text, terms) = parse::parse(text)?;
        Ok(Self {
            text,
            meaning: Meaning::Terms(terms),
        })
    }

    /// The filter that `terms` mean, with canonical text.
    ///
    /// # Errors
    /// No packet can match, or there are too many terms; positions are those in
    /// `terms.to_string()`.
    pub fn from_terms(terms: &Terms) -> Result<Self, FilterError> {
        Self::parse(&terms.to_string())
    }

    /// Understands all of tcpdump's language: terms if they can say it, else programs. The
    /// programs' names, if `compiler` looks any up, are those of this moment.
    ///
    /// # Errors
    /// [`FilterError`] with the position of the word that is to blame, where that is known. That
    /// no packet can match is an error, too.
    pub fn compile(text: &str, compiler: &dyn Compile) -> Result<Self, FilterError> {
        Self::unread(text)?.compiled(compiler)
    }

    /// This filter with its meaning, if it is unread.
    ///
    /// # Errors
    /// As [`Filter::compile`].
    pub fn compiled(self, compiler: &dyn Compile) -> Result<Self, FilterError> {
        let Meaning::Unread = self.meaning else {
            return Ok(self);
        };
        let programs = compile::programs(&self.text, compiler)?;
        Ok(Self {
            meaning: Meaning::Programs(programs),
            ..self
        })
    }

    /// The filter with the programs that were made of its text elsewhere. Text that terms can say
    /// means those: what is shown of a filter is its text.
    ///
    /// # Errors
    /// The text is empty, or breaks a bound.
    pub fn with_programs(text: &str, programs: Programs) -> Result<Self, FilterError> {
        let mut filter = Self::unread(text)?;
        if filter.text.is_empty() {
            return Err(FilterError {
                position: 0,
                len: 0,
                kind: FilterErrorKind::NoText,
            });
        }
        if filter.meaning == Meaning::Unread {
            filter.meaning = Meaning::Programs(programs);
        }
        Ok(filter)
    }

    /// Terms if the text is understood as such; else unread, for [`Filter::compiled`].
    ///
    /// # Errors
    /// No packet can match the terms, or the text breaks a bound.
    pub fn unread(text: &str) -> Result<Self, FilterError> {
        match Self::parse(text) {
            Err(error) if !matches!(error.kind, FilterErrorKind::RejectsAll(_)) => {
                compile::admit(text)?;
                Ok(Self {
                    text: words::spaced(text),
                    meaning: Meaning::Unread,
                })
            }
            understood => understood,
        }
    }

    /// Text for the packets that match both.
    #[must_use]
    pub fn both(&self, other: &Self) -> String {
        if self.is_empty() || self.text == other.text {
            other.text.clone()
        } else if other.is_empty() {
            self.text.clone()
        } else {
            format!("{} and {}", self.as_term(), other.as_term())
        }
    }

    /// Typed text is terms joined by `and`; all else needs brackets before it is joined.
    fn as_term(&self) -> String {
        match self.meaning {
            Meaning::Terms(_) => self.text.clone(),
            _ => format!("({})", self.text),
        }
    }

    /// The packets that match both, of typed terms alone.
    ///
    /// # Errors
    /// As [`Filter::parse`], with positions in [`Filter::both`].
    pub fn and(&self, other: &Self) -> Result<Self, FilterError> {
        Self::parse(&self.both(other))
    }

    /// Pcap-filter text; tcpdump understands it the same.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn meaning(&self) -> &Meaning {
        &self.meaning
    }

    /// Every packet matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            text: String::new(),
            meaning: Meaning::Terms(Terms::default()),
        }
    }
}

impl Meaning {
    /// In normal form, if it is terms.
    #[must_use]
    pub fn terms(&self) -> Option<&Terms> {
        match self {
            Self::Terms(terms) => Some(terms),
            _ => None,
        }
    }

    #[must_use]
    pub fn programs(&self) -> Option<&Programs> {
        match self {
            Self::Programs(programs) => Some(programs),
            _ => None,
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        Self::parse(text)
    }
}

/// A filter that is told of: typed text is understood, all else stays text.
impl From<String> for Filter {
    fn from(text: String) -> Self {
        Self::parse(&text).unwrap_or(Self {
            text,
            meaning: Meaning::Unread,
        })
    }
}

impl From<Filter> for String {
    fn from(filter: Filter) -> Self {
        filter.text
    }
}

#[cfg(test)]
mod tests;
