//! Names that a certificate says its holder has.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use rustls::pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;

/// Longest URI, in bytes (SPIFFE-ID, 2.3).
const URI_MAX: usize = 2048;
/// Longest DNS name, in bytes (RFC 1035, without the final dot).
const DNS_MAX: usize = 253;
/// Longest label of a DNS name, in bytes.
const LABEL_MAX: usize = 63;
/// Most names of one list.
const NAMES_MAX: usize = 64;

/// A name of a certificate's subjectAltName. Compared whole: `*` in a certificate is not a pattern
/// here.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// In lower case.
    Dns(String),
    /// As it is written: `spiffe://cluster.local/ns/remora/sa/remora-controller`.
    Uri(String),
    Ip(IpAddr),
}

/// A text cannot be a [`Name`], or names cannot be a list.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error(
        "`{0}` is no name that a certificate has; use a DNS name (agent.remora.svc), a URI \
         (spiffe://cluster.local/ns/remora/sa/remora-controller) or an IP address"
    )]
    NotAName(String),
    #[error("`{0}` has a `*`; a certificate's name is compared whole, so list each name")]
    Pattern(String),
    #[error("a list of names has 1 to {NAMES_MAX}; this one has {0}")]
    Number(usize),
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let shown = || {
            let short: String = text.chars().take(80).collect();
            short.escape_debug().to_string()
        };
        if text.contains('*') {
            return Err(NameError::Pattern(shown()));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let is_uri = !rest.is_empty()
                && text.len() <= URI_MAX
                && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
                && rest.bytes().all(|b| b.is_ascii_graphic());
            return if is_uri {
                Ok(Self::Uri(text.to_owned()))
            } else {
                Err(NameError::NotAName(shown()))
            };
        }
        let is_dns = text.len() <= DNS_MAX
            && text.split('.').all(|label| {
                (1..=LABEL_MAX).contains(&label.len())
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            });
        if is_dns {
            Ok(Self::Dns(text.to_ascii_lowercase()))
        } else {
            Err(NameError::NotAName(shown()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) | Self::Uri(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// Names of which a peer's certificate must have one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(BTreeSet<Name>);

impl Names {
    /// # Errors
    /// None, or too many.
    pub fn new(names: impl IntoIterator<Item = Name>) -> Result<Self, NameError> {
        let names: BTreeSet<_> = names.into_iter().collect();
        if (1..=NAMES_MAX).contains(&names.len()) {
            Ok(Self(names))
        } else {
            Err(NameError::Number(names.len()))
        }
    }

    /// The first listed name that the certificate has.
    pub(super) fn found_in(&self, certificate: &EndEntityCert<'_>) -> Option<&Name> {
        self.0.iter().find(|name| has(certificate, name))
    }

    /// The first listed name that the certificate has.
    pub(super) fn found_in_der(&self, certificate: &CertificateDer<'_>) -> Option<&Name> {
        self.found_in(&EndEntityCert::try_from(certificate).ok()?)
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, name) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{name}")?;
        }
        Ok(())
    }
}

fn has(certificate: &EndEntityCert<'_>, name: &Name) -> bool {
    match name {
        Name::Dns(name) => certificate
            .valid_dns_names()
            .any(|found| found.eq_ignore_ascii_case(name)),
        Name::Uri(name) => certificate.valid_uri_names().any(|found| found == name),
        Name::Ip(address) => certificate
            .verify_is_valid_for_subject_name(&ServerName::from(*address))
            .is_ok(),
    }
}

/// Names that a refused certificate has, for a log: a few, escaped.
pub(super) fn told(certificate: &EndEntityCert<'_>) -> String {
    const TOLD: usize = 4;
    let names = certificate
        .valid_uri_names()
        .chain(certificate.valid_dns_names());
    let told: Vec<_> = names
        .take(TOLD)
        .map(|name| {
            let short: String = name.chars().take(120).collect();
            short.escape_debug().to_string()
        })
        .collect();
    if told.is_empty() {
        "none".to_owned()
    } else {
        told.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_written() {
        for text in [
            "remora-agent.remora.svc",
            "spiffe://cluster.local/ns/remora/sa/remora-controller",
            "192.0.2.7",
            "2001:db8::7",
            "node_1",
        ] {
            assert_eq!(text.parse::<Name>().unwrap().to_string(), text);
        }
        assert_eq!("Agent.SVC".parse(), Ok(Name::Dns("agent.svc".into())));
    }

    #[test]
    fn what_is_no_name_is_refused_unprinted() {
        let long = "a".repeat(64);
        for text in [
            "",
            ".",
            "a..b",
            "a b",
            "spiffe://",
            "1a://x",
            "spiffe://a\u{1b}[31m",
            "agent\0",
            &long,
        ] {
            let error = text.parse::<Name>().unwrap_err();
            assert!(matches!(error, NameError::NotAName(_)), "{text:?}: {error}");
            assert!(!error.to_string().contains('\u{1b}'));
        }
        assert!(matches!(
            "*.svc".parse::<Name>(),
            Err(NameError::Pattern(_))
        ));
        assert_eq!(Names::new([]), Err(NameError::Number(0)));
    }
}
