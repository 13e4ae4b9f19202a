//! One agent's captures: which have ended.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use remora_capture::evidence::Manifest;
use remora_proto::v1;
use tokio::{sync::mpsc, time::sleep};
use tonic::{Code, Streaming};

use crate::fleet::{Fleet, RemoteAgent, whole};

/// Between two tries to reach an agent.
const RETRY: Duration = Duration::from_secs(1);
/// Captures of an agent that are known to run: more than it has slots.
const RUNNING_MAX: usize = 256;
/// Captures that were told last, which an agent may tell of again.
const TOLD_MAX: usize = 256;
/// How often a manifest is asked for; the agent itself waits for it.
const MANIFEST_TRIES: u32 = 3;

/// A stored capture that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) state: v1::CaptureState,
    agent: RemoteAgent,
}

impl Ended {
    /// `None`: there is none in time.
    pub(super) async fn manifest(&self) -> Option<Manifest> {
        for _try in 0..MANIFEST_TRIES {
            if let Some(manifest) = self.agent.manifest(&self.state.id).await {
                return Some(manifest);
            }
            sleep(RETRY).await;
        }
        None
    }
}

/// What is known of an agent's captures.
#[derive(Debug)]
pub(super) struct Follower {
    node: Arc<str>,
    ended: mpsc::Sender<Ended>,
    running: BTreeSet<String>,
    told: VecDeque<String>,
}

impl Follower {
    pub(super) fn new(node: Arc<str>, ended: mpsc::Sender<Ended>) -> Self {
        Self {
            node,
            ended,
            running: BTreeSet::new(),
            told: VecDeque::new(),
        }
    }

    /// Until the node has no agent any more. `full`: an end could not be told on.
    pub(super) async fn run(mut self, fleet: &Fleet, full: impl Fn()) -> Arc<str> {
        while fleet.roster().address(&self.node).is_some() {
            if let Ok(agent) = fleet.agent(&self.node)
                && let Ok(events) = agent.watch().await
            {
                // After the watch began, so that no end falls between the two.
                self.catch_up(&agent, &full).await;
                self.read(&agent, events, &full).await;
            }
            sleep(RETRY).await;
        }
        self.node
    }

    /// What ran when the agent was heard last, and has ended since.
    async fn catch_up(&mut self, agent: &RemoteAgent, full: &impl Fn()) {
        for id in self.running.clone() {
            match agent.get(&id).await {
                Ok(state) => self.take(agent, state, full),
                Err(error) if error.code == Code::NotFound => {
                    self.running.remove(&id);
                }
                // It is asked again with the next connection.
                Err(_) => {}
            }
        }
    }

    async fn read(
        &mut self,
        agent: &RemoteAgent,
        mut events: Streaming<v1::WatchResponse>,
        full: &impl Fn(),
    ) {
        while let Ok(Some(v1::WatchResponse { capture })) = events.message().await {
            if let Some(state) = capture {
                self.take(agent, state, full);
            }
        }
    }

    fn take(&mut self, agent: &RemoteAgent, state: v1::CaptureState, full: &impl Fn()) {
        if !is_stored(&state) {
            return;
        }
        if !whole::is_final(state.phase()) {
            if self.running.len() < RUNNING_MAX {
                self.running.insert(state.id);
            }
            return;
        }
        self.running.remove(&state.id);
        if self.told.contains(&state.id) {
            return;
        }
        if self.told.len() == TOLD_MAX {
            self.told.pop_front();
        }
        self.told.push_back(state.id.clone());
        let ended = Ended {
            state,
            agent: agent.clone(),
        };
        if self.ended.try_send(ended).is_err() {
            full();
        }
    }
}

/// Its packets are in a file, and not with who asked for them.
fn is_stored(state: &v1::CaptureState) -> bool {
    let spec = state.spec.as_ref();
    spec.is_none_or(|spec| spec.destination() != v1::Destination::Stream)
}
