//! An object's status, of what the agents tell. Pure.
//!
//! Two controllers write the same status of the same answers.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use remora_capture::{
    session::{CaptureId, Counts},
    text::excerpt,
};
use remora_crd::{Capture, CaptureFile, CapturePhase, CaptureStatus, NodeCapture, PacketCounts};
use remora_proto::v1;

use super::{ask::Wrong, time};

/// Bounds of the schema.
const PARTS_MAX: usize = 1000;
const MESSAGE_MAX: usize = 4096;
const PART_MESSAGE_MAX: usize = 1024;

/// What is told of an object at a time.
pub(super) struct Report<'a> {
    pub(super) object: &'a Capture,
    pub(super) now: Timestamp,
}

impl Report<'_> {
    /// Not begun, and why; it is tried again.
    pub(super) fn pending(&self, why: &Wrong) -> CaptureStatus {
        let mut status = self.unbegun(CapturePhase::Pending, why);
        status.conditions = vec![self.condition("Accepted", false, why)];
        status
    }

    /// Never begun, and why not.
    pub(super) fn failed(&self, why: &Wrong) -> CaptureStatus {
        let mut status = self.unbegun(CapturePhase::Failed, why);
        status.conditions = vec![
            self.condition("Accepted", false, why),
            self.condition("Complete", false, why),
        ];
        status.completion_time = Some(time::written(self.now));
        status
    }

    /// It was to end before it began.
    pub(super) fn never(&self) -> CaptureStatus {
        let why = Wrong::new("Stopped", "it was stopped before it began");
        let mut status = self.unbegun(CapturePhase::Finished, &why);
        status.conditions = vec![
            self.condition("Accepted", true, &why),
            self.condition("Complete", true, &why),
        ];
        status.completion_time = Some(time::written(self.now));
        status
    }

    /// What has begun was lost: no agent knows of it.
    pub(super) fn lost(&self) -> CaptureStatus {
        let why = Wrong::new(
            "Lost",
            "no agent knows of it any more: its nodes are gone, or their data directories",
        );
        let before = self.object.status.clone().unwrap_or_default();
        let mut status = self.unbegun(CapturePhase::Failed, &why);
        status.capture = before.capture;
        status.nodes = before.nodes;
        status.start_time = before.start_time;
        status.conditions = vec![
            self.condition("Accepted", true, &why),
            self.condition("Complete", false, &why),
        ];
        status.completion_time = Some(time::written(self.now));
        status
    }

    /// What its agents tell of it. `is_over`: nothing of it changes any more. `files`: of the parts
    /// that have ended.
    pub(super) fn going(
        &self,
        id: CaptureId,
        whole: &v1::ClusterCapture,
        is_over: bool,
        files: Vec<CaptureFile>,
    ) -> CaptureStatus {
        let told = |told: Option<prost_types::Timestamp>| {
            let told = told.and_then(|told| Timestamp::new(told.seconds, told.nanos).ok());
            told.map(time::written)
        };
        let nodes = self.nodes(whole);
        let missing = nodes.iter().filter(|part| part.capture.is_empty()).count();
        let (began, ended) = (
            Wrong::new("Started", format!("{} parts", nodes.len() - missing)),
            Wrong::new("Running", "packets are taken, or written"),
        );
        let phase = match (is_over, phase(whole.phase())) {
            (false, Some(phase)) if !phase.is_final() => phase,
            // Its last files are not told yet.
            (false, _) => CapturePhase::Draining,
            (true, Some(CapturePhase::Failed)) => CapturePhase::Failed,
            (true, _) => CapturePhase::Finished,
        };
        let counts = whole.counts.map(Counts::from).unwrap_or_default();
        let whole_files = if counts.missing() == 0 && missing == 0 {
            Wrong::new("Ended", "each packet that matched is in a file")
        } else {
            let text = format!(
                "{} packets that matched are in no file, {missing} parts could not be started",
                counts.missing()
            );
            Wrong::new("Ended", text)
        };
        let mut message = vec![excerpt(&whole.message, MESSAGE_MAX / 2).to_string()];
        if missing > 0 {
            message.push(format!("{missing} parts could not be started"));
        }
        message.retain(|text| !text.is_empty());
        CaptureStatus {
            observed_generation: self.object.metadata.generation,
            phase: Some(phase),
            capture: id.to_string(),
            counts: Some(packets(&counts)),
            nodes,
            files: files.into_iter().take(PARTS_MAX).collect(),
            start_time: told(whole.started),
            completion_time: is_over
                .then(|| told(whole.finished).unwrap_or(time::written(self.now))),
            message: message.join("; "),
            conditions: vec![
                self.condition("Accepted", true, &began),
                self.condition(
                    "Complete",
                    is_over,
                    if is_over { &whole_files } else { &ended },
                ),
            ],
        }
    }

    /// Its parts, with those that could not be started and have not been since.
    fn nodes(&self, whole: &v1::ClusterCapture) -> Vec<NodeCapture> {
        let mut parts: BTreeMap<(String, String), NodeCapture> = BTreeMap::new();
        let before = self.object.status.iter().flat_map(|status| &status.nodes);
        let unstarted = before.filter(|part| part.capture.is_empty());
        for part in unstarted.cloned().chain(whole.parts.iter().map(part)) {
            let key = (part.node.clone(), part.pod.clone());
            // What was started counts, not what failed before.
            match parts.get(&key) {
                Some(known) if part.capture.is_empty() && !known.capture.is_empty() => {}
                _ => drop(parts.insert(key, part)),
            }
        }
        parts.into_values().take(PARTS_MAX).collect()
    }

    fn unbegun(&self, phase: CapturePhase, why: &Wrong) -> CaptureStatus {
        CaptureStatus {
            observed_generation: self.object.metadata.generation,
            phase: Some(phase),
            message: lines(&why.message, MESSAGE_MAX / 2),
            ..CaptureStatus::default()
        }
    }

    /// Its time stays while what it says does.
    fn condition(&self, kind: &str, is_true: bool, why: &Wrong) -> Condition {
        let status = if is_true { "True" } else { "False" };
        let before = self
            .object
            .status
            .iter()
            .flat_map(|status| &status.conditions);
        let same = before
            .filter(|known| known.type_ == kind && known.status == status)
            .map(|known| known.last_transition_time.clone())
            .next();
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: why.reason.to_owned(),
            message: lines(&why.message, PART_MESSAGE_MAX),
            observed_generation: self.object.metadata.generation,
            last_transition_time: same.unwrap_or(time::written(self.now)),
        }
    }
}

