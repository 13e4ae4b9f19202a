//! What a rule asks of an alert: each condition on its own, without the YAML around it.
//!
//! Where Talon takes a text to mean nothing and then matches every alert (`>=` alone, a value with
//! an `=` in it, an empty item), this refuses the text.

use std::{fmt, str::FromStr};

use remora_capture::{
    alert::{Alert, Priority},
    text::shown,
};

use crate::error::Problem;

/// A condition on the alert's priority: `Warning`, `>=Warning`, `<Error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PriorityCondition {
    relation: Relation,
    priority: Priority,
}

/// How severe the alert is beside the named priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Equal,
    Above,
    AtLeast,
    Below,
    AtMost,
}

/// Longer signs before those that they begin with.
const RELATIONS: [(&str, Relation); 5] = [
    (">=", Relation::AtLeast),
    ("<=", Relation::AtMost),
    (">", Relation::Above),
    ("<", Relation::Below),
    ("=", Relation::Equal),
];

/// `>=Warning`
impl fmt::Display for PriorityCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = RELATIONS
            .iter()
            .find(|(_, relation)| *relation == self.relation && self.relation != Relation::Equal)
            .map_or("", |(sign, _)| sign);
        write!(f, "{sign}{}", self.priority)
    }
}

impl FromStr for PriorityCondition {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let (relation, name) = RELATIONS
            .iter()
            .find_map(|(sign, relation)| Some((*relation, text.strip_prefix(sign)?)))
            .unwrap_or((Relation::Equal, text));
        let priority = name
            .parse()
            .map_err(|_unknown| Problem::Priority(text.to_owned()))?;
        Ok(Self { relation, priority })
    }
}

impl PriorityCondition {
    /// An alert without a priority that we know fulfils no condition.
    pub(crate) fn holds(self, alert: &Alert) -> bool {
        let Some(priority) = alert.priority else {
            return false;
        };
        let severity = priority.cmp(&self.priority);
        match self.relation {
            Relation::Equal => severity.is_eq(),
            Relation::Above => severity.is_gt(),
            Relation::AtLeast => severity.is_ge(),
            Relation::Below => severity.is_lt(),
            Relation::AtMost => severity.is_le(),
        }
    }
}

/// One item of `tags:`, `"network, T1071"`: the alert has all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TagCondition(Vec<String>);

impl FromStr for TagCondition {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let tags: Vec<_> = text.split(',').map(|tag| tag.trim().to_owned()).collect();
        if tags.iter().any(String::is_empty) {
            return Err(Problem::EmptyCondition);
        }
        Ok(Self(tags))
    }
}

impl TagCondition {
    pub(crate) fn holds(&self, alert: &Alert) -> bool {
        self.0.iter().all(|tag| alert.tags.contains(tag))
    }
}

/// One item of `output_fields:`, `"k8s.ns.name=shop, fd.sport!=443"`: all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldsCondition(Vec<FieldCondition>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldCondition {
    key: String,
    equal: bool,
    /// `None` asks whether the field is absent.
    value: Option<String>,
}

/// Values that a rule may name for an absent field: none, Falco's, and how Go prints null.
const ABSENT: [&str; 3] = ["", "<NA>", "<nil>"];

impl FromStr for FieldsCondition {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        text.split(',')
            .map(|part| part.trim().parse())
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl FromStr for FieldCondition {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        if text.is_empty() {
            return Err(Problem::EmptyCondition);
        }
        let bad = || Problem::Condition(text.to_owned());
        let (left, value) = text.split_once('=').ok_or_else(bad)?;
        let (key, equal) = match left.strip_suffix('!') {
            Some(key) => (key, false),
            None => (left, true),
        };
        if key.is_empty()
            || key
                .chars()
                .any(|c| c.is_whitespace() || "!<>\"'".contains(c))
        {
            return Err(bad());
        }
        if value.contains('=') || (!equal && value.contains('!')) {
            return Err(Problem::OperatorInValue(text.to_owned()));
        }
        let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
        let value = quoted.unwrap_or(value);
        Ok(Self {
            key: key.to_owned(),
            equal,
            value: (!ABSENT.contains(&value)).then(|| value.to_owned()),
        })
    }
}

impl FieldsCondition {
    /// Compares text: a number is its digits as the alert has them. `!=` holds for a field that is
    /// absent, as in Talon, unless it asks for presence: `k8s.pod.name!=<NA>`.
    pub(crate) fn holds(&self, alert: &Alert) -> bool {
        self.0.iter().all(|condition| condition.holds(alert))
    }

    /// The first condition that does not hold, and what the alert has instead.
    pub(crate) fn why_not(&self, alert: &Alert) -> Option<String> {
        let failed = self.0.iter().find(|condition| !condition.holds(alert))?;
        Some(match alert.field(&failed.key) {
            Some(value) => format!("`{}` is `{}`", shown(&failed.key), shown(value)),
            None => format!("`{}` is absent", shown(&failed.key)),
        })
    }
}

impl FieldCondition {
    fn holds(&self, alert: &Alert) -> bool {
        (alert.field(&self.key) == self.value.as_deref()) == self.equal
    }
}
