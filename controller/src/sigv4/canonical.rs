//! The one text that a request is signed as.
//!
//! ```text
//! POST
//! /2015-03-31/functions/arn%253Aaws…/invocations     the path, encoded once more
//! Qualifier=%24LATEST                                sorted, encoded once
//! host:127.0.0.1:2803                                each signed header
//!
//! host;x-amz-date                                    their names
//! 3b0c…                                              SHA-256 of the body
//! ```

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::{Denied, Head, hex};

pub(super) fn request(head: Head<'_>, signed: &[&str], body: &[u8]) -> Result<String, Denied> {
    let path = match head.uri.path() {
        "" => "/".to_owned(),
        path => encoded(path.as_bytes(), Slash::Kept),
    };
    let query = query(head.uri.query().unwrap_or_default())?;
    let mut text = format!("{}\n{path}\n{query}\n", head.method);
    for name in signed {
        let value = value(head, name)?;
        writeln!(text, "{name}:{value}").expect("a String takes all");
    }
    let digest = hex(&Sha256::digest(body));
    write!(text, "\n{}\n{digest}", signed.join(";")).expect("a String takes all");
    Ok(text)
}

/// A header's values, blanks at the ends gone and within made one.
fn value(head: Head<'_>, name: &str) -> Result<String, Denied> {
    let mut values = Vec::new();
    for value in head.headers.get_all(name) {
        let value = value
            .to_str()
            .map_err(|_bytes| Denied::Incomplete("a signed header is not ASCII"))?;
        values.push(value.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
    }
    // HTTP/2 has it as `:authority`.
    if values.is_empty() && name == "host" {
        values.extend(head.uri.authority().map(ToString::to_string));
    }
    if values.is_empty() {
        return Err(Denied::Incomplete("a signed header is missing"));
    }
    Ok(values.join(","))
}

fn query(text: &str) -> Result<String, Denied> {
    let mut pairs = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let again = |text| {
            decoded(text)
                .map(|bytes| encoded(&bytes, Slash::Encoded))
                .ok_or(Denied::Incomplete("the query is not percent-encoded"))
        };
        pairs.push((again(name)?, again(value)?));
    }
    pairs.sort();
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    Ok(pairs.join("&"))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slash {
    Kept,
    Encoded,
}

/// All but letters, digits and `-._~` as `%XX`.
fn encoded(bytes: &[u8], slash: Slash) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        let is_plain = byte.is_ascii_alphanumeric()
            || b"-._~".contains(byte)
            || slash == Slash::Kept && *byte == b'/';
        if is_plain {
            text.push(char::from(*byte));
        } else {
            write!(text, "%{byte:02X}").expect("a String takes all");
        }
    }
    text
}

/// What `%XX` stand for; `None` where one is broken.
pub(super) fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: u8| char::from(b).to_digit(16);
        let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
        bytes.push(u8::try_from(value).ok()?);
    }
    Some(bytes)
}
