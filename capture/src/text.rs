//! Text from outside (alerts, names, filters) made harmless for terminals, logs and comments.
//!
//! Hostile are all control characters (C0, DEL, C1), line and paragraph separators, and the
//! invisible characters that change how the text around them is read (bidirectional controls,
//! zero-width characters, byte order marks, tags). All else is kept, so names in any script stay
//! readable. Nothing here is reversible, nor meant to be.

use std::{
    error::Error,
    fmt::{self, Write as _},
    time::Duration,
};

/// A character that must not reach a terminal, a log line or a comment as it is.
#[must_use]
pub fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Shows `text` with hostile characters as escapes: `\n`, `\u{1b}`.
#[must_use]
pub fn escape(text: &str) -> Escaped<'_> {
    Escaped {
        text,
        max: usize::MAX,
    }
}

/// Like [`escape`], of the first `max` characters; `…` says that there were more.
#[must_use]
pub fn excerpt(text: &str, max: usize) -> Escaped<'_> {
    Escaped { text, max }
}

/// Longest piece of foreign text in a message, in characters.
const SHOWN_MAX: usize = 200;

/// Like [`excerpt`], of as much as a log line or a message has room for.
#[must_use]
pub fn shown(text: &str) -> Escaped<'_> {
    excerpt(text, SHOWN_MAX)
}

/// Made by [`escape`] and [`excerpt`].
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a> {
    text: &'a str,
    max: usize,
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.text.chars();
        for c in chars.by_ref().take(self.max) {
            if is_hostile(c) {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        if chars.next().is_some() {
            f.write_char('…')
        } else {
            Ok(())
        }
    }
}

/// `text` on one line of at most `max` bytes, for a comment in a file.
///
/// Line breaks and tabs become blanks (so JSON stays JSON), other hostile characters U+FFFD. The
/// cut is at a character's edge.
#[must_use]
pub fn one_line(text: &str, max: usize) -> String {
    let mut line = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        let c = match c {
            '\n' | '\r' | '\t' => ' ',
            c if is_hostile(c) => char::REPLACEMENT_CHARACTER,
            c => c,
        };
        if line.len() + c.len_utf8() > max {
            break;
        }
        line.push(c);
    }
    line
}

/// A number of days, hours, minutes or seconds, like `30d`; not 0, at most 100 years.
#[must_use]
pub fn age(text: &str) -> Option<Duration> {
    const SECONDS_MAX: u64 = 100 * 366 * 86_400;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let factor = match unit {
        "d" => 86_400,
        "h" => 3600,
        "m" => 60,
        "s" => 1,
        _ => return None,
    };
    let seconds = number.parse::<u64>().ok()?.checked_mul(factor)?;
    (1..=SECONDS_MAX)
        .contains(&seconds)
        .then(|| Duration::from_secs(seconds))
}

/// An error and its causes, as `what: why: why`; not cleaned.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn terminal_controls_and_direction_overrides_are_shown_not_obeyed() {
        let shown = escape("a\x1b[31m\u{202e}b\u{9b}\n\0é").to_string();
        assert_eq!(shown, "a\\u{1b}[31m\\u{202e}b\\u{9b}\\n\\u{0}é");
        assert_eq!(excerpt("日本語", 2).to_string(), "日本…");
        assert_eq!(excerpt("日本", 2).to_string(), "日本");
    }

    #[test]
    fn json_over_several_lines_stays_json() {
        let line = one_line("{\n\t\"a\": \"\u{202e}\\n\"\r\n}", 100);
        assert_eq!(line, "{  \"a\": \"\u{fffd}\\n\"  }");
        assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_gets_through_hostile_or_too_long(text in ".{0,200}", max in 0usize..300) {
            let line = one_line(&text, max);
            prop_assert!(line.len() <= max);
            prop_assert!(!line.chars().any(is_hostile));
            prop_assert!(!excerpt(&text, max).to_string().chars().any(is_hostile));
        }
    }
}
