//! The service's calls.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::Stream;
use jiff::Timestamp;
use remora_capture::session::{CaptureId, Selector};
use remora_proto::v1::{self, cluster_server::Cluster};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    access::{Access, Caller, Verb, Wish},
    error,
    relay::Relay,
    request::{Start, id},
    stream,
};
use crate::{
    cluster::{
        View,
        index::{Member, Members, NoMembers},
    },
    fleet::{
        CALL_DEADLINE, Deed, Fleet, Order,
        joining::{self, Joining},
        whole::{self, Silent, Told},
    },
};

/// Messages of a stream that wait for its connection.
const MESSAGES: usize = 4;
/// How often a watched capture is looked at.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Keys of which the captures are kept.
const KEYS_MAX: usize = 4096;

/// Serves from what it is given; holds no capture.
#[derive(Clone)]
pub struct ClusterService {
    pub view: Arc<View>,
    pub fleet: Arc<Fleet>,
    pub joining: Arc<Joining>,
    pub access: Arc<dyn Access>,
    /// Most pods of a capture.
    pub members_max: usize,
    keys: Arc<Mutex<HashMap<String, CaptureId>>>,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl ClusterService {
    #[must_use]
    pub fn new(
        view: Arc<View>,
        fleet: Arc<Fleet>,
        joining: Arc<Joining>,
        access: Arc<dyn Access>,
        members_max: usize,
    ) -> Self {
        Self {
            view,
            fleet,
            joining,
            access,
            members_max,
            keys: Arc::default(),
        }
    }

    async fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        self.access
            .caller(request.metadata(), request.extensions())
            .await
    }

    async fn allow(
        &self,
        caller: &Caller,
        verb: Verb,
        selector: &Selector,
        capture: &str,
        filter: &str,
    ) -> Result<(), Status> {
        let target = selector.to_string();
        let wish = Wish::new(verb, selector.namespace(), capture).about(&target, filter);
        self.access.allow(caller, wish).await
    }

    fn relay(&self, caller: Caller, verb: Verb, capture: &v1::ClusterCapture) -> Relay {
        let selector = capture.selector.clone().map(Selector::try_from);
        let selector = selector.and_then(Result::ok);
        Relay {
            access: self.access.clone(),
            caller,
            verb,
            namespace: selector
                .as_ref()
                .and_then(|selector| selector.namespace().map(str::to_owned)),
            target: selector.map(|s| s.to_string()).unwrap_or_default(),
            capture: capture.id.clone(),
        }
    }

    /// For a capture that exists, of which its agents tell what it selects. Who may not see it learns which right
    /// he lacks, so that it is there: of one whose id, which nobody guesses, he has from somewhere.
    pub(super) async fn found<T>(
        &self,
        request: &Request<T>,
        text: &str,
        verb: Verb,
    ) -> Result<Found, Status> {
        let caller = self.caller(request).await?;
        let id = id(text)?;
        let (told, silent) = self.fleet.parts(Some(id), true).await;
        let missing = || error::not_found(id, &whole::message(&silent));
        let capture = whole::whole(text, told.clone(), &silent).ok_or_else(missing)?;
        let selector = capture.selector.clone().map(Selector::try_from);
        let selector = selector.transpose().ok().flatten().ok_or_else(missing)?;
        self.allow(&caller, verb, &selector, text, "").await?;
        Ok(Found {
            caller,
            id,
            told,
            silent,
            capture,
        })
    }

    fn members(&self, start: &Start) -> Result<Members, Status> {
        let found = self
            .view
            .members(&start.selector, start.look_back, self.members_max);
        match (found, &start.selector) {
            (Ok(members), _) => Ok(members),
            // A node is known by its agent, too.
            (Err(NoMembers::Node { .. }), Selector::Node { name })
                if self.fleet.roster().address(name).is_some() =>
            {
                let node = Member {
                    node: name.clone(),
                    pod: None,
                };
                Ok(Members {
                    placed: vec![node],
                    pending: Vec::new(),
                })
            }
            (Err(_), _) if !self.view.is_synced() => Err(error::not_synced()),
            (Err(error), _) => Err(error::no_members(&error)),
        }
    }

    /// The same key again is the same capture: to this controller by memory, to another by the time
    /// of the trigger, where there is one.
    fn id(&self, start: &Start) -> CaptureId {
        let Some(key) = &start.key else {
            return CaptureId::generate();
        };
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = keys.get(key) {
            return *id;
        }
        let time = start.spec.trigger.as_ref().and_then(|trigger| trigger.time);
        let time = time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok());
        let id = CaptureId::derived(time.unwrap_or_else(Timestamp::now), key.as_bytes());
        if keys.len() >= KEYS_MAX
            && let Some(oldest) = keys
                .iter()
                .min_by_key(|(_, id)| **id)
                .map(|(key, _)| key.clone())
        {
            keys.remove(&oldest);
        }
        keys.insert(key.clone(), id);
        id
    }
}

