//! One file to one object.
//!
//! ```text
//! HEAD ─ there, same checksum ───────────────────────────▶ verified
//!   └─ not there ─▶ PUT from the disk ─▶ HEAD ─ the same ─▶ verified
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use md5::{Digest as _, Md5};
use remora_capture::{
    session::CaptureId,
    text::{one_line, with_causes},
    upload::{StoredObject, UploadFile},
};
use reqwest::{
    Certificate, Method, Response, StatusCode, Url,
    header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue},
    redirect::Policy,
};
use tokio::time::{sleep, timeout};

use super::{SinkHost, StoreChecksum, body::pieces};
use crate::upload::{HostError, SignedRequest};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the store may take to answer, once it has all.
const ANSWER: Duration = Duration::from_secs(120);
/// An upload of which nothing has moved for so long has failed.
const STALL: Duration = Duration::from_secs(60);
/// Bytes of an error's text that are read.
const TEXT_MAX: usize = 4096;
/// Longest answer of a header that is kept, in characters.
const HEADER_MAX: usize = 256;

/// What is sent where.
pub(super) struct Transfer {
    pub(super) id: CaptureId,
    pub(super) path: PathBuf,
    pub(super) file: UploadFile,
    pub(super) put: SignedRequest,
    pub(super) check: SignedRequest,
    pub(super) checksum: StoreChecksum,
}

/// It is not there, or not known to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    #[error("the store refused it ({status}): {text}")]
    Refused { status: StatusCode, text: String },
    #[error("the store has something else under this name: {0}")]
    Differs(String),
    #[error("the store took it, and does not tell that it has it whole: {0}")]
    Unproved(String),
    #[error("the file cannot be read: {0}")]
    File(#[from] io::Error),
}

impl Failure {
    /// As in metrics.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Refused { .. } => "refused",
            Self::Differs(_) => "differs",
            Self::Unproved(_) => "unproved",
            Self::File(_) => "file",
        }
    }
}

/// The HTTP client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("--sink-ca {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("--sink-ca {} has no certificate in PEM", .0.display())]
    NoCertificate(PathBuf),
    #[error("failed to make a client for stores: {0}")]
    Client(String),
}

pub(super) struct Client(reqwest::Client);

impl Client {
    pub(super) fn new(ca: Option<&Path>) -> Result<Self, ClientError> {
        // Somebody else may have set it to the same.
        let _set = rustls::crypto::ring::default_provider().install_default();
        let plain = || {
            reqwest::Client::builder()
                .no_proxy()
                .redirect(Policy::none())
                .connect_timeout(CONNECT)
                .pool_max_idle_per_host(1)
        };
        let failed = |error: reqwest::Error| ClientError::Client(told(&error));
        if let Some(path) = ca {
            let pem = fs::read(path).map_err(|source| ClientError::File {
                path: path.to_owned(),
                source,
            })?;
            let found = Certificate::from_pem_bundle(&pem).ok();
            let found = found.filter(|found| !found.is_empty());
            let found = found.ok_or_else(|| ClientError::NoCertificate(path.to_owned()))?;
            return Ok(Self(plain().tls_certs_only(found).build().map_err(failed)?));
        }
        match plain().build() {
            Ok(client) => Ok(Self(client)),
            Err(error) => {
                // As in an image without any. Captures without a sink need none.
                tracing::debug!(error = told(&error), "this machine has no CA certificates");
                let without = plain().tls_certs_only(Vec::new());
                Ok(Self(without.build().map_err(failed)?))
            }
        }
    }

    pub(super) async fn send(&self, transfer: &Transfer) -> Result<StoredObject, Failure> {
        let wanted = Wanted::of(transfer).await?;
        if let Some(object) = self.look(transfer, &wanted).await? {
            return Ok(object);
        }
        self.put(transfer, &wanted).await?;
        match self.look(transfer, &wanted).await {
            Ok(Some(object)) => Ok(object),
            Ok(None) => Err(Failure::Unproved(
                "it is not there, or nobody may look".to_owned(),
            )),
            Err(failure) => Err(failure),
        }
    }

