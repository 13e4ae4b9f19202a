//! URLs for one object: to put it, and to ask whether it is there whole.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use object_store::{path::Path, signer::SignedUrlOptions};
use remora_proto::v1::{PutRequest, SignedRequest, StoreChecksum, UploadOffer};

use super::{Kind, Lock, Sink, name};

/// How much longer than a put a check may be begun: the upload lies between.
const CHECK_LONGER: Duration = Duration::from_secs(6 * 3600);

/// Nothing was signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignError {
    #[error("the agent offers `{0}`, which is no file of the capture")]
    Name(String),
    #[error("the agent tells no SHA-256 of it")]
    Digest,
    #[error("the credentials do not sign: {0}")]
    Store(#[from] object_store::Error),
}

impl Sink {
    /// Both requests for what is offered.
    pub(super) async fn sign(
        &self,
        offer: &UploadOffer,
        now: Timestamp,
    ) -> Result<PutRequest, SignError> {
        let shown = || remora_capture::text::one_line(&offer.file, 200);
        let path =
            name::object(&self.spec.prefix, offer).ok_or_else(|| SignError::Name(shown()))?;
        if offer.sha256.len() != 32 {
            return Err(SignError::Digest);
        }
        let expires = self.spec.expires;
        let put = self.request(Method::PUT, &path, expires, self.put_headers(offer, now));
        let longer = expires + CHECK_LONGER;
        let looking = match self.spec.kind {
            Kind::S3 | Kind::Google => Method::HEAD,
            // Its signatures are of rights, not of methods: to read is the one that lets a HEAD pass.
            Kind::Azure => Method::GET,
        };
        let check = self.request(looking, &path, longer, self.check_headers());
        Ok(PutRequest {
            id: offer.id.clone(),
            file: offer.file.clone(),
            put: Some(put.await?),
            check: Some(check.await?),
            checksum: self.checksum().into(),
        })
    }

    async fn request(
        &self,
        method: Method,
        path: &Path,
        expires: Duration,
        headers: Vec<(String, String)>,
    ) -> Result<SignedRequest, SignError> {
        let mut options = SignedUrlOptions::new();
        // Azure's signature takes no headers.
        if self.spec.kind != Kind::Azure {
            for (name, value) in &headers {
                let header = (HeaderName::try_from(name), HeaderValue::try_from(value));
                if let (Ok(name), Ok(value)) = header {
                    options = options.with_signed_header(name, value);
                }
            }
        }
        let url = self
            .signer
            .signed_url_opts(method, path, expires, &options)
            .await?;
        Ok(SignedRequest {
            url: url.into(),
            headers: headers.into_iter().collect(),
        })
    }

    /// What makes the URL good for this content alone, and what is told beside it.
    fn put_headers(&self, offer: &UploadOffer, now: Timestamp) -> Vec<(String, String)> {
        let mut headers = vec![(
            "content-type".to_owned(),
            name::content_type(&offer.file).to_owned(),
        )];
        let mut add = |name: &str, value: String| headers.push((name.to_owned(), value));
        match self.spec.kind {
            Kind::S3 => {
                add("x-amz-checksum-sha256", STANDARD.encode(&offer.sha256));
                // What is there is never written over.
                add("if-none-match", "*".to_owned());
                if let Some((retain, lock)) = self.spec.retain
                    && let Ok(until) = now.checked_add(retain)
                {
                    let mode = match lock {
                        Lock::Governance => "GOVERNANCE",
                        Lock::Compliance => "COMPLIANCE",
                    };
                    add("x-amz-object-lock-mode", mode.to_owned());
                    let until = until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                    add("x-amz-object-lock-retain-until-date", until);
                }
            }
            Kind::Google => add("x-goog-if-generation-match", "0".to_owned()),
            Kind::Azure => {
                add("x-ms-blob-type", "BlockBlob".to_owned());
                add("if-none-match", "*".to_owned());
            }
        }
        for (name, value) in name::metadata(offer) {
            let name = match self.spec.kind {
                Kind::S3 => format!("x-amz-meta-remora-{name}"),
                Kind::Google => format!("x-goog-meta-remora-{name}"),
                // Names of a program's variables alone.
                Kind::Azure => format!("x-ms-meta-remora_{name}"),
            };
            add(&name, value);
        }
        headers
    }

    fn check_headers(&self) -> Vec<(String, String)> {
        match self.spec.kind {
            Kind::S3 => vec![("x-amz-checksum-mode".to_owned(), "ENABLED".to_owned())],
            Kind::Google | Kind::Azure => Vec::new(),
        }
    }

