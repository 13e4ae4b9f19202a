//! `remora.v1.Capture`.

use std::{collections::HashSet, io, path::PathBuf, pin::Pin};

use bytes::Bytes;
use futures_util::Stream;
use remora_capture::session::{CaptureId, CaptureState, StopReason};
use remora_proto::{
    convert::{ConvertError, Extend, Start},
    reason::{Reason, status},
    v1::{self, capture_server::Capture, stream_response::Message},
};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::{
    PeerPolicy,
    custody::{self, Custody},
    error, evidence, stored,
};
use crate::node::AskEvidence;
use crate::session::{
    DriverHandle, How, LookupError, Order, Receipt, Settled, Started, StreamSource,
};

/// Messages of a stream that wait for its connection.
const MESSAGES: usize = 4;

pub(super) struct CaptureService {
    pub(super) driver: DriverHandle,
    pub(super) peers: PeerPolicy,
    pub(super) evidence: AskEvidence,
    pub(super) custody: Custody,
    /// Runs a stream's task.
    pub(super) spawn: fn(Pin<Box<dyn Future<Output = ()> + Send>>),
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn id(text: &str) -> Result<CaptureId, Status> {
    text.parse()
        .map_err(|error| Status::from(ConvertError::Id(error)))
}

#[tonic::async_trait]
impl Capture for CaptureService {
    async fn start(
        &self,
        request: Request<v1::StartRequest>,
    ) -> Result<Response<v1::StartResponse>, Status> {
        let caller = self.peers.check(&request)?;
        let receipt = self.driver.tally().receive();
        let start = match Start::try_from(request.into_inner()) {
            Ok(start) => start,
            Err(error) => {
                receipt.settle(Settled::Refused(error.reason().as_str()));
                return Err(error.into());
            }
        };
        let is_keyed = start.idempotency_key.is_some();
        let started = start_settled(self.driver.clone(), start, caller, receipt);
        if !is_keyed {
            return started.await;
        }
        // Whoever asks again finds it, so it is carried to its end though its caller be gone.
        let (reply, answer) = oneshot::channel();
        (self.spawn)(Box::pin(async move {
            let _gone = reply.send(started.await);
        }));
        answer
            .await
            .map_err(|_broke_off| status(Code::Internal, Reason::Kernel, "the start broke off"))?
    }

    async fn extend(
        &self,
        request: Request<v1::ExtendRequest>,
    ) -> Result<Response<v1::ExtendResponse>, Status> {
        let caller = self.peers.check(&request)?;
        let Extend { id, duration } = request.into_inner().try_into()?;
        let asked = self.driver.extend(id, duration, caller.clone()).await;
        let (state, extended) = asked.map_err(|error| error::extend(&error))?;
        tracing::info!(%caller, capture = %id, ?duration, extended, "extend");
        Ok(Response::new(v1::ExtendResponse {
            capture: Some((&state).into()),
            extended,
        }))
    }

    async fn stop(
        &self,
        request: Request<v1::StopRequest>,
    ) -> Result<Response<v1::StopResponse>, Status> {
        let caller = self.peers.check(&request)?;
        let id = id(&request.into_inner().id)?;
        tracing::info!(%caller, capture = %id, "stop");
        let state = self
            .driver
            .stop(id, StopReason::Requested)
            .await
            .map_err(|error| error::lookup(&error))?;
        Ok(Response::new(v1::StopResponse {
            capture: Some((&state).into()),
        }))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        self.peers.check(&request)?;
        let id = id(&request.into_inner().id)?;
        let (hold, upload) = self.custody.here(id).await?;
        let state = self
            .driver
            .get(id)
            .await
            .map_err(|error| error::lookup(&error))?;
        let mut capture = v1::CaptureState::from(&state);
        capture.hold = hold;
        capture.upload = upload;
        Ok(Response::new(v1::GetResponse {
            capture: Some(capture),
        }))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        self.peers.check(&request)?;
        let v1::ListRequest { all, part_of } = request.into_inner();
        let part_of = match part_of.as_str() {
            "" => None,
            id => Some(id.parse::<CaptureId>().map_err(ConvertError::from)?),
        };
        let captures = self
            .driver
            .list()
            .await
            .iter()
            .filter(|state| all || !state.phase.is_final())
            .filter(|state| {
                part_of.is_none() || state.spec.part.as_ref().map(|part| part.capture) == part_of
            })
            .map(|state| (state.id, without_alert(state)))
            .collect();
        let captures = self.custody.marked(captures).await?;
        Ok(Response::new(v1::ListResponse { captures }))
    }

