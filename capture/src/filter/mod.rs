//! Capture filters in tcpdump's language.
//!
//! A [`Filter`] is pcap-filter text that was understood, and the [`Terms`] it means. This version
//! takes the subset that terms can say (see [`Filter::parse`]); all else is refused with a
//! [`FilterError`] that points at the word.
//!
//! [`Terms::matches`] is the reference: libpcap's verdict on an Ethernet frame.

mod error;
mod parse;
mod terms;
mod verdict;
mod words;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use error::{FilterError, FilterErrorKind, Word};
pub use terms::{
    ADDRESS_TERMS_MAX, AddressTerm, Family, PORT_TERMS_MAX, PortTerm, Prefix, PrefixError,
    Protocol, Side, Terms,
};

/// Longest filter text, in bytes.
pub const FILTER_BYTES_MAX: usize = 4096;

/// A filter that was understood. The default has no text and matches every packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Filter {
    /// Printable ASCII, words parted by one blank.
    text: String,
    terms: Terms,
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
        Ok(Self { text, terms })
    }

    /// The filter that `terms` mean, with canonical text.
    ///
    /// # Errors
    /// No packet can match, or there are too many terms; positions are those in
    /// `terms.to_string()`.
    pub fn from_terms(terms: &Terms) -> Result<Self, FilterError> {
        Self::parse(&terms.to_string())
    }

    /// The packets that match both.
    ///
    /// # Errors
    /// As [`Filter::parse`], with positions in the joined text.
    pub fn and(&self, other: &Self) -> Result<Self, FilterError> {
        if self.is_empty() || self == other {
            Ok(other.clone())
        } else if other.is_empty() {
            Ok(self.clone())
        } else {
            Self::parse(&format!("{self} and {other}"))
        }
    }

    /// Pcap-filter text; tcpdump understands it the same.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What the text means, in normal form.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Every packet matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
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

impl TryFrom<String> for Filter {
    type Error = FilterError;

    fn try_from(text: String) -> Result<Self, FilterError> {
        Self::parse(&text)
    }
}

impl From<Filter> for String {
    fn from(filter: Filter) -> Self {
        filter.text
    }
}

#[cfg(test)]
mod tests;
