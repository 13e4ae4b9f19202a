//! The secret that alerts' senders share with us, from a file that is read again when it changes.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// How often the file is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
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
}

/// What a request must show.
#[derive(Debug)]
pub(super) struct Secret {
    path: PathBuf,
    header: HeaderName,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// SHA-256, so that comparing takes the same time whatever comes.
    digest: [u8; 32],
    read: Option<Stamp>,
    looked: Instant,
}

/// What changes of a file when its content does.
type Stamp = (u64, u64, u64, [i64; 4]);

impl Secret {
    pub(super) fn load(path: &Path, header: HeaderName) -> Result<Self, SecretError> {
        // Before the reading: what changes meanwhile is a change.
        let stamp = stamp(path);
        Ok(Self {
            path: path.to_owned(),
            header,
            state: Mutex::new(State {
                digest: digest(path)?,
                read: stamp,
                looked: Instant::now(),
            }),
        })
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
        shown.ct_eq(&self.current()).into()
    }

    /// The name of the header, for who did not show it.
    pub(super) fn header(&self) -> &HeaderName {
        &self.header
    }

    fn current(&self) -> [u8; 32] {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            let now = stamp(&self.path);
            if now != state.read {
                state.read = now;
                match digest(&self.path) {
                    Ok(digest) => {
                        state.digest = digest;
                        tracing::info!(path = %self.path.display(), "the senders' secret was read again");
                    }
                    Err(error) => tracing::error!(
                        %error,
                        "the changed secret cannot be used; the one that was read before stays in use"
                    ),
                }
            }
        }
        state.digest
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

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    let times = [
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
    ];
    Some((file.dev(), file.ino(), file.size(), times))
}

#[cfg(test)]
mod tests {
    use super::*;

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
