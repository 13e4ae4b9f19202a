//! Who goes round: asks each agent what there is to upload, and hands it the URLs.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use remora_capture::{
    audit::{Decision, Entry},
    text::shown,
};
use remora_proto::v1::UploadOffer;
use tokio::time::sleep;
use tonic::Code;

use super::Sinks;
use crate::{
    audit::Audit,
    fleet::{AgentError, Fleet, RemoteAgent},
    metrics::Metrics,
};

/// Between two rounds, while there is something to upload, and while there is nothing.
const BUSY: Duration = Duration::from_millis(250);
const IDLE: Duration = Duration::from_secs(2);
/// Most questions to agents in a second.
const QUESTIONS: u64 = 100;
/// Agents that are asked at once.
const AT_ONCE: usize = 32;
/// Who signs, in the audit log.
const WHO: &str = "remora-controller";

/// Hands out URLs. Holds nothing between two rounds.
#[derive(Debug)]
pub(crate) struct Courier {
    pub(crate) sinks: Sinks,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) audit: Audit,
    pub(crate) metrics: Arc<Metrics>,
}

impl Courier {
    /// Goes round for ever.
    pub(crate) async fn run(self) -> std::convert::Infallible {
        loop {
            let roster = self.fleet.roster();
            let agents = roster.nodes().map(|node| self.fleet.agent(node));
            let agents: Vec<_> = agents.filter_map(Result::ok).collect();
            let least = Duration::from_millis(agents.len() as u64 * 1000 / QUESTIONS);
            let round = stream::iter(agents).map(|agent| self.serve(agent));
            let round = round.buffer_unordered(AT_ONCE);
            let handed = round
                .fold(0, |sum, handed| async move { sum + handed })
                .await;
            let pause = if handed > 0 { BUSY } else { IDLE };
            sleep(pause.max(least)).await;
        }
    }

    /// How many URLs it was handed.
    async fn serve(&self, agent: RemoteAgent) -> usize {
        let offers = match agent.offers().await {
            Ok(offers) => offers,
            Err(error) if error.code == Code::Unimplemented => return 0,
            Err(error) => {
                tracing::debug!(agent = %agent.address, %error, "failed to ask for uploads");
                return 0;
            }
        };
        let mut handed = 0;
        for offer in offers {
            let result = self.hand(&agent, &offer).await;
            let (capture, file) = (shown(&offer.id), shown(&offer.file));
            match &result {
                Ok(()) => {
                    handed += 1;
                    tracing::debug!(%capture, %file, sink = offer.sink, "handed out a URL");
                }
                Err(refused) => {
                    tracing::debug!(%capture, %file, error = %refused, "no upload");
                }
            }
            self.metrics
                .sink_url(result.as_ref().map_or_else(Refused::word, |()| "signed"));
        }
        handed
    }

    async fn hand(&self, agent: &RemoteAgent, offer: &UploadOffer) -> Result<(), Refused> {
        let sink = self.sinks.get(&offer.sink).ok_or(Refused::UnknownSink)?;
        let signed = sink.sign(offer, Timestamp::now()).await;
        let request = signed.map_err(|error| {
            tracing::warn!(sink = %sink.spec, capture = %shown(&offer.id), %error, "failed to sign a URL");
            Refused::NotSigned
        })?;
        let mut entry = Entry::new("upload", Decision::Allowed, WHO);
        entry.capture.clone_from(&offer.id);
        entry
            .namespaces
            .extend(Some(offer.namespace.clone()).filter(|name| !name.is_empty()));
        entry.target = format!("{}/{}/{}", sink.spec, offer.id, offer.file);
        entry.address = agent.address.to_string();
        entry.bytes = Some(offer.bytes);
        self.audit.record(entry).await.map_err(|error| {
            tracing::error!(%error, "no URL without its line in the audit log");
            Refused::NotAudited
        })?;
        Ok(agent.put_upload(request).await?)
    }
}

/// No URL was handed out.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("its sink is none of this controller's")]
    UnknownSink,
    #[error("it could not be signed")]
    NotSigned,
    #[error("the audit log cannot be written")]
    NotAudited,
    #[error("the agent: {0}")]
    Agent(#[from] AgentError),
}

impl Refused {
    /// As in metrics.
    fn word(&self) -> &'static str {
        match self {
            Self::UnknownSink => "unknown_sink",
            Self::NotSigned => "not_signed",
            Self::NotAudited => "not_audited",
            Self::Agent(_) => "agent",
        }
    }
}
