//! A capture over several nodes, as the controller tells it: checked, for showing and for JSON.

use std::collections::BTreeSet;

use anyhow::Context as _;
use jiff::Timestamp;
use remora_capture::session::{CaptureId, CaptureState, Counts, Phase, PodRef, Selector};
use remora_proto::v1;
use serde::Serialize;

/// The whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ClusterCapture {
    pub(crate) id: CaptureId,
    pub(crate) selector: Selector,
    /// Pods that come later do not join.
    pub(crate) fixed: bool,
    pub(crate) phase: Phase,
    /// Sums over the parts.
    pub(crate) counts: Counts,
    pub(crate) started: Option<Timestamp>,
    pub(crate) finished: Option<Timestamp>,
    /// What is missing, for a person.
    pub(crate) message: String,
    pub(crate) parts: Vec<ClusterPart>,
}

/// What one agent has of it, or why there is nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ClusterPart {
    pub(crate) node: String,
    /// `None`: the node's own interfaces.
    pub(crate) pod: Option<PodRef>,
    pub(crate) state: Option<CaptureState>,
    /// Empty if nothing is missing.
    pub(crate) error: String,
}

impl ClusterPart {
    /// Its packets are not all there.
    pub(crate) fn is_missing(&self) -> bool {
        let failed = self.state.as_ref().map(|state| state.phase) == Some(Phase::Failed);
        !self.error.is_empty() || self.state.is_none() || failed
    }

    /// Whose packets they are.
    pub(crate) fn name(&self) -> String {
        match &self.pod {
            Some(PodRef {
                namespace,
                name,
                container: None,
                ..
            }) => format!("{namespace}/{name}"),
            Some(PodRef {
                namespace,
                name,
                container: Some(container),
                ..
            }) => format!("{namespace}/{name}/{container}"),
            None => format!("node/{}", self.node),
        }
    }
}

impl ClusterCapture {
    /// What the message of an answer holds.
    ///
    /// # Errors
    /// It is empty, or not understood.
    pub(crate) fn known(capture: Option<v1::ClusterCapture>) -> anyhow::Result<Self> {
        Self::understood(capture.context("the controller's answer is empty")?)
    }

    /// # Errors
    /// A field is not what this version knows.
    pub(crate) fn understood(capture: v1::ClusterCapture) -> anyhow::Result<Self> {
        Self::read(capture)
            .context("the controller's answer is not understood; do the versions differ?")
    }

    fn read(capture: v1::ClusterCapture) -> anyhow::Result<Self> {
        let phase = capture.phase();
        let v1::ClusterCapture {
            id,
            selector,
            fixed,
            phase: _,
            counts,
            parts,
            started,
            finished,
            message,
        } = capture;
        Ok(Self {
            id: id.parse()?,
            selector: selector.context("no selector")?.try_into()?,
            fixed,
            phase: phase.try_into()?,
            counts: counts.unwrap_or_default().into(),
            started: started.and_then(|t| Timestamp::new(t.seconds, t.nanos).ok()),
            finished: finished.and_then(|t| Timestamp::new(t.seconds, t.nanos).ok()),
            message,
            parts: parts.into_iter().map(part).collect::<anyhow::Result<_>>()?,
        })
    }

    pub(crate) fn missing(&self) -> impl Iterator<Item = &ClusterPart> {
        self.parts.iter().filter(|part| part.is_missing())
    }

    /// Nodes that captured or capture, and nodes that should.
    pub(crate) fn nodes(&self) -> (usize, usize) {
        let names = |reached: bool| {
            let parts = self.parts.iter();
            let parts = parts.filter(|part| !reached || part.state.is_some());
            parts
                .map(|part| part.node.as_str())
                .collect::<BTreeSet<_>>()
                .len()
        };
        (names(true), names(false))
    }
}

fn part(part: v1::ClusterPart) -> anyhow::Result<ClusterPart> {
    let v1::ClusterPart {
        node,
        pod,
        capture: _,
        state,
        error,
    } = part;
    Ok(ClusterPart {
        node,
        pod: pod.map(PodRef::from),
        state: state.map(TryInto::try_into).transpose()?,
        error,
    })
}
