//! Pods that come while a capture of their deployment or service runs join it.
//!
//! ```text
//! agents ──sweep, every few seconds──▶ captures that run, with their selectors ─┐
//! cluster ──any change──▶ members now, less those that were asked ◀─────────────┘
//!                              └─▶ start, with the key CAPTURE/UID: twice is once
//! ```
//! Every controller does so for every capture, whoever started it: one may die, and two do no harm.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use remora_capture::session::{CaptureId, Selector};
use remora_proto::v1;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{CALL_DEADLINE, Fleet, Order, whole};
use crate::cluster::{
    View,
    index::{MEMBERS_MAX, Member},
};

/// How soon after a change in the cluster its pods join.
pub const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often all agents are asked what runs; with many agents longer, so that no more than
/// [`SWEEP_AGENTS_A_SECOND`] are asked.
pub const SWEEP_EVERY: Duration = Duration::from_secs(5);
const SWEEP_AGENTS_A_SECOND: u32 = 500;
/// After a failure.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Captures that are followed.
const CAPTURES_MAX: usize = 4096;

/// The captures that pods may join.
#[derive(Debug)]
pub struct Joining {
    fleet: Arc<Fleet>,
    view: Arc<View>,
    captures: Mutex<HashMap<CaptureId, Followed>>,
}

#[derive(Debug)]
struct Followed {
    order: Order,
    started: Timestamp,
    /// By member's key.
    asked: HashMap<String, Asked>,
    /// Sweeps in which nothing of it ran, one after the other.
    unseen: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Done,
    Again(Instant),
}

impl Joining {
    #[must_use]
    pub fn new(fleet: Arc<Fleet>, view: Arc<View>) -> Self {
        Self {
            fleet,
            view,
            captures: Mutex::default(),
        }
    }

    /// A capture that was started here, with the members that were asked and whether they have it.
    pub fn follow(
        &self,
        order: &Order,
        asked: impl IntoIterator<Item = (String, Start)>,
        started: Timestamp,
    ) {
        if !may_grow(order.fixed, &order.selector) {
            return;
        }
        let again = Asked::Again(Instant::now() + AGAIN_AFTER);
        let asked = asked.into_iter().map(|(key, start)| match start {
            Start::Made => (key, Asked::Done),
            // Its node's agent may come back.
            Start::Failed => (key, again),
        });
        let followed = Followed {
            order: order.clone(),
            started,
            asked: asked.collect(),
            unseen: 0,
        };
        let mut captures = self.captures();
        if captures.len() < CAPTURES_MAX {
            captures.insert(order.id, followed);
        }
    }

    /// A capture that nobody joins any more.
    pub fn leave(&self, id: CaptureId) {
        self.captures().remove(&id);
    }

