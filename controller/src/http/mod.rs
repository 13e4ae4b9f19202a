//! What listens: the alerts' way in, health and metrics. HTTP/1.1 on loopback, or that and HTTP/2 by TLS
//! for senders who prove that they are ([`listen`]).
//!
//! | route | |
//! |---|---|
//! | `POST /`, `POST /falco` (or `PUT`) | an alert as Falco or Falcosidekick sends it, also in CloudEvents |
//! | `POST /v1/triggers/talon` | what Falco Talon's actionner `remora:capture` sends |
//! | `POST /talon/sts`, `/talon/lambda/…` | what stock Talon's `aws:lambda` sends ([`talon`]) |
//! | `GET /healthz` | 200 while alerts are taken, 503 while the controller ends |
//! | `GET /metrics` | OpenMetrics text, or Prometheus' older form to who does not ask for it |
//!
//! Every answer to an alert is an [`Answer`], refusals too. With a secret all routes but `/healthz` ask
//! for it.

mod account;
mod alerts;
mod answer;
mod idle;
pub mod listen;
mod receipt;
mod secret;
mod serve;
mod talon;
mod watched;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};

use remora_capture::exposition::exposition;

pub use alerts::{BODY_MAX, BODY_TIMEOUT};
pub use answer::Answer;
pub use serve::{CONNECTIONS_MAX, HEAD_TIMEOUT, serve};

use self::{listen::Listener, secret::Secret, talon::Lambda};
use crate::{audit::Audit, ingest::Ingest, metrics::Metrics};

/// What the routes share.
#[derive(Clone, Debug)]
struct Shared {
    ingest: Arc<Ingest>,
    metrics: Arc<Metrics>,
    draining: Arc<AtomicBool>,
    secret: Option<Arc<Secret>>,
    lambda: Option<Arc<Lambda>>,
    audit: Audit,
}

impl Shared {
    /// Does the request show the secret, if there is one?
    fn admits(&self, headers: &HeaderMap) -> bool {
        self.secret
            .as_ref()
            .is_none_or(|secret| secret.is_shown(headers))
    }
}

/// The routes on `listener`. `draining` is set by the caller when the controller is about to end.
pub fn router(
    listener: &Listener,
    ingest: Arc<Ingest>,
    metrics: Arc<Metrics>,
    draining: Arc<AtomicBool>,
    audit: Audit,
) -> Router {
    let alerts = || post(alerts::take).put(alerts::take);
    Router::new()
        .route("/", alerts())
        .route("/falco", alerts())
        .route("/healthz", get(health))
        .route("/metrics", get(metrics_text))
        .merge(talon::routes(listener.lambda.is_some()))
        .with_state(Shared {
            ingest,
            metrics,
            draining,
            secret: listener.secret.clone(),
            lambda: listener.lambda.clone(),
            audit,
        })
}

async fn health(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if shared.draining.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn metrics_text(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    if !shared.admits(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    let told = exposition(shared.metrics.text(), accept.unwrap_or_default());
    ([(header::CONTENT_TYPE, told.content_type)], told.text).into_response()
}
