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

use super::{Shared, account, answer::answer, receipt::Receipt, talon};
use crate::{
    cloudevents::{self, ENVELOPE_MAX, Opened},
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
    if shared.lambda.is_some() && talon::is_signed(request.headers()) {
        return talon::caller_identity(State(shared), Extension(sender), request).await;
    }
    let receipt = Receipt::new(shared.metrics.clone());
    let received = receipt.received;
    let (head, body) = request.into_parts();
    let Opened { alert, id } = match opened(&shared, &head.headers, body).await {
        Ok(opened) => opened,
        Err(refusal) => {
            let handled = refused(&shared, refusal, &sender, receipt).await;
            return answer(&handled, received);
        }
    };
    let delivery = Delivery {
        alert,
        requester: requester(&head.headers),
        traceparent: traceparent(&head.headers),
        arrived: received,
        event_id: id,
        action: None,
    };
    answer(&decided(shared, delivery, sender, receipt).await, received)
}

/// The alert, out of its envelope if it has one.
async fn opened(shared: &Shared, headers: &HeaderMap, body: Body) -> Result<Opened, Refusal> {
    let max = match cloudevents::is_structured(headers) {
        true => BODY_MAX + ENVELOPE_MAX,
        false => BODY_MAX,
    };
    known(shared, headers)?;
    admit(headers, max)?;
    cloudevents::open(headers, read(body, max).await?)
}

/// Accounts for what was refused before it was read.
pub(super) async fn refused(
    shared: &Shared,
    refusal: Refusal,
    sender: &Peer,
    receipt: Receipt,
) -> Handled {
    account::refused(shared, &refusal, sender).await;
    let handled = Handled::from(Outcome::Refused(refusal));
    handled.log();
    receipt.settle(&handled.outcome);
    handled
}

/// Handles a delivery, in a task of its own: once the agent is asked, the outcome counts whether
/// the sender waits for it or not.
pub(super) async fn decided(
    shared: Shared,
    delivery: Delivery,
    sender: Peer,
    receipt: Receipt,
) -> Handled {
    let task = tokio::spawn(async move {
        let handled = account::handle(&shared, delivery, &sender).await;
        receipt.settle(&handled.outcome);
        handled
    });
    // It panicked, or the runtime is going down; the receipt has counted it.
    task.await.unwrap_or_else(|error| {
        tracing::error!(%error, "handling of an alert broke off");
        let refusal = Refusal::new(RefusalCode::SenderGone, "the controller failed");
        Outcome::Refused(refusal).into()
    })
}

/// Length of a `traceparent` of version 00: `00-` trace id `-` parent id `-` flags.
const TRACEPARENT_LEN: usize = 55;

/// Refuses who does not show the senders' secret, before anything of the body is read.
pub(super) fn known(shared: &Shared, headers: &HeaderMap) -> Result<(), Refusal> {
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
pub(super) fn admit(headers: &HeaderMap, max: usize) -> Result<(), Refusal> {
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
    let known = [
        "application/json",
        "application/x-www-form-urlencoded",
        cloudevents::MEDIA_TYPE,
    ];
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
        Some(length) if length > max as u64 => Err(too_large(max)),
        _ => Ok(()),
    }
}

/// Reads a body of at most `max` bytes.
pub(super) async fn read(body: Body, max: usize) -> Result<Vec<u8>, Refusal> {
    let reading = async {
        let mut bytes = Vec::new();
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_broken| {
                Refusal::new(RefusalCode::SenderGone, "the body ended before its length")
            })?;
            if bytes.len() + chunk.len() > max {
                return Err(too_large(max));
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

fn too_large(max: usize) -> Refusal {
    Refusal::new(
        RefusalCode::TooLarge,
        format!("an alert has at most {max} bytes"),
    )
}

/// Who says to be the sender.
pub(super) fn requester(headers: &HeaderMap) -> String {
    text_of(headers, header::USER_AGENT.as_str(), USER_AGENT_MAX)
}

/// Its trace's context.
pub(super) fn traceparent(headers: &HeaderMap) -> String {
    text_of(headers, "traceparent", TRACEPARENT_LEN)
}

/// A header's text, if it is printable ASCII; its first `max` characters.
pub(super) fn text_of(headers: &HeaderMap, name: &str, max: usize) -> String {
    let text = headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    text.chars().take(max).collect()
}
