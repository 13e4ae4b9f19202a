//! Text from outside, made fit for a log line and a message.

use remora_capture::text::{Escaped, excerpt};

/// Longest piece of foreign text in a message, in characters.
const SHOWN_MAX: usize = 200;

/// The start of a foreign text, with everything a terminal could act on escaped.
pub(crate) fn shown(text: &str) -> Escaped<'_> {
    excerpt(text, SHOWN_MAX)
}