/// A capture that somebody may do something with.
pub(super) struct Found {
    pub(super) caller: Caller,
    id: CaptureId,
    pub(super) told: Vec<Told>,
    pub(super) silent: Vec<Silent>,
    capture: v1::ClusterCapture,
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn start(
        &self,
        request: Request<v1::ClusterStartRequest>,
    ) -> Result<Response<v1::ClusterStartResponse>, Status> {
        let caller = self.caller(&request).await?;
        let start = Start::checked(request.into_inner(), &caller)?;
        let id = self.id(&start);
        let (id_text, filter) = (id.to_string(), start.spec.filter.clone());
        self.allow(&caller, Verb::Start, &start.selector, &id_text, &filter)
            .await?;
        let members = self.members(&start)?;
        let order = Order {
            id,
            selector: start.selector,
            fixed: start.fixed,
            spec: start.spec,
        };
        let began = Timestamp::now();
        let deadline = Instant::now() + CALL_DEADLINE;
        let mut started = self.fleet.start(&order, &members.placed, deadline).await;
        if started.errors.len() == members.placed.len() {
            tracing::warn!(caller = %caller.name, selector = %order.selector, "no part could be started");
            return Err(error::none_started(&started.errors));
        }
        if !members.pending.is_empty() {
            let pending = format!("{} pods have no node yet", members.pending.len());
            let message = &mut started.capture.message;
            *message = [std::mem::take(message), pending]
                .into_iter()
                .filter(|text| !text.is_empty())
                .collect::<Vec<_>>()
                .join("; ");
        }
        self.joining
            .follow(&order, joining::asked(&started.capture), began);
        tracing::info!(
            caller = %caller.name, capture = %id, selector = %order.selector,
            parts = members.placed.len(), missing = started.errors.len(),
            existing = started.existing, "start"
        );
        Ok(Response::new(v1::ClusterStartResponse {
            capture: Some(started.capture),
            existing: started.existing,
        }))
    }

    async fn stop(
        &self,
        request: Request<v1::ClusterStopRequest>,
    ) -> Result<Response<v1::ClusterStopResponse>, Status> {
        let text = request.get_ref().id.clone();
        let Found {
            caller,
            id,
            told,
            mut silent,
            capture: before,
        } = self.found(&request, &text, Verb::Stop).await?;
        // Before its parts end, so that none joins.
        self.joining.leave(id);
        tracing::info!(caller = %caller.name, capture = %id, parts = told.len(), "stop");
        let (_, failed) = self.fleet.stop(told).await;
        // Whom another controller let join at this moment.
        let (late, _) = self.fleet.parts(Some(id), false).await;
        if !late.is_empty() {
            self.fleet.stop(late).await;
        }
        let (told, silent_now) = self.fleet.parts(Some(id), true).await;
        silent.extend(failed.into_iter().chain(silent_now));
        silent.sort_by(|a, b| a.node.cmp(&b.node));
        silent.dedup_by(|a, b| a.node == b.node);
        // Where all agents are silent now: what was known.
        let capture = whole::whole(&text, told, &silent).unwrap_or(before);
        Ok(Response::new(v1::ClusterStopResponse {
            capture: Some(capture),
        }))
    }

    async fn get(
        &self,
        request: Request<v1::ClusterGetRequest>,
    ) -> Result<Response<v1::ClusterGetResponse>, Status> {
        let text = request.get_ref().id.clone();
        let found = self.found(&request, &text, Verb::See).await?;
        Ok(Response::new(v1::ClusterGetResponse {
            capture: Some(found.capture),
        }))
    }

    async fn list(
        &self,
        request: Request<v1::ClusterListRequest>,
    ) -> Result<Response<v1::ClusterListResponse>, Status> {
        let caller = self.caller(&request).await?;
        let v1::ClusterListRequest { namespace, all } = request.into_inner();
        if !namespace.is_empty() {
            let wish = Wish::new(Verb::See, Some(&namespace), "");
            self.access.allow(&caller, wish).await?;
        }
        let (told, silent) = self.fleet.parts(None, all).await;
        // Each namespace is asked for once.
        let mut allowed = HashMap::<String, bool>::new();
        let mut captures = Vec::new();
        for capture in whole::wholes(told, &[]) {
            let of = capture
                .selector
                .as_ref()
                .map(|s| s.namespace.clone())
                .unwrap_or_default();
            if !namespace.is_empty() {
                if of == namespace {
                    captures.push(capture);
                }
                continue;
            }
            let is_allowed = match allowed.get(&of) {
                Some(known) => *known,
                None => {
                    let wish = Wish::new(Verb::See, Some(&of), "");
                    let answer = self.access.allow(&caller, wish).await.is_ok();
                    allowed.insert(of, answer);
                    answer
                }
            };
            if is_allowed {
                captures.push(capture);
            }
        }
        let missing = silent
            .into_iter()
            .map(|Silent { node, error }| v1::NodeAgent {
                node,
                error: error.text,
                ..Default::default()
            });
        Ok(Response::new(v1::ClusterListResponse {
            captures,
            missing: missing.collect(),
        }))
    }

