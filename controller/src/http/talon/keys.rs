//! The key pair that Talon signs with, from two files that are read again when they change.

use std::{fs, path::Path};

use super::super::{secret::SecretError, watched::Watched};
use crate::sigv4::Credentials;

/// Longest key, in bytes.
const KEY_MAX: usize = 128;
/// Shortest access key and secret key, in bytes, as AWS has them: a shorter secret can be guessed.
const ACCESS_KEY_MIN: usize = 4;
const SECRET_KEY_MIN: usize = 16;

/// The key pair of this moment.
#[derive(Debug)]
pub(super) struct Keys {
    access_key: Watched<String, SecretError>,
    secret_key: Watched<String, SecretError>,
}

impl Keys {
    pub(super) fn load(access_key: &Path, secret_key: &Path) -> Result<Self, SecretError> {
        Ok(Self {
            access_key: Watched::load(access_key, access)?,
            secret_key: Watched::load(secret_key, secret)?,
        })
    }

    pub(super) fn current(&self) -> Credentials {
        Credentials {
            access_key: self.access_key.current(),
            secret_key: self.secret_key.current(),
        }
    }
}

fn access(path: &Path) -> Result<String, SecretError> {
    let is_part = |text: &str| !text.contains(['/', ',', '=']);
    key(path, ACCESS_KEY_MIN)?
        .filter(|text| is_part(text))
        .ok_or_else(|| SecretError::NotAnAccessKey(path.to_owned()))
}

fn secret(path: &Path) -> Result<String, SecretError> {
    key(path, SECRET_KEY_MIN)?.ok_or_else(|| SecretError::NotASecretKey(path.to_owned()))
}

/// One line of visible ASCII, if it is one.
fn key(path: &Path, min: usize) -> Result<Option<String>, SecretError> {
    let text = fs::read_to_string(path).map_err(|source| SecretError::ReadKey {
        path: path.to_owned(),
        source,
    })?;
    let text = text.trim_end();
    let is_key =
        (min..=KEY_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    Ok(is_key.then(|| text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_line_that_cannot_be_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for (text, is_access, is_secret) in [
            ("AKIDREMORA\n", true, false),
            ("AKIDREMORA0123456789", true, true),
            ("has/slash/and+plus0123", false, true),
            ("two\nlines of sixteen letters", false, false),
            ("", false, false),
            ("ünïcödé-ünïcödé-ünïcödé", false, false),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(access(&path).is_ok(), is_access, "{text}");
            assert_eq!(secret(&path).is_ok(), is_secret, "{text}");
        }
        let missing = access(&dir.path().join("none")).unwrap_err();
        assert!(matches!(missing, SecretError::ReadKey { .. }));
    }
}
