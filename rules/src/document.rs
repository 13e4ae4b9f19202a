//! A rule file as it is written: YAML to typed entries, each value with its line.
//!
//! Knows keys and shapes, not meanings: [`crate::compile`] gives the entries their sense.
//!
//! Invariants: a file costs bounded memory and time whatever it holds ([`FILE_MAX`], [`budget`]);
//! a key that is not known is an error, since a typing error in `match:` would match everything.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, de};
use serde_saphyr::{Budget, Options, Spanned};

use crate::error::{Fault, Problem};

/// Largest rule file, in bytes.
pub const FILE_MAX: usize = 1024 * 1024;
/// Most YAML nodes in a file, with what its aliases stand for.
const NODES_MAX: usize = 100_000;
/// Deepest nesting; the grammar needs 5.
const DEPTH_MAX: usize = 16;
/// Most aliases in a file.
const ALIASES_MAX: usize = 1000;
/// What `remora:capture` takes, as in [`ParameterBlock`].
pub(crate) const PARAMETERS: [&str; 13] = [
    "scope",
    "traffic",
    "filter",
    "fallback",
    "dns",
    "both_ends",
    "duration",
    "look_back",
    "max_packets",
    "max_bytes",
    "snaplen",
    "destination",
    "labels",
];
/// Keys of Talon's that this version of Remora has no use for, and why.
const NOT_YET: [(&str, &str); 4] = [
    (
        "output",
        "captures go into the agent's data directory; take the `output` block out",
    ),
    (
        "notifiers",
        "this version notifies nobody; take the `notifiers` block out",
    ),
    (
        "additional_contexts",
        "Remora looks the target up itself; take it out",
    ),
    (
        "ignore_errors",
        "a refused capture never stops the next action; take it out",
    ),
];

/// One item of the list: a rule or a default action, told apart by [`crate::compile`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) rule: Option<Spanned<String>>,
    pub(crate) action: Option<Spanned<String>>,
    #[expect(dead_code, reason = "for the reader of the file")]
    description: Option<String>,
    #[serde(rename = "match")]
    pub(crate) matches: Option<Spanned<MatchBlock>>,
    pub(crate) actions: Option<Spanned<Vec<Spanned<ActionBlock>>>>,
    #[serde(rename = "continue")]
    pub(crate) continues: Option<Spanned<Scalar>>,
    pub(crate) dry_run: Option<Spanned<Scalar>>,
    pub(crate) actionner: Option<Spanned<String>>,
    pub(crate) parameters: Option<ParameterBlock>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MatchBlock {
    pub(crate) rules: Option<Spanned<Vec<Spanned<String>>>>,
    pub(crate) tags: Option<Spanned<Vec<Spanned<String>>>>,
    pub(crate) output_fields: Option<Spanned<Vec<Spanned<String>>>>,
    pub(crate) priority: Option<Spanned<Scalar>>,
    pub(crate) source: Option<String>,
}

/// An action inside a rule.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ActionBlock {
    pub(crate) action: Option<String>,
    #[expect(dead_code, reason = "for the reader of the file")]
    description: Option<String>,
    pub(crate) actionner: Option<Spanned<String>>,
    #[serde(rename = "continue")]
    pub(crate) continues: Option<Spanned<Scalar>>,
    pub(crate) parameters: Option<ParameterBlock>,
}

/// Parameters of `remora:capture`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ParameterBlock {
    pub(crate) scope: Option<Spanned<String>>,
    pub(crate) traffic: Option<Spanned<String>>,
    pub(crate) filter: Option<Spanned<String>>,
    pub(crate) fallback: Option<Spanned<String>>,
    pub(crate) dns: Option<Spanned<Scalar>>,
    pub(crate) both_ends: Option<Spanned<Scalar>>,
    pub(crate) duration: Option<Spanned<Scalar>>,
    pub(crate) look_back: Option<Spanned<Scalar>>,
    pub(crate) max_packets: Option<Spanned<Scalar>>,
    pub(crate) max_bytes: Option<Spanned<Scalar>>,
    pub(crate) snaplen: Option<Spanned<Scalar>>,
    pub(crate) destination: Option<Spanned<String>>,
    pub(crate) labels: Option<BTreeMap<String, Spanned<Scalar>>>,
}

