//! Filters with holes: `host ${remote.ip} and ${remote.proto?} port ${service.port?}`.
//!
//! ```text
//! text ─parse─▶ Node ─fill(alert)─▶ text of whole terms and typed values ─▶ libpcap
//! ```
//! - A hole is typed by the word before it, checked when the rule is read.
//! - `${…?}`: its whole term goes when the alert has no such value. Without `?` the rule's
//!   fallback is taken, or the capture refused: never a value of another alert, nor an empty one.
//! - Injection is impossible by construction: values are read as addresses, ports and protocols
//!   ([`hole::Value`]) and written from those.

mod hole;
mod parse;

#[cfg(test)]
mod tests;

use std::fmt;

use remora_capture::{
    alert::Alert,
    filter::{Filter, FilterErrorKind, Names, compiler},
    text::shown,
};

use crate::error::Problem;
use hole::{Hole, Value};

/// A filter whose values come from the alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    root: Node,
    /// Holes with `?`.
    optional: usize,
}

/// A filter's text, and what the alert lacked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) text: String,
    /// Holes that are left out with their terms, as in the template.
    pub(crate) left_out: Vec<String>,
}

/// The alert has no value for a hole without `?`.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the alert has no value for `{hole}` that is {kind}")]
pub struct NoValue {
    hole: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Chain(Vec<(Joiner, Node)>),
    Group(Box<Node>),
    Not(Box<Node>),
    Term(Vec<Piece>),
    /// A protocol and what it goes before, each of which may go alone: `tcp port 80` is
    /// `tcp and port 80`.
    Qualified(Vec<Piece>, Vec<Piece>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joiner {
    And,
    Or,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Hole(Hole),
}

impl Template {
    /// Whether a filter's text is a template.
    pub(crate) fn has_holes(text: &str) -> bool {
        text.contains("${")
    }

    /// Understands a text with holes, and tries it: with all of them filled, with none of those that
    /// have a `?`, and with each of those missing alone. Terms that are right by themselves are right
    /// together, so no other way need be tried.
    ///
    /// # Errors
    /// [`Problem::Template`] or [`Problem::Filter`].
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let (root, optional) = parse::parse(text)?;
        let template = Self {
            text: text.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
            root,
            optional,
        };
        template.try_without(|_| false)?;
        template.try_without(|_| true)?;
        for alone in 0..template.optional {
            template.try_without(|number| number == alone)?;
        }
        Ok(template)
    }

    /// Compiles it with sample values, without those of the holes with `?`, counted from 0, that
    /// are `absent`.
    fn try_without(&self, absent: impl Fn(usize) -> bool) -> Result<(), Problem> {
        let mut number = 0;
        let filled = self.fill_with(&mut |hole| {
            let is_absent = hole.is_optional && absent(number);
            number += usize::from(hole.is_optional);
            (!is_absent).then(|| hole.kind.sample())
        });
        let text = filled.expect("all holes without `?` are filled").text;
        match Filter::compile(&text, compiler(Names::Refused)) {
            Ok(_) => Ok(()),
            // That may be due to the samples.
            Err(error)
                if matches!(
                    error.kind,
                    FilterErrorKind::RejectsAll(_) | FilterErrorKind::MatchesNothing
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(Problem::Filled {
                text,
                error: Box::new(error),
            }),
        }
    }

    /// The filter's text for this alert.
    pub(crate) fn fill(&self, alert: &Alert) -> Result<Filled, NoValue> {
        self.fill_with(&mut |hole| hole.source.value(hole.kind, alert))
    }

    fn fill_with(&self, value: &mut dyn FnMut(&Hole) -> Option<Value>) -> Result<Filled, NoValue> {
        let mut left_out = Vec::new();
        let text = self.root.fill(value, &mut left_out)?.unwrap_or_default();
        Ok(Filled { text, left_out })
    }
}

/// As it stands in the rule.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Node {
    /// `None`: nothing is left of it, so it says nothing.
    fn fill(
        &self,
        value: &mut dyn FnMut(&Hole) -> Option<Value>,
        left_out: &mut Vec<String>,
    ) -> Result<Option<String>, NoValue> {
        Ok(match self {
            Self::Term(pieces) => fill_pieces(pieces, value, left_out)?,
            Self::Qualified(protocol, rest) => {
                let parts = [
                    fill_pieces(protocol, value, left_out)?,
                    fill_pieces(rest, value, left_out)?,
                ];
                let parts: Vec<_> = parts.into_iter().flatten().collect();
                (!parts.is_empty()).then(|| parts.join(" "))
            }
            Self::Not(node) => node
                .fill(value, left_out)?
                .map(|text| format!("not {text}")),
            Self::Group(node) => node.fill(value, left_out)?.map(|text| format!("({text})")),
            Self::Chain(links) => {
                let mut text: Option<String> = None;
                for (joiner, node) in links {
                    let Some(part) = node.fill(value, left_out)? else {
                        continue;
                    };
                    text = Some(match text {
                        None => part,
                        Some(text) => format!("{text} {} {part}", joiner.word()),
                    });
                }
                text
            }
        })
    }
}

/// The words, or nothing when a hole with `?` has no value.
fn fill_pieces(
    pieces: &[Piece],
    value: &mut dyn FnMut(&Hole) -> Option<Value>,
    left_out: &mut Vec<String>,
) -> Result<Option<String>, NoValue> {
    let mut words = Vec::with_capacity(pieces.len());
    let mut is_whole = true;
    for piece in pieces {
        match piece {
            Piece::Text(word) => words.push(word.clone()),
            Piece::Hole(hole) => match value(hole) {
                Some(value) => words.push(value.to_string()),
                None if hole.is_optional => {
                    left_out.push(hole.text.clone());
                    is_whole = false;
                }
                None => {
                    return Err(NoValue {
                        hole: shown(&hole.text).to_string(),
                        kind: hole.kind.name(),
                    });
                }
            },
        }
    }
    Ok(is_whole.then(|| words.join(" ")))
}

impl Joiner {
    fn word(self) -> &'static str {
        match self {
            Self::And => "and",
            Self::Or => "or",
        }
    }
}
