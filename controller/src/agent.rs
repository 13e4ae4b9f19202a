//! The agent as the controller sees it: one channel, one call, a deadline.

use remora_capture::{session::CaptureId, text::excerpt};
use remora_proto::{
    client::{self, AgentAddress, ConnectError},
    reason::{Reason, reason_of},
    v1::{self, capture_client::CaptureClient},
};
use tokio::time::{Duration, Instant, timeout_at};
use tonic::{Code, Request, Status, transport::Channel};

use crate::outcome::{Outcome, Refusal, RefusalCode};

/// How long an alert waits for the agent's answers, all its captures together.
pub const START_DEADLINE: Duration = Duration::from_secs(1);
/// Longest message of the agent's that goes into an answer, in characters.
const MESSAGE_MAX: usize = 500;

/// An agent, whether it runs or not. The channel connects at the first call and again after a
/// loss.
#[derive(Clone, Debug)]
pub struct Agent {
    address: AgentAddress,
    client: CaptureClient<Channel>,
}

impl Agent {
    /// Calls nobody yet.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn new(address: AgentAddress) -> Result<Self, ConnectError> {
        let channel = client::connect_lazy(&address)?;
        Ok(Self {
            address,
            client: client::capture_client(channel),
        })
    }

    /// Starts a capture; `Accepted`, `Existing` or `Refused`, at the latest at `deadline`.
    pub async fn start(&self, request: &v1::StartRequest, deadline: Instant) -> Outcome {
        match timeout_at(deadline, self.start_or_repeat(request, deadline)).await {
            Ok(Ok(response)) => outcome(response),
            Ok(Err(status)) => Outcome::Refused(self.refusal(&status)),
            Err(_elapsed) => Outcome::Refused(self.too_late()),
        }
    }

    /// A connection that broke under the call (the agent was restarted) earns a second try: the
    /// idempotency key makes it harmless.
    async fn start_or_repeat(
        &self,
        request: &v1::StartRequest,
        deadline: Instant,
    ) -> Result<v1::StartResponse, Status> {
        match self.call(request, deadline).await {
            Err(status) if self.broke(&status) => self.call(request, deadline).await,
            answer => answer,
        }
    }

    async fn call(
        &self,
        request: &v1::StartRequest,
        deadline: Instant,
    ) -> Result<v1::StartResponse, Status> {
        let mut request = Request::new(request.clone());
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        // A clone of the client shares the channel.
        let response = self.client.clone().start(request).await?;
        Ok(response.into_inner())
    }

    fn broke(&self, status: &Status) -> bool {
        matches!(
            client::unreachable(&self.address, status),
            Some(ConnectError::Other { .. })
        )
    }

    fn refusal(&self, status: &Status) -> Refusal {
        if let Some(error) = client::unreachable(&self.address, status) {
            return Refusal::new(RefusalCode::AgentAway, error.to_string());
        }
        let message = excerpt(status.message(), MESSAGE_MAX);
        if let Some(reason) = reason_of(status) {
            return Refusal::new(RefusalCode::Agent(reason), message.to_string());
        }
        // A status without our reason: tonic's own, on either side.
        match status.code() {
            Code::DeadlineExceeded | Code::Cancelled => self.too_late(),
            Code::Unavailable => Refusal::new(
                RefusalCode::AgentAway,
                format!("the agent at {} is not available: {message}", self.address),
            ),
            Code::ResourceExhausted => Refusal::new(
                RefusalCode::Agent(Reason::SessionLimit),
                message.to_string(),
            ),
            code => Refusal::new(
                RefusalCode::AgentFailed,
                format!("the agent failed ({code:?}): {message}; its log says more"),
            ),
        }
    }

    fn too_late(&self) -> Refusal {
        Refusal::new(
            RefusalCode::AgentTimeout,
            format!(
                "the agent at {} did not answer within {START_DEADLINE:?}; if it started the \
                 capture all the same, `remora list` shows it and the same alert again finds it",
                self.address
            ),
        )
    }
}

fn outcome(response: v1::StartResponse) -> Outcome {
    let v1::StartResponse {
        capture,
        existing,
        coalesced,
    } = response;
    match capture.unwrap_or_default().id.parse::<CaptureId>() {
        Ok(id) if coalesced => Outcome::Coalesced(id),
        Ok(id) if existing => Outcome::Existing(id),
        Ok(id) => Outcome::Accepted(id),
        Err(error) => Outcome::Refused(Refusal::new(
            RefusalCode::AgentFailed,
            format!("the agent's answer has no capture id ({error}); do the versions fit?"),
        )),
    }
}
