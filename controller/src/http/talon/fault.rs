//! Refusals, as an AWS SDK reads them: the word in a header, the reason in the body.

use axum::{
    Json,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;

use super::super::answer::{Answer, status};
use crate::{
    ingest::Handled,
    outcome::{Outcome, Refusal, RefusalCode},
    sigv4::Denied,
};

/// Where an SDK looks for an error's word.
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// What an SDK is refused with.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) refusal: Refusal,
    /// AWS's word for it.
    word: &'static str,
    status: StatusCode,
}

/// ```json
/// {"Type":"User","Message":"the signature is another one: …","decision":"refused","code":"…","reason":"…"}
/// ```
#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "Type")]
    kind: &'static str,
    /// Talon shows it in its log and notification.
    #[serde(rename = "Message")]
    message: &'a str,
    #[serde(flatten)]
    answer: Answer,
}

impl Fault {
    /// The same request came before.
    pub(super) fn replayed() -> Self {
        let reason =
            "the request came before, with the same signature; a new attempt is signed anew";
        Self {
            refusal: Refusal::new(RefusalCode::Replayed, reason),
            word: "InvalidSignatureException",
            status: StatusCode::FORBIDDEN,
        }
    }

    /// The request asks for what is not there, or wrongly.
    pub(super) fn invalid(word: &'static str, status: StatusCode, reason: String) -> Self {
        let refusal = Refusal::new(RefusalCode::InvalidSpec, reason);
        Self {
            refusal,
            word,
            status,
        }
    }

    /// For the Lambda API: JSON.
    pub(super) fn json(&self, answer: Answer) -> Response {
        let body = Body {
            kind: self.kind(),
            message: &self.refusal.reason,
            answer,
        };
        (self.status, [(ERROR_TYPE, self.word)], Json(body)).into_response()
    }

    /// For STS: XML.
    pub(super) fn xml(&self) -> Response {
        let kind = match self.kind() {
            "User" => "Sender",
            _ => "Receiver",
        };
        let reason = self
            .refusal
            .reason
            .replace('&', "&amp;")
            .replace('<', "&lt;");
        let body = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>{kind}</Type>\
             <Code>{}</Code><Message>{reason}</Message></Error></ErrorResponse>\n",
            self.word.trim_end_matches("Exception")
        );
        (self.status, [(header::CONTENT_TYPE, "text/xml")], body).into_response()
    }

    fn kind(&self) -> &'static str {
        match self.status.is_server_error() {
            true => "Service",
            false => "User",
        }
    }
}

impl From<Denied> for Fault {
    fn from(denied: Denied) -> Self {
        let code = match denied {
            Denied::Skewed { .. } => RefusalCode::ClockSkew,
            _ => RefusalCode::Unauthenticated,
        };
        let word = match denied {
            Denied::Unsigned => "MissingAuthenticationTokenException",
            Denied::Incomplete(_) => "IncompleteSignatureException",
            Denied::UnknownKey => "UnrecognizedClientException",
            Denied::Skewed { .. } => "RequestExpired",
            Denied::Scope { .. } | Denied::Mismatch => "InvalidSignatureException",
        };
        Self {
            refusal: Refusal::new(code, denied.to_string()),
            word,
            status: StatusCode::FORBIDDEN,
        }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let handled = Handled::from(Outcome::Refused(refusal.clone()));
        let status = status(&handled.outcome);
        let word = match status {
            StatusCode::PAYLOAD_TOO_LARGE => "RequestTooLargeException",
            StatusCode::BAD_REQUEST => "InvalidRequestContentException",
            // Not `TooManyRequestsException`, for which an SDK tries again at once, while Talon's
            // other actions wait: the limit is still there then.
            StatusCode::TOO_MANY_REQUESTS => "CaptureLimitException",
            status if status.is_server_error() => "ServiceException",
            _ => "InvalidParameterValueException",
        };
        Self {
            refusal,
            word,
            status,
        }
    }
}
