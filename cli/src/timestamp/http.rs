//! A query to an authority, and its response.

use std::{str::FromStr, time::Duration};

use anyhow::{Context as _, ensure};
use remora_capture::text::{one_line, with_causes};
use reqwest::{StatusCode, header::CONTENT_TYPE, redirect::Policy};

use super::RESPONSE_BYTES_MAX;

const TIMEOUT: Duration = Duration::from_secs(20);

/// `http://HOST[:PORT]/PATH`, or https: the response proves itself by either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url(reqwest::Url);

impl FromStr for Url {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let wanted = "not http://HOST[:PORT]/PATH or https://…, without a user name";
        let url: reqwest::Url = text.parse().context(wanted)?;
        let is_http = ["http", "https"].contains(&url.scheme());
        let is_plain = url.username().is_empty() && url.password().is_none();
        ensure!(
            is_http && is_plain && url.has_host() && url.fragment().is_none(),
            wanted
        );
        Ok(Self(url))
    }
}

/// Asks once.
///
/// # Errors
/// The authority cannot be reached, or does not answer with a response.
pub(crate) async fn exchange(Url(url): &Url, query: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    // Somebody else may have set it to the same.
    let _set = rustls::crypto::ring::default_provider().install_default();
    let builder = || {
        reqwest::Client::builder()
            .timeout(TIMEOUT)
            .redirect(Policy::none())
    };
    // A machine without CA certificates still asks by http.
    let client = builder().build();
    let client = client.or_else(|_| builder().tls_certs_only(Vec::new()).build())?;
    let host = url.host_str().unwrap_or_default();
    let request = client
        .post(url.clone())
        .header(CONTENT_TYPE, "application/timestamp-query")
        .body(query);
    let failed = |error: reqwest::Error| {
        let why = one_line(&with_causes(&error.without_url()), 400);
        anyhow::anyhow!("the authority at {host} cannot be reached: {why}")
    };
    let mut answer = request.send().await.map_err(failed)?;
    let status = answer.status();
    ensure!(
        status == StatusCode::OK,
        "the authority answered `{status}`"
    );
    let mut response = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        response.extend_from_slice(&piece);
        ensure!(
            response.len() <= RESPONSE_BYTES_MAX,
            "the authority's answer has more than {RESPONSE_BYTES_MAX} bytes"
        );
    }
    Ok(response)
}
