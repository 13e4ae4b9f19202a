//! Looks now and then whether somebody else came to where running sessions take packets. That is
//! said in the session's account, once.
//!
//! ```text
//!          due, a session on a pod's interface runs
//!   Idle ──────────────────────────────────────────▶ Looking (a thread of the blocking pool)
//!     ▲                                                 │
//!     └─── due again after 1000 times what it took ─────┘
//! ```
//! So it costs at most a thousandth of a core, and nothing while no such session runs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{CgroupScope, Place, Slot, Targets};

/// Pause after a look, in times that the look took.
const PAUSE_FACTOR: u32 = 1000;
const PAUSE_MIN: Duration = Duration::from_secs(2);
/// On a node with so many processes that a look takes longer than 30 ms, that is more than a
/// thousandth.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A session that was found not to be alone any more.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) slot: Slot,
    pub(super) generation: u32,
    /// For a person.
    pub(super) message: String,
}

struct Looked {
    shared: Vec<Shared>,
    took: Duration,
}

pub(super) struct ShareWatch {
    targets: Arc<dyn Targets>,
    looked: (mpsc::Sender<Looked>, mpsc::Receiver<Looked>),
    /// `None` while a look is under way.
    due: Option<Instant>,
}

impl ShareWatch {
    pub(super) fn new(targets: Arc<dyn Targets>) -> Self {
        Self {
            targets,
            looked: mpsc::channel(1),
            due: Some(Instant::now()),
        }
    }

    /// Begins a look at the places of running sessions, if it is time for one.
    pub(super) fn look<'a>(&mut self, running: impl Iterator<Item = (Slot, u32, &'a Place)>) {
        if self.due.is_none_or(|due| Instant::now() < due) {
            return;
        }
        let mut sessions = Vec::new();
        let mut places = Vec::new();
        for (slot, generation, place) in running.filter(|(.., place)| is_alone(place)) {
            sessions.push((slot, generation));
            places.push(place.clone());
        }
        if places.is_empty() {
            return;
        }
        self.due = None;
        let targets = Arc::clone(&self.targets);
        let sender = self.looked.0.clone();
        tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let shared = look(targets.as_ref(), &sessions, &places);
            let took = begun.elapsed();
            // The driver outlives its sessions; at the agent's end nobody needs it.
            let _gone = sender.blocking_send(Looked { shared, took });
        });
    }

    /// What the look that is under way finds; pending for ever if none is.
    pub(super) async fn found(&mut self) -> Vec<Shared> {
        match self.looked.1.recv().await {
            Some(Looked { shared, took }) => {
                self.due = Some(Instant::now() + pause(took));
                shared
            }
            // Never: a sender is kept here.
            None => std::future::pending().await,
        }
    }
}

/// The place's interfaces were found to be the cgroup's alone.
fn is_alone(place: &Place) -> bool {
    let scope = place.cgroup.as_ref().map(|cgroup| cgroup.scope);
    let is_behind = matches!(
        scope,
        Some(CgroupScope::LoopbackOnly | CgroupScope::Received)
    );
    is_behind && !place.interfaces.is_empty()
}

fn look(targets: &dyn Targets, sessions: &[(Slot, u32)], places: &[Place]) -> Vec<Shared> {
    let found = match targets.shared(places) {
        Ok(found) => found,
        Err(problem) => {
            tracing::warn!(%problem, "it is not known whether captured pods are alone");
            return Vec::new();
        }
    };
    let shared = found.into_iter().filter_map(|(number, who)| {
        let &(slot, generation) = sessions.get(number)?;
        let message = format!(
            "its interface was found not to be its own alone any more ({who}): packets from then on \
             may be of others"
        );
        Some(Shared {
            slot,
            generation,
            message,
        })
    });
    shared.collect()
}

fn pause(took: Duration) -> Duration {
    took.saturating_mul(PAUSE_FACTOR)
        .clamp(PAUSE_MIN, PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_costs_a_thousandth_of_a_core_until_that_would_be_too_seldom() {
        let milliseconds = Duration::from_millis;
        assert_eq!(pause(Duration::ZERO), PAUSE_MIN);
        assert_eq!(pause(milliseconds(1)), PAUSE_MIN);
        assert_eq!(pause(milliseconds(7)), Duration::from_secs(7));
        assert_eq!(pause(milliseconds(500)), PAUSE_MAX);
    }
}
