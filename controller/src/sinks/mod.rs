//! Stores of objects that finished captures are uploaded to.
//!
//! ```text
//! agent ──offers──▶ controller: sign, audit ──URLs──▶ agent ═════ PUT, HEAD ═════▶ store
//! ```
//! The credentials stay here. An agent gets a URL for one object and a short time, good for one content alone
//! where the store can say so (S3). What is uploaded and what waits the agents know; controllers keep nothing, so
//! several may work at once, and any goes on for one that died.

mod connector;
mod courier;
mod name;
mod signed;

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Duration};

use object_store::{
    aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder,
    signer::Signer,
};
use remora_capture::{text::age, upload::SinkName};

use connector::Connector;
pub(crate) use courier::Courier;

/// How long a URL may be used to begin, if its sink does not say.
const EXPIRES: Duration = Duration::from_secs(15 * 60);
/// Longest that a sink may say.
const EXPIRES_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest that an object is locked: a hundred years.
const RETAIN_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    S3,
    Google,
    Azure,
}

/// How objects are locked against deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lock {
    Governance,
    Compliance,
}

/// A sink as the command line says it: `NAME=URL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkSpec {
    name: SinkName,
    kind: Kind,
    /// Bucket or container.
    bucket: String,
    /// Without slashes at its ends; may be empty.
    prefix: String,
    /// An S3-compatible store that is not AWS.
    endpoint: Option<String>,
    region: Option<String>,
    retain: Option<(Duration, Lock)>,
    expires: Duration,
}

/// A text is not a sink.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SinkError {
    #[error("use NAME=URL, for example evidence=s3://bucket/prefix")]
    Form,
    #[error(transparent)]
    Name(#[from] remora_capture::upload::SinkNameError),
    #[error(
        "`{0}` is no store; use s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX] or az://CONTAINER[/PREFIX]"
    )]
    Scheme(String),
    #[error("`{0}` is no name of a bucket and prefix; use letters, digits, `-`, `_`, `.` and `/`")]
    Path(String),
    #[error(
        "unknown parameter `{0}`; there are endpoint, region, retain, lock and expires (retain and lock with s3 alone)"
    )]
    Parameter(String),
    #[error("{name}: `{value}` is not {wanted}")]
    Value {
        name: &'static str,
        value: String,
        wanted: &'static str,
    },
}

impl FromStr for SinkSpec {
    type Err = SinkError;

    fn from_str(text: &str) -> Result<Self, SinkError> {
        let (name, url) = text.split_once('=').ok_or(SinkError::Form)?;
        let name = name.parse()?;
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        let (scheme, path) = place
            .split_once("://")
            .ok_or_else(|| SinkError::Scheme(place.to_owned()))?;
        let kind = match scheme {
            "s3" => Kind::S3,
            "gs" => Kind::Google,
            "az" => Kind::Azure,
            _ => return Err(SinkError::Scheme(place.to_owned())),
        };
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        let prefix = prefix.trim_matches('/');
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let is_part = |part: &str| {
            !part.is_empty() && part != "." && part != ".." && part.bytes().all(is_plain)
        };
        if !is_part(bucket) || !(prefix.is_empty() || prefix.split('/').all(is_part)) {
            return Err(SinkError::Path(path.to_owned()));
        }
        let mut spec = Self {
            name,
            kind,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: None,
            region: None,
            retain: None,
            expires: EXPIRES,
        };
        let (mut retain, mut lock) = (None, Lock::Governance);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let wrong = |name, wanted| SinkError::Value {
                name,
                value: value.to_owned(),
                wanted,
            };
            match key {
                "endpoint" if kind == Kind::S3 => {
                    let is_http = value.starts_with("https://") || value.starts_with("http://");
                    let endpoint = value.trim_end_matches('/').to_owned();
                    spec.endpoint = Some(endpoint);
                    if !is_http {
                        return Err(wrong("endpoint", "http://HOST:PORT or https://HOST:PORT"));
                    }
                }
                "region" if kind == Kind::S3 => spec.region = Some(value.to_owned()),
                "retain" if kind == Kind::S3 => {
                    let age = age(value).filter(|age| *age <= RETAIN_MAX);
                    retain = Some(age.ok_or_else(|| wrong("retain", "a time like 30d or 12h"))?);
                }
                "lock" if kind == Kind::S3 => {
                    lock = match value {
                        "governance" => Lock::Governance,
                        "compliance" => Lock::Compliance,
                        _ => return Err(wrong("lock", "governance or compliance")),
                    };
                }
                "expires" => {
                    let time = age(value).filter(|time| *time <= EXPIRES_MAX);
                    spec.expires = time.ok_or_else(|| wrong("expires", "1s to 24h"))?;
                }
                other => return Err(SinkError::Parameter(other.to_owned())),
            }
        }
        spec.retain = retain.map(|retain| (retain, lock));
        Ok(spec)
    }
}

