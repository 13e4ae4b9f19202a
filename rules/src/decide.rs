//! The decision: rules and an alert in, captures out. Pure.

use remora_capture::alert::Alert;

use crate::{Action, Continue, Match, Mode, Rule, Rules, explain::Mismatch};

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
    for (rule, mismatch) in walk(rules, alert) {
        match (mismatch, rule.mode) {
            (Some(_), _) => {}
            (None, Mode::Live) => plans.extend(rule.plans()),
            (None, Mode::DryRun) => dry_run = dry_run.or(Some(rule.name.as_str())),
        }
    }
    if !plans.is_empty() {
        return Decision::Capture(plans);
    }
    Decision::Ignore(dry_run.map_or(Ignored::NoRule, Ignored::DryRun))
}

/// The rules up to the first that matches and stops, each with what keeps it from matching.
pub(crate) fn walk<'r>(
    rules: &'r Rules,
    alert: &Alert,
) -> impl Iterator<Item = (&'r Rule, Option<Mismatch>)> {
    let mut stopped = false;
    rules.rules.iter().map_while(move |rule| {
        if stopped {
            return None;
        }
        let mismatch = rule.matches.mismatch(alert);
        stopped = mismatch.is_none() && rule.after == Continue::Stop;
        Some((rule, mismatch))
    })
}

impl Rule {
    /// The rule's actions up to the first that stops.
    pub(crate) fn plans(&self) -> impl Iterator<Item = Plan<'_>> {
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
    fn mismatch(&self, alert: &Alert) -> Option<Mismatch> {
        let source = self.source.as_deref();
        let parts = [
            (
                any(&self.rules, |name| alert.rule == *name),
                Mismatch::Rules,
            ),
            (any(&self.tags, |tags| tags.holds(alert)), Mismatch::Tags),
            (
                any(&self.output_fields, |fields| fields.holds(alert)),
                Mismatch::OutputFields,
            ),
            (
                self.priority.is_none_or(|priority| priority.holds(alert)),
                Mismatch::Priority,
            ),
            (
                source.is_none_or(|source| source == alert.source),
                Mismatch::Source,
            ),
        ];
        parts
            .into_iter()
            .find_map(|(holds, mismatch)| (!holds).then_some(mismatch))
    }
}

/// Any of the alternatives holds, or there are none to hold.
fn any<T>(alternatives: &[T], holds: impl FnMut(&T) -> bool) -> bool {
    alternatives.is_empty() || alternatives.iter().any(holds)
}
