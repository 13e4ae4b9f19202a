//! What Talon's actionner `remora:capture` sends: the event, its action, and a key that makes a
//! second try the same call.

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, Request},
    response::Response,
};
use remora_proto::tls::Peer;

use super::super::{Shared, alerts, answer::answer, receipt::Receipt};
use crate::{
    ingest::Delivery,
    outcome::{Refusal, RefusalCode},
    talon::{Action, BODY_MAX, KEY_MAX},
};

pub(super) async fn take(
    State(shared): State<Shared>,
    Extension(sender): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    let receipt = Receipt::new(shared.metrics.clone());
    let received = receipt.received;
    match delivery(&shared, request, &receipt).await {
        Ok(delivery) => {
            let handled = alerts::decided(shared, delivery, sender, receipt).await;
            answer(&handled, received)
        }
        Err(refusal) => {
            let handled = alerts::refused(&shared, refusal, &sender, receipt).await;
            answer(&handled, received)
        }
    }
}

async fn delivery(
    shared: &Shared,
    request: Request<Body>,
    receipt: &Receipt,
) -> Result<Delivery, Refusal> {
    let (head, body) = request.into_parts();
    alerts::known(shared, &head.headers)?;
    alerts::admit(&head.headers, BODY_MAX)?;
    let key = key(&head.headers)?;
    let body = alerts::read(body, BODY_MAX).await?;
    let (alert, action) = Action::of_actionner(&body, &key)?;
    Ok(Delivery {
        alert,
        requester: alerts::requester(&head.headers),
        traceparent: alerts::traceparent(&head.headers),
        arrived: receipt.received,
        event_id: None,
        action: Some(action),
    })
}

/// Without one the event itself says whether it came before.
fn key(headers: &HeaderMap) -> Result<String, Refusal> {
    let key = alerts::text_of(headers, "idempotency-key", KEY_MAX + 1);
    if key.len() > KEY_MAX {
        let reason = format!("Idempotency-Key has at most {KEY_MAX} characters");
        return Err(Refusal::new(RefusalCode::InvalidSpec, reason));
    }
    Ok(key)
}
