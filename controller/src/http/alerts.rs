//! One alert: from the request to the answer.

use std::time::Duration;

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, Request, header},
    response::Response,
};
use futures_util::StreamExt as _;
use remora_proto::tls::Peer;

use super::{Shared, account, answer::answer, receipt::Receipt};
use crate::{
    ingest::{Delivery, Handled},
    outcome::{Outcome, Refusal, RefusalCode},
};

/// Largest alert, in bytes.
pub const BODY_MAX: usize = remora_capture::alert::ALERT_BYTES_MAX;
/// How long a body may take to come.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest `User-Agent` that is kept, in characters.
const USER_AGENT_MAX: usize = 80;

pub(super) async fn take(
    State(shared): State<Shared>,
    Extension(sender): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    let receipt = Receipt::new(shared.metrics.clone());
    let received = receipt.received;
    let (head, body) = request.into_parts();
    let alert = match known(&shared, &head.headers).and_then(|()| admit(&head.headers)) {
        Ok(()) => read(body).await,
        Err(refusal) => Err(refusal),
    };
    let alert = match alert {
        Ok(alert) => alert,
        Err(refusal) => {
            account::refused(&shared, &refusal, &sender).await;
            let handled = Handled::from(Outcome::Refused(refusal));
            handled.log();
            receipt.settle(&handled.outcome);
            return answer(&handled, received);
        }
    };
    let delivery = Delivery {
        alert,
        requester: text_of(&head.headers, header::USER_AGENT.as_str(), USER_AGENT_MAX),
        traceparent: text_of(&head.headers, "traceparent", TRACEPARENT_LEN),
        arrived: received,
    };
    // A task of its own: once the agent is asked, the outcome counts whether the sender waits for
    // it or not.
    let task = tokio::spawn(async move {
        let handled = account::handle(&shared, delivery, &sender).await;
        receipt.settle(&handled.outcome);
        handled
    });
    match task.await {
        Ok(handled) => answer(&handled, received),
        // It panicked, or the runtime is going down; the receipt has counted it.
        Err(error) => {
            tracing::error!(%error, "handling of an alert broke off");
            let refusal = Refusal::new(RefusalCode::SenderGone, "the controller failed");
            answer(&Outcome::Refused(refusal).into(), received)
        }
    }
}

/// Length of a `traceparent` of version 00: `00-` trace id `-` parent id `-` flags.
const TRACEPARENT_LEN: usize = 55;

/// Refuses who does not show the senders' secret, before anything of the body is read.
fn known(shared: &Shared, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(secret) = shared.secret.as_ref().filter(|_| !shared.admits(headers)) else {
        return Ok(());
    };
    let reason = match secret.header() {
        &header::AUTHORIZATION => "the senders' secret is missing or another; send it as \
                                  `Authorization: Bearer SECRET` (Falcosidekick: \
                                  webhook.customHeaders)"
            .to_owned(),
        name => format!(
            "the senders' secret is missing or another; send it in the header `{name}` \
             (Falcosidekick: webhook.customHeaders)"
        ),
    };
    Err(Refusal::new(RefusalCode::Unauthenticated, reason))
}

/// Refuses by the head alone what cannot be an alert.
fn admit(headers: &HeaderMap) -> Result<(), Refusal> {
    // A page in a browser on this machine can post to loopback, but not without these.
    if headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site") {
        let reason = "alerts are not taken from web pages";
        return Err(Refusal::new(RefusalCode::FromBrowser, reason));
    }
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map_or("", |v| v.to_str().unwrap_or("?"));
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    // The second is what `curl -d @alert.json` says.
    let known = ["application/json", "application/x-www-form-urlencoded"];
    if !known
        .iter()
        .any(|known| media_type.eq_ignore_ascii_case(known))
    {
        let reason = "alerts are JSON, with content type application/json; in falco.yaml set \
                      json_output: true";
        return Err(Refusal::new(RefusalCode::NotJson, reason));
    }
    let encoding = headers
        .get(header::CONTENT_ENCODING)
        .map_or("identity", |v| v.to_str().unwrap_or("?"));
    if !encoding.eq_ignore_ascii_case("identity") {
        let reason = "compressed bodies are not taken; send the alert uncompressed";
        return Err(Refusal::new(RefusalCode::NotJson, reason));
    }
    match headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok())
    {
        Some(length) if length > BODY_MAX as u64 => Err(too_large()),
        _ => Ok(()),
    }
}

/// Reads a body of at most [`BODY_MAX`] bytes.
async fn read(body: Body) -> Result<Vec<u8>, Refusal> {
    let reading = async {
        let mut bytes = Vec::new();
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_broken| {
                Refusal::new(RefusalCode::SenderGone, "the body ended before its length")
            })?;
            if bytes.len() + chunk.len() > BODY_MAX {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    tokio::time::timeout(BODY_TIMEOUT, reading)
        .await
        .unwrap_or_else(|_| {
            let reason = format!("the body did not come within {BODY_TIMEOUT:?}");
            Err(Refusal::new(RefusalCode::SlowBody, reason))
        })
}

fn too_large() -> Refusal {
    Refusal::new(
        RefusalCode::TooLarge,
        format!("an alert has at most {BODY_MAX} bytes"),
    )
}

/// A header's text, if it is printable ASCII; its first `max` characters.
fn text_of(headers: &HeaderMap, name: &str, max: usize) -> String {
    let text = headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    text.chars().take(max).collect()
}