    /// What the store has under the name, if it is the file.
    async fn look(
        &self,
        transfer: &Transfer,
        wanted: &Wanted,
    ) -> Result<Option<StoredObject>, Failure> {
        let request = self.request(Method::HEAD, &transfer.check)?;
        let answer = timeout(ANSWER, request.send()).await;
        let response = answer.map_err(|_elapsed| late())?.map_err(unreachable)?;
        match response.status() {
            StatusCode::OK => {}
            // Without the right to list, S3 says of what is not there that it may not be seen.
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => return Ok(None),
            _ => return Err(refused(response).await),
        }
        let text = |name: &str| header(response.headers(), name);
        let length = text("content-length");
        if length != transfer.file.bytes.to_string() {
            return Err(Failure::Differs(format!("{length} bytes")));
        }
        match wanted.told(response.headers()) {
            Some(true) => {}
            Some(false) => return Err(Failure::Differs("another checksum".to_owned())),
            None => {
                return Err(Failure::Unproved(
                    "its answer has no checksum; does it keep them?".to_owned(),
                ));
            }
        }
        let mut url = response.url().clone();
        url.set_query(None);
        Ok(Some(StoredObject {
            url: url.to_string(),
            checksum: wanted.text(),
            etag: text("etag"),
            version: text("x-amz-version-id"),
            at: Timestamp::now(),
        }))
    }

    async fn put(&self, transfer: &Transfer, wanted: &Wanted) -> Result<(), Failure> {
        let bytes = transfer.file.bytes;
        let file = tokio::fs::File::open(&transfer.path).await?;
        let sent = Arc::new(AtomicU64::new(0));
        let mut request = self
            .request(Method::PUT, &transfer.put)?
            .header(CONTENT_LENGTH, bytes);
        if let Some(md5) = wanted.md5() {
            request = request.header("content-md5", md5);
        }
        let body = reqwest::Body::wrap_stream(pieces(file, bytes, Arc::clone(&sent)));
        let response = tokio::select! {
            answer = request.body(body).send() => answer.map_err(unreachable)?,
            failure = stalled(&sent, bytes) => return Err(failure),
        };
        match response.status() {
            status if status.is_success() => Ok(()),
            status if is_there_already(status, response.headers()) => Ok(()),
            _ => Err(refused(response).await),
        }
    }

    fn request(
        &self,
        method: Method,
        signed: &SignedRequest,
    ) -> Result<reqwest::RequestBuilder, Failure> {
        let not = |what: &str| Failure::Unreachable(format!("the controller's {what} is none"));
        let url = Url::parse(&signed.url).map_err(|_syntax| not("URL"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &signed.headers {
            let name = HeaderName::try_from(name).map_err(|_syntax| not("header"))?;
            let value = HeaderValue::try_from(value).map_err(|_syntax| not("header"))?;
            headers.insert(name, value);
        }
        Ok(self.0.request(method, url).headers(headers))
    }
}

/// Somebody was quicker; what is there is looked at next.
fn is_there_already(status: StatusCode, headers: &HeaderMap) -> bool {
    match status {
        StatusCode::PRECONDITION_FAILED => true,
        // Azure's way to say so. S3 means that two put it at once: that is tried again.
        StatusCode::CONFLICT => header(headers, "x-ms-error-code") == "BlobAlreadyExists",
        _ => false,
    }
}

/// Ends when nothing has moved for too long.
async fn stalled(sent: &AtomicU64, bytes: u64) -> Failure {
    let mut last = 0;
    loop {
        let patience = if last >= bytes { ANSWER } else { STALL };
        sleep(patience).await;
        let now = sent.load(Relaxed);
        if now == last {
            return Failure::Unreachable(format!(
                "nothing moved for {patience:?} after {now} of {bytes} bytes"
            ));
        }
        last = now;
    }
}

/// May the agent call there?
pub(super) fn check_host(url: &str, allowed: &[SinkHost]) -> Result<(), HostError> {
    let url = Url::parse(url).map_err(|error| HostError::Url(error.to_string()))?;
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(0);
    SinkHost::check(allowed, url.scheme(), host, port)
}

/// The checksum that the store must tell.
enum Wanted {
    Sha256(String),
    GoogleMd5(String),
    ContentMd5(String),
}

impl Wanted {
    async fn of(transfer: &Transfer) -> Result<Self, Failure> {
        if transfer.checksum == StoreChecksum::S3Sha256 {
            return Ok(Self::Sha256(
                STANDARD.encode(transfer.file.sha256.as_bytes()),
            ));
        }
        let path = transfer.path.clone();
        let md5 = tokio::task::spawn_blocking(move || {
            let mut hash = Hash(Md5::new());
            io::copy(&mut fs::File::open(path)?, &mut hash)?;
            Ok(STANDARD.encode(hash.0.finalize()))
        });
        let md5 = md5
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))?;
        Ok(match transfer.checksum {
            StoreChecksum::GoogleMd5 => Self::GoogleMd5(md5),
            _ => Self::ContentMd5(md5),
        })
    }

    fn md5(&self) -> Option<&str> {
        match self {
            Self::Sha256(_) => None,
            Self::GoogleMd5(md5) | Self::ContentMd5(md5) => Some(md5),
        }
    }

