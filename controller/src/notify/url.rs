//! Where a receiver is.

use std::{fmt, str::FromStr};

use axum::http::{
    Uri,
    uri::{Authority, Scheme},
};

/// Longest URL, in bytes.
const URL_MAX: usize = 2048;

/// `http://HOST[:PORT][/PATH]` or `https://…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverUrl {
    uri: Uri,
    is_tls: bool,
}

/// A text is not the URL of a receiver.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("use http://HOST:PORT/PATH or https://HOST:PORT/PATH, without a user name")]
pub struct UrlError;

impl ReceiverUrl {
    pub(super) fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Without the brackets of an IPv6 address.
    pub(super) fn host(&self) -> &str {
        let host = self.uri.host().unwrap_or_default();
        let inner = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        inner.unwrap_or(host)
    }

    /// For the request; not to be shown.
    pub(super) fn whole(&self) -> String {
        self.uri.to_string()
    }
}

impl FromStr for ReceiverUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.len() > URL_MAX || text.contains('#') {
            return Err(UrlError);
        }
        let uri: Uri = text.parse().map_err(|_no_uri| UrlError)?;
        let is_tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(UrlError),
        };
        let authority = uri.authority().ok_or(UrlError)?;
        let is_whole = !authority.as_str().contains('@') && !authority.host().is_empty();
        let has_port =
            authority.as_str().len() == authority.host().len() || uri.port_u16().is_some();
        if !(is_whole && has_port) {
            return Err(UrlError);
        }
        Ok(Self { uri, is_tls })
    }
}

/// What a path or query has may be a secret (Slack's webhooks): it is not shown.
impl fmt::Display for ReceiverUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        let authority = self.uri.authority().map_or("", Authority::as_str);
        write!(f, "{scheme}://{authority}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_shown_without_its_path() {
        let parts = |text: &str| {
            let url: ReceiverUrl = text.parse().unwrap();
            (url.host().to_owned(), url.whole(), url.to_string())
        };
        let of = |host: &str, whole: &str, shown: &str| {
            (host.to_owned(), whole.to_owned(), shown.to_owned())
        };
        assert_eq!(
            parts("http://side:2801"),
            of("side", "http://side:2801/", "http://side:2801")
        );
        assert_eq!(
            parts("https://h.example/a?b=c"),
            of("h.example", "https://h.example/a?b=c", "https://h.example")
        );
        assert_eq!(
            parts("http://[::1]:80/"),
            of("::1", "http://[::1]:80/", "http://[::1]:80")
        );
        for bad in [
            "",
            "side:2801",
            "ftp://h/",
            "http://",
            "http://u:p@h/",
            "http://h:x/",
            "http://h:/",
            "http://h/#f",
            "/a",
        ] {
            assert!(bad.parse::<ReceiverUrl>().is_err(), "{bad}");
        }
    }
}
