//! What the nodes keep of a capture: deleted, held, let go, part by part.

use futures_util::{StreamExt as _, stream};
use remora_proto::v1;

use super::{
    AT_ONCE, AgentError, Fleet, RemoteAgent,
    whole::{Silent, Told},
};

/// What is done with each part.
#[derive(Clone, Debug)]
pub enum Deed {
    Delete {
        why: String,
        /// Also what is not in its sink.
        not_uploaded: bool,
    },
    Hold {
        why: String,
    },
    Release,
}

impl Fleet {
    /// Does it on every node that has a part, side by side, for `requester`. Whoever did not tell whether he has one
    /// is in the answer, too.
    pub async fn keep(
        &self,
        parts: Vec<Told>,
        silent: &[Silent],
        deed: &Deed,
        requester: &str,
    ) -> Vec<v1::CustodyPart> {
        let done = stream::iter(parts).map(|told| async move {
            let done = match self.agent(&told.node) {
                Ok(agent) => deed.done(&agent, &told.state.id, requester).await,
                Err(error) => Err(error),
            };
            let part = done.unwrap_or_else(|error| v1::CustodyPart {
                error: error.text,
                ..Default::default()
            });
            v1::CustodyPart {
                node: told.node,
                capture: told.state.id,
                ..part
            }
        });
        let mut all: Vec<_> = done.buffer_unordered(AT_ONCE).collect().await;
        all.extend(silent.iter().map(|silent| v1::CustodyPart {
            node: silent.node.clone(),
            error: silent.error.text.clone(),
            ..Default::default()
        }));
        all.sort_by(|a, b| (&a.node, &a.capture).cmp(&(&b.node, &b.capture)));
        all
    }
}

impl Deed {
    async fn done(
        &self,
        agent: &RemoteAgent,
        id: &str,
        requester: &str,
    ) -> Result<v1::CustodyPart, AgentError> {
        let (id, requester) = (id.to_owned(), requester.to_owned());
        let part = v1::CustodyPart::default();
        match self {
            Self::Delete { why, not_uploaded } => {
                let request = v1::DeleteRequest {
                    id,
                    why: why.clone(),
                    not_uploaded: *not_uploaded,
                    requester,
                    again: false,
                };
                let deleted = Some(agent.delete(&request).await?);
                Ok(v1::CustodyPart { deleted, ..part })
            }
            Self::Hold { why } => {
                let request = v1::HoldRequest {
                    id,
                    why: why.clone(),
                    requester,
                };
                let hold = agent.hold(&request).await?.hold;
                Ok(v1::CustodyPart { hold, ..part })
            }
            Self::Release => {
                let request = v1::ReleaseRequest {
                    id,
                    requester,
                    again: false,
                };
                let hold = agent.release(&request).await?.hold;
                Ok(v1::CustodyPart { hold, ..part })
            }
        }
    }
}
