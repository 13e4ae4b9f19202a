//! A capture over several nodes, as the states of its parts tell it. Pure.

use std::collections::BTreeMap;

use remora_capture::session::Counts;
use remora_proto::v1::{self, Phase, target::Target};

use super::AgentError;

/// Nodes that a message names.
const NAMED_MAX: usize = 5;

/// A part and the node whose agent has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub node: String,
    pub state: v1::CaptureState,
}

/// A node whose agent did not answer.
#[derive(Clone, Debug)]
pub struct Silent {
    pub node: String,
    pub error: AgentError,
}

/// The whole captures of which `parts` tell, by id.
#[must_use]
pub fn wholes(parts: Vec<Told>, silent: &[Silent]) -> Vec<v1::ClusterCapture> {
    let mut by_id = BTreeMap::<String, Vec<Told>>::new();
    for told in parts {
        let spec = told.state.spec.as_ref();
        if let Some(part) = spec.and_then(|spec| spec.part.as_ref()) {
            by_id.entry(part.capture.clone()).or_default().push(told);
        }
    }
    by_id
        .into_iter()
        .filter_map(|(id, parts)| whole(&id, parts, silent))
        .collect()
}

/// One whole, or `None` without any part.
#[must_use]
pub fn whole(id: &str, parts: Vec<Told>, silent: &[Silent]) -> Option<v1::ClusterCapture> {
    let part = parts.first()?.state.spec.as_ref()?.part.clone()?;
    let mut parts: Vec<_> = parts.into_iter().map(part_of).collect();
    parts.sort_by(|a, b| key(a).cmp(&key(b)));
    let mut capture = v1::ClusterCapture {
        id: id.to_owned(),
        selector: part.selector,
        fixed: part.fixed,
        parts,
        ..Default::default()
    };
    sum_up(&mut capture);
    capture.message = message(silent);
    Some(capture)
}

fn key(part: &v1::ClusterPart) -> (&str, &str) {
    (&part.node, &part.capture)
}

/// A part as its agent tells it.
#[must_use]
pub fn part_of(told: Told) -> v1::ClusterPart {
    let Told { node, mut state } = told;
    let target = state.spec.as_ref().and_then(|spec| spec.target.clone());
    let pod = match target.and_then(|target| target.target) {
        Some(Target::Pod(pod)) => Some(pod),
        _ => None,
    };
    // The whole has them once.
    if let Some(spec) = &mut state.spec {
        spec.programs = None;
    }
    v1::ClusterPart {
        node,
        pod,
        capture: state.id.clone(),
        state: Some(state),
        error: String::new(),
    }
}

/// A part that could not be started.
#[must_use]
pub fn missing_part(node: &str, pod: Option<v1::Pod>, error: &AgentError) -> v1::ClusterPart {
    v1::ClusterPart {
        node: node.to_owned(),
        pod,
        error: error.text.clone(),
        ..Default::default()
    }
}

/// Phase, counts and times of the whole, of its parts.
pub fn sum_up(capture: &mut v1::ClusterCapture) {
    let states: Vec<_> = capture
        .parts
        .iter()
        .filter_map(|part| part.state.as_ref())
        .collect();
    let has = |phase| states.iter().any(|state| state.phase() == phase);
    let phase = if has(Phase::Capturing) {
        Phase::Capturing
    } else if has(Phase::Draining) {
        Phase::Draining
    } else if has(Phase::Finished) {
        Phase::Finished
    } else {
        Phase::Failed
    };
    let counts = states.iter().filter_map(|state| state.counts);
    let counts = counts.fold(Counts::default(), |sum, counts| sum.plus(counts.into()));
    let time = |time: &prost_types::Timestamp| (time.seconds, time.nanos);
    let started = states
        .iter()
        .filter_map(|state| state.started)
        .min_by_key(time);
    let ended = is_final(phase);
    let finished = states
        .iter()
        .filter_map(|state| state.finished)
        .max_by_key(time);
    let finished = finished.filter(|_| ended);
    capture.counts = Some(counts.into());
    capture.set_phase(phase);
    capture.started = started;
    capture.finished = finished;
}

/// Who did not answer.
#[must_use]
pub fn message(silent: &[Silent]) -> String {
    let Some(first) = silent.first() else {
        return String::new();
    };
    let names: Vec<_> = silent
        .iter()
        .take(NAMED_MAX)
        .map(|s| s.node.as_str())
        .collect();
    let more = match silent.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (names, why) = (names.join(", "), &first.error.text);
    match silent.len() {
        1 => format!("node {names} did not tell its part: {why}"),
        _ => format!("nodes {names}{more} did not tell their parts: {why}"),
    }
}

/// Nothing of it changes any more.
#[must_use]
pub fn is_over(capture: &v1::ClusterCapture) -> bool {
    is_final(capture.phase())
}

/// A capture in this phase stays in it.
#[must_use]
pub fn is_final(phase: Phase) -> bool {
    matches!(phase, Phase::Finished | Phase::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(node: &str, capture: &str, phase: Phase, matched: u64) -> Told {
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let part = v1::Part {
            capture: capture.into(),
            selector: None,
            fixed: true,
        };
        let state = v1::CaptureState {
            id: format!("{node}-{capture}"),
            spec: Some(v1::CaptureSpec {
                part: Some(part),
                ..Default::default()
            }),
            phase: phase.into(),
            counts: Some(v1::Counts {
                matched,
                written: u64::MAX - 1,
                ..Default::default()
            }),
            started: time(node.len() as i64),
            finished: time(100 + node.len() as i64),
            ..Default::default()
        };
        Told {
            node: node.into(),
            state,
        }
    }

    #[test]
    fn a_whole_is_what_its_parts_say() {
        let parts = vec![
            told("bb", "B", Phase::Finished, 2),
            told("b", "A", Phase::Finished, 1),
            told("aaa", "B", Phase::Capturing, 3),
            told("a", "B", Phase::Draining, 4),
        ];
        let found = wholes(parts.clone(), &[]);
        assert_eq!(found.len(), 2);
        let [a, b] = [&found[0], &found[1]];
        assert_eq!((a.id.as_str(), a.phase()), ("A", Phase::Finished));
        assert_eq!(a.finished.unwrap().seconds, 101);
        assert_eq!(
            (b.id.as_str(), b.phase(), b.parts.len()),
            ("B", Phase::Capturing, 3)
        );
        assert_eq!((b.started.unwrap().seconds, b.finished), (1, None));
        let counts = b.counts.unwrap();
        assert_eq!((counts.matched, counts.written), (9, u64::MAX));
        assert!(a.fixed && !is_over(b) && is_over(a));
        // In whatever order the agents answer.
        let mut other = parts;
        other.reverse();
        assert_eq!(wholes(other, &[]), found);
    }

    #[test]
    fn who_is_silent_is_named() {
        let silent = |nodes: &[&str]| {
            let silent = nodes.iter().map(|node| Silent {
                node: (*node).into(),
                error: AgentError::new(tonic::Code::Unavailable, "away".into()),
            });
            message(&silent.collect::<Vec<_>>())
        };
        assert_eq!(silent(&[]), "");
        assert_eq!(silent(&["a"]), "node a did not tell its part: away");
        assert_eq!(
            silent(&["a", "b", "c", "d", "e", "f", "g"]),
            "nodes a, b, c, d, e and 2 more did not tell their parts: away"
        );
    }
}
