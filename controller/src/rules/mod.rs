//! Rules: which alert starts which capture.
//!
//! ```text
//! files ──document──▶ entries ──compile──▶ Rules ──decide(alert)──▶ Decision
//!        shape, keys           meaning             pure
//! ```
//! The grammar is Falco Talon's where it makes sense: rules with `match:` and `actions:`, default
//! actions that rules complete by name, `continue` and `dry_run`. A file that is wrong anywhere
//! is refused as a whole, with its line; nothing in a rule is ever ignored.

mod actions;
mod compile;
mod condition;
mod decide;
mod document;
mod error;
mod parameters;
mod value;

use std::{fmt, time::Duration};

use remora_capture::{
    alert::mapping::Scope,
    filter::Filter,
    session::{Limits, Snaplen},
};

use crate::text::shown;

pub use compile::{ACTIONS_MAX, FILES_MAX, RULES_MAX};
pub use decide::{Decision, Ignored, Plan, decide};
pub use document::FILE_MAX;
pub use error::{Fault, Problem, RuleError};

/// All rules of the controller, in the order of their files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    rules: Vec<Rule>,
}

/// A rule: on such an alert, these captures.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub name: String,
    matches: Match,
    pub actions: Vec<Action>,
    after: Continue,
    mode: Mode,
}

/// What the alert must be like; every condition that is there must hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Match {
    /// Falco's names for its rules; any of them.
    rules: Vec<String>,
    /// Any of them.
    tags: Vec<condition::TagCondition>,
    /// Any of them.
    output_fields: Vec<condition::FieldsCondition>,
    priority: Option<condition::PriorityCondition>,
    source: Option<String>,
}

/// One `remora:capture` of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    pub name: String,
    pub capture: CaptureParameters,
    after: Continue,
}

/// Whether what follows in the files is looked at too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Continue {
    #[default]
    Next,
    Stop,
}

/// Whether a matching rule acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Live,
    DryRun,
}

/// How `remora:capture` captures.
#[derive(Clone, Debug, PartialEq)]
pub struct CaptureParameters {
    /// How much around the alert's connection.
    pub scope: Scope,
    /// Beside the scope's terms; both must match.
    pub filter: Filter,
    pub limits: Limits,
    pub snaplen: Snaplen,
    /// Zero for none.
    pub look_back: Duration,
}

impl Rules {
    /// Number of rules.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// No rule: every alert is ignored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// One line a rule, for a person.
impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.rules.len() == 1 { "" } else { "s" };
        writeln!(f, "ok: {} rule{s}", self.rules.len())?;
        for rule in &self.rules {
            let dry = if rule.mode == Mode::DryRun {
                " (dry run)"
            } else {
                ""
            };
            write!(f, "  {}{dry}:", shown(&rule.name))?;
            let mut comma = "";
            for action in &rule.actions {
                write!(f, "{comma} {} [{}]", shown(&action.name), action.capture)?;
                comma = ",";
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// `endpoint, 30s, tcp port 443`.
impl fmt::Display for CaptureParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(parameters::scope_word(self.scope))?;
        if let Some(duration) = self.limits.duration {
            write!(f, ", {duration:?}")?;
        }
        if !self.filter.is_empty() {
            write!(f, ", {}", self.filter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
