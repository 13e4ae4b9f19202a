//! `lambda:GetFunction` and `lambda:InvokeFunction`, of the one function that captures.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, Request, StatusCode},
    response::{IntoResponse as _, Response},
};
use remora_proto::tls::Peer;
use serde_json::json;

use super::{
    super::{
        Shared, account, alerts,
        answer::{Answer, told},
        receipt::Receipt,
    },
    FUNCTION, Fault, Lambda, Signed,
};
use crate::{
    ingest::Delivery,
    outcome::Outcome,
    talon::{Action, KEY_MAX, Mode},
};

/// How an action is invoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Invocation {
    RequestResponse,
    Event,
    DryRun,
}

pub(super) async fn function(
    State(shared): State<Shared>,
    Extension(sender): Extension<Peer>,
    Path(name): Path<String>,
    request: Request<Body>,
) -> Response {
    let Some(lambda) = shared.lambda.clone() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let (head, body) = request.into_parts();
    let found = match lambda.signed(&head, body, "lambda", 0).await {
        Ok(_) => named(&name),
        Err(fault) => Err(fault),
    };
    match found {
        Ok(()) => {
            shared.metrics.talon("get_function", "answered");
            Json(json!({"Configuration": {"FunctionName": FUNCTION}})).into_response()
        }
        Err(fault) => {
            shared.metrics.talon("get_function", "refused");
            account::refused(&shared, &fault.refusal, &sender).await;
            let refused = Outcome::Refused(fault.refusal.clone());
            fault.json(Answer::new(&refused))
        }
    }
}

pub(super) async fn invoke(
    State(shared): State<Shared>,
    Extension(sender): Extension<Peer>,
    Path(name): Path<String>,
    request: Request<Body>,
) -> Response {
    let Some(lambda) = shared.lambda.clone() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let receipt = Receipt::new(shared.metrics.clone());
    let received = receipt.received;
    let (invocation, delivery) = match delivery(&lambda, &name, request, &receipt).await {
        Ok(read) => read,
        Err(fault) => {
            shared.metrics.talon("invoke", "refused");
            let refusal = fault.refusal.clone();
            let handled = alerts::refused(&shared, refusal, &sender, receipt).await;
            return fault.json(told(&handled, received));
        }
    };
    let metrics = shared.metrics.clone();
    let handled = alerts::decided(shared, delivery, sender, receipt).await;
    let answer = told(&handled, received);
    let status = match (&handled.outcome, invocation) {
        (Outcome::Refused(refusal), _) => {
            metrics.talon("invoke", "refused");
            return Fault::from(refusal.clone()).json(answer);
        }
        (_, Invocation::RequestResponse) => StatusCode::OK,
        (_, Invocation::Event) => StatusCode::ACCEPTED,
        (_, Invocation::DryRun) => {
            metrics.talon("invoke", "answered");
            return StatusCode::NO_CONTENT.into_response();
        }
    };
    metrics.talon("invoke", "answered");
    (status, Json(answer)).into_response()
}

/// What came, if it is signed and whole, and came for the first time.
async fn delivery(
    lambda: &Lambda,
    name: &str,
    request: Request<Body>,
    receipt: &Receipt,
) -> Result<(Invocation, Delivery), Fault> {
    let (head, body) = request.into_parts();
    let signed = lambda.signed(&head, body, "lambda", alerts::BODY_MAX);
    let Signed {
        access_key,
        body,
        proof,
    } = signed.await?;
    named(name)?;
    let invocation = invocation(&head.headers)?;
    let key = invocation_id(&head.headers)?;
    lambda.once(proof)?;
    let mode = match invocation {
        Invocation::DryRun => Mode::DryRun,
        Invocation::RequestResponse | Invocation::Event => Mode::Live,
    };
    let action = Action::of_lambda(&body, &key, mode)?;
    let delivery = Delivery {
        alert: body,
        requester: format!("access key {access_key}"),
        traceparent: alerts::traceparent(&head.headers),
        arrived: receipt.received,
        event_id: None,
        action: Some(action),
    };
    Ok((invocation, delivery))
}

/// `remora-capture`, or an ARN of it: `arn:aws:lambda:REGION:ACCOUNT:function:remora-capture[:ALIAS]`.
fn named(name: &str) -> Result<(), Fault> {
    let found = match name.split_once(":function:") {
        Some((_, rest)) => rest.split(':').next(),
        None => Some(name),
    };
    if found == Some(FUNCTION) {
        return Ok(());
    }
    let reason = format!("the one function here is `{FUNCTION}` (aws_lambda_name in Talon's rule)");
    Err(Fault::invalid(
        "ResourceNotFoundException",
        StatusCode::NOT_FOUND,
        reason,
    ))
}

fn invocation(headers: &HeaderMap) -> Result<Invocation, Fault> {
    match alerts::text_of(headers, "x-amz-invocation-type", 32).as_str() {
        "" | "RequestResponse" => Ok(Invocation::RequestResponse),
        "Event" => Ok(Invocation::Event),
        "DryRun" => Ok(Invocation::DryRun),
        _ => Err(Fault::invalid(
            "InvalidParameterValueException",
            StatusCode::BAD_REQUEST,
            "X-Amz-Invocation-Type is RequestResponse, Event or DryRun".to_owned(),
        )),
    }
}

/// What makes attempts of one call the same.
fn invocation_id(headers: &HeaderMap) -> Result<String, Fault> {
    let id = alerts::text_of(headers, "amz-sdk-invocation-id", KEY_MAX + 1);
    if (1..=KEY_MAX).contains(&id.len()) {
        return Ok(id);
    }
    let reason = format!("Amz-Sdk-Invocation-Id is missing, or longer than {KEY_MAX}");
    Err(Fault::invalid(
        "InvalidParameterValueException",
        StatusCode::BAD_REQUEST,
        reason,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_has_one_name_and_its_arns() {
        for name in [
            "remora-capture",
            "arn:aws:lambda:us-east-1:000000000000:function:remora-capture",
            "arn:aws:lambda::000000000000:function:remora-capture:prod",
        ] {
            named(name).unwrap();
        }
        for name in [
            "",
            "remora",
            "remora-capture2",
            "arn:aws:lambda:us-east-1:0:function:other",
            "arn:aws:lambda:us-east-1:0:function:",
        ] {
            named(name).unwrap_err();
        }
    }
}
