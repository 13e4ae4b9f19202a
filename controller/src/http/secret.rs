//! The secret that alerts' senders share with us, from a file that is read again when it changes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use axum::http::{HeaderMap, HeaderName, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::watched::Watched;

/// Shortest and longest secret, in bytes: what is shorter can be guessed.
const SECRET_MIN: usize = 16;
const SECRET_MAX: usize = 1024;

/// The secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("failed to read the senders' secret {}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "the senders' secret {} must be one line of {SECRET_MIN} to {SECRET_MAX} visible ASCII characters; \
         `openssl rand -hex 32` makes one",
        .0.display()
    )]
    NotASecret(PathBuf),
    #[error("failed to read the key of Falco Talon's aws:lambda {}", path.display())]
    ReadKey {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "Falco Talon's access key {} must be one line of 4 to 128 visible ASCII characters without `/`, `,` and \
         `=`, as AWS_ACCESS_KEY_ID has it",
        .0.display()
    )]
    NotAnAccessKey(PathBuf),
    #[error(
        "Falco Talon's secret key {} must be one line of 16 to 128 visible ASCII characters, as \
         AWS_SECRET_ACCESS_KEY has it; `openssl rand -hex 32` makes one",
        .0.display()
    )]
    NotASecretKey(PathBuf),
}

/// What a request must show.
#[derive(Debug)]
pub(super) struct Secret {
    header: HeaderName,
    /// SHA-256, so that comparing takes the same time whatever comes.
    digest: Watched<[u8; 32], SecretError>,
}

impl Secret {
    pub(super) fn load(path: &Path, header: HeaderName) -> Result<Self, SecretError> {
        let digest = Watched::load(path, digest)?;
        Ok(Self { header, digest })
    }

    /// Does the request show it? `Authorization` as `Bearer SECRET`, another header as it is.
    pub(super) fn is_shown(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(&self.header).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return false;
        };
        let mut shown = value.as_bytes();
        if self.header == header::AUTHORIZATION {
            let Some(token) = bearer(shown) else {
                return false;
            };
            shown = token;
        }
        let shown: [u8; 32] = Sha256::digest(shown).into();
        shown.ct_eq(&self.digest.current()).into()
    }

    /// The name of the header, for who did not show it.
    pub(super) fn header(&self) -> &HeaderName {
        &self.header
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii())
}

fn digest(path: &Path) -> Result<[u8; 32], SecretError> {
    let bytes = fs::read(path).map_err(|source| SecretError::Read {
        path: path.to_owned(),
        source,
    })?;
    let secret = bytes.trim_ascii_end();
    let is_secret = (SECRET_MIN..=SECRET_MAX).contains(&secret.len())
        && secret.iter().all(u8::is_ascii_graphic);
    if is_secret {
        Ok(Sha256::digest(secret).into())
    } else {
        Err(SecretError::NotASecret(path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{super::watched::LOOK_EVERY, *};

    const GOOD: &str = "0123456789abcdef0123456789abcdef";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .fold(HeaderMap::new(), |mut headers, (name, value)| {
                headers.append(name, value);
                headers
            })
    }

    #[test]
    fn only_the_secret_itself_is_taken_once_and_in_its_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, format!("{GOOD}\n")).unwrap();
        let bearer = Secret::load(&path, header::AUTHORIZATION).unwrap();
        let own = Secret::load(&path, HeaderName::from_static("x-remora-secret")).unwrap();
        let with = |text: &str| format!("{text}{GOOD}");
        for (value, is_taken) in [
            (with("Bearer "), true),
            (with("bearer "), true),
            (with("Basic "), false),
            (with(""), false),
            ("Bearer ".to_owned(), false),
            (format!("Bearer {GOOD}0"), false),
            (format!("Bearer {}", &GOOD[1..]), false),
            (format!("Bearer {}", GOOD.to_uppercase()), false),
        ] {
            let headers = headers(&[("authorization", &value)]);
            assert_eq!(bearer.is_shown(&headers), is_taken, "{value}");
            assert!(!own.is_shown(&headers));
        }
        assert!(own.is_shown(&headers(&[("x-remora-secret", GOOD)])));
        let twice = headers(&[("x-remora-secret", GOOD), ("x-remora-secret", GOOD)]);
        assert!(!own.is_shown(&twice));
        assert!(!own.is_shown(&HeaderMap::new()));
    }

    #[test]
    fn a_changed_secret_is_taken_and_a_broken_one_leaves_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, GOOD).unwrap();
        let name = HeaderName::from_static("x-remora-secret");
        let secret = Secret::load(&path, name).unwrap();
        let is_taken = |text: &str| secret.is_shown(&headers(&[("x-remora-secret", text)]));
        assert!(is_taken(GOOD));
        let new = "a-new-secret-a-new-secret";
        let until = |text: &str| {
            let begin = Instant::now();
            while !is_taken(text) {
                assert!(begin.elapsed() < Duration::from_secs(60));
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        fs::write(&path, new).unwrap();
        until(new);
        assert!(!is_taken(GOOD));
        fs::write(&path, "short").unwrap();
        std::thread::sleep(LOOK_EVERY);
        assert!(is_taken(new) && !is_taken("short"));
        fs::write(&path, GOOD).unwrap();
        until(GOOD);
    }

    #[test]
    fn what_can_be_guessed_is_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        for text in [
            "",
            "\n",
            "fifteen-letters",
            "two lines of\nsecret text here",
            "sixteen letters ü",
        ] {
            fs::write(&path, text).unwrap();
            let error = Secret::load(&path, header::AUTHORIZATION).unwrap_err();
            assert!(
                error.to_string().contains("openssl rand"),
                "{text}: {error}"
            );
        }
    }
}
