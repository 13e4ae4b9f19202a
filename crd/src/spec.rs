//! What is asked.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::CaptureStatus;

/// Kubernetes' names of objects (DNS-1123 subdomain).
const NAME: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// Kubernetes' names of containers (DNS-1123 label).
const LABEL: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// The destination of files that stay where they are.
pub const STORE: &str = "Store";
/// Durations as Go writes them, in the units that make sense here.
const DURATION: &str = r"^([0-9]{1,7}(ms|s|m|h)){1,4}$";

/// What is captured, and how much of it. It stays as it was written, but for `stop`, a longer
/// `limits.duration` and `ttlSecondsAfterFinished`.
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "remora.dev",
    version = "v1alpha1",
    kind = "Capture",
    plural = "captures",
    namespaced,
    status = "CaptureStatus",
    derive = "PartialEq",
    category = "remora",
    doc = "A capture of the packets of pods, on every node that has one of them.",
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "Pending, Capturing, Draining, Finished or Failed"
    ),
    printcolumn(
        name = "Packets",
        type_ = "integer",
        json_path = ".status.counts.written",
        description = "Packets in the capture's files"
    ),
    printcolumn(
        name = "Lost",
        type_ = "integer",
        json_path = ".status.counts.missing",
        description = "Packets that matched and are in no file"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        description = "What a person should know",
        priority = "1"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "self.selector == oldSelf.selector && self.filter == oldSelf.filter \
         && self.snaplen == oldSelf.snaplen && self.direction == oldSelf.direction \
         && self.lookBack == oldSelf.lookBack && self.segment == oldSelf.segment \
         && self.fixed == oldSelf.fixed && self.destination == oldSelf.destination \
         && self.reason == oldSelf.reason"
    ).message(
        "a capture's spec stays as it is: only stop can be set, limits.duration made longer and \
         ttlSecondsAfterFinished changed; make another capture"
    ),
    validation = Rule::new("!oldSelf.stop || self.stop")
        .message("a capture that was told to stop stays stopped; make another capture"),
    validation = Rule::new("!self.segment || !has(self.limits.fileBytes)").message(
        "how large a file gets is not known beforehand when super-packets are cut into segments; \
         use limits.packets or limits.duration"
    )
)]
pub struct CaptureSpec {
    /// Whose packets, in this object's namespace. A node's are not to be had this way, for they are
    /// everybody's: `kubectl remora capture node/NAME`.
    pub selector: Selection,

    /// Only packets that match, in tcpdump's language: `tcp port 443`. Empty: all.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub filter: String,

    /// Bytes kept of each packet.
    #[serde(default = "snaplen")]
    #[schemars(range(min = 1, max = 262_144))]
    pub snaplen: i32,

    /// As the pods see it.
    #[serde(default)]
    pub direction: Direction,

    /// When the capture ends by itself.
    #[serde(default)]
    pub limits: Limits,

    /// How far the capture reaches back before its object was made, like `30s`, as far as the nodes
    /// still have packets from then.
    #[serde(default = "no_look_back")]
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    #[x_kube(validation = Rule::new("duration(self) <= duration('1h')").message("lookBack is at most 1h"))]
    pub look_back: String,

    /// Packets that the network stack has not cut into segments yet (GSO) are written as the segments
    /// that the wire would have carried.
    #[serde(default)]
    pub segment: bool,

    /// Pods that come later do not join.
    #[serde(default)]
    pub fixed: bool,

    /// Where the files go: `Store`, the agents' data directories, or the name of a controller's sink, to which
    /// they are uploaded once the capture has ended.
    #[serde(default = "store")]
    #[schemars(length(max = 63), regex(pattern = r"^(Store|[a-z][a-z0-9-]{0,62})$"))]
    pub destination: String,

    /// Why, for the evidence: a ticket, a name.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub reason: String,

    /// Set to true, it ends the capture.
    #[serde(default)]
    pub stop: bool,

    /// Seconds after its end at which the object is removed; its files stay. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<i32>,
}

/// Pods of the object's namespace. Exactly one of `pod`, `workload`, `service` and `labels`.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "[has(self.pod), has(self.workload), has(self.service), has(self.labels)]\
         .filter(named, named).size() == 1"
    ).message("name exactly one of pod, workload, service and labels")
)]
pub struct Selection {
    /// One pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodSelection>,
    /// The pods that a workload has, and those that it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadSelection>,
    /// The pods behind a service, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub service: Option<String>,
    /// Pods by their labels, in kubectl's words: `app=cart,tier!=cache`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[ -~]+$"))]
    pub labels: Option<String>,
}

/// A pod, or one of its containers.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSelection {
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME))]
    pub name: String,
    /// One container of it; absent: the whole pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub container: Option<String>,
}

/// A workload by its kind and name.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelection {
    pub kind: WorkloadKind,
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME))]
    pub name: String,
}

/// Kinds of objects that have pods.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum WorkloadKind {
    Deployment,
    StatefulSet,
    DaemonSet,
    Job,
    ReplicaSet,
}

/// As the pods see it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Direction {
    #[default]
    Both,
    Ingress,
    Egress,
}

/// When a capture ends by itself; what is absent is no limit.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "(has(self.packets) ? self.packets : 0) == (has(oldSelf.packets) ? oldSelf.packets : 0) \
         && (has(self.fileBytes) ? self.fileBytes : 0) \
         == (has(oldSelf.fileBytes) ? oldSelf.fileBytes : 0)"
    ).message("limits.packets and limits.fileBytes stay as they are; make another capture")
)]
pub struct Limits {
    /// Packets of each pod's file, exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_i64))]
    pub packets: Option<i64>,
    /// Bytes of each pod's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 9_007_199_254_740_991_i64))]
    pub file_bytes: Option<i64>,
    /// Time from the start, like `90s` or `1h30m`, at most 7 days. It may be made longer while the
    /// capture runs.
    #[serde(default = "minute")]
    #[schemars(length(max = 32), regex(pattern = DURATION))]
    #[x_kube(
        validation = Rule::new(
            "duration(self) > duration('0s') && duration(self) <= duration('168h')"
        ).message("a capture lasts more than 0s and at most 168h"),
        validation = Rule::new("duration(self) >= duration(oldSelf)")
            .message("a running capture can only be made longer; to end it set stop")
    )]
    pub duration: String,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packets: None,
            file_bytes: None,
            duration: minute(),
        }
    }
}

fn snaplen() -> i32 {
    262_144
}

fn store() -> String {
    STORE.to_owned()
}

fn no_look_back() -> String {
    "0s".to_owned()
}

fn minute() -> String {
    "60s".to_owned()
}

#[cfg(test)]
mod tests {
    use remora_capture::session::{SNAPLEN_MAX, WorkloadKind as Kind};

    use super::*;

    #[test]
    fn bounds_and_words_are_those_of_a_session() {
        assert_eq!(snaplen(), i32::try_from(SNAPLEN_MAX).unwrap());
        for kind in Kind::ALL {
            let word = serde_json::json!(kind.kind());
            let parsed: WorkloadKind = serde_json::from_value(word.clone()).unwrap();
            assert_eq!(serde_json::to_value(parsed).unwrap(), word);
        }
    }

    #[test]
    fn the_least_that_is_asked_gets_every_default() {
        let least = serde_json::json!({"selector": {"service": "cart"}});
        let spec: CaptureSpec = serde_json::from_value(least).unwrap();
        assert_eq!(spec.limits, Limits::default());
        assert_eq!(spec.look_back, "0s");
        assert_eq!(spec.snaplen, 262_144);
        assert!(!spec.stop && !spec.segment && !spec.fixed);
    }
}