    fn checksum(&self) -> StoreChecksum {
        match self.spec.kind {
            Kind::S3 => StoreChecksum::S3Sha256,
            Kind::Google => StoreChecksum::GoogleMd5,
            Kind::Azure => StoreChecksum::ContentMd5,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::{aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, signer::Signer};

    use super::*;
    use crate::sinks::name::tests::{ID, offer};

    fn sink(spec: &str, signer: Arc<dyn Signer>) -> Sink {
        Sink {
            spec: spec.parse().expect("a sink"),
            signer,
        }
    }

    async fn signed(sink: &Sink) -> (SignedRequest, SignedRequest) {
        let now = Timestamp::UNIX_EPOCH;
        let offer = offer(&format!("{ID}.pcapng"));
        let request = sink.sign(&offer, now).await.expect("signed");
        (request.put.expect("one"), request.check.expect("one"))
    }

    #[tokio::test]
    async fn an_s3_url_is_of_one_object_one_content_and_a_short_time() {
        let _set = rustls::crypto::ring::default_provider().install_default();
        let builder = AmazonS3Builder::new()
            .with_bucket_name("case-files")
            .with_region("eu-central-1")
            .with_access_key_id("AKID")
            .with_secret_access_key("very-secret");
        let spec = "evidence=s3://case-files/remora?retain=1d&lock=compliance&expires=5m";
        let sink = sink(spec, Arc::new(builder.build().expect("S3")));
        let (put, check) = signed(&sink).await;
        let (place, query) = put.url.split_once('?').expect("a query");
        assert!(
            place.starts_with("https://s3.eu-central-1.amazonaws.com/case-files/"),
            "{place}"
        );
        assert!(
            place.ends_with(&format!("/remora/{ID}/{ID}.pcapng")),
            "{place}"
        );
        assert!(query.contains("X-Amz-Expires=300"), "{query}");
        for name in [
            "content-type",
            "if-none-match",
            "x-amz-checksum-sha256",
            "x-amz-meta-remora-capture",
            "x-amz-meta-remora-rule",
            "x-amz-object-lock-mode",
            "x-amz-object-lock-retain-until-date",
        ] {
            assert!(put.headers.contains_key(name), "{name}: {put:?}");
            // Each is one of X-Amz-SignedHeaders, which `;` divides.
            assert!(query.contains(&format!("%3B{name}")) || query.contains(&format!("={name}")));
        }
        assert_eq!(
            put.headers["x-amz-object-lock-retain-until-date"],
            "1970-01-02T00:00:00Z"
        );
        assert_eq!(put.headers["x-amz-object-lock-mode"], "COMPLIANCE");
        assert!(check.url.contains("x-amz-checksum-mode"), "{}", check.url);
        assert!(!format!("{put:?}{check:?}").contains("very-secret"));
    }

    #[tokio::test]
    async fn azures_url_is_of_one_blob_and_what_is_sent_with_it() {
        let _set = rustls::crypto::ring::default_provider().install_default();
        let builder = MicrosoftAzureBuilder::new()
            .with_account("account")
            .with_access_key(STANDARD.encode("very-secret"))
            .with_container_name("cases");
        let sink = sink(
            "a=az://cases/remora",
            Arc::new(builder.build().expect("Azure")),
        );
        let (put, check) = signed(&sink).await;
        let place = format!("https://account.blob.core.windows.net/cases/remora/{ID}/{ID}.pcapng?");
        assert!(put.url.starts_with(&place), "{}", put.url);
        assert!(
            put.url.contains("sig=") && put.url.contains("sp="),
            "{}",
            put.url
        );
        assert!(check.url.starts_with(&place), "{}", check.url);
        // To write, and to read: one with no right at all is refused.
        let rights = |url: &str| {
            let (_, query) = url.split_once('?').expect("a query");
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(key, value)| (key == "sp").then(|| value.to_owned()))
        };
        assert!(
            rights(&put.url).is_some_and(|rights| rights.contains('w') && !rights.contains('r'))
        );
        assert_eq!(rights(&check.url).as_deref(), Some("r"));
        assert_eq!(put.headers["x-ms-blob-type"], "BlockBlob");
        assert_eq!(put.headers["if-none-match"], "*");
        assert_eq!(put.headers["x-ms-meta-remora_capture"], ID);
        assert!(check.headers.is_empty());
        assert_eq!(sink.checksum(), StoreChecksum::ContentMd5);
    }

    #[tokio::test]
    async fn what_an_agent_offers_is_not_taken_as_it_comes() {
        let _set = rustls::crypto::ring::default_provider().install_default();
        let builder = AmazonS3Builder::new()
            .with_bucket_name("b")
            .with_access_key_id("AKID")
            .with_secret_access_key("very-secret");
        let sink = sink("a=s3://b", Arc::new(builder.build().expect("S3")));
        let strange = offer("../../etc/passwd");
        let refused = sink.sign(&strange, Timestamp::UNIX_EPOCH);
        assert!(matches!(refused.await, Err(SignError::Name(_))));
        let mut short = offer(&format!("{ID}.pcapng"));
        short.sha256 = vec![0; 31].into();
        let refused = sink.sign(&short, Timestamp::UNIX_EPOCH).await;
        assert!(matches!(refused, Err(SignError::Digest)));
    }
}
