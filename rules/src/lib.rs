//! Rules: which alert starts which capture.
//!
//! ```text
//! files ──document──▶ entries ──compile──▶ Rules ──decide(alert)──▶ Plan ──capture(alert)──▶ spec
//!        shape, keys           meaning             pure: which rules       pure: whose packets,
//!                                                                           and which of them
//! ```
//! The controller starts what a plan says; `remora rules test` shows it ([`explain()`]).
//!
//! The grammar is Falco Talon's where it makes sense: rules with `match:` and `actions:`, default
//! actions that rules complete by name, `continue` and `dry_run`. A file that is wrong anywhere
//! is refused as a whole, with its line; nothing in a rule is ever ignored.
#![forbid(unsafe_code)]

mod actions;
mod asked;
mod capture;
mod compile;
mod condition;
mod decide;
mod document;
mod error;
mod explain;
mod parameters;
mod template;
mod value;

use std::{collections::BTreeMap, fmt, time::Duration};

use remora_capture::{
    alert::mapping::Traffic,
    filter::Filter,
    session::{Limits, Snaplen},
    text::shown,
    upload::SinkName,
};

pub use asked::Asked;
pub use capture::{ClusterWanted, NoCapture, Wanted, Whose};
pub use compile::{ACTIONS_MAX, FILES_MAX, RULES_MAX};
pub use decide::{Decision, Ignored, Plan, decide};
pub use document::FILE_MAX;
pub use error::{Fault, Problem, RuleError};
pub use explain::{Explanation, explain};
pub use parameters::OWN_LABELS;
pub use template::{NoValue, Template};

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
    /// Whose packets.
    pub scope: Scope,
    /// Which of them, around the alert's connection.
    pub traffic: Traffic,
    /// Beside the traffic's terms; both must match.
    pub filter: RuleFilter,
    pub dns: Dns,
    pub ends: Ends,
    pub limits: Limits,
    pub snaplen: Snaplen,
    /// Before the alert's own time; zero for none.
    pub look_back: Duration,
    /// None of [`OWN_LABELS`].
    pub labels: BTreeMap<String, String>,
    /// The controller's sink that the files are uploaded to; the agent's data directory has them in any case.
    pub sink: Option<SinkName>,
}

/// Whose packets are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// The alert's container; of a process of the host its cgroup.
    #[default]
    Container,
    /// All containers of the alert's pod.
    Pod,
    /// All pods of its deployment, on all nodes.
    Deployment,
    /// All pods behind its service, on all nodes.
    Service,
    /// The alert's node, by its own interfaces.
    Node,
}

/// The rule's own filter.
#[derive(Clone, Debug, PartialEq)]
pub enum RuleFilter {
    /// The same for every alert.
    Fixed(Filter),
    Template {
        template: Template,
        /// For an alert that lacks what the template asks for.
        fallback: Option<Filter>,
    },
}

/// Whether lookups of names are captured beside what the filter takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dns {
    #[default]
    AsFiltered,
    /// Port 53, too.
    Too,
}

/// Where is captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ends {
    /// At the alert's process.
    #[default]
    Alerted,
    /// And at the other end, if that is a pod of the cluster.
    Both,
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

/// `node, endpoint, 30s, tcp port 443`.
impl fmt::Display for CaptureParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scope != Scope::default() {
            write!(f, "{}, ", parameters::scope_word(self.scope))?;
        }
        f.write_str(parameters::traffic_word(self.traffic))?;
        if let Some(duration) = self.limits.duration {
            write!(f, ", {duration:?}")?;
        }
        match &self.filter {
            RuleFilter::Fixed(filter) if filter.is_empty() => {}
            RuleFilter::Fixed(filter) => write!(f, ", {filter}")?,
            RuleFilter::Template { template, .. } => {
                write!(f, ", {}", shown(&template.to_string()))?;
            }
        }
        match self.needs_cluster() {
            Some(what) => write!(f, ", {what}: needs the cluster part"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