    type WatchStream = Responses<v1::WatchResponse>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.peers.check(&request)?;
        let wanted = match request.into_inner().id.as_str() {
            "" => None,
            text => Some(id(text)?),
        };
        // Subscribed before the present is read, so that no change falls between the two.
        let events = self.driver.subscribe();
        let now = match wanted {
            Some(id) => {
                vec![
                    self.driver
                        .get(id)
                        .await
                        .map_err(|error| error::lookup(&error))?,
                ]
            }
            None => {
                let mut states = self.driver.list().await;
                states.retain(|state| !state.phase.is_final());
                states
            }
        };
        let (sender, receiver) = mpsc::channel(MESSAGES);
        (self.spawn)(Box::pin(watch(wanted, now, events, sender)));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type StreamStream = Responses<v1::StreamResponse>;

    async fn stream(
        &self,
        request: Request<v1::StreamRequest>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let caller = self.peers.check(&request)?;
        let id = id(&request.into_inner().id)?;
        self.custody.here(id).await?;
        let (sender, receiver) = mpsc::channel(MESSAGES);
        let (found, answer) = oneshot::channel();
        let driver = self.driver.clone();
        // Not a part of this call, which is dropped when the caller goes: a stream that was taken for it is to be
        // ended then, or its capture runs on for nobody.
        (self.spawn)(Box::pin(async move {
            let source = driver.stream(id).await;
            let _gone = found.send(source.as_ref().map(|_source| ()).map_err(|error| *error));
            if let Ok(source) = source {
                stream(driver, id, source, sender).await;
            }
        }));
        match answer.await {
            Ok(found) => found.map_err(|error| error::lookup(&error))?,
            Err(_ended) => return Err(error::lookup(&LookupError::Draining)),
        }
        tracing::info!(%caller, capture = %id, "stream");
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type EvidenceStream = Responses<v1::EvidenceResponse>;

    async fn evidence(
        &self,
        request: Request<v1::EvidenceRequest>,
    ) -> Result<Response<Self::EvidenceStream>, Status> {
        let caller = self.peers.check(&request)?;
        let v1::EvidenceRequest {
            id: text,
            manifest_only,
        } = request.into_inner();
        let id = id(&text)?;
        // Of one that was deleted there is evidence, too.
        if self.custody.here(id).await.is_ok() {
            let state = self.driver.get(id).await;
            evidence::finished(&state.map_err(|error| error::lookup(&error))?)?;
        }
        let paths = evidence::paths(&self.evidence, id, manifest_only).await?;
        tracing::info!(%caller, capture = %id, manifest_only, "evidence");
        let (sender, receiver) = mpsc::channel(MESSAGES);
        (self.spawn)(Box::pin(evidence::send(paths, sender)));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let caller = self.peers.check(&request)?;
        let v1::DeleteRequest {
            id: text,
            why,
            not_uploaded,
            requester,
            again,
        } = request.into_inner();
        let caller = custody::on_behalf(&requester, caller)?;
        let why = (why, not_uploaded);
        let deleted = self.custody.delete(id(&text)?, caller, why, again).await?;
        Ok(Response::new(deleted))
    }

    async fn hold(
        &self,
        request: Request<v1::HoldRequest>,
    ) -> Result<Response<v1::HoldResponse>, Status> {
        let caller = self.peers.check(&request)?;
        let v1::HoldRequest {
            id: text,
            why,
            requester,
        } = request.into_inner();
        let caller = custody::on_behalf(&requester, caller)?;
        let held = self.custody.hold(id(&text)?, caller, why).await?;
        Ok(Response::new(held))
    }

    async fn release(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        let caller = self.peers.check(&request)?;
        let v1::ReleaseRequest {
            id: text,
            requester,
            again,
        } = request.into_inner();
        let caller = custody::on_behalf(&requester, caller)?;
        let released = self.custody.release(id(&text)?, caller, again).await?;
        Ok(Response::new(released))
    }
}

/// Starts what was asked for, and counts what became of it.
async fn start_settled(
    driver: DriverHandle,
    start: Start,
    caller: String,
    receipt: Receipt,
) -> Result<Response<v1::StartResponse>, Status> {
    let Start {
        spec,
        idempotency_key,
        coalescing_key,
    } = start;
    let target = spec.target.clone();
    let order = Order {
        spec,
        key: idempotency_key,
        coalescing_key,
        caller: caller.clone(),
    };
    match driver.start(order).await {
        Ok(Started { state, how }) => {
            let capture = state.id;
            match how {
                How::New => tracing::info!(%caller, %capture, "start"),
                How::Existing | How::Joined => tracing::debug!(%caller, %capture, ?how, "start"),
            }
            receipt.settle(match how {
                How::New => Settled::Accepted,
                How::Existing => Settled::Existing,
                How::Joined => Settled::Coalesced,
            });
            Ok(Response::new(v1::StartResponse {
                capture: Some((&state).into()),
                existing: how != How::New,
                coalesced: how == How::Joined,
            }))
        }
        Err(error) => {
            tracing::warn!(%caller, %target, %error, "refused to start");
            let (reason, status) = error::start(&error);
            receipt.settle(Settled::Refused(reason.as_str()));
            Err(status)
        }
    }
}

/// A list's answer stays small: the alert is told by `Get`.
fn without_alert(state: &CaptureState) -> v1::CaptureState {
    let mut message = v1::CaptureState::from(state);
    if let Some(trigger) = message.spec.as_mut().and_then(|spec| spec.trigger.as_mut()) {
        trigger.alert.clear();
    }
    message
}

pub(super) type Sender<T> = mpsc::Sender<Result<T, Status>>;

/// Ends when the watcher goes, or the agent does.
async fn watch(
    wanted: Option<CaptureId>,
    now: Vec<CaptureState>,
    mut events: broadcast::Receiver<CaptureState>,
    sender: Sender<v1::WatchResponse>,
) {
    let mut told_final = HashSet::new();
    for state in now {
        if state.phase.is_final() {
            told_final.insert(state.id);
        }
        let response = v1::WatchResponse {
            capture: Some((&state).into()),
        };
        if sender.send(Ok(response)).await.is_err() {
            return;
        }
    }
    loop {
        let state = match events.recv().await {
            Ok(state) => state,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                let late = format!("{missed} events were missed; watch again");
                let _gone = sender.send(Err(Status::data_loss(late))).await;
                return;
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let other = wanted.is_some_and(|id| id != state.id);
        if other || told_final.contains(&state.id) {
            continue;
        }
        let response = v1::WatchResponse {
            capture: Some((&state).into()),
        };
        if sender.send(Ok(response)).await.is_err() || (wanted.is_some() && state.phase.is_final())
        {
            return;
        }
    }
}

/// Sends the capture's blocks, then its final state.
async fn stream(
    driver: DriverHandle,
    id: CaptureId,
    source: StreamSource,
    sender: Sender<v1::StreamResponse>,
) {
    let owned = matches!(source, StreamSource::Live(_));
    let sent = match source {
        StreamSource::Live(chunks) => live(chunks, &sender).await,
        StreamSource::Stored(stored) => stored::send(stored, &sender).await,
    };
    match sent {
        Ok(()) => {
            let last = match driver.wait(id).await {
                Ok(state) => Ok(v1::StreamResponse {
                    message: Some(Message::Finished((&state).into())),
                }),
                Err(error) => Err(error::lookup(&error)),
            };
            let _gone = sender.send(last).await;
        }
        Err(Ended::ReaderGone) => {
            tracing::debug!(capture = %id, "the stream's reader went away");
            // The writer would notice at the next packet, which may never come.
            if owned && let Err(error) = driver.stop(id, StopReason::ReaderGone).await {
                tracing::debug!(capture = %id, %error, "the capture had ended");
            }
        }
        Err(Ended::Encrypted(path)) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let message = format!(
                "{name} is encrypted, and this node cannot read it; `remora get {id} --identity FILE` decrypts it \
                 on your side, `remora export {id}` copies it as it is"
            );
            let encrypted = status(Code::FailedPrecondition, Reason::CaptureEncrypted, message);
            let _gone = sender.send(Err(encrypted)).await;
        }
        Err(Ended::Failed(path, error)) => {
            let message = format!("failed to read {}: {error}", path.display());
            let failed = status(Code::Internal, Reason::CaptureNotFound, message);
            let _gone = sender.send(Err(failed)).await;
        }
    }
}

/// Why no more is sent.
pub(super) enum Ended {
    ReaderGone,
    Failed(PathBuf, io::Error),
    /// Whoever has the key reads it.
    Encrypted(PathBuf),
}

async fn live(
    mut chunks: crate::session::ChunkReceiver,
    sender: &Sender<v1::StreamResponse>,
) -> Result<(), Ended> {
    loop {
        tokio::select! {
            chunk = chunks.recv() => match chunk {
                Some(blocks) => send_blocks(sender, blocks).await?,
                None => return Ok(()),
            },
            // With no packets there is nothing to send, and the capture would run for nobody.
            () = sender.closed() => return Err(Ended::ReaderGone),
        }
    }
}

pub(super) async fn send_blocks(
    sender: &Sender<v1::StreamResponse>,
    blocks: Bytes,
) -> Result<(), Ended> {
    let response = v1::StreamResponse {
        message: Some(Message::Blocks(blocks)),
    };
    sender
        .send(Ok(response))
        .await
        .map_err(|_closed| Ended::ReaderGone)
}
