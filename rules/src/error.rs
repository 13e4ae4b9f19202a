//! What is wrong with a rule file, and where.

use std::fmt;

use remora_capture::{filter::FilterError, session::SpecError, text::shown};

/// A fault of one rule file; shown as `FILE:LINE: what is wrong; what to do`.
#[derive(Debug, thiserror::Error)]
#[error("{file}:{fault}")]
pub struct RuleError {
    /// The file's name as the user gave it.
    pub file: String,
    pub fault: Fault,
}

/// What is wrong at a line of a file.
#[derive(Debug, PartialEq)]
pub struct Fault {
    /// From 1; 0 when it is the whole file.
    pub line: u64,
    pub problem: Problem,
}

impl Fault {
    pub(crate) fn at(line: u64, problem: Problem) -> Self {
        Self { line, problem }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, " {}", self.problem),
            line => write!(f, "{line}: {}", self.problem),
        }
    }
}

/// What is wrong.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("has {len} bytes; a rule file has at most {max}")]
    TooLarge { len: usize, max: usize },
    #[error("not the YAML that was expected: {}", shown(.0))]
    Yaml(String),
    #[error("a second YAML document; put it into a file of its own")]
    SeveralDocuments,
    #[error("unknown key `{}`{}", shown(.key), suggestion(*.known))]
    UnknownKey {
        key: String,
        known: Option<&'static str>,
    },
    #[error("`{key}` means nothing here: {why}")]
    NotYet {
        key: &'static str,
        why: &'static str,
    },
    #[error("`{key}` means nothing in {place}")]
    Misplaced {
        key: &'static str,
        place: &'static str,
    },
    #[error("neither a rule nor an action; start it with `rule: NAME` or `action: NAME`")]
    Nameless,
    #[error("both a rule and an action; make two entries of it")]
    RuleAndAction,
    #[error("{kind} `{}` was there before, in line {first} of {file}; give it another name", shown(.name))]
    Twice {
        kind: &'static str,
        name: String,
        file: String,
        first: u64,
    },
    #[error("rule `{}` has no actions; add `actions:` with a `remora:capture`", shown(.0))]
    NoActions(String),
    #[error("action `{}` has no `actionner`; add `actionner: remora:capture` here or to a default action of that name", shown(.0))]
    NoActionner(String),
    #[error("`{}` is not an actionner of Remora's; it has `remora:capture` (keep Talon's rules in a file of their own)", shown(.0))]
    Actionner(String),
    #[error("more than {max} {what} in all rule files")]
    TooMany { what: &'static str, max: usize },
    #[error("`{}` is not a priority condition; use a name like Warning, or >=Warning, <Error", shown(.0))]
    Priority(String),
    #[error("an empty condition would match every alert; take it out or fill it in")]
    EmptyCondition,
    #[error("`{}` is not a condition; use KEY=VALUE or KEY!=VALUE, several joined by commas", shown(.0))]
    Condition(String),
    #[error("the value in `{}` has an operator in it (Talon would drop the condition and match everything); match by another field", shown(.0))]
    OperatorInValue(String),
    #[error("`{key}` is true or false, not `{}`", shown(.value))]
    Flag { key: &'static str, value: String },
    #[error("`{}` is not a scope; use container, pod, deployment, service or node", shown(.0))]
    Scope(String),
    #[error("`{word}` tells which packets, not whose; write `traffic: {word}`")]
    ScopeOfTraffic { word: &'static str },
    #[error("`{}` is no traffic; use flow, endpoint, remote-host, protocol or all", shown(.0))]
    Traffic(String),
    #[error("`{key}` is a length of time like 30s, 5m or 2h, not `{}`", shown(.value))]
    Duration { key: &'static str, value: String },
    #[error("`{key}` is a whole number above 0, not `{}`", shown(.value))]
    Count { key: &'static str, value: String },
    #[error("`{key}` is a number of bytes above 0 like 65536, 512KiB or 64MiB, not `{}`", shown(.value))]
    Bytes { key: &'static str, value: String },
    #[error("filter template: {0}")]
    Template(String),
    #[error("filter template, filled in as `{}`: {error}", shown(.text))]
    Filled {
        text: String,
        error: Box<FilterError>,
    },
    #[error("filter: {0}")]
    Filter(FilterError),
    #[error("`fallback` is for a `filter` with holes (`${{remote.ip}}`); this one has none")]
    IdleFallback,
    #[error("`destination` is `store`, the agent's data directory, or the name of a controller's sink (lower-case letters, digits, `-`), not `{}`", shown(.0))]
    Destination(String),
    #[error("label `{}` is set by Remora itself; give yours another name", shown(.0))]
    Label(String),
    #[error(transparent)]
    Spec(#[from] SpecError),
}

fn suggestion(known: Option<&'static str>) -> String {
    known.map_or_else(String::new, |key| format!("; did you mean `{key}`?"))
}
