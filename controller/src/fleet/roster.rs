//! Which node has an agent, and where it is called.

use std::{collections::BTreeMap, sync::Arc};

use remora_capture::text::shown;
use remora_proto::client::{AddressError, AgentAddress};

/// Agents that are known, at most.
pub const AGENTS_MAX: usize = 10_000;

/// The agents by their nodes' names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster(BTreeMap<Arc<str>, AgentAddress>);

/// A list of agents is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RosterError {
    #[error(
        "line {line}: `{text}` is not an agent; use NODE=ADDRESS, for example worker-1=unix:/run/remora/agent.sock"
    )]
    Form { line: usize, text: String },
    #[error("line {line}: {error}")]
    Address { line: usize, error: AddressError },
    #[error("line {line}: node `{node}` has an agent already")]
    Twice { line: usize, node: String },
    #[error("more than {AGENTS_MAX} agents")]
    TooMany,
}

impl Roster {
    /// A line an agent, `NODE=ADDRESS`; empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// [`RosterError`] with its line.
    pub fn parse(text: &str) -> Result<Self, RosterError> {
        let mut roster = Self::default();
        for (at, text) in text.lines().enumerate() {
            let (line, text) = (at + 1, text.trim());
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let Some((node, address)) = text.split_once('=').filter(|(node, _)| !node.is_empty())
            else {
                let text = shown(text).to_string();
                return Err(RosterError::Form { line, text });
            };
            let address = address
                .parse()
                .map_err(|error| RosterError::Address { line, error })?;
            if roster.0.insert(node.into(), address).is_some() {
                let node = shown(node).to_string();
                return Err(RosterError::Twice { line, node });
            }
        }
        if roster.0.len() > AGENTS_MAX {
            return Err(RosterError::TooMany);
        }
        Ok(roster)
    }

    #[must_use]
    pub fn address(&self, node: &str) -> Option<&AgentAddress> {
        self.0.get(node)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.keys()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(Arc<str>, AgentAddress)> for Roster {
    /// The first [`AGENTS_MAX`].
    fn from_iter<I: IntoIterator<Item = (Arc<str>, AgentAddress)>>(agents: I) -> Self {
        Self(agents.into_iter().take(AGENTS_MAX).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_agents() {
        let roster = Roster::parse("# ours\n\nworker-1=unix:/a.sock\n b=/b.sock \n").unwrap();
        assert_eq!(roster.len(), 2);
        assert_eq!(
            roster.address("worker-1").unwrap().to_string(),
            "unix:/a.sock"
        );
        assert_eq!(roster.address("b").unwrap().to_string(), "unix:/b.sock");
        assert_eq!(roster.address("c"), None);
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, told) in [
            ("a=/a\nworker", "line 2: `worker` is not an agent"),
            ("=unix:/a", "line 1: `=unix:/a` is not an agent"),
            ("a=/a\n\na=/b", "line 3: node `a` has an agent already"),
            ("a=tcp:x", "line 1: `tcp:x` is not an agent's address"),
        ] {
            let error = Roster::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(told), "{error}");
        }
    }
}
