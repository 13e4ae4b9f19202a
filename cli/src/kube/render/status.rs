//! `kubectl remora status`: the nodes and their agents.

use remora_capture::text;
use remora_proto::v1;
use serde::Serialize;

use super::{CELL_MAX, PARTS_SHOWN};
use crate::{
    args::Format,
    render::{columns, json, shown},
};

/// [`v1::ClusterStatusResponse`] in JSON's clothes.
#[derive(Debug, Serialize)]
struct ClusterStatus {
    version: String,
    synced: bool,
    nodes: Vec<NodeAgent>,
}

#[derive(Debug, Serialize)]
pub(super) struct NodeAgent {
    node: String,
    agent: String,
    reachable: bool,
    error: String,
    version: String,
    kernel: String,
    sessions_running: u32,
    sessions_limit: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clock_offset_ns: Option<i128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clock_error_ns: Option<i128>,
}

impl From<v1::NodeAgent> for NodeAgent {
    fn from(agent: v1::NodeAgent) -> Self {
        let v1::NodeAgent {
            node,
            agent,
            reachable,
            error,
            version,
            kernel,
            sessions_running,
            sessions_limit,
            clock_offset,
            clock_error,
        } = agent;
        Self {
            node,
            agent,
            reachable,
            error,
            version,
            kernel,
            sessions_running,
            sessions_limit,
            clock_offset_ns: clock_offset.map(|d| nanos(d.seconds, d.nanos)),
            clock_error_ns: clock_error.map(|d| nanos(d.seconds, d.nanos)),
        }
    }
}

pub(super) fn nanos(seconds: i64, nanos: i32) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

/// # Errors
/// A status that is no JSON.
pub(crate) fn status(status: v1::ClusterStatusResponse, format: Format) -> anyhow::Result<String> {
    let v1::ClusterStatusResponse {
        version,
        nodes,
        synced,
    } = status;
    let mut status = ClusterStatus {
        version,
        synced,
        nodes: nodes.into_iter().map(Into::into).collect(),
    };
    status.nodes.sort_by(|a, b| a.node.cmp(&b.node));
    if format == Format::Json {
        return Ok(json(&status)?);
    }
    let mut text = format!(
        "Controller version {}{}\n",
        shown(&status.version),
        if synced {
            ""
        } else {
            "; it does not know the cluster yet"
        }
    );
    if status.nodes.is_empty() {
        text += "no nodes\n";
        return Ok(text);
    }
    let heading = [
        "NODE", "AGENT", "VERSION", "KERNEL", "SESSIONS", "CLOCK", "WHY",
    ];
    let mut rows = vec![heading.map(String::from).to_vec()];
    rows.extend(status.nodes.iter().map(|node| {
        vec![
            shown(&node.node).to_string(),
            match (node.agent.is_empty(), node.reachable) {
                (true, _) => "none".into(),
                (false, true) => "reachable".into(),
                (false, false) => "unreachable".into(),
            },
            text::excerpt(dash(&node.version), CELL_MAX).to_string(),
            text::excerpt(dash(&node.kernel), CELL_MAX).to_string(),
            format!("{}/{}", node.sessions_running, node.sessions_limit),
            clock(node),
            shown(&node.error).to_string(),
        ]
    }));
    text += &columns(&rows);
    Ok(text)
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// The node's clock less the controller's, in microseconds.
pub(super) fn clock(node: &NodeAgent) -> String {
    match (node.clock_offset_ns, node.clock_error_ns) {
        (Some(offset), Some(error)) => format!("{:+} ± {} us", offset / 1000, error / 1000),
        _ => "-".into(),
    }
}

/// Nodes whose captures may be missing from a list, a line each.
pub(crate) fn silent_nodes(missing: &[v1::NodeAgent]) -> Vec<String> {
    let lines = missing.iter().take(PARTS_SHOWN);
    lines
        .map(|node| {
            format!(
                "remora: node {} did not answer, its captures may be missing: {}",
                shown(&node.node),
                shown(&node.error)
            )
        })
        .collect()
}
