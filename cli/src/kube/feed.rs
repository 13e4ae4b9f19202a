//! A capture's merged stream from a controller, with its progress told beside it.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use remora_capture::session::CaptureId;
use remora_proto::{
    reason::{Reason, reason_of},
    v1::{self, cluster_stream_response as wire},
};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use tonic::Streaming;

use super::{
    controllers::{Connection, Controllers, PATIENCE},
    failure::{Right, is_gone},
    render,
    state::ClusterCapture,
};
use crate::{
    follow::{Feed, Message},
    terminal,
};

/// How long to wait before progress is asked for again.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// How long an end waits for the stream to begin: of a capture that ends before its nodes send it, nothing is had.
const BEGIN_WAIT: Duration = Duration::from_secs(2);

/// A capture that the controllers know.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) controllers: Controllers,
    pub(super) id: CaptureId,
    /// Whose right is needed; `None` for a node's.
    pub(super) namespace: Option<String>,
    /// When its time is up.
    pub(super) deadline: Option<Instant>,
}

/// Its stream, from one replica.
pub(super) struct ClusterFeed {
    source: Source,
    connection: Connection,
    stream: Streaming<v1::ClusterStreamResponse>,
    bytes: u64,
    progress: Progress,
    /// Something came.
    begun: watch::Sender<bool>,
}

impl Source {
    /// Begins the stream.
    ///
    /// # Errors
    /// No replica has it.
    pub(super) async fn open(&self, progress: Progress) -> anyhow::Result<ClusterFeed> {
        let request = v1::ClusterStreamRequest {
            id: self.id.to_string(),
        };
        let right = Right::to_capture(self.namespace.as_deref());
        let stream = self
            .controllers
            .call(right, request, async |client, request| {
                client.stream(request).await
            })
            .await?;
        Ok(ClusterFeed {
            connection: self.controllers.connection().await?,
            source: self.clone(),
            stream,
            bytes: 0,
            progress,
            begun: watch::Sender::new(false),
        })
    }

    /// Asks for the capture's end. That comes by the stream, so only a refusal is told.
    pub(super) async fn stop(self) {
        let request = v1::ClusterStopRequest {
            id: self.id.to_string(),
        };
        let right = Right::to_capture(self.namespace.as_deref());
        let stopped = self
            .controllers
            .call(right, request, async |client, request| {
                match client.stop(request).await {
                    // It has ended by itself.
                    Err(status) if reason_of(&status) == Some(Reason::CaptureNotFound) => {
                        Ok(tonic::Response::new(v1::ClusterStopResponse::default()))
                    }
                    answer => answer,
                }
            })
            .await;
        if let Err(error) = stopped {
            terminal::note(&format!("remora: stop failed: {error:#}"));
        }
    }
}

/// What was last told of a capture; asks until it is dropped.
#[derive(Clone)]
pub(super) struct Progress {
    last: watch::Receiver<Option<ClusterCapture>>,
    _asking: Arc<Asking>,
}

struct Asking(AbortHandle);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Progress {
    /// Watches the capture. That fails silently: only the live line stands still.
    pub(super) fn of(source: &Source, first: Option<ClusterCapture>) -> Self {
        let (told, last) = watch::channel(first);
        let task = tokio::task::spawn_local(tell(source.controllers.clone(), source.id, told));
        Self {
            last,
            _asking: Arc::new(Asking(task.abort_handle())),
        }
    }

    /// The last state.
    pub(super) fn last(&self) -> Option<ClusterCapture> {
        self.last.borrow().clone()
    }

    /// Until there is another state.
    pub(super) async fn changed(&mut self) {
        if self.last.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Tells the capture's states until it has ended.
async fn tell(
    controllers: Controllers,
    id: CaptureId,
    told: watch::Sender<Option<ClusterCapture>>,
) {
    loop {
        if let Ok(mut states) = watched(&controllers, id).await {
            while let Ok(Some(state)) = states.message().await {
                if let Ok(state) = ClusterCapture::known(state.capture) {
                    told.send_replace(Some(state));
                }
            }
        }
        if told
            .borrow()
            .as_ref()
            .is_some_and(|last| last.phase.is_final())
        {
            return;
        }
        sleep(WATCH_PAUSE).await;
    }
}

async fn watched(
    controllers: &Controllers,
    id: CaptureId,
) -> anyhow::Result<Streaming<v1::ClusterWatchResponse>> {
    let request = v1::ClusterWatchRequest { id: id.to_string() };
    let mut connection = controllers.connection().await?;
    let request = controllers.shown(request).await?;
    Ok(connection.client.watch(request).await?.into_inner())
}

impl Feed for ClusterFeed {
    type State = ClusterCapture;

    const PATIENCE: Duration = PATIENCE;

    async fn next(&mut self) -> anyhow::Result<Message<ClusterCapture>> {
        let name = &self.connection.name;
        let message = match self.stream.message().await {
            Ok(message) => message
                .with_context(|| format!("{name} ended the stream in the middle of the capture"))?,
            Err(status) => {
                if is_gone(&status) {
                    self.source.controllers.lost(&self.connection).await;
                }
                let right = Right::to_capture(self.source.namespace.as_deref());
                let controllers = &self.source.controllers;
                return Err(controllers
                    .explained(&self.connection, &status, right)
                    .await);
            }
        };
        self.begun.send_replace(true);
        Ok(match message.message {
            Some(wire::Message::Blocks(blocks)) => {
                self.bytes += blocks.len() as u64;
                Message::Blocks(blocks)
            }
            Some(wire::Message::Finished(state)) => {
                Message::Finished(Box::new(ClusterCapture::understood(state)?))
            }
            None => Message::Unknown,
        })
    }

    fn stop(&self) -> impl Future<Output = ()> + use<> {
        let (source, mut begun) = (self.source.clone(), self.begun.subscribe());
        async move {
            // Not kept: what it lends would keep the next message from being told.
            drop(timeout(BEGIN_WAIT, begun.wait_for(|begun| *begun)).await);
            source.stop().await;
        }
    }

    fn live(&self, received: u64) -> String {
        let left = self
            .source
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        render::live(self.progress.last().as_ref(), received, self.bytes, left)
    }

    fn silent(&self) -> anyhow::Error {
        anyhow!(
            "{} did not end the capture within {PATIENCE:?}; `kubectl remora stop {}` tries again",
            self.connection.name,
            self.source.id
        )
    }
}

/// Waits for the capture's end.
///
/// # Errors
/// It cannot be awaited.
pub(super) async fn ended(
    source: &Source,
    progress: &mut Progress,
    show: &mut impl FnMut(&ClusterCapture),
) -> anyhow::Result<ClusterCapture> {
    loop {
        if let Some(state) = progress.last() {
            show(&state);
            if state.phase.is_final() {
                return Ok(state);
            }
        }
        // Also without an event: it may have ended between two watches.
        if timeout(WATCH_PAUSE, progress.changed()).await.is_err() {
            let state = source.get().await?;
            if state.phase.is_final() {
                return Ok(state);
            }
        }
    }
}

impl Source {
    /// The capture's state.
    ///
    /// # Errors
    /// No replica tells it.
    pub(super) async fn get(&self) -> anyhow::Result<ClusterCapture> {
        let request = v1::ClusterGetRequest {
            id: self.id.to_string(),
        };
        let right = Right::to_see(self.namespace.as_deref());
        let answer = self
            .controllers
            .call(right, request, async |client, request| {
                client.get(request).await
            })
            .await?;
        ClusterCapture::known(answer.capture)
    }
}