    /// Whether the store has the same, if it tells.
    fn told(&self, headers: &HeaderMap) -> Option<bool> {
        let (name, wanted) = match self {
            Self::Sha256(wanted) => ("x-amz-checksum-sha256", wanted),
            Self::ContentMd5(wanted) => ("content-md5", wanted),
            Self::GoogleMd5(wanted) => {
                // One header with all, or one each.
                let all = headers.get_all("x-goog-hash").iter();
                let mut all = all.filter_map(|value| value.to_str().ok());
                let md5 = all.find_map(|text| {
                    let mut parts = text.split(',').map(str::trim);
                    parts.find_map(|part| part.strip_prefix("md5="))
                });
                return md5.map(|md5| md5 == wanted);
            }
        };
        let value = headers.get(name)?.to_str().ok()?;
        Some(value == wanted)
    }

    fn text(&self) -> String {
        match self {
            Self::Sha256(sha256) => format!("sha256={sha256}"),
            Self::GoogleMd5(md5) | Self::ContentMd5(md5) => format!("md5={md5}"),
        }
    }
}

struct Hash(Md5);

impl io::Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn header(headers: &HeaderMap, name: &str) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    one_line(value.unwrap_or_default(), HEADER_MAX)
}

fn late() -> Failure {
    Failure::Unreachable(format!("no answer within {ANSWER:?}"))
}

fn unreachable(error: reqwest::Error) -> Failure {
    Failure::Unreachable(told(&error.without_url()))
}

/// With its causes; a URL that was signed is in none of them.
fn told(error: &dyn std::error::Error) -> String {
    one_line(&with_causes(error), 400)
}

/// The start of what it says.
async fn refused(mut response: Response) -> Failure {
    let status = response.status();
    let mut text = Vec::new();
    let read = async {
        while text.len() < TEXT_MAX
            && let Ok(Some(piece)) = response.chunk().await
        {
            text.extend_from_slice(&piece);
        }
    };
    let _cut = timeout(CONNECT, read).await;
    text.truncate(TEXT_MAX);
    let text = String::from_utf8_lossy(&text).into_owned();
    Failure::Refused {
        status,
        text: spoken(&text),
    }
}

/// Code and message of a store's XML, or the text itself.
fn spoken(text: &str) -> String {
    let inner = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        let (inner, _) = rest.split_once(&format!("</{name}>"))?;
        Some(inner)
    };
    match (inner("Code"), inner("Message")) {
        (Some(code), Some(message)) => one_line(&format!("{code}: {message}"), 300),
        _ => one_line(text, 300),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_store_tells_the_same_checksum_another_or_none() {
        let s3 = Wanted::Sha256("abc=".to_owned());
        assert_eq!(
            s3.told(&headers(&[("x-amz-checksum-sha256", "abc=")])),
            Some(true)
        );
        assert_eq!(
            s3.told(&headers(&[("x-amz-checksum-sha256", "abd=")])),
            Some(false)
        );
        assert_eq!(s3.told(&headers(&[("etag", "abc=")])), None);
        let google = Wanted::GoogleMd5("m==".to_owned());
        let one = headers(&[("x-goog-hash", "crc32c=a==,md5=m==")]);
        let two = headers(&[("x-goog-hash", "crc32c=a=="), ("x-goog-hash", "md5=m==")]);
        assert_eq!(google.told(&one), Some(true));
        assert_eq!(google.told(&two), Some(true));
        assert_eq!(
            google.told(&headers(&[("x-goog-hash", "crc32c=a==")])),
            None
        );
        let azure = Wanted::ContentMd5("m==".to_owned());
        assert_eq!(azure.told(&headers(&[("content-md5", "n==")])), Some(false));
    }

    #[test]
    fn what_is_there_already_is_told_by_each_store_in_its_way() {
        let none = headers(&[]);
        assert!(is_there_already(StatusCode::PRECONDITION_FAILED, &none));
        assert!(!is_there_already(StatusCode::CONFLICT, &none));
        let azure = headers(&[("x-ms-error-code", "BlobAlreadyExists")]);
        assert!(is_there_already(StatusCode::CONFLICT, &azure));
        let other = headers(&[("x-ms-error-code", "LeaseIdMissing")]);
        assert!(!is_there_already(StatusCode::CONFLICT, &other));
    }

    #[test]
    fn a_refusal_is_told_by_its_code() {
        let xml = "<?xml version=\"1.0\"?><Error><Code>BadDigest</Code><Message>not the\nsame</Message></Error>";
        assert_eq!(spoken(xml), "BadDigest: not the same");
        assert!(spoken("go \u{1b}[31m away").starts_with("go "));
    }
}
