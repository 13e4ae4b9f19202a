//! The decision: rules and an alert in, captures out. Pure.

use remora_capture::alert::Alert;

use super::{Action, Continue, Match, Mode, Rule, Rules};

/// What the rules say about an alert.
#[derive(Debug, PartialEq)]
pub enum Decision<'r> {
    /// Start these captures, in this order; at least one.
    Capture(Vec<Plan<'r>>),
    Ignore(Ignored<'r>),
}

/// One capture to start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan<'r> {
    pub rule: &'r Rule,
    pub action: &'r Action,
}

/// Why an alert starts nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored<'r> {
    NoRule,
    /// Only rules with `dry_run` match; this is the first.
    DryRun(&'r str),
}

/// Decides about one alert.
#[must_use]
pub fn decide<'r>(rules: &'r Rules, alert: &Alert) -> Decision<'r> {
    let mut plans = Vec::new();
    let mut dry_run = None;
    for rule in rules.rules.iter().filter(|rule| rule.matches.holds(alert)) {
        match rule.mode {
            Mode::Live => plans.extend(rule.plans()),
            Mode::DryRun => dry_run = dry_run.or(Some(rule.name.as_str())),
        }
        if rule.after == Continue::Stop {
            break;
        }
    }
    if !plans.is_empty() {
        return Decision::Capture(plans);
    }
    Decision::Ignore(dry_run.map_or(Ignored::NoRule, Ignored::DryRun))
}

impl Rule {
    /// The rule's actions up to the first that stops.
    fn plans(&self) -> impl Iterator<Item = Plan<'_>> {
        let stop = self
            .actions
            .iter()
            .position(|action| action.after == Continue::Stop);
        let count = stop.map_or(self.actions.len(), |at| at + 1);
        self.actions[..count]
            .iter()
            .map(move |action| Plan { rule: self, action })
    }
}

impl Match {
    fn holds(&self, alert: &Alert) -> bool {
        any(&self.rules, |name| alert.rule == *name)
            && any(&self.tags, |tags| tags.holds(alert))
            && any(&self.output_fields, |fields| fields.holds(alert))
            && self.priority.is_none_or(|priority| priority.holds(alert))
            && self
                .source
                .as_deref()
                .is_none_or(|source| source == alert.source)
    }
}

/// Any of the alternatives holds, or there are none to hold.
fn any<T>(alternatives: &[T], holds: impl FnMut(&T) -> bool) -> bool {
    alternatives.is_empty() || alternatives.iter().any(holds)
}