    /// Follows the cluster for ever.
    pub async fn run(&self) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut swept = Instant::now();
        let mut version = None;
        self.sweep().await;
        loop {
            looks.tick().await;
            let agents = u32::try_from(self.fleet.roster().len()).unwrap_or(u32::MAX);
            let pause = Duration::from_secs(1) * agents / SWEEP_AGENTS_A_SECOND;
            if swept.elapsed() >= SWEEP_EVERY.max(pause) {
                swept = Instant::now();
                self.sweep().await;
                self.fleet.tidy();
                version = None;
            }
            let now = self.view.version();
            if version.replace(now) != Some(now) || self.is_due() {
                self.join().await;
            }
        }
    }

    fn is_due(&self) -> bool {
        let now = Instant::now();
        let is_due = |asked: &Asked| matches!(asked, Asked::Again(at) if *at <= now);
        let captures = self.captures();
        captures
            .values()
            .any(|followed| followed.asked.values().any(is_due))
    }

    /// Learns what runs, whoever started it.
    async fn sweep(&self) {
        let (told, silent) = self.fleet.parts(None, false).await;
        let running = whole::wholes(told, &[]);
        let mut unknown = Vec::new();
        {
            let mut captures = self.captures();
            for followed in captures.values_mut() {
                followed.unseen += 1;
            }
            for capture in &running {
                let Ok(id) = capture.id.parse::<CaptureId>() else {
                    continue;
                };
                match captures.get_mut(&id) {
                    Some(followed) => followed.saw(capture),
                    None => unknown.push((id, capture)),
                }
            }
            // Of what is silent nothing is known. A part that has just begun is in the next sweep.
            if silent.is_empty() {
                captures.retain(|_, followed| followed.unseen < 2);
            }
        }
        for (id, capture) in unknown {
            self.learn(id, capture).await;
        }
    }

    /// Follows a capture that another controller started, or this one before it was restarted.
    async fn learn(&self, id: CaptureId, capture: &v1::ClusterCapture) {
        let selector = capture.selector.clone().map(Selector::try_from);
        let Some(Ok(selector)) = selector.filter(|s| {
            s.as_ref()
                .is_ok_and(|selector| may_grow(capture.fixed, selector))
        }) else {
            return;
        };
        let Some(part) = capture.parts.first() else {
            return;
        };
        // In full: a list leaves the alert out.
        let Ok(agent) = self.fleet.agent(&part.node) else {
            return;
        };
        let Ok(state) = agent.get(&part.capture).await else {
            return;
        };
        let Some(spec) = state.spec else {
            return;
        };
        let order = Order {
            id,
            selector,
            fixed: capture.fixed,
            spec: v1::CaptureSpec {
                target: None,
                part: None,
                ..spec
            },
        };
        let started = capture.started.and_then(timestamp);
        let started = started.unwrap_or_else(Timestamp::now);
        tracing::info!(capture = %id, "found a capture that runs");
        self.follow(&order, asked(capture), started);
    }

    /// Starts what is missing now.
    async fn join(&self) {
        let wanted = self.wanted();
        let ids: BTreeSet<_> = wanted.iter().map(|(id, ..)| *id).collect();
        let checks = stream::iter(ids).map(|id| async move { (id, self.runs(id).await) });
        let checks: Vec<_> = checks.buffer_unordered(64).collect().await;
        let running: BTreeSet<_> = checks
            .into_iter()
            .filter_map(|(id, runs)| runs.then_some(id))
            .collect();
        let wanted = wanted
            .into_iter()
            .filter(move |(id, ..)| running.contains(id));
        let joins = stream::iter(wanted).map(|(id, member, request)| async move {
            let deadline = Instant::now() + CALL_DEADLINE;
            let answer = self.fleet.start_one(&member.node, request, deadline).await;
            (id, member, answer)
        });
        let mut joins = std::pin::pin!(joins.buffer_unordered(64));
        while let Some((id, member, answer)) = joins.next().await {
            let asked = match answer {
                Ok(started) => {
                    if !started.existing {
                        tracing::info!(capture = %id, node = %member.node, pod = ?member.pod.as_ref().map(ToString::to_string), "a pod joined");
                    }
                    Asked::Done
                }
                Err(error) => {
                    tracing::warn!(capture = %id, node = %member.node, %error, "a pod could not join");
                    Asked::Again(Instant::now() + AGAIN_AFTER)
                }
            };
            if let Some(followed) = self.captures().get_mut(&id) {
                followed.asked.insert(member.key().to_owned(), asked);
            }
        }
    }

    /// A part of it runs now: whoever stopped it did not tell us.
    async fn runs(&self, id: CaptureId) -> bool {
        let (told, silent) = self.fleet.known_parts(id).await;
        let is_running = |told: &whole::Told| told.state.phase() == v1::Phase::Capturing;
        let runs = told.iter().any(is_running);
        if !runs && silent.is_empty() {
            tracing::debug!(capture = %id, "nobody joins what has ended");
            self.leave(id);
        }
        runs
    }

    /// Members that were not asked, and what to ask.
    fn wanted(&self) -> Vec<(CaptureId, Member, v1::StartRequest)> {
        let (now, time) = (Instant::now(), Timestamp::now());
        let mut wanted = Vec::new();
        let mut captures = self.captures();
        captures.retain(|id, followed| {
            let members = self
                .view
                .members(&followed.order.selector, Duration::ZERO, MEMBERS_MAX);
            let Ok(members) = members else {
                return true;
            };
            for member in members.placed {
                let is_new = match followed.asked.get(member.key()) {
                    None => true,
                    Some(Asked::Again(at)) => *at <= now,
                    Some(Asked::Done) => false,
                };
                if !is_new {
                    continue;
                }
                // More than may be captured at once never join.
                if followed.asked.len() >= MEMBERS_MAX && !followed.asked.contains_key(member.key())
                {
                    break;
                }
                match followed.order.joining(&member, followed.started, time) {
                    Ok(request) => wanted.push((*id, member, request)),
                    Err(super::Over) => return false,
                }
            }
            true
        });
        wanted
    }

    fn captures(&self) -> std::sync::MutexGuard<'_, HashMap<CaptureId, Followed>> {
        self.captures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Followed {
    /// What of it runs, by a sweep.
    fn saw(&mut self, capture: &v1::ClusterCapture) {
        self.unseen = 0;
        for (key, _) in asked(capture) {
            self.asked.insert(key, Asked::Done);
        }
    }
}

/// The members that a capture's parts are of.
pub fn asked(capture: &v1::ClusterCapture) -> impl Iterator<Item = (String, Start)> + '_ {
    capture.parts.iter().filter_map(|part| {
        let start = match part.error.is_empty() {
            true => Start::Made,
            false => Start::Failed,
        };
        Some((part.pod.as_ref()?.uid.clone(), start))
    })
}

/// How a member was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Made,
    Failed,
}

/// A pod or a node that was named stays alone.
fn may_grow(fixed: bool, selector: &Selector) -> bool {
    !fixed && !matches!(selector, Selector::Pod { .. } | Selector::Node { .. })
}

fn timestamp(time: prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}
