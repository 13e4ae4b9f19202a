//! `sts:GetCallerIdentity`: Talon asks once, at its start, and ends if nobody answers.

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{Request, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use remora_proto::tls::Peer;

use super::{
    super::{Shared, account},
    Fault, Lambda,
};

/// Largest form.
const BODY_MAX: usize = 4096;
/// Nobody's account: no AWS account has this number.
const ACCOUNT: &str = "000000000000";

pub(in super::super) async fn take(
    State(shared): State<Shared>,
    Extension(sender): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    let Some(lambda) = shared.lambda.clone() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match identity(&lambda, request).await {
        Ok(xml) => {
            shared.metrics.talon("get_caller_identity", "answered");
            ([(header::CONTENT_TYPE, "text/xml")], xml).into_response()
        }
        Err(fault) => {
            shared.metrics.talon("get_caller_identity", "refused");
            account::refused(&shared, &fault.refusal, &sender).await;
            fault.xml()
        }
    }
}

async fn identity(lambda: &Lambda, request: Request<Body>) -> Result<String, Fault> {
    let (head, body) = request.into_parts();
    let signed = lambda.signed(&head, body, "sts", BODY_MAX).await?;
    let is_ours = signed
        .body
        .split(|byte| *byte == b'&')
        .any(|pair| pair == b"Action=GetCallerIdentity");
    if !is_ours {
        let reason = "the one action of this STS is GetCallerIdentity".to_owned();
        return Err(Fault::invalid(
            "InvalidAction",
            StatusCode::BAD_REQUEST,
            reason,
        ));
    }
    Ok(format!(
        "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <GetCallerIdentityResult><Arn>arn:aws:iam::{ACCOUNT}:user/falco-talon</Arn>\
         <UserId>falco-talon</UserId><Account>{ACCOUNT}</Account></GetCallerIdentityResult>\
         </GetCallerIdentityResponse>\n"
    ))
}
