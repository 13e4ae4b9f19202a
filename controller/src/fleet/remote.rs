//! One agent, called over the network: each call has a deadline, and an error that says which agent
//! failed and how.

use std::{sync::Arc, time::Duration};

use remora_capture::{
    evidence::{DOCUMENT_BYTES_MAX, MANIFEST_ENDING, Manifest},
    merge::NodeClock,
    session::CaptureId,
    text::excerpt,
};
use remora_proto::{
    client::{self, AgentAddress, ConnectError},
    reason::{Reason, reason_of},
    v1::{self, evidence_response::Message},
};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Request, Status, Streaming, transport::Channel};

/// How long an agent may take to answer.
pub const CALL_DEADLINE: Duration = Duration::from_secs(1);
/// How long it may take to end a capture: its counts are final then.
pub const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take to open a stream: a live one that nobody waited for is lost, and its capture with it.
const STREAM_DEADLINE: Duration = Duration::from_secs(5);
/// How long it may take to tell a manifest: the capture's end may have been a moment ago.
const MANIFEST_DEADLINE: Duration = Duration::from_secs(5);

/// Longest message of an agent's that is told on, in characters.
const MESSAGE_MAX: usize = 500;
/// Questions of which the quickest answer tells a clock best.
const CLOCK_SAMPLES: usize = 8;

/// An agent did not do as it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct AgentError {
    /// What it said itself.
    pub reason: Option<Reason>,
    pub code: Code,
    /// For a person; escaped, on one line.
    pub text: String,
}

impl AgentError {
    pub(super) fn new(code: Code, text: String) -> Self {
        Self {
            reason: None,
            code,
            text,
        }
    }
}

/// An agent, whether it runs or not.
#[derive(Clone, Debug)]
pub struct RemoteAgent {
    pub node: Arc<str>,
    pub address: AgentAddress,
    pub(super) channel: Channel,
}

impl RemoteAgent {
    /// Files that it could upload now.
    ///
    /// # Errors
    /// [`AgentError`], at the latest after [`CALL_DEADLINE`].
    pub async fn offers(&self) -> Result<Vec<v1::UploadOffer>, AgentError> {
        let deadline = Instant::now() + CALL_DEADLINE;
        let client = client::uploads_client(self.channel.clone());
        let call = || {
            let request = limited(v1::OffersRequest {}, deadline);
            let mut client = client.clone();
            async move {
                client
                    .offers(request)
                    .await
                    .map(tonic::Response::into_inner)
            }
        };
        let v1::OffersResponse { offers } = self.answered(deadline, call).await?;
        Ok(offers)
    }

    /// Has it upload a file.
    ///
    /// # Errors
    /// [`AgentError`], at the latest after [`CALL_DEADLINE`].
    pub async fn put_upload(&self, request: v1::PutRequest) -> Result<(), AgentError> {
        let deadline = Instant::now() + CALL_DEADLINE;
        let client = client::uploads_client(self.channel.clone());
        let call = || {
            let request = limited(request.clone(), deadline);
            let mut client = client.clone();
            async move { client.put(request).await }
        };
        self.answered(deadline, call).await.map(drop)
    }

    /// # Errors
    /// [`AgentError`], at the latest at `deadline`.
    pub async fn start(
        &self,
        request: &v1::StartRequest,
        deadline: Instant,
    ) -> Result<v1::StartResponse, AgentError> {
        let client = client::capture_client(self.channel.clone());
        let call = || {
            let request = limited(request.clone(), deadline);
            let mut client = client.clone();
            async move { client.start(request).await.map(tonic::Response::into_inner) }
        };
        self.answered(deadline, call).await
    }

