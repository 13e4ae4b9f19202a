//! Keys: ed25519 (RFC 8032), in the PEM files that `openssl` reads and writes.

use std::{fmt, str::FromStr};

use ed25519_dalek::{
    Signature, Signer as _, SigningKey, VerifyingKey,
    pkcs8::{
        DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _,
        spki::der::pem::LineEnding,
    },
};
use serde::{Deserialize, Serialize};

use super::Digest;

/// Ends of the two kinds of PEM.
const PUBLIC_END: &str = "-----END PUBLIC KEY-----";

/// A text is not a key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    #[error("not an ed25519 private key (PKCS#8 in PEM: `openssl genpkey -algorithm ed25519`)")]
    Secret,
    #[error("not an ed25519 public key (PEM: `openssl pkey -in KEY -pubout`)")]
    Public,
}

/// Name of a key: SHA-256 of its public half in DER (SubjectPublicKeyInfo).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(Digest);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for KeyId {
    type Err = super::DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// What signs. Its `Debug` does not show it.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public().id())
    }
}

impl SecretKey {
    /// The key of 32 random bytes.
    #[must_use]
    pub fn from_random(bytes: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(bytes))
    }

    /// # Errors
    /// [`KeyError::Secret`].
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        SigningKey::from_pkcs8_pem(pem.trim())
            .map(Self)
            .map_err(|_invalid| KeyError::Secret)
    }

    #[must_use]
    pub fn to_pem(&self) -> String {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF);
        pem.expect("a key has a PEM").to_string()
    }

    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(super) fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).to_bytes()
    }
}

/// What proves that a signature is its secret half's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// One key.
    ///
    /// # Errors
    /// [`KeyError::Public`].
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        VerifyingKey::from_public_key_pem(pem.trim())
            .map(Self)
            .map_err(|_invalid| KeyError::Public)
    }

    /// One key or several, one after the other.
    ///
    /// # Errors
    /// There is none, or something else between them.
    pub fn all_from_pem(pem: &str) -> Result<Vec<Self>, KeyError> {
        let keys = pem
            .split_inclusive(PUBLIC_END)
            .filter(|part| !part.trim().is_empty())
            .map(Self::from_pem)
            .collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(KeyError::Public);
        }
        Ok(keys)
    }

    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0
            .to_public_key_pem(LineEnding::LF)
            .expect("a key has a PEM")
    }

    #[must_use]
    pub fn id(&self) -> KeyId {
        let der = self.0.to_public_key_der().expect("a key has a DER form");
        KeyId(Digest::of(der.as_bytes()))
    }

    /// Strict: weak keys and signatures in another form than the one are refused.
    pub(super) fn verifies(&self, bytes: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        self.0.verify_strict(bytes, &signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_and_are_not_shown() {
        let secret = SecretKey::from_random(&[7; 32]);
        let pem = secret.to_pem();
        let again = SecretKey::from_pem(&pem).expect("own");
        assert_eq!(again.public(), secret.public());
        let shown = format!("{secret:?}");
        assert!(
            shown.contains(&secret.public().id().to_string()) && !shown.contains("[7"),
            "{shown}"
        );
        let public = secret.public().to_pem();
        assert_eq!(PublicKey::from_pem(&public), Ok(secret.public()));
        let other = SecretKey::from_random(&[8; 32]).public();
        let both = format!("{public}\n{}", other.to_pem());
        assert_eq!(
            PublicKey::all_from_pem(&both),
            Ok(vec![secret.public(), other])
        );
        for bad in ["", "x", &pem, &format!("{public}x")] {
            assert_eq!(PublicKey::all_from_pem(bad), Err(KeyError::Public), "{bad}");
        }
        assert!(SecretKey::from_pem(&public).is_err());
    }

    #[test]
    fn signatures_are_those_of_rfc_8032() {
        // Section 7.1, test 2: one byte, 0x72.
        let secret: Digest = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
            .parse()
            .expect("hex");
        let secret = SecretKey::from_random(&secret_bytes(&secret.to_string()));
        let signature = secret.sign(&[0x72]);
        assert_eq!(signature[..4], [0x92, 0xa0, 0x09, 0xa9]);
        assert!(secret.public().verifies(&[0x72], &signature));
        assert!(!secret.public().verifies(&[0x73], &signature));
    }

    fn secret_bytes(hex: &str) -> [u8; 32] {
        std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex"))
    }
}
