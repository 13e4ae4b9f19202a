//! What libpcap is never given.
//!
//! Its parser recurses and its optimiser takes time that grows with the cube of the values compared:
//! 50 ports take 26 ms for each link type, 300 take 4.5 s, 400 port ranges 116 s (libpcap 1.10.3). So
//! the text's length, the brackets open at once, tokens and values are bounded. Endpoints in brackets,
//! `(host 192.0.2.7 and port 443)`, cost it little: 50 of them take 8 ms.

use super::tokens::{Token, tokens};
use crate::filter::{FILTER_BYTES_MAX, FilterError, FilterErrorKind as Kind, error::Word};

/// Brackets of any kind that may be open at once.
pub const NESTING_MAX: usize = 64;
/// Words and symbols of a filter.
pub const TOKENS_MAX: usize = 1024;
/// Addresses, networks and ports of a filter; a port counts as two, a port range as four, an address
/// and a port in brackets of their own as two together.
pub const VALUES_MAX: usize = 100;

/// Whether libpcap may see the text.
///
/// # Errors
/// Too long, too deep, too many words or values, or with characters that no filter has.
pub(in crate::filter) fn admit(text: &str) -> Result<(), FilterError> {
    let at = |position, len, kind| FilterError {
        position,
        len,
        kind,
    };
    if text.len() > FILTER_BYTES_MAX {
        return Err(at(0, 0, Kind::TooLong(text.len())));
    }
    let foreign = |c: char| !matches!(c, ' '..='~' | '\t' | '\r' | '\n');
    if let Some((position, c)) = text.char_indices().find(|(_, c)| foreign(*c)) {
        let number = tokens(&text[..position]).count().max(1);
        let word = Word::new(c.encode_utf8(&mut [0; 4]), number);
        return Err(at(position, c.len_utf8(), Kind::Character(word)));
    }
    let mut open = 0usize;
    let mut values = 0;
    let mut group = Group::default();
    // A bare value is of the kind of the one before it: `port 80 or 443`.
    let mut weight = 1;
    let mut before: Option<Token<'_>> = None;
    for token in tokens(text) {
        let refuse = |kind: fn(Word) -> Kind| {
            let word = Word::new(token.text, token.number);
            Err(at(token.position, token.text.len(), kind(word)))
        };
        match token.text {
            "(" => {
                open += 1;
                group = Group::opened();
            }
            "[" => open += 1,
            ")" => {
                open = open.saturating_sub(1);
                values -= group.discount();
                group = Group::default();
            }
            "]" => open = open.saturating_sub(1),
            "or" | "||" | "not" | "!" => group = Group::default(),
            "port" => weight = 2,
            "portrange" => weight = 4,
            "host" | "net" => weight = 1,
            _ => {}
        }
        if before.is_none_or(|before| before.is_kind() || before.is_joiner()) && is_value(&token) {
            values += weight;
            group.values += 1;
            group.weight += weight;
        }
        if open > NESTING_MAX {
            return refuse(Kind::TooDeep);
        }
        if values - group.discount() > VALUES_MAX {
            return refuse(Kind::TooManyValues);
        }
        if token.number > TOKENS_MAX {
            return refuse(Kind::TooManyWords);
        }
        before = Some(token);
    }
    Ok(())
}

/// What stands in the innermost brackets so far.
#[derive(Default)]
struct Group {
    /// There are brackets, and only `and` joins what is in them.
    is_plain: bool,
    values: usize,
    weight: usize,
}

impl Group {
    fn opened() -> Self {
        Self {
            is_plain: true,
            ..Self::default()
        }
    }

    /// Of an address and a port, which weigh one and two, the address is free.
    fn discount(&self) -> usize {
        usize::from(self.is_plain && self.values == 2 && self.weight == 3)
    }
}

/// May be an address, a network, a port or a name of one.
fn is_value(token: &Token<'_>) -> bool {
    !token.is_symbol() && !token.is_kind() && !super::keywords::is_keyword(token.text)
}
