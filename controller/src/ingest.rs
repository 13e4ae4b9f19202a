//! An alert's way through the controller: read, decide, ask the agent.

use std::sync::Arc;

use jiff::Timestamp;
use remora_capture::{
    alert::Alert,
    text::{escape, shown},
};
use remora_rules::{self as rules, Ignored, Plan, Rules, decide};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::{
    agent::START_DEADLINE,
    dispatch::Dispatch,
    outcome::{Outcome, Refusal, RefusalCode},
    talon::{Action, Mode},
    trigger::Source,
};

/// Most alerts being handled at once: each holds at most its own bytes and one call to the agent.
pub const IN_FLIGHT_MAX: usize = 256;

/// What came in a request.
#[derive(Debug)]
pub struct Delivery {
    /// The body, verbatim.
    pub alert: Vec<u8>,
    /// Who says to be the sender; printable.
    pub requester: String,
    /// The `traceparent` header, or empty.
    pub traceparent: String,
    /// When its request's head had come.
    pub arrived: Timestamp,
    /// The event's own id, by the envelope that it came in.
    pub event_id: Option<String>,
    /// What the sender itself has decided; else our rules decide.
    pub action: Option<Action>,
}

/// What became of a delivery.
#[derive(Debug)]
pub struct Handled {
    /// The alert's outcome: of its captures' the most welcome.
    pub outcome: Outcome,
    /// The outcome of each capture that the rules asked for.
    pub captures: Vec<Outcome>,
    /// Falco's rule; empty when the alert could not be read.
    falco_rule: String,
}

/// Takes alerts. Holds no state of its own between them.
#[derive(Debug)]
pub struct Ingest {
    /// Those of this moment; [`crate::reload`] puts others into their place.
    rules: watch::Receiver<Arc<Rules>>,
    dispatch: Dispatch,
    slots: Semaphore,
}

impl Ingest {
    #[must_use]
    pub fn new(rules: watch::Receiver<Arc<Rules>>, dispatch: impl Into<Dispatch>) -> Self {
        Self {
            rules,
            dispatch: dispatch.into(),
            slots: Semaphore::new(IN_FLIGHT_MAX),
        }
    }

    /// Decides about an alert and starts its captures; answers within [`START_DEADLINE`].
    pub async fn handle(&self, delivery: Delivery) -> Handled {
        let handled = self.decide(&delivery).await;
        handled.log();
        handled
    }

    /// Ends when no alert is being handled; from then on all are refused.
    pub async fn drain(&self) {
        let all = u32::try_from(IN_FLIGHT_MAX).expect("a small constant");
        if self.slots.acquire_many(all).await.is_ok() {
            self.slots.close();
        }
    }

    async fn decide(&self, delivery: &Delivery) -> Handled {
        let Ok(_slot) = self.slots.try_acquire() else {
            let reason = format!("{IN_FLIGHT_MAX} alerts are being handled; send it again");
            return Outcome::Refused(Refusal::new(RefusalCode::Busy, reason)).into();
        };
        let alert = match Alert::from_json(&delivery.alert) {
            Ok(alert) => alert,
            Err(error) => {
                let refusal = Refusal::new(RefusalCode::InvalidAlert, error.to_string());
                return Outcome::Refused(refusal).into();
            }
        };
        let captures = match &delivery.action {
            Some(action) => vec![self.act(action, &alert, delivery).await],
            None => self.by_rules(&alert, delivery).await,
        };
        let outcome = captures
            .iter()
            .min_by_key(|outcome| outcome.decision())
            .cloned();
        Handled {
            outcome: outcome.expect("a decision to capture has at least one plan"),
            captures,
            falco_rule: alert.rule,
        }
    }

    async fn by_rules(&self, alert: &Alert, delivery: &Delivery) -> Vec<Outcome> {
        // One set of rules for all that the alert starts.
        let rules = self.rules.borrow().clone();
        match decide(&rules, alert) {
            rules::Decision::Capture(plans) => self.start(&plans, alert, delivery).await,
            rules::Decision::Ignore(why) => vec![Outcome::Ignored(ignored(why))],
        }
    }

    /// The capture that the sender's own action asks for.
    async fn act(&self, action: &Action, alert: &Alert, delivery: &Delivery) -> Outcome {
        let asked = match action.asked() {
            Ok(asked) => asked,
            Err(refusal) => return Outcome::Refused(refusal),
        };
        let deadline = Instant::now() + START_DEADLINE;
        let note = Action::note(&asked);
        let source = Source {
            alert,
            delivery,
            note: note.as_deref(),
        };
        match action.mode {
            Mode::Live => self.dispatch.start(asked.plan(), source, deadline).await,
            Mode::DryRun => self.dispatch.check(asked.plan(), source),
        }
    }

    /// One after the other, under one deadline.
    async fn start(&self, plans: &[Plan<'_>], alert: &Alert, delivery: &Delivery) -> Vec<Outcome> {
        let deadline = Instant::now() + START_DEADLINE;
        let source = Source {
            alert,
            delivery,
            note: None,
        };
        let mut outcomes = Vec::with_capacity(plans.len());
        for plan in plans {
            outcomes.push(self.dispatch.start(*plan, source, deadline).await);
        }
        outcomes
    }
}

fn ignored(why: Ignored<'_>) -> String {
    match why {
        Ignored::NoRule => "no rule matches".to_owned(),
        Ignored::DryRun(rule) => format!("rule `{}` is a dry run", shown(rule)),
    }
}

impl From<Outcome> for Handled {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            captures: Vec::new(),
            falco_rule: String::new(),
        }
    }
}

impl Handled {
    /// One line an alert, or one for each of several captures.
    pub(crate) fn log(&self) {
        let rule = shown(&self.falco_rule);
        let outcomes = match &self.captures[..] {
            [] | [_] => std::slice::from_ref(&self.outcome),
            several => several,
        };
        for outcome in outcomes {
            match outcome {
                Outcome::Accepted(capture) => tracing::info!(%rule, %capture, "alert accepted"),
                Outcome::Coalesced(capture) => tracing::info!(%rule, %capture, "alert joined"),
                Outcome::Existing(capture) => tracing::info!(%rule, %capture, "alert was known"),
                Outcome::Ignored(reason) => {
                    tracing::debug!(%rule, reason = %escape(reason), "alert ignored");
                }
                Outcome::Refused(refusal) => tracing::warn!(
                    %rule,
                    code = refusal.code.as_str(),
                    reason = %escape(&refusal.reason),
                    "alert refused"
                ),
            }
        }
    }
}
