//! What listens: the alerts' way in, health and metrics. HTTP/1.1, on loopback only.
//!
//! | route | |
//! |---|---|
//! | `POST /`, `POST /falco` (or `PUT`) | an alert as Falco or Falcosidekick sends it |
//! | `GET /healthz` | 200 while alerts are taken, 503 while the controller ends |
//! | `GET /metrics` | OpenMetrics text, or Prometheus' older form to who does not ask for it |
//!
//! Every answer to an alert is an [`Answer`], refusals too.

mod alerts;
mod answer;
mod receipt;
mod serve;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};

use remora_capture::exposition::exposition;

pub use alerts::{BODY_MAX, BODY_TIMEOUT};
pub use answer::Answer;
pub use serve::{CONNECTIONS_MAX, HEAD_TIMEOUT, serve};

use crate::{ingest::Ingest, metrics::Metrics};

/// What the routes share.
#[derive(Clone, Debug)]
struct Shared {
    ingest: Arc<Ingest>,
    metrics: Arc<Metrics>,
    draining: Arc<AtomicBool>,
}

/// The routes. `draining` is set by the caller when the controller is about to end.
pub fn router(ingest: Arc<Ingest>, metrics: Arc<Metrics>, draining: Arc<AtomicBool>) -> Router {
    let alerts = || post(alerts::take).put(alerts::take);
    Router::new()
        .route("/", alerts())
        .route("/falco", alerts())
        .route("/healthz", get(health))
        .route("/metrics", get(metrics_text))
        .with_state(Shared {
            ingest,
            metrics,
            draining,
        })
}

async fn health(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if shared.draining.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn metrics_text(State(shared): State<Shared>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    let told = exposition(shared.metrics.text(), accept.unwrap_or_default());
    ([(header::CONTENT_TYPE, told.content_type)], told.text)
}