    type WatchStream = Responses<v1::ClusterWatchResponse>;

    async fn watch(
        &self,
        request: Request<v1::ClusterWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let text = request.get_ref().id.clone();
        let Found {
            caller,
            id,
            capture,
            ..
        } = self.found(&request, &text, Verb::See).await?;
        let relay = self.relay(caller, Verb::See, &capture);
        let (sender, watched) = mpsc::channel(MESSAGES);
        tokio::spawn(watch(self.fleet.clone(), id, capture, sender));
        let (sender, receiver) = mpsc::channel(MESSAGES);
        tokio::spawn(relay.run(watched, sender, |_| 0));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type StreamStream = Responses<v1::ClusterStreamResponse>;

    async fn stream(
        &self,
        request: Request<v1::ClusterStreamRequest>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let text = request.get_ref().id.clone();
        let Found {
            caller,
            id,
            told,
            silent,
            capture,
        } = self.found(&request, &text, Verb::Read).await?;
        tracing::info!(caller = %caller.name, capture = %id, "stream");
        let relay = self.relay(caller, Verb::Read, &capture);
        let (sender, merging) = mpsc::channel(MESSAGES);
        let merged = stream::Merged::new(self.fleet.clone(), id, capture, silent);
        tokio::spawn(merged.send(told, sender));
        let (sender, receiver) = mpsc::channel(MESSAGES);
        tokio::spawn(relay.run(merging, sender, stream::bytes));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn delete(
        &self,
        request: Request<v1::ClusterDeleteRequest>,
    ) -> Result<Response<v1::ClusterDeleteResponse>, Status> {
        let v1::ClusterDeleteRequest {
            id,
            why,
            not_uploaded,
        } = request.get_ref().clone();
        let deed = Deed::Delete { why, not_uploaded };
        let parts = self.keep(&request, &id, &deed).await?;
        Ok(Response::new(v1::ClusterDeleteResponse { parts }))
    }

    async fn hold(
        &self,
        request: Request<v1::ClusterHoldRequest>,
    ) -> Result<Response<v1::ClusterHoldResponse>, Status> {
        let v1::ClusterHoldRequest { id, why } = request.get_ref().clone();
        let parts = self.keep(&request, &id, &Deed::Hold { why }).await?;
        Ok(Response::new(v1::ClusterHoldResponse { parts }))
    }

    async fn release(
        &self,
        request: Request<v1::ClusterReleaseRequest>,
    ) -> Result<Response<v1::ClusterReleaseResponse>, Status> {
        let id = request.get_ref().id.clone();
        let parts = self.keep(&request, &id, &Deed::Release).await?;
        Ok(Response::new(v1::ClusterReleaseResponse { parts }))
    }

    async fn status(
        &self,
        request: Request<v1::ClusterStatusRequest>,
    ) -> Result<Response<v1::ClusterStatusResponse>, Status> {
        let caller = self.caller(&request).await?;
        let wish = Wish::new(Verb::See, None, "");
        self.access.allow(&caller, wish).await?;
        let mut nodes = self.fleet.nodes().await;
        let known: Vec<_> = self
            .view
            .read(|index| index.nodes().map(str::to_owned).collect());
        for node in known {
            if let Err(at) = nodes.binary_search_by(|there| there.node.cmp(&node)) {
                let error = "it has no agent that runs".to_owned();
                let node = v1::NodeAgent {
                    node,
                    error,
                    ..Default::default()
                };
                nodes.insert(at, node);
            }
        }
        Ok(Response::new(v1::ClusterStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nodes,
            synced: self.view.is_synced(),
        }))
    }
}

/// Tells a capture's states until its end.
async fn watch(
    fleet: Arc<Fleet>,
    id: CaptureId,
    mut capture: v1::ClusterCapture,
    sender: mpsc::Sender<Result<v1::ClusterWatchResponse, Status>>,
) {
    loop {
        let over = whole::is_over(&capture);
        let response = v1::ClusterWatchResponse {
            capture: Some(capture.clone()),
        };
        if sender.send(Ok(response)).await.is_err() || over {
            return;
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(WATCH_EVERY) => {}
                () = sender.closed() => return,
            }
            let (told, silent) = fleet.known_parts(id).await;
            match whole::whole(&capture.id, told, &silent) {
                Some(now) if now != capture => {
                    capture = now;
                    break;
                }
                // All its agents are silent: what was known stays so.
                _ => {}
            }
        }
    }
}
