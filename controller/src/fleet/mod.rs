//! The agents of the cluster: one connection each, asked side by side, every call with a deadline.
//!
//! ```text
//! Order, members ──start──▶ agent of each member's node     parts() ◀── what all agents tell
//!                              at most 1 s; who fails is a part that is missing
//! ```
//! The agents own the captures, and the controller holds none: [`Fleet::parts`] finds one again by
//! its id. What is kept here (which nodes have parts, clocks, connections) saves asking, and may be
//! lost.
//!
//! Invariants: an agent that is late, silent or wrong delays a call by its deadline and spoils its
//! own part alone; connections are at most one an agent.

pub mod connections;
mod custody;
pub mod joining;
mod order;
mod remote;
pub mod roster;
pub mod whole;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use connections::{Connections, Dial};
pub use custody::Deed;
use futures_util::{StreamExt as _, stream};
pub use order::{JOIN_LOOK_BACK, Order, Over};
use remora_capture::{merge::NodeClock, session::CaptureId};
use remora_proto::{client::AgentAddress, v1};
pub use remote::{AgentError, CALL_DEADLINE, RemoteAgent, STOP_DEADLINE};
use roster::Roster;
use tokio::{sync::watch, time::Instant};
use tonic::Code;
use whole::{Silent, Told};

use crate::cluster::index::Member;

/// Agents that are asked at once.
const AT_ONCE: usize = 256;
/// How long a clock's offset is believed: at 100 parts in a million, which is bad for a clock, it
/// moves 6 ms in that time.
const CLOCK_KEPT: Duration = Duration::from_secs(60);
/// Captures of which the nodes are kept.
const PLACES_MAX: usize = 4096;

/// All agents.
pub struct Fleet {
    roster: watch::Receiver<Arc<Roster>>,
    /// Of a host without Kubernetes, whose agent is known for ever.
    _alone: Option<watch::Sender<Arc<Roster>>>,
    connections: Connections,
    clocks: Mutex<HashMap<Arc<str>, (Instant, NodeClock)>>,
    places: Mutex<Places>,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet")
            .field("agents", &self.roster.borrow().len())
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}

/// Nodes that are known to have parts of a capture.
#[derive(Debug, Default)]
struct Places {
    nodes: HashMap<CaptureId, BTreeSet<Arc<str>>>,
}

impl Places {
    fn note(&mut self, id: CaptureId, node: &str) {
        if !self.nodes.contains_key(&id) && self.nodes.len() >= PLACES_MAX {
            // Ids sort by time: the oldest.
            if let Some(oldest) = self.nodes.keys().min().copied() {
                self.nodes.remove(&oldest);
            }
        }
        self.nodes.entry(id).or_default().insert(node.into());
    }
}

/// How a capture over several nodes began.
#[derive(Debug)]
pub struct Started {
    pub capture: v1::ClusterCapture,
    /// All of its parts were there before.
    pub existing: bool,
    /// Why the parts that are missing are.
    pub errors: Vec<AgentError>,
}

impl Fleet {
    #[must_use]
    pub fn new(roster: watch::Receiver<Arc<Roster>>, dial: Dial) -> Self {
        Self {
            roster,
            _alone: None,
            connections: Connections::new(dial),
            clocks: Mutex::default(),
            places: Mutex::default(),
        }
    }

    /// The one agent of a host without Kubernetes. It is not called yet.
    #[must_use]
    pub fn of_host(agent: AgentAddress) -> Self {
        let roster = Roster::from_iter([("host".into(), agent)]);
        let (sender, roster) = watch::channel(Arc::new(roster));
        Self {
            _alone: Some(sender),
            ..Self::new(roster, connections::plain())
        }
    }

    #[must_use]
    pub fn roster(&self) -> Arc<Roster> {
        self.roster.borrow().clone()
    }

