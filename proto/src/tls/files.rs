//! Certificates and keys, as they lie in files.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer, TrustAnchor,
        pem::{self, PemObject as _},
    },
    sign::CertifiedKey,
};

/// Largest file, in bytes: some hundred certificates.
const FILE_MAX: u64 = 1 << 20;

/// Where one side's certificates lie, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate to be known by, its intermediates after it; and its private key.
    pub own: Option<(PathBuf, PathBuf)>,
    /// Those that may have signed the other side's.
    pub ca: Option<PathBuf>,
}

impl TlsFiles {
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let own = self.own.iter().flat_map(|(cert, key)| [cert, key]);
        own.chain(&self.ca).cloned().collect()
    }
}

/// Certificates or keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("failed to read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has more than {FILE_MAX} bytes; that is no file of certificates", .0.display())]
    TooLarge(PathBuf),
    #[error("{} is not PEM ({reason})", path.display())]
    NotPem { path: PathBuf, reason: String },
    #[error("{} holds no certificate (-----BEGIN CERTIFICATE-----)", .0.display())]
    NoCertificate(PathBuf),
    #[error("{} holds no private key (-----BEGIN PRIVATE KEY-----)", .0.display())]
    NoKey(PathBuf),
    #[error("certificate {number} of {} is not one ({reason})", path.display())]
    BadCertificate {
        path: PathBuf,
        number: usize,
        reason: String,
    },
    #[error("{} holds a key that cannot be used ({reason}); use ECDSA P-256, ed25519 or RSA", path.display())]
    BadKey { path: PathBuf, reason: String },
    #[error(
        "the key {} is not that of the certificate {}; were both renewed?",
        key.display(),
        cert.display()
    )]
    Mismatch { cert: PathBuf, key: PathBuf },
    /// Cannot be with what we compile in.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

pub(super) fn provider() -> CryptoProvider {
    ring::default_provider()
}

/// Those of a file of CA certificates (PEM), for a connection to a server that is none of ours.
///
/// # Errors
/// [`TlsError`].
pub fn root_store(ca: &Path) -> Result<RootCertStore, TlsError> {
    Ok(RootCertStore {
        roots: anchors(ca)?,
    })
}

/// Reads a file of CA certificates.
pub(super) fn anchors(path: &Path) -> Result<Vec<TrustAnchor<'static>>, TlsError> {
    anchors_of(path, &read(path)?)
}

/// The CA certificates in `pem`, which came from `path`.
pub(super) fn anchors_of(path: &Path, pem: &[u8]) -> Result<Vec<TrustAnchor<'static>>, TlsError> {
    let mut anchors = Vec::new();
    for (n, certificate) in certificates(path, pem)?.iter().enumerate() {
        let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|error| {
            TlsError::BadCertificate {
                path: path.to_owned(),
                number: n + 1,
                reason: error.to_string(),
            }
        })?;
        anchors.push(anchor.to_owned());
    }
    Ok(anchors)
}

/// Reads a certificate with its chain, and its key.
pub(super) fn certified_key(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(cert, &read(cert)?)?;
    let der = match PrivateKeyDer::from_pem_slice(&read(key)?) {
        Ok(der) => der,
        Err(pem::Error::NoItemsFound) => return Err(TlsError::NoKey(key.to_owned())),
        Err(error) => return Err(not_pem(key, &error)),
    };
    let bad_key = |error: rustls::Error| TlsError::BadKey {
        path: key.to_owned(),
        reason: error.to_string(),
    };
    let signer = provider()
        .key_provider
        .load_private_key(der)
        .map_err(bad_key)?;
    let certified = CertifiedKey::new(chain, signer);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::Mismatch {
            cert: cert.to_owned(),
            key: key.to_owned(),
        }),
        Err(error) => Err(TlsError::BadCertificate {
            path: cert.to_owned(),
            number: 1,
            reason: error.to_string(),
        }),
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| not_pem(path, &error))?;
    if found.is_empty() {
        return Err(TlsError::NoCertificate(path.to_owned()));
    }
    Ok(found)
}

fn not_pem(path: &Path, error: &pem::Error) -> TlsError {
    TlsError::NotPem {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(TlsError::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}
