//! One agent's captures: which have ended.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
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
/// Captures of an agent that ended before and are told again: they find room in every receiver's queue.
const EARLIER_MAX: usize = 128;
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
    /// What ended later is told, too, once the agent was asked for it.
    earlier: Option<Timestamp>,
}

impl Follower {
    pub(super) fn new(
        node: Arc<str>,
        ended: mpsc::Sender<Ended>,
        earlier: Option<Timestamp>,
    ) -> Self {
        Self {
            node,
            ended,
            running: BTreeSet::new(),
            told: VecDeque::new(),
            earlier,
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

    /// What ran when the agent was heard last, and has ended since; at first what ended before.
    async fn catch_up(&mut self, agent: &RemoteAgent, full: &impl Fn()) {
        if let Some(since) = self.earlier
            && let Ok(captures) = agent.list(true, "").await
        {
            self.earlier = None;
            for state in ended_since(captures, since) {
                self.take(agent, state, full);
            }
        }
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

/// The newest of those that ended since then, in the order in which they did.
fn ended_since(captures: Vec<v1::CaptureState>, since: Timestamp) -> Vec<v1::CaptureState> {
    let since = (since.as_second(), since.subsec_nanosecond());
    let mut ended: Vec<_> = captures
        .into_iter()
        .filter(|state| whole::is_final(state.phase()) && is_stored(state))
        .filter_map(|state| {
            let finished = state.finished.as_ref()?;
            Some(((finished.seconds, finished.nanos), state))
        })
        .filter(|(finished, _)| *finished >= since)
        .collect();
    ended.sort_by_key(|(finished, _)| *finished);
    let oldest = ended.len().saturating_sub(EARLIER_MAX);
    ended.drain(oldest..).map(|(_, state)| state).collect()
}

/// Its packets are in a file, and not with who asked for them.
fn is_stored(state: &v1::CaptureState) -> bool {
    let spec = state.spec.as_ref();
    spec.is_none_or(|spec| spec.destination() != v1::Destination::Stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(n: u32, seconds: i64, phase: v1::Phase) -> v1::CaptureState {
        v1::CaptureState {
            id: n.to_string(),
            phase: phase.into(),
            finished: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..Default::default()
        }
    }

    #[test]
    fn what_ended_before_is_told_in_order_and_no_more_than_finds_room() {
        let since = Timestamp::from_second(100).expect("a time");
        let finished = v1::Phase::Finished;
        let mut streamed = capture(4, 300, finished);
        let spec = streamed.spec.get_or_insert_default();
        spec.set_destination(v1::Destination::Stream);
        let captures = vec![
            capture(1, 300, finished),
            capture(2, 99, finished),
            capture(3, 100, v1::Phase::Failed),
            streamed,
            capture(5, 200, v1::Phase::Capturing),
        ];
        let told = ended_since(captures, since);
        let ids: Vec<_> = told.iter().map(|state| state.id.as_str()).collect();
        assert_eq!(ids, ["3", "1"]);
        let many = (0..200).map(|n| capture(n, 100 + i64::from(n), finished));
        let told = ended_since(many.collect(), since);
        assert_eq!((told.len(), told[0].id.as_str()), (EARLIER_MAX, "72"));
    }
}
