//! The two ways in for Falco Talon: what its own `aws:lambda` sends, and what the actionner
//! `remora:capture` sends.
//!
//! | route | of `aws:lambda` |
//! |---|---|
//! | `POST /talon/sts` (or `POST /`) | GetCallerIdentity, once when Talon starts: without it Talon ends |
//! | `GET /talon/lambda/2015-03-31/functions/remora-capture` | before each action |
//! | `POST /talon/lambda/2015-03-31/functions/remora-capture/invocations` | the action |
//!
//! All three are signed (AWS Signature Version 4) with a key pair that Talon and the controller share. Base
//! paths may be left out. An invocation counts once: one that comes again with the same signature is
//! a replay and refused; a new attempt of the same call, signed anew, has the same capture, by its
//! `Amz-Sdk-Invocation-Id`, whichever controller it meets.

mod actionner;
mod fault;
mod keys;
mod lambda;
mod seen;
mod sts;

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, header, request},
    routing::{get, post},
};
use jiff::Timestamp;

use self::{fault::Fault, keys::Keys, seen::Seen};
use super::{Shared, alerts, secret::SecretError};
use crate::sigv4::{Claim, Head, Proof, Terms};

/// The function that captures.
const FUNCTION: &str = "remora-capture";

/// What is configured about Talon's `aws:lambda`.
#[derive(Clone, Debug)]
pub struct LambdaParts {
    /// Files of the key pair.
    pub access_key: PathBuf,
    pub secret_key: PathBuf,
    /// Most that Talon's clock may be away from ours.
    pub skew: Duration,
}

/// Who may invoke, and what was invoked.
#[derive(Debug)]
pub(super) struct Lambda {
    keys: Keys,
    skew: Duration,
    seen: Mutex<Seen>,
}

/// A request that is signed with our key.
struct Signed {
    access_key: String,
    body: Vec<u8>,
    proof: Proof,
}

impl Lambda {
    pub(super) fn load(parts: &LambdaParts) -> Result<Self, SecretError> {
        Ok(Self {
            keys: Keys::load(&parts.access_key, &parts.secret_key)?,
            skew: parts.skew,
            seen: Mutex::default(),
        })
    }

    /// Reads a request of at most `max` bytes, if it is ours.
    async fn signed(
        &self,
        head: &request::Parts,
        body: Body,
        service: &str,
        max: usize,
    ) -> Result<Signed, Fault> {
        let keys = self.keys.current();
        let terms = Terms {
            access_key: &keys.access_key,
            service,
            now: Timestamp::now(),
            skew: self.skew,
        };
        let signed = Head {
            method: &head.method,
            uri: &head.uri,
            headers: &head.headers,
        };
        let claim = Claim::read(signed, terms)?;
        let body = alerts::read(body, max).await?;
        let proof = claim.prove(&body, &keys.secret_key)?;
        Ok(Signed {
            access_key: keys.access_key,
            body,
            proof,
        })
    }

    /// Remembers an invocation.
    fn once(&self, proof: Proof) -> Result<(), Fault> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.insert(proof, Timestamp::now(), self.skew) {
            true => Ok(()),
            false => Err(Fault::replayed()),
        }
    }
}

/// The routes; those of `aws:lambda` only where there is a key pair.
pub(super) fn routes(has_lambda: bool) -> Router<Shared> {
    let routes = Router::new().route("/v1/triggers/talon", post(actionner::take));
    if !has_lambda {
        return routes;
    }
    let mut routes = routes
        .route("/talon/sts", post(sts::take))
        .route("/talon/sts/", post(sts::take));
    for base in ["", "/talon/lambda"] {
        let function = format!("{base}/2015-03-31/functions/{{name}}");
        routes = routes
            .route(&format!("{function}/invocations"), post(lambda::invoke))
            .route(&function, get(lambda::function));
    }
    routes
}

/// Signed as AWS has it, so not an alert: stock Talon without a base path posts to `/`.
pub(super) fn is_signed(headers: &HeaderMap) -> bool {
    headers
        .get(header::AUTHORIZATION)
        .is_some_and(|value| value.as_bytes().starts_with(b"AWS4-HMAC-SHA256 "))
}

pub(super) use sts::take as caller_identity;
