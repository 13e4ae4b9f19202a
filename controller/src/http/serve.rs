//! The accept loop: bounded connections, slow heads cut off, orderly end.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{idle::Idle, listen::Listener};

/// Most connections at once; more wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 512;
/// How long a connection may be idle, or take for a request's head. Longer than the 90 s for which
/// Go's HTTP client (Falcosidekick, Talon) keeps an idle connection: who closes first is then
/// never us, and no alert meets a connection that just went.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Largest request head, in bytes.
const HEAD_MAX: usize = 16 * 1024;
/// HTTP/2: requests under way on one connection, bytes on their way of one and of all of them, and
/// requests begun and taken back that may wait to be noticed (CVE-2023-44487).
const STREAMS_MAX: u32 = 64;
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;
const RESETS_MAX: usize = 20;
/// Most header fields.
const HEADERS_MAX: usize = 64;
/// Pause after a failed accept: out of file descriptors is not better at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// Serves until `shutdown`, then until each connection has answered what it was asked.
pub async fn serve(mut listener: Listener, router: Router, shutdown: impl Future<Output = ()>) {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_MAX);
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD_MAX as u32)
        .max_pending_accept_reset_streams(RESETS_MAX);
    let accept = async {
        loop {
            let slot = slots.clone().acquire_owned().await.expect("never closed");
            let (stream, peer, version) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let service = TowerToHyperService::new(router.clone().layer(Extension(peer)));
            match version {
                Version::Http1 => {
                    let connection = http.serve_connection(TokioIo::new(stream), service);
                    begin(graceful.watch(connection), slot);
                }
                Version::Http2 => {
                    let stream = TokioIo::new(Idle::new(stream, HEAD_TIMEOUT));
                    begin(
                        graceful.watch(http2.serve_connection(stream, service)),
                        slot,
                    );
                }
            }
        }
    };
    tokio::select! {
        never = accept => { let _: Infallible = never; }
        () = shutdown => {}
    }
    drop(listener);
    graceful.shutdown().await;
}

fn begin(
    connection: impl Future<Output = hyper::Result<()>> + Send + 'static,
    slot: OwnedSemaphorePermit,
) {
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended with an error");
        }
        drop(slot);
    });
}