impl fmt::Display for SinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            Kind::S3 => "s3",
            Kind::Google => "gs",
            Kind::Azure => "az",
        };
        write!(
            f,
            "{}={scheme}://{}/{}",
            self.name, self.bucket, self.prefix
        )
    }
}

/// A sink cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("sink {sink}: {error}")]
    Store {
        sink: Box<SinkSpec>,
        error: object_store::Error,
    },
    #[error("sink `{0}` is given twice")]
    Twice(SinkName),
}

/// A store, with the credentials for it.
#[derive(Debug)]
struct Sink {
    spec: SinkSpec,
    signer: Arc<dyn Signer>,
}

/// All sinks by name.
#[derive(Debug, Default)]
pub(crate) struct Sinks(BTreeMap<SinkName, Sink>);

impl Sinks {
    /// Credentials are the environment's, as each store's own tools take them. Nobody is asked yet.
    ///
    /// # Errors
    /// [`BuildError`].
    pub(crate) fn build(specs: &[SinkSpec]) -> Result<Self, BuildError> {
        let mut sinks = BTreeMap::new();
        for spec in specs {
            let signer = spec.signer().map_err(|error| BuildError::Store {
                sink: Box::new(spec.clone()),
                error,
            })?;
            tracing::info!(sink = %spec, "captures can be uploaded");
            let sink = Sink {
                spec: spec.clone(),
                signer,
            };
            if sinks.insert(spec.name.clone(), sink).is_some() {
                return Err(BuildError::Twice(spec.name.clone()));
            }
        }
        Ok(Self(sinks))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn get(&self, name: &str) -> Option<&Sink> {
        self.0.get(&name.parse().ok()?)
    }
}

impl SinkSpec {
    fn signer(&self) -> Result<Arc<dyn Signer>, object_store::Error> {
        // Instance roles and the like are asked for by HTTP, and object_store leaves TLS open.
        let _set = rustls::crypto::ring::default_provider().install_default();
        Ok(match self.kind {
            Kind::S3 => {
                let mut builder = AmazonS3Builder::from_env()
                    .with_http_connector(Connector)
                    .with_bucket_name(&self.bucket);
                if let Some(endpoint) = &self.endpoint {
                    builder = builder
                        .with_endpoint(endpoint)
                        .with_allow_http(endpoint.starts_with("http:"));
                }
                if let Some(region) = &self.region {
                    builder = builder.with_region(region);
                }
                Arc::new(builder.build()?)
            }
            Kind::Google => {
                let builder = GoogleCloudStorageBuilder::from_env().with_http_connector(Connector);
                Arc::new(builder.with_bucket_name(&self.bucket).build()?)
            }
            Kind::Azure => {
                let builder = MicrosoftAzureBuilder::from_env().with_http_connector(Connector);
                Arc::new(builder.with_container_name(&self.bucket).build()?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<SinkSpec>().unwrap_err().to_string()
    }

    #[test]
    fn a_sink_is_a_name_a_store_and_what_is_special() {
        let spec: SinkSpec =
            "evidence=s3://case-files/remora/node/?endpoint=http://127.0.0.1:7070/&region=eu-1\
                              &retain=30d&lock=compliance&expires=5m"
                .parse()
                .unwrap();
        assert_eq!((spec.kind, spec.bucket.as_str()), (Kind::S3, "case-files"));
        assert_eq!(spec.prefix, "remora/node");
        assert_eq!(spec.endpoint.as_deref(), Some("http://127.0.0.1:7070"));
        let month = Duration::from_secs(30 * 24 * 3600);
        assert_eq!(spec.retain, Some((month, Lock::Compliance)));
        assert_eq!(spec.expires, Duration::from_secs(300));
        let spec: SinkSpec = "a=gs://b".parse().unwrap();
        assert_eq!((spec.kind, spec.prefix.as_str()), (Kind::Google, ""));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, told) in [
            ("s3://bucket", "use NAME=URL"),
            ("S=s3://b", "no name of a sink"),
            ("a=ftp://b", "is no store"),
            ("a=s3://b/../c", "no name of a bucket"),
            ("a=s3://b/c d", "no name of a bucket"),
            ("a=s3://", "no name of a bucket"),
            ("a=s3://b?secret=x", "unknown parameter `secret`"),
            ("a=gs://b?retain=1d", "unknown parameter `retain`"),
            ("a=s3://b?retain=forever", "a time like 30d"),
            ("a=s3://b?expires=25h", "1s to 24h"),
            ("a=s3://b?endpoint=minio:9000", "http://HOST:PORT"),
            ("a=s3://b?lock=no", "governance or compliance"),
        ] {
            let error = refused(text);
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
