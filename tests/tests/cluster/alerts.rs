//! Alerts to a controller of the cluster, as Falco posts them: by https, with the secret.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;
use tokio::runtime::Runtime;

use remora_tests::{
    cluster::{Cluster, door::Door, release::NAMESPACE},
    http::Response,
};

use crate::installed::{authority, first_controller};

/// Port of the controllers for alerts.
const PORT: u16 = 2803;
/// What their certificate says they are.
const NAME: &str = "remora-controller";
const LIMIT: Duration = Duration::from_secs(30);

/// A sender that keeps its connection to one controller.
pub(crate) struct Sender {
    _door: Door,
    runtime: Runtime,
    client: reqwest::Client,
    url: String,
    secret: String,
}

impl Sender {
    pub(crate) fn to_first(cluster: &Cluster) -> Result<Self> {
        let pod = first_controller(cluster)?;
        let inside = SocketAddr::from((pod.address()?, PORT));
        let door = Door::open(cluster.node(&pod.node)?.netns().path(), inside)?;
        let read = ["get", "secret", "remora-alerts", "-n", NAMESPACE];
        let path = ["-o", "jsonpath={.data.secret}"];
        let secret = cluster.kubectl().run(&[&read[..], &path].concat())?;
        let secret = String::from_utf8(BASE64_STANDARD.decode(secret.trim())?)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        // Another test may have set it to the same.
        let _set = rustls::crypto::ring::default_provider().install_default();
        let roots = reqwest::Certificate::from_pem_bundle(authority(cluster)?.as_bytes())?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(LIMIT)
            .tls_certs_only(roots)
            .resolve(NAME, door.address())
            .build()?;
        Ok(Self {
            url: format!("https://{NAME}:{}/", door.address().port()),
            _door: door,
            runtime,
            client,
            secret,
        })
    }

    /// The controller's answer.
    pub(crate) fn post(&self, alert: &Value) -> Result<Response> {
        let request = self
            .client
            .post(&self.url)
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", self.secret))
            .body(alert.to_string());
        self.runtime.block_on(async {
            let answer = request.send().await.context("no answer")?;
            Ok(Response {
                status: answer.status().as_u16(),
                body: answer.text().await?,
            })
        })
    }
}
