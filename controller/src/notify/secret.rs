//! What proves to a receiver that an event is ours: HMAC-SHA-256 of the body by a shared secret.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// The header: `sha256=` and the digest in hex, as GitHub's webhooks have it.
pub(super) const HEADER: &str = "x-remora-signature-256";

/// Shortest and longest secret, in bytes.
const SECRET_MIN: usize = 16;
const SECRET_MAX: usize = 1024;

/// The secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("failed to read the notifications' secret {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the notifications' secret {} must be one line of {SECRET_MIN} to {SECRET_MAX} visible ASCII characters; \
         `openssl rand -hex 32` makes one",
        .0.display()
    )]
    NotASecret(PathBuf),
}

/// The header's value for a body, by the secret that is in the file now.
pub(super) fn signature(path: &Path, body: &[u8]) -> Result<String, SecretError> {
    let bytes = fs::read(path).map_err(|source| SecretError::Read {
        path: path.to_owned(),
        source,
    })?;
    let secret = bytes.trim_ascii_end();
    let is_secret = (SECRET_MIN..=SECRET_MAX).contains(&secret.len())
        && secret.iter().all(u8::is_ascii_graphic);
    if !is_secret {
        return Err(SecretError::NotASecret(path.to_owned()));
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(body);
    let mut value = "sha256=".to_owned();
    for byte in mac.finalize().into_bytes() {
        let _infallible = write!(value, "{byte:02x}");
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_as_openssl_makes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "0123456789abcdef\n").unwrap();
        // printf '{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdef
        assert_eq!(
            signature(&path, br#"{"a":1}"#).unwrap(),
            "sha256=1c76fbb930d3aa8b1633728fae212c68ca68a6752bb319b98be6fe17e86cf5b8"
        );
        fs::write(&path, "short").unwrap();
        assert!(matches!(
            signature(&path, b""),
            Err(SecretError::NotASecret(_))
        ));
        assert!(signature(&dir.path().join("none"), b"").is_err());
    }
}