    /// Ends a capture; its final state.
    ///
    /// # Errors
    /// [`AgentError`], at the latest after [`STOP_DEADLINE`].
    pub async fn stop(&self, id: &str) -> Result<v1::CaptureState, AgentError> {
        let deadline = Instant::now() + STOP_DEADLINE;
        let client = client::capture_client(self.channel.clone());
        let call = || {
            let request = limited(v1::StopRequest { id: id.to_owned() }, deadline);
            let mut client = client.clone();
            async move { client.stop(request).await.map(tonic::Response::into_inner) }
        };
        let v1::StopResponse { capture } = self.answered(deadline, call).await?;
        capture.ok_or_else(|| self.wrong("a stop without a state"))
    }

    /// Deletes a capture that it keeps.
    ///
    /// # Errors
    /// [`AgentError`], at the latest after [`STOP_DEADLINE`].
    pub async fn delete(
        &self,
        request: &v1::DeleteRequest,
    ) -> Result<v1::DeleteResponse, AgentError> {
        let deadline = Instant::now() + STOP_DEADLINE;
        let client = client::capture_client(self.channel.clone());
        let mut next = request.clone();
        let call = || {
            let request = limited(next.clone(), deadline);
            next.again = true;
            let mut client = client.clone();
            async move {
                client
                    .delete(request)
                    .await
                    .map(tonic::Response::into_inner)
            }
        };
        self.answered(deadline, call).await
    }

    /// Holds a capture that it keeps.
    ///
    /// # Errors
    /// [`AgentError`], at the latest after [`STOP_DEADLINE`].
    pub async fn hold(&self, request: &v1::HoldRequest) -> Result<v1::HoldResponse, AgentError> {
        let deadline = Instant::now() + STOP_DEADLINE;
        let client = client::capture_client(self.channel.clone());
        let call = || {
            let request = limited(request.clone(), deadline);
            let mut client = client.clone();
            async move { client.hold(request).await.map(tonic::Response::into_inner) }
        };
        self.answered(deadline, call).await
    }

    /// Lets a capture go that it holds.
    ///
    /// # Errors
    /// [`AgentError`], at the latest after [`STOP_DEADLINE`].
    pub async fn release(
        &self,
        request: &v1::ReleaseRequest,
    ) -> Result<v1::ReleaseResponse, AgentError> {
        let deadline = Instant::now() + STOP_DEADLINE;
        let client = client::capture_client(self.channel.clone());
        let mut next = request.clone();
        let call = || {
            let request = limited(next.clone(), deadline);
            next.again = true;
            let mut client = client.clone();
            async move {
                client
                    .release(request)
                    .await
                    .map(tonic::Response::into_inner)
            }
        };
        self.answered(deadline, call).await
    }

    /// A capture in full, with its trigger.
    ///
    /// # Errors
    /// [`AgentError`], at the latest after [`CALL_DEADLINE`].
    pub async fn get(&self, id: &str) -> Result<v1::CaptureState, AgentError> {
        let deadline = Instant::now() + CALL_DEADLINE;
        let client = client::capture_client(self.channel.clone());
        let call = || {
            let request = limited(v1::GetRequest { id: id.to_owned() }, deadline);
            let mut client = client.clone();
            async move { client.get(request).await.map(tonic::Response::into_inner) }
        };
        let v1::GetResponse { capture } = self.answered(deadline, call).await?;
        capture.ok_or_else(|| self.wrong("a capture without a state"))
    }

    /// Its sessions that are parts of captures over several nodes: of one, or of all; those that run,
    /// or `all`.
    ///
    /// # Errors
    /// [`AgentError`], at the latest after [`CALL_DEADLINE`].
    pub async fn parts(
        &self,
        of: Option<CaptureId>,
        all: bool,
    ) -> Result<Vec<v1::CaptureState>, AgentError> {
        let part_of = of.map(|id| id.to_string()).unwrap_or_default();
        let captures = self.list(all, &part_of).await?;
        // What it says is of others is not believed.
        let is_of = |state: &v1::CaptureState| {
            let part = state.spec.as_ref().and_then(|spec| spec.part.as_ref());
            part.is_some_and(|part| part_of.is_empty() || part.capture == part_of)
        };
        Ok(captures.into_iter().filter(is_of).collect())
    }