/// Escaped, but for the ends of lines: a filter's fault is pointed at in the lines below it.
fn lines(text: &str, max: usize) -> String {
    let lines: Vec<_> = text
        .lines()
        .map(|line| excerpt(line, max / 2).to_string())
        .take(3)
        .collect();
    lines.join("\n")
}

fn part(part: &v1::ClusterPart) -> NodeCapture {
    let state = part.state.as_ref();
    let told = state.map_or(part.error.as_str(), |state| state.message.as_str());
    NodeCapture {
        node: part.node.clone(),
        pod: part
            .pod
            .as_ref()
            .map(|pod| pod.name.clone())
            .unwrap_or_default(),
        capture: part.capture.clone(),
        phase: state.and_then(|state| phase(state.phase())),
        counts: state
            .and_then(|state| state.counts)
            .map(|counts| packets(&counts.into())),
        message: excerpt(told, PART_MESSAGE_MAX / 2).to_string(),
    }
}

fn phase(phase: v1::Phase) -> Option<CapturePhase> {
    match phase {
        v1::Phase::Unspecified => None,
        v1::Phase::Capturing => Some(CapturePhase::Capturing),
        v1::Phase::Draining => Some(CapturePhase::Draining),
        v1::Phase::Finished => Some(CapturePhase::Finished),
        v1::Phase::Failed => Some(CapturePhase::Failed),
    }
}