impl ParameterBlock {
    /// These parameters, completed by those of the default action.
    pub(crate) fn or(self, default: Self) -> Self {
        let labels = match (self.labels, default.labels) {
            (Some(own), Some(mut default)) => {
                default.extend(own);
                Some(default)
            }
            (own, default) => own.or(default),
        };
        // A fallback belongs to its filter.
        let (filter, fallback) = match self.filter {
            Some(filter) => (Some(filter), self.fallback),
            None => (default.filter, self.fallback.or(default.fallback)),
        };
        Self {
            scope: self.scope.or(default.scope),
            traffic: self.traffic.or(default.traffic),
            filter,
            fallback,
            dns: self.dns.or(default.dns),
            both_ends: self.both_ends.or(default.both_ends),
            duration: self.duration.or(default.duration),
            look_back: self.look_back.or(default.look_back),
            max_packets: self.max_packets.or(default.max_packets),
            max_bytes: self.max_bytes.or(default.max_bytes),
            snaplen: self.snaplen.or(default.snaplen),
            destination: self.destination.or(default.destination),
            labels,
        }
    }
}

/// A value whose YAML type is left open: `30`, `30s`, `true` and `"true"` are all usual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    Bool(bool),
    Integer(u64),
    Text(String),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl de::Visitor<'_> for ScalarVisitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word or a number")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(value))
            }
            // Negative and broken numbers keep their text: the parameter's own message is better.
            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(u64::try_from(value)
                    .map_or_else(|_| Scalar::Text(value.to_string()), Scalar::Integer))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_string()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_owned()))
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// Reads the entries of one file.
pub(crate) fn parse(text: &str) -> Result<Vec<Spanned<Entry>>, Fault> {
    if text.len() > FILE_MAX {
        return Err(Fault::at(
            0,
            Problem::TooLarge {
                len: text.len(),
                max: FILE_MAX,
            },
        ));
    }
    // Talon takes an empty or `null` file as no rules, and so do we.
    let entries: Option<Vec<Spanned<Entry>>> =
        serde_saphyr::from_str_with_options(text, options()).map_err(|e| fault(&e))?;
    Ok(entries.unwrap_or_default())
}

/// Reads the parameters of one action by themselves.
pub(crate) fn parameters(text: &str) -> Result<ParameterBlock, Fault> {
    if text.len() > FILE_MAX {
        let (len, max) = (text.len(), FILE_MAX);
        return Err(Fault::at(0, Problem::TooLarge { len, max }));
    }
    serde_saphyr::from_str_with_options(text, options()).map_err(|e| fault(&e))
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: budget(),
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: NODES_MAX,
            max_replay_stack_depth: DEPTH_MAX,
        },
        // As Talon has it: `yes` is a word, not a yes.
        strict_booleans: true,
        with_snippet: false,
    }
}

fn budget() -> Option<Budget> {
    serde_saphyr::budget! {
        max_events: 3 * NODES_MAX,
        max_nodes: NODES_MAX,
        max_depth: DEPTH_MAX,
        max_aliases: ALIASES_MAX,
        max_anchors: ALIASES_MAX,
        max_recorded_anchor_events: NODES_MAX,
        max_recorded_anchor_bytes: 4 * FILE_MAX,
        max_total_scalar_bytes: 4 * FILE_MAX,
        max_merge_keys: ALIASES_MAX,
        max_documents: 2,
    }
}

fn fault(error: &serde_saphyr::Error) -> Fault {
    let line = error.location().map_or(0, |l| l.line());
    let problem = match error.without_snippet() {
        serde_saphyr::Error::SerdeUnknownField {
            field, expected, ..
        } => match NOT_YET.iter().find(|(key, _)| key == field) {
            Some((key, why)) => Problem::NotYet { key, why },
            None => Problem::UnknownKey {
                key: field.clone(),
                known: nearest(field, expected),
            },
        },
        serde_saphyr::Error::MultipleDocuments { .. } => Problem::SeveralDocuments,
        other => Problem::Yaml(plain(other)),
    };
    Fault::at(line, problem)
}

/// The parser's message, without its line number (we lead with it), and in a user's words where it
/// tells of its events.
fn plain(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.split(" at line ").next().unwrap_or_default();
    let plain = [
        (
            "expected sequence start",
            "a list belongs here, like `[a, b]`",
        ),
        (
            "expected mapping start",
            "keys belong here, like `key: value`",
        ),
        ("expected string scalar", "a text belongs here"),
        (
            "expected a word or a number",
            "a word or a number belongs here",
        ),
    ];
    plain
        .iter()
        .find(|(event, _)| line.ends_with(event))
        .map_or(line, |(_, plain)| plain)
        .to_owned()
}

/// The known key most like `word`, if one is like it at all.
pub(crate) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    /// Fewer than this share of the letters in common is another word.
    const LIKENESS_MIN: f64 = 0.6;
    let word: String = word.chars().take(64).collect();
    known
        .iter()
        .map(|key| (strsim::normalized_damerau_levenshtein(&word, key), *key))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| key)
}