    /// Its captures, those that are parts of `part_of` if it is not empty; those that run, or `all`.
    ///
    /// # Errors
    /// [`AgentError`], at the latest after [`CALL_DEADLINE`].
    pub async fn list(
        &self,
        all: bool,
        part_of: &str,
    ) -> Result<Vec<v1::CaptureState>, AgentError> {
        let deadline = Instant::now() + CALL_DEADLINE;
        let client = client::capture_client(self.channel.clone());
        let call = || {
            let part_of = part_of.to_owned();
            let request = limited(v1::ListRequest { all, part_of }, deadline);
            let mut client = client.clone();
            async move { client.list(request).await.map(tonic::Response::into_inner) }
        };
        let v1::ListResponse { captures } = self.answered(deadline, call).await?;
        Ok(captures)
    }

    /// # Errors
    /// [`AgentError`], at the latest after [`CALL_DEADLINE`].
    pub async fn status(&self) -> Result<v1::StatusResponse, AgentError> {
        let deadline = Instant::now() + CALL_DEADLINE;
        let client = client::node_client(self.channel.clone());
        let call = || {
            let request = limited(v1::StatusRequest {}, deadline);
            let mut client = client.clone();
            async move {
                client
                    .status(request)
                    .await
                    .map(tonic::Response::into_inner)
            }
        };
        self.answered(deadline, call).await
    }

    /// A capture's blocks, from the first on.
    ///
    /// # Errors
    /// [`AgentError`], within seconds; the stream has no deadline.
    pub async fn stream(&self, id: &str) -> Result<Streaming<v1::StreamResponse>, AgentError> {
        let deadline = Instant::now() + STREAM_DEADLINE;
        let client = client::capture_client(self.channel.clone());
        let call = || {
            let request = v1::StreamRequest { id: id.to_owned() };
            let mut client = client.clone();
            async move {
                client
                    .stream(request)
                    .await
                    .map(tonic::Response::into_inner)
            }
        };
        self.answered(deadline, call).await
    }

    /// Lets a capture that runs last longer, from its start on.
    ///
    /// # Errors
    /// [`AgentError`], at the latest after [`CALL_DEADLINE`].
    pub async fn extend(&self, id: &str, duration: Duration) -> Result<(), AgentError> {
        let deadline = Instant::now() + CALL_DEADLINE;
        let client = client::capture_client(self.channel.clone());
        let call = || {
            let request = v1::ExtendRequest {
                id: id.to_owned(),
                duration: prost_types::Duration::try_from(duration).ok(),
            };
            let request = limited(request, deadline);
            let mut client = client.clone();
            async move { client.extend(request).await }
        };
        self.answered(deadline, call).await.map(drop)
    }

    /// A capture's manifest, with the node's public keys; no packets.
    ///
    /// # Errors
    /// [`AgentError`], at the latest after [`CALL_DEADLINE`]; the stream has no deadline.
    pub async fn evidence(&self, id: &str) -> Result<Streaming<v1::EvidenceResponse>, AgentError> {
        let deadline = Instant::now() + CALL_DEADLINE;
        let client = client::capture_client(self.channel.clone());
        let call = || {
            let request = v1::EvidenceRequest {
                id: id.to_owned(),
                manifest_only: true,
            };
            let mut client = client.clone();
            async move {
                client
                    .evidence(request)
                    .await
                    .map(tonic::Response::into_inner)
            }
        };
        self.answered(deadline, call).await
    }