fn packets(counts: &Counts) -> PacketCounts {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    PacketCounts {
        matched: number(counts.matched),
        written: number(counts.written),
        missing: number(counts.missing()),
        over_limit: number(counts.over_budget),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::ask::tests::object, *};

    const ID: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

    fn whole(phase: v1::Phase, written: u64, lost: u64) -> v1::ClusterCapture {
        let state = v1::CaptureState {
            counts: Some(v1::Counts {
                matched: written + lost,
                written,
                lost,
                ..Default::default()
            }),
            phase: phase.into(),
            ..Default::default()
        };
        v1::ClusterCapture {
            phase: phase.into(),
            counts: state.counts,
            finished: Some(prost_types::Timestamp {
                seconds: 1_800_000_000,
                nanos: 0,
            }),
            parts: vec![v1::ClusterPart {
                node: "w1".into(),
                pod: Some(v1::Pod {
                    name: "cart-1".into(),
                    ..Default::default()
                }),
                capture: "A".into(),
                state: Some(state),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn condition<'a>(status: &'a CaptureStatus, kind: &str) -> &'a Condition {
        status.conditions.iter().find(|c| c.type_ == kind).unwrap()
    }

    #[test]
    fn what_could_not_be_started_stays_told_until_it_is() {
        let mut object = object(json!({"selector": {"service": "cart"}}));
        let now: Timestamp = "2026-11-24T03:00:10Z".parse().unwrap();
        let id: CaptureId = ID.parse().unwrap();
        let mut begun = whole(v1::Phase::Capturing, 5, 0);
        begun.parts.push(v1::ClusterPart {
            node: "w2".into(),
            pod: Some(v1::Pod {
                name: "cart-2".into(),
                ..Default::default()
            }),
            error: "its agent is away\u{1b}[31m".into(),
            ..Default::default()
        });
        let status = Report {
            object: &object,
            now,
        }
        .going(id, &begun, false, Vec::new());
        assert_eq!(
            (status.phase, status.nodes.len()),
            (Some(CapturePhase::Capturing), 2)
        );
        assert!(
            status.message.contains("1 parts could not be started"),
            "{}",
            status.message
        );
        assert!(!status.nodes[1].message.contains('\u{1b}'));
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(status.completion_time, None);

        // The agents tell what runs, not what does not.
        object.status = Some(status.clone());
        let later = now + jiff::SignedDuration::from_secs(5);
        let over = whole(v1::Phase::Finished, 7, 2);
        let status = Report {
            object: &object,
            now: later,
        }
        .going(id, &over, true, Vec::new());
        assert_eq!(
            (status.phase, status.nodes.len()),
            (Some(CapturePhase::Finished), 2)
        );
        let counts = status.counts.unwrap();
        assert_eq!((counts.matched, counts.written, counts.missing), (9, 7, 2));
        assert_eq!(
            status.completion_time.as_ref().unwrap().0.as_second(),
            1_800_000_000
        );
        let complete = condition(&status, "Complete");
        assert!(
            complete.message.contains("2 packets"),
            "{}",
            complete.message
        );
        assert_eq!(
            (
                complete.status.as_str(),
                time::read(&complete.last_transition_time)
            ),
            ("True", later)
        );
        assert_eq!(
            time::read(&condition(&status, "Accepted").last_transition_time),
            now
        );

        let mut joined = over;
        joined.parts[0].node = "w2".into();
        joined.parts[0].pod.as_mut().unwrap().name = "cart-2".into();
        let status = Report {
            object: &object,
            now,
        }
        .going(id, &joined, true, Vec::new());
        assert!(
            status.nodes.iter().all(|part| !part.capture.is_empty()),
            "{:?}",
            status.nodes
        );
    }

    #[test]
    fn who_never_began_says_why() {
        let object = object(json!({"selector": {"service": "cart"}}));
        let now: Timestamp = "2026-11-24T03:00:10Z".parse().unwrap();
        let report = Report {
            object: &object,
            now,
        };
        let why = Wrong::new("NoPods", "there is no service `cart`");
        for (status, phase) in [
            (report.pending(&why), CapturePhase::Pending),
            (report.failed(&why), CapturePhase::Failed),
        ] {
            let accepted = condition(&status, "Accepted");
            assert_eq!(
                (accepted.status.as_str(), accepted.reason.as_str()),
                ("False", "NoPods")
            );
            assert_eq!(status.phase, Some(phase));
            assert_eq!(status.completion_time.is_some(), phase.is_final());
            assert!(status.capture.is_empty() && status.message.contains("`cart`"));
        }
        assert_eq!(report.never().phase, Some(CapturePhase::Finished));
    }
}
