//! Why a handshake failed, and how often.

use std::{
    array, io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use rustls::{CertificateError, Error};

use super::chain;

/// Why a connection did not come to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// The client showed no certificate, and must.
    NoCertificate,
    Expired,
    NotYetValid,
    /// No chain leads to the CA file; self-signed ones too.
    UnknownCa,
    /// A CA's own certificate.
    IsCa,
    /// Not for clients (or servers): extended key usage.
    WrongUse,
    /// None of its names is let in.
    WrongName,
    /// Another fault of the certificate, or of what it signed.
    BadCertificate,
    /// No version or cipher of TLS 1.3.
    Version,
    /// No TLS.
    NotTls,
    /// The peer took too long.
    Slow,
    /// The peer left.
    Gone,
    /// The peer did not take our certificate.
    ByPeer,
    /// It was the oldest of too many handshakes.
    CrowdedOut,
    /// Too many connections.
    TooMany,
    Other,
}

impl Refused {
    /// Every reason.
    pub const ALL: [Self; 16] = [
        Self::NoCertificate,
        Self::Expired,
        Self::NotYetValid,
        Self::UnknownCa,
        Self::IsCa,
        Self::WrongUse,
        Self::WrongName,
        Self::BadCertificate,
        Self::Version,
        Self::NotTls,
        Self::Slow,
        Self::Gone,
        Self::ByPeer,
        Self::CrowdedOut,
        Self::TooMany,
        Self::Other,
    ];

    /// The word, as in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownCa => "unknown_ca",
            Self::IsCa => "is_ca",
            Self::WrongUse => "wrong_use",
            Self::WrongName => "wrong_name",
            Self::BadCertificate => "bad_certificate",
            Self::Version => "version",
            Self::NotTls => "not_tls",
            Self::Slow => "slow",
            Self::Gone => "gone",
            Self::ByPeer => "by_peer",
            Self::CrowdedOut => "crowded_out",
            Self::TooMany => "too_many",
            Self::Other => "other",
        }
    }

    /// What to do about it, on the side of the one who was refused.
    pub(crate) const fn remedy(self) -> &'static str {
        match self {
            Self::NoCertificate => "show one (--tls-cert, --tls-key)",
            Self::Expired => "renew it, or set the clock",
            Self::NotYetValid => "is one of the clocks wrong?",
            Self::UnknownCa => "the CA that signed it must be in the other side's CA file",
            Self::IsCa => "make one for this side, signed by that CA",
            Self::WrongUse => "it needs the extended key usage clientAuth (serverAuth for servers)",
            Self::WrongName => {
                "list one of its names on the other side, or make another certificate"
            }
            Self::BadCertificate => "make another one",
            Self::Version => "use TLS 1.3",
            Self::NotTls => "is it the right port?",
            _ => "the other side's log says more",
        }
    }

    /// Of a failed handshake.
    pub(crate) fn of(error: &io::Error) -> Self {
        match tls_error(error) {
            Some(error) => Self::of_tls(error),
            None => match error.kind() {
                io::ErrorKind::TimedOut => Self::Slow,
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => Self::Gone,
                _ => Self::Other,
            },
        }
    }

    fn of_tls(error: &Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::PeerIncompatible(_) => Self::Version,
            Error::InvalidMessage(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::PeerMisbehaved(_)
            | Error::DecryptError
            | Error::PeerSentOversizedRecord => Self::NotTls,
            Error::AlertReceived(_) => Self::ByPeer,
            _ => Self::Other,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::UnknownIssuer => Self::UnknownCa,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::WrongUse
            }
            error if chain::wrong_name(error).is_some() => Self::WrongName,
            error if chain::is_ca(error) => Self::IsCa,
            _ => Self::BadCertificate,
        }
    }
}

/// rustls' error in an I/O error.
pub(crate) fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// What there is to say of a failed handshake, beyond its word.
pub(super) fn told(error: &io::Error) -> String {
    if let Some(Error::InvalidCertificate(certificate)) = tls_error(error)
        && let Some(wrong) = chain::wrong_name(certificate)
    {
        return wrong.to_string();
    }
    error.to_string()
}

/// What happened to handshakes and certificates since the start.
#[derive(Debug)]
pub struct TlsCounts {
    accepted: AtomicU64,
    refused: [AtomicU64; Refused::ALL.len()],
    loaded: AtomicU64,
    failed: AtomicU64,
    is_stale: AtomicBool,
}

impl Default for TlsCounts {
    fn default() -> Self {
        Self {
            accepted: AtomicU64::new(0),
            refused: array::from_fn(|_| AtomicU64::new(0)),
            loaded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            is_stale: AtomicBool::new(false),
        }
    }
}

impl TlsCounts {
    pub(super) fn accept(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refuse(&self, why: Refused) {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn reload(&self, is_good: bool) {
        let counter = if is_good { &self.loaded } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        self.is_stale.store(!is_good, Ordering::Relaxed);
    }

    /// Connections that were let in.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections that were not, for this reason.
    #[must_use]
    pub fn refused(&self, why: Refused) -> u64 {
        self.refused[why as usize].load(Ordering::Relaxed)
    }

    /// Changed files that are in use, and changed files that could not be used.
    #[must_use]
    pub fn reloads(&self) -> (u64, u64) {
        let [loaded, failed] = [&self.loaded, &self.failed].map(|n| n.load(Ordering::Relaxed));
        (loaded, failed)
    }

    /// The files are wrong, and what was read before is in use.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_reason_has_a_word_and_a_counter_of_its_own() {
        let words: HashSet<_> = Refused::ALL.map(Refused::as_str).into_iter().collect();
        assert_eq!(words.len(), Refused::ALL.len());
        let counts = TlsCounts::default();
        for (n, why) in Refused::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, n);
            counts.refuse(why);
            assert_eq!(counts.refused(why), 1);
        }
    }
}