    /// A finished capture's manifest, believed as its agent tells it: who verifies it has the node's key.
    /// `None`: it is not sealed yet, or the agent is silent.
    pub async fn manifest(&self, id: &str) -> Option<Manifest> {
        let asked = async {
            let mut messages = self.evidence(id).await.ok()?;
            let (mut is_manifest, mut bytes) = (false, Vec::new());
            while let Some(message) = messages.message().await.ok()? {
                match message.message? {
                    Message::File(file) => is_manifest = file.name.ends_with(MANIFEST_ENDING),
                    Message::Bytes(some) if is_manifest => {
                        if bytes.len() + some.len() > DOCUMENT_BYTES_MAX {
                            return None;
                        }
                        bytes.extend_from_slice(&some);
                    }
                    Message::Bytes(_) => {}
                }
            }
            Manifest::unverified(&bytes).ok()
        };
        timeout(MANIFEST_DEADLINE, asked).await.ok()?
    }

    /// Events of all its captures from now on, and those that run first.
    ///
    /// # Errors
    /// [`AgentError`], at the latest after [`CALL_DEADLINE`]; the stream has no deadline.
    pub async fn watch(&self) -> Result<Streaming<v1::WatchResponse>, AgentError> {
        let deadline = Instant::now() + CALL_DEADLINE;
        let client = client::capture_client(self.channel.clone());
        let call = || {
            let mut client = client.clone();
            async move {
                let answer = client.watch(v1::WatchRequest::default()).await;
                answer.map(tonic::Response::into_inner)
            }
        };
        self.answered(deadline, call).await
    }

    /// How far its clock is from ours, by the quickest of some answers.
    ///
    /// # Errors
    /// [`AgentError`]: none came, or the agent does not tell its time.
    pub async fn clock(&self) -> Result<(NodeClock, v1::StatusResponse), AgentError> {
        let mut samples = Vec::with_capacity(CLOCK_SAMPLES);
        let mut last = None;
        for _ in 0..CLOCK_SAMPLES {
            let (asked, began) = (now_ns(), Instant::now());
            let status = self.status().await?;
            // Whoever sets our own clock meanwhile does not set this one.
            let took = i64::try_from(began.elapsed().as_nanos()).unwrap_or(i64::MAX);
            let time = status
                .time
                .ok_or_else(|| self.wrong("a status without a time"))?;
            let node = time
                .seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(time.nanos.into());
            let error = status.clock_error_ns.unsigned_abs();
            let answered = asked.saturating_add(took);
            samples.push(NodeClock::from_exchange(asked, answered, node, error));
            last = Some(status);
        }
        let best = NodeClock::best(samples).zip(last);
        best.ok_or_else(|| self.wrong("no status"))
    }

    /// A connection that broke under the call (the agent was restarted) earns a second try: all calls
    /// here may be made twice.
    async fn answered<T, C: Future<Output = Result<T, Status>>>(
        &self,
        deadline: Instant,
        mut call: impl FnMut() -> C,
    ) -> Result<T, AgentError> {
        let calls = async {
            match call().await {
                Err(status) if self.broke(&status) => call().await,
                answer => answer,
            }
        };
        match timeout_at(deadline, calls).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(self.error(&status)),
            Err(_elapsed) => Err(self.late()),
        }
    }

    fn broke(&self, status: &Status) -> bool {
        matches!(
            client::unreachable(&self.address, status),
            Some(ConnectError::Other { .. })
        )
    }

    pub(super) fn error(&self, status: &Status) -> AgentError {
        if let Some(error) = client::unreachable(&self.address, status) {
            return AgentError::new(Code::Unavailable, error.to_string());
        }
        let reason = reason_of(status);
        if reason.is_none() && matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) {
            return self.late();
        }
        let message = excerpt(status.message(), MESSAGE_MAX);
        AgentError {
            reason,
            code: status.code(),
            text: message.to_string(),
        }
    }

    fn late(&self) -> AgentError {
        let text = format!("the agent at {} did not answer in time", self.address);
        AgentError::new(Code::DeadlineExceeded, text)
    }

    pub(super) fn wrong(&self, what: &str) -> AgentError {
        let text = format!(
            "the agent at {} answered {what}; do the versions fit?",
            self.address
        );
        AgentError::new(Code::Internal, text)
    }
}

fn limited<T>(message: T, deadline: Instant) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    request
}

fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}
