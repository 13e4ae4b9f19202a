//! Why a filter is refused, and where.

use std::fmt;

use super::{
    ADDRESS_TERMS_MAX, FILTER_BYTES_MAX, PORT_TERMS_MAX,
    compile::{NESTING_MAX, TOKENS_MAX, VALUES_MAX},
    program::ProgramError,
    terms::PrefixError,
};
use crate::text;

/// Characters of the text shown on each side of the error.
const POINTER_CONTEXT: usize = 30;
/// Characters of a word shown in a message.
const WORD_SHOWN_MAX: usize = 40;

/// A filter is refused; it points at the word that is to blame.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{kind}")]
pub struct FilterError {
    /// Byte position in the text.
    pub position: usize,
    /// Bytes of the text that are to blame; 0 at its end.
    pub len: usize,
    pub kind: FilterErrorKind,
}

#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum FilterErrorKind {
    #[error("the filter has {0} bytes; at most {FILTER_BYTES_MAX} are taken")]
    TooLong(usize),
    #[error(
        "{0} is not understood here; without libpcap a filter has tcp, udp, sctp, icmp, icmp6, ip, ip6, host, net, port, src, dst and `and`"
    )]
    Unknown(Word),
    #[error("{found} is not {expected}")]
    Unexpected { found: Word, expected: &'static str },
    #[error("the filter ends where {expected} belongs")]
    Unfinished { expected: &'static str },
    #[error("{0} is not an address; use an address, names are not looked up")]
    NotAnAddress(Word),
    #[error("{0} is not a port; use a number from 0 to 65535")]
    NotAPort(Word),
    #[error("{word} is not a network: {reason}")]
    NotANetwork { word: Word, reason: PrefixError },
    #[error("`{qualifier}` does not go before `{kind}`; write `{qualifier} and {kind} …`")]
    Qualifier {
        qualifier: &'static str,
        kind: &'static str,
    },
    #[error("{0} needs `host`, `net` or `port` before it")]
    NoKind(Word),
    #[error("expression rejects all packets: nothing matches {0} and what stands before it")]
    RejectsAll(Word),
    #[error(
        "{0} is one term too many; a filter has at most {ADDRESS_TERMS_MAX} addresses and {PORT_TERMS_MAX} ports"
    )]
    TooManyTerms(Word),
    #[error("{0} is no character of the filter language")]
    Character(Word),
    #[error("{0} is one bracket too many; at most {NESTING_MAX} may be open at once")]
    TooDeep(Word),
    #[error("{0} is one word too many; a filter has at most {TOKENS_MAX} words and symbols")]
    TooManyWords(Word),
    #[error(
        "{0} is one value too many; a filter has at most {VALUES_MAX} addresses and ports (a port counts as two, a port range as four, `(host … and port …)` as two); use networks, or start several captures"
    )]
    TooManyValues(Word),
    #[error(
        "{0} is a name, and names are not looked up here; use its address or number, or let `remora` on your machine look it up"
    )]
    Name(Word),
    #[error("expression rejects all packets")]
    MatchesNothing,
    #[error("syntax error at {0}")]
    Syntax(Word),
    #[error(
        "{0} needs a loop, which a filter in the kernel cannot have; compare the headers that you mean, like `ip6[6] = 44 and ip6[40] = 6`"
    )]
    Loop(Word),
    #[error(
        "{0} asks for what is not in the packet; capture on one interface (-i) in one direction (-Q) instead"
    )]
    NotOfThePacket(Word),
    #[error("this build has no libpcap, so it makes no programs")]
    NoCompiler,
    /// libpcap's message, escaped.
    #[error("{0}")]
    Libpcap(String),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("programs come without the filter text that they are made of; send both")]
    NoText,
}

/// A word of the filter as a message shows it: escaped, bounded, with its number from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    shown: String,
    number: usize,
}

impl Word {
    pub(super) fn new(word: &str, number: usize) -> Self {
        Self {
            shown: text::excerpt(word, WORD_SHOWN_MAX).to_string(),
            number,
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` (word {})", self.shown, self.number)
    }
}

impl FilterError {
    /// The part of `text` (which must be the text that was refused) around the error, and under it
    /// a line of carets. Escaped and bounded: two lines fit for a terminal.
    ///
    /// ```text
    /// tcp port 80 or port 443
    ///             ^^
    /// ```
    #[must_use]
    pub fn pointer(&self, text: &str) -> String {
        let start = floor(text, self.position);
        let end = floor(text, start.saturating_add(self.len));
        let before: Vec<char> = text[..start].chars().rev().take(POINTER_CONTEXT).collect();
        let cut = before.len() < text[..start].chars().count();
        let before: String = cut
            .then_some('…')
            .into_iter()
            .chain(before.into_iter().rev())
            .collect();
        let before = text::escape(&before).to_string();
        let blamed = text::excerpt(&text[start..end], POINTER_CONTEXT).to_string();
        let after = text::excerpt(&text[end..], POINTER_CONTEXT);
        let carets = "^".repeat(blamed.chars().count().max(1));
        format!(
            "{before}{blamed}{after}\n{:width$}{carets}",
            "",
            width = before.chars().count()
        )
    }
}

/// The last character edge of `text` not after `position`.
fn floor(text: &str, position: usize) -> usize {
    let mut position = position.min(text.len());
    while !text.is_char_boundary(position) {
        position -= 1;
    }
    position
}
