//! The upload of finished captures, as it is asked for and told.

use std::{fmt, str::FromStr};

use remora_capture::{session::CaptureId, upload::Upload};

/// A file that can be uploaded now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub id: CaptureId,
    pub sink: String,
    pub file: String,
    pub bytes: u64,
    pub sha256: [u8; 32],
    pub facts: Facts,
}

/// What an object's metadata say of its capture; empty where it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub node: String,
    pub namespace: String,
    pub pod: String,
    pub rule: String,
}

/// Uploads one file.
#[derive(Clone, Debug)]
pub struct Order {
    pub id: CaptureId,
    pub file: String,
    pub put: SignedRequest,
    pub check: SignedRequest,
    pub checksum: StoreChecksum,
}

/// A URL that is good by itself, for these headers. Whoever has it may write the object: it is never logged.
#[derive(Clone)]
pub struct SignedRequest {
    pub url: String,
    pub headers: Vec<(String, String)>,
}

impl fmt::Debug for SignedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedRequest").finish_non_exhaustive()
    }
}

/// How a store tells that it has a file whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreChecksum {
    /// `x-amz-checksum-sha256`
    S3Sha256,
    /// `x-goog-hash: md5=…`
    GoogleMd5,
    /// `content-md5`
    ContentMd5,
}

/// How far a capture is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub upload: Upload,
    pub is_running: bool,
}

/// An order is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("file {file} of capture {id} does not wait to be uploaded now")]
    NotWaiting { id: CaptureId, file: String },
    #[error("{0} uploads are under way; ask again for offers")]
    Busy(usize),
    #[error("{0}")]
    Host(#[from] HostError),
}

/// A URL leads where this agent may not send captures.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HostError {
    #[error("the upload's URL is none: {0}")]
    Url(String),
    #[error(
        "this agent uploads to no {0}; --sink-host allows it (https is allowed everywhere and http to loopback \
         where no --sink-host is given)"
    )]
    NotAllowed(String),
}

/// Uploads captures. All calls but `put` block.
pub trait Uploader: Send + Sync {
    /// Files that can go now, few of them.
    fn offers(&self) -> Vec<Offer>;

    /// Begins.
    ///
    /// # Errors
    /// [`UploadError`].
    fn put(&self, order: Order) -> Result<(), UploadError>;

    /// `None` for a capture without a sink, or that is not signed yet.
    fn progress(&self, id: CaptureId) -> Option<Progress>;
}

/// An origin that captures may be sent to: `https://s3.example`, `http://minio.storage:9000`, or a host alone, by
/// https.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkHost {
    scheme: String,
    host: String,
    /// The scheme's own, if none is given.
    port: u16,
}

impl FromStr for SinkHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not HOST, https://HOST[:PORT] or http://HOST[:PORT]");
        let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
        let usual = match scheme {
            "https" => 443,
            "http" => 80,
            _ => return Err(wrong()),
        };
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_number| wrong())?)
            }
            _ => (rest, usual),
        };
        if host.is_empty() || host.contains(['/', '@', '?', '#', ' ']) {
            return Err(wrong());
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            host: host.to_ascii_lowercase(),
            port,
        })
    }
}

impl SinkHost {
    /// May a URL with these parts be used? `allowed`: all that were given.
    ///
    /// # Errors
    /// [`HostError::NotAllowed`].
    pub fn check(allowed: &[Self], scheme: &str, host: &str, port: u16) -> Result<(), HostError> {
        let is_loopback = || {
            let plain = host.trim_start_matches('[').trim_end_matches(']');
            let address = plain.parse::<std::net::IpAddr>();
            address.is_ok_and(|address| address.is_loopback()) || host == "localhost"
        };
        let is_allowed = if allowed.is_empty() {
            scheme == "https" || (scheme == "http" && is_loopback())
        } else {
            allowed.iter().any(|one| {
                one.scheme == scheme && one.host == host.to_ascii_lowercase() && one.port == port
            })
        };
        if is_allowed {
            return Ok(());
        }
        let shown = format!("{scheme}://{host}:{port}");
        Err(HostError::NotAllowed(remora_capture::text::one_line(
            &shown, 200,
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(hosts: &[&str], scheme: &str, host: &str, port: u16) -> bool {
        let hosts: Vec<SinkHost> = hosts.iter().map(|h| h.parse().unwrap()).collect();
        SinkHost::check(&hosts, scheme, host, port).is_ok()
    }

    #[test]
    fn without_a_list_https_goes_anywhere_and_http_stays_here() {
        assert!(allowed(&[], "https", "s3.example", 443));
        assert!(allowed(&[], "http", "127.0.0.1", 9000));
        assert!(allowed(&[], "http", "[::1]", 9000));
        assert!(!allowed(&[], "http", "s3.example", 80));
        assert!(!allowed(&[], "http", "127.0.0.1.example", 80));
        assert!(!allowed(&[], "file", "localhost", 0));
    }

    #[test]
    fn with_a_list_its_origins_alone_are_taken() {
        let list = ["S3.example", "http://minio.storage:9000"];
        assert!(allowed(&list, "https", "s3.example", 443));
        assert!(allowed(&list, "http", "minio.storage", 9000));
        for (scheme, host, port) in [
            ("http", "s3.example", 80),
            ("https", "s3.example", 8443),
            ("https", "minio.storage", 9000),
            ("https", "s3.example.evil", 443),
            ("http", "127.0.0.1", 9000),
        ] {
            assert!(
                !allowed(&list, scheme, host, port),
                "{scheme} {host} {port}"
            );
        }
        for text in ["", "ftp://x", "https://", "https://a/b", "a:b", "u@h"] {
            assert!(text.parse::<SinkHost>().is_err(), "{text}");
        }
    }
}
