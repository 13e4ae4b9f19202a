//! One alert to the controller.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use remora_capture::text::with_causes;
use reqwest::{Client, RequestBuilder, header::CONTENT_TYPE, redirect::Policy};
use serde::Deserialize;

use super::{Answer, Decision};

/// How long a connection and an answer may take: the controller gives its agent a second.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read, in bytes.
const ANSWER_MAX: usize = 1 << 20;

/// Where alerts go.
#[derive(Debug)]
pub(super) struct Controller {
    client: Client,
    address: SocketAddr,
    secret: Option<String>,
}

/// What the controller answers with.
#[derive(Deserialize)]
struct Body {
    decision: String,
    capture_id: Option<String>,
    code: Option<String>,
    reason: Option<String>,
}

impl Controller {
    /// # Errors
    /// There is no HTTP here.
    pub(super) fn new(address: SocketAddr, secret: Option<String>) -> anyhow::Result<Self> {
        // Somebody else may have set it to the same.
        let _set = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .timeout(TIMEOUT)
            // Nobody serves a connection while standard input is waited for.
            .pool_max_idle_per_host(0)
            .tls_certs_only(Vec::new())
            .user_agent("remora-trigger");
        Ok(Self {
            client: client.build().context("no HTTP client")?,
            address,
            secret,
        })
    }

    /// Posts an alert. Without an answer it is posted once more: the same alert is one capture.
    pub(super) async fn post(&self, alert: &[u8]) -> Answer {
        let answer = match self.exchange(alert).await {
            Err(_first) => self.exchange(alert).await,
            answer => answer,
        };
        answer.map_or_else(
            |error| {
                let reason = format!(
                    "the controller at {} does not answer ({}); is remora-controller running?",
                    self.address,
                    with_causes(&error.without_url())
                );
                Answer::refused("controller_away", reason)
            },
            |body| read(&body),
        )
    }

    /// The body of its answer, as far as it is read.
    async fn exchange(&self, alert: &[u8]) -> reqwest::Result<Vec<u8>> {
        let mut answer = self.request(alert).send().await?;
        let mut body = Vec::new();
        while body.len() < ANSWER_MAX
            && let Some(piece) = answer.chunk().await?
        {
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    fn request(&self, alert: &[u8]) -> RequestBuilder {
        let request = self
            .client
            .post(format!("http://{}/falco", self.address))
            .header(CONTENT_TYPE, "application/json")
            .body(alert.to_vec());
        match &self.secret {
            Some(secret) => request.bearer_auth(secret),
            None => request,
        }
    }
}

fn read(body: &[u8]) -> Answer {
    let Ok(Body {
        decision,
        capture_id,
        code,
        reason,
    }) = serde_json::from_slice(body)
    else {
        return Answer::refused("no_answer", "who answered is no remora-controller");
    };
    let reason = reason.unwrap_or_default();
    let (decision, told) = match (decision.as_str(), capture_id) {
        ("accepted", Some(id)) => (Decision::Accepted, id),
        ("existing", Some(id)) => (Decision::Existing, id),
        ("ignored", _) => (Decision::Ignored, reason),
        _ => return Answer::refused(code.as_deref().unwrap_or("no_answer"), reason),
    };
    Answer { decision, told }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_controllers_answers_are_believed() {
        let of = |body: &str| {
            let answer = read(body.as_bytes());
            format!("{} {}", answer.decision.word(), answer.told)
        };
        assert_eq!(
            of(r#"{"decision":"accepted","capture_id":"01JD"}"#),
            "accepted 01JD"
        );
        assert_eq!(
            of(r#"{"decision":"existing","capture_id":"01JD"}"#),
            "existing 01JD"
        );
        let ignored = r#"{"decision":"ignored","reason":"no rule matches"}"#;
        assert_eq!(of(ignored), "ignored no rule matches");
        let refused = r#"{"decision":"refused","code":"busy","reason":"later"}"#;
        assert_eq!(of(refused), "refused busy: later");
        for body in ["", "{}", "<html>", r#"{"decision":"accepted"}"#] {
            assert!(of(body).starts_with("refused no_answer: "), "{body}");
        }
        assert_eq!(read(b"").decision, Decision::Refused);
    }
}