    /// Which agents there are, now and later.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Roster>> {
        self.roster.clone()
    }

    /// The agent of a node; it is not called yet.
    ///
    /// # Errors
    /// There is none, or its address cannot be used.
    pub fn agent(&self, node: &str) -> Result<RemoteAgent, AgentError> {
        let roster = self.roster();
        let Some(address) = roster.address(node) else {
            let text = format!(
                "node {node} has no agent that runs (kubectl get pods -l \
                 app.kubernetes.io/name=remora-agent -A shows them)"
            );
            return Err(AgentError::new(Code::Unavailable, text));
        };
        let node: Arc<str> = node.into();
        let channel = self
            .connections
            .channel(&node, address)
            .map_err(|error| AgentError::new(Code::Unavailable, error.to_string()))?;
        Ok(RemoteAgent {
            node,
            address: address.clone(),
            channel,
        })
    }

    /// Starts a capture on its members' nodes, side by side; answers at the latest at `deadline`.
    pub async fn start(&self, order: &Order, members: &[Member], deadline: Instant) -> Started {
        let starts = stream::iter(members.to_vec()).map(|member| async move {
            let started = self.start_one(&member.node, order.request(&member), deadline);
            let started = started.await;
            (member, started)
        });
        // All at once: each waits for another agent.
        let answers: Vec<_> = starts
            .buffer_unordered(members.len().max(1))
            .collect()
            .await;
        let mut capture = v1::ClusterCapture {
            id: order.id.to_string(),
            selector: Some((&order.selector).into()),
            fixed: order.fixed,
            ..Default::default()
        };
        let (mut existing, mut errors) = (true, Vec::new());
        for (member, answer) in answers {
            capture.parts.push(match answer {
                Ok(started) => {
                    existing &= started.existing;
                    whole::part_of(started.told)
                }
                Err(error) => {
                    let pod = member.pod.clone().map(Into::into);
                    let part = whole::missing_part(&member.node, pod, &error);
                    errors.push(error);
                    part
                }
            });
        }
        capture
            .parts
            .sort_by(|a, b| (&a.node, &a.capture).cmp(&(&b.node, &b.capture)));
        whole::sum_up(&mut capture);
        capture.message = missing(errors.len(), members.len());
        Started {
            capture,
            existing: existing && errors.is_empty(),
            errors,
        }
    }

    /// Starts one part.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn start_one(
        &self,
        node: &str,
        request: v1::StartRequest,
        deadline: Instant,
    ) -> Result<StartedPart, AgentError> {
        let agent = self.agent(node)?;
        let v1::StartResponse {
            capture,
            existing,
            coalesced,
        } = agent.start(&request, deadline).await?;
        let state = capture.ok_or_else(|| agent.wrong("a start without a state"))?;
        if state.id.parse::<CaptureId>().is_err() {
            return Err(agent.wrong("a start without a capture's id"));
        }
        // Of what it joined, the agent tells.
        let spec = if coalesced {
            state.spec.clone()
        } else {
            request.spec
        };
        let part = spec.and_then(|spec| spec.part);
        if let Some(id) = part.and_then(|part| part.capture.parse().ok()) {
            self.places().note(id, node);
        }
        let node = node.to_owned();
        Ok(StartedPart {
            told: Told { node, state },
            existing,
            coalesced,
        })
    }

    /// What the agents tell of one capture over several nodes, or of all; of those that run, or of
    /// `all`.
    pub async fn parts(&self, of: Option<CaptureId>, all: bool) -> (Vec<Told>, Vec<Silent>) {
        let nodes: Vec<_> = self.roster().nodes().cloned().collect();
        self.parts_on(nodes, of, all).await
    }

    /// As [`Fleet::parts`], of the nodes that are known to have parts of it: cheap, and complete but
    /// for what another controller started a moment ago.
    pub async fn known_parts(&self, of: CaptureId) -> (Vec<Told>, Vec<Silent>) {
        let nodes = self.places().nodes.get(&of).cloned();
        match nodes {
            Some(nodes) => {
                self.parts_on(nodes.into_iter().collect(), Some(of), true)
                    .await
            }
            None => self.parts(Some(of), true).await,
        }
    }

    async fn parts_on(
        &self,
        nodes: Vec<Arc<str>>,
        of: Option<CaptureId>,
        all: bool,
    ) -> (Vec<Told>, Vec<Silent>) {
        let answers = stream::iter(nodes).map(|node| async move {
            let parts = match self.agent(&node) {
                Ok(agent) => agent.parts(of, all).await,
                Err(error) => Err(error),
            };
            (node, parts)
        });
        let mut answers = std::pin::pin!(answers.buffer_unordered(AT_ONCE));
        let (mut told, mut silent) = (Vec::new(), Vec::new());
        while let Some((node, parts)) = answers.next().await {
            let node = node.as_ref().to_owned();
            match parts {
                Ok(states) => told.extend(states.into_iter().map(|state| Told {
                    node: node.clone(),
                    state,
                })),
                Err(error) => silent.push(Silent { node, error }),
            }
        }
        let mut places = self.places();
        for Told { node, state } in &told {
            let part = state.spec.as_ref().and_then(|spec| spec.part.as_ref());
            if let Some(id) = part.and_then(|part| part.capture.parse().ok()) {
                places.note(id, node);
            }
        }
        drop(places);
        silent.sort_by(|a, b| a.node.cmp(&b.node));
        (told, silent)
    }

    /// Ends all parts that are told; what became of them.
    pub async fn stop(&self, parts: Vec<Told>) -> (Vec<Told>, Vec<Silent>) {
        let stops = stream::iter(parts).map(|told| async move {
            let stopped = match self.agent(&told.node) {
                Ok(agent) => agent.stop(&told.state.id).await,
                Err(error) => Err(error),
            };
            (told, stopped)
        });
        let mut stops = std::pin::pin!(stops.buffer_unordered(AT_ONCE));
        let (mut stopped, mut silent) = (Vec::new(), Vec::new());
        while let Some((told, answer)) = stops.next().await {
            match answer {
                Ok(state) => stopped.push(Told { state, ..told }),
                Err(error) => {
                    let node = told.node.clone();
                    stopped.push(told);
                    silent.push(Silent { node, error });
                }
            }
        }
        silent.sort_by(|a, b| a.node.cmp(&b.node));
        (stopped, silent)
    }

    /// How far a node's clock is from ours; `None` where it cannot be measured.
    pub async fn clock(&self, node: &str) -> Option<NodeClock> {
        let known = self.clocks().get(node).copied();
        if let Some((at, clock)) = known
            && at.elapsed() < CLOCK_KEPT
        {
            return Some(clock);
        }
        let agent = self.agent(node).ok()?;
        let (clock, _) = agent.clock().await.ok()?;
        self.clocks().insert(agent.node, (Instant::now(), clock));
        Some(clock)
    }

    /// Each node that has an agent, as it answers now.
    pub async fn nodes(&self) -> Vec<v1::NodeAgent> {
        let roster = self.roster();
        let nodes: Vec<_> = roster.nodes().cloned().collect();
        let answers = stream::iter(nodes).map(|node| self.node(node));
        let mut nodes: Vec<_> = answers.buffer_unordered(AT_ONCE).collect().await;
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        nodes
    }

    async fn node(&self, node: Arc<str>) -> v1::NodeAgent {
        let address = self.roster().address(&node).map(ToString::to_string);
        let told = v1::NodeAgent {
            node: node.as_ref().to_owned(),
            agent: address.unwrap_or_default(),
            ..Default::default()
        };
        let answer = match self.agent(&node) {
            Ok(agent) => agent.clock().await,
            Err(error) => Err(error),
        };
        let (clock, status) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                return v1::NodeAgent {
                    error: error.text,
                    ..told
                };
            }
        };
        self.clocks().insert(node, (Instant::now(), clock));
        v1::NodeAgent {
            reachable: true,
            version: status.version,
            kernel: status.kernel,
            sessions_running: status.sessions_running,
            sessions_limit: status.sessions_limit,
            clock_offset: Some(nanoseconds(clock.offset_ns)),
            clock_error: Some(nanoseconds(
                i64::try_from(clock.error_ns).unwrap_or(i64::MAX),
            )),
            ..told
        }
    }

    /// Closes what nobody used for a while and forgets who has no agent any more.
    pub fn tidy(&self) {
        self.connections.close_idle();
        let roster = self.roster();
        self.clocks()
            .retain(|node, _| roster.address(node).is_some());
    }

    /// Connections that are kept.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    fn places(&self) -> std::sync::MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clocks(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, (Instant, NodeClock)>> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part that runs.
#[derive(Debug)]
pub struct StartedPart {
    pub told: Told,
    pub existing: bool,
    /// It is a part of a capture that ran.
    pub coalesced: bool,
}

impl StartedPart {
    /// The whole that it is a part of, as its agent tells.
    #[must_use]
    pub fn whole(&self) -> Option<CaptureId> {
        let part = self.told.state.spec.as_ref()?.part.as_ref()?;
        part.capture.parse().ok()
    }
}

fn missing(missing: usize, of: usize) -> String {
    match missing {
        0 => String::new(),
        n => format!("{n} of {of} parts could not be started; each says why"),
    }
}

fn nanoseconds(ns: i64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: ns / 1_000_000_000,
        nanos: (ns % 1_000_000_000) as i32,
    }
}
