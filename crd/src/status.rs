//! What became of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the controller knows of the capture, from the agents.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CaptureStatus {
    /// The generation of the spec that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<CapturePhase>,
    /// The capture's id, a ULID: what `kubectl remora get` takes.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 26))]
    pub capture: String,
    /// Sums over the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<PacketCounts>,
    /// A part of the capture each: one pod on its node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub nodes: Vec<NodeCapture>,
    /// Files of the parts that have ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub files: Vec<CaptureFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// What a person should know: what is missing, and why.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub message: String,
    /// `Accepted`: the spec was understood and selects something. `Complete`: no packet is taken any
    /// more and each file is closed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map"))]
    #[schemars(extend("x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Where a capture is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum CapturePhase {
    /// Not begun.
    Pending,
    /// At least one node takes packets.
    Capturing,
    /// No packet is taken any more; what was is being written.
    Draining,
    Finished,
    /// There is no capture: the message says why.
    Failed,
}

impl CapturePhase {
    /// Nothing changes any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Capturing | Self::Draining => false,
            Self::Finished | Self::Failed => true,
        }
    }
}

/// Packets. `matched` is `written` and `missing`, once a part has ended.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PacketCounts {
    /// Packets that the filter took.
    pub matched: i64,
    /// Packets in files.
    pub written: i64,
    /// Packets that matched, but for those after a limit was reached, and are in no file: lost in the
    /// kernel, or dropped after it.
    pub missing: i64,
    /// Packets after a limit was reached.
    pub over_limit: i64,
}

/// A part: one pod on its node.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCapture {
    #[schemars(length(max = 253))]
    pub node: String,
    #[schemars(length(max = 253))]
    pub pod: String,
    /// Its id on the node's agent; empty where it could not be started.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 26))]
    pub capture: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<CapturePhase>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<PacketCounts>,
    /// Why it is missing, or what a person should know of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// A file on a node.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CaptureFile {
    #[schemars(length(max = 253))]
    pub node: String,
    /// In the agent's data directory.
    #[schemars(length(max = 255))]
    pub name: String,
    pub bytes: i64,
    /// Of its bytes, in hexadecimal digits, as its signed manifest has it.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub sha256: String,
}
