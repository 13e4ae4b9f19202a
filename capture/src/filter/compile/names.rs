//! Which words libpcap would look up.
//!
//! The rule is simple rather than clever: a word is a keyword, a number, an address, or a name.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{keywords::is_keyword, tokens::tokens};
use crate::filter::{FilterError, FilterErrorKind, error::Word};

/// # Errors
/// Points at the first name.
pub(super) fn refuse_names(text: &str) -> Result<(), FilterError> {
    match tokens(text).find(|token| !token.is_symbol() && is_name(token.text)) {
        None => Ok(()),
        Some(token) => Err(FilterError {
            position: token.position,
            len: token.text.len(),
            kind: FilterErrorKind::Name(Word::new(token.text, token.number)),
        }),
    }
}

/// Everything that is not known to be none; a backslash makes a name of a keyword.
fn is_name(word: &str) -> bool {
    // `tcp[0]-1`: the scanner takes a dash at the front alone.
    let word = word.trim_start_matches('-');
    let numbers = |separator| word.split(separator).all(is_number);
    let slice = || {
        word.split(':')
            .all(|part| part.is_empty() || is_number(part) || is_keyword(part))
    };
    !(word.is_empty()
        || is_keyword(word)
        || word.parse::<Ipv4Addr>().is_ok()
        || word.parse::<Ipv6Addr>().is_ok()
        || word.split('.').count() <= 4 && numbers('.')
        || word.split('-').count() == 2 && numbers('-')
        || is_mac(word)
        || slice())
}

fn is_number(word: &str) -> bool {
    let hexadecimal = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// Six bytes with a colon, a dash or a point between them, or three pairs with points.
fn is_mac(word: &str) -> bool {
    let hexadecimal = |part: &str, len: std::ops::RangeInclusive<usize>| {
        len.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let bytes = |separator| {
        word.split(separator).count() == 6 && word.split(separator).all(|p| hexadecimal(p, 1..=2))
    };
    bytes(':')
        || bytes('-')
        || bytes('.')
        || word.split('.').count() == 3 && word.split('.').all(|p| hexadecimal(p, 4..=4))
}
