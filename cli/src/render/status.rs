//! `remora status`.

use std::time::Duration;

use jiff::Timestamp;
use remora_capture::session::{LookBackMode, TapInfo};
use remora_proto::{client::AgentAddress, v1};
use serde::Serialize;

use super::{columns, json, shown, unit};
use crate::args::Format;

/// [`v1::StatusResponse`] in JSON's clothes.
#[derive(Debug, Serialize)]
struct NodeStatus {
    node: String,
    version: String,
    kernel: String,
    started: Option<Timestamp>,
    sessions_running: u32,
    sessions_limit: u32,
    ring_bytes: u64,
    store_bytes: u64,
    store_quota_bytes: u64,
    taps: Vec<TapInfo>,
    clock_offset_ns: i64,
    clock_error_ns: i64,
    records_stale: u64,
    records_malformed: u64,
    chain_head: String,
}

impl From<v1::StatusResponse> for NodeStatus {
    fn from(status: v1::StatusResponse) -> Self {
        let v1::StatusResponse {
            node,
            version,
            kernel,
            started,
            sessions_running,
            sessions_limit,
            ring_bytes,
            store_bytes,
            store_quota_bytes,
            taps,
            clock_offset_ns,
            clock_error_ns,
            records_stale,
            records_malformed,
            chain_head,
            // Of use to who compares clocks.
            time: _,
        } = status;
        Self {
            node,
            version,
            kernel,
            started: started.and_then(|t| Timestamp::new(t.seconds, t.nanos).ok()),
            sessions_running,
            sessions_limit,
            ring_bytes,
            store_bytes,
            store_quota_bytes,
            taps: taps.into_iter().map(Into::into).collect(),
            clock_offset_ns,
            clock_error_ns,
            records_stale,
            records_malformed,
            chain_head,
        }
    }
}

/// # Errors
/// A status that is no JSON.
pub(crate) fn status(
    agent: &AgentAddress,
    status: v1::StatusResponse,
    format: Format,
) -> anyhow::Result<String> {
    let status = NodeStatus::from(status);
    match format {
        Format::Json => Ok(json(&status)?),
        Format::Table => Ok(describe(agent, &status)),
    }
}

fn describe(agent: &AgentAddress, status: &NodeStatus) -> String {
    let quota = match status.store_quota_bytes {
        0 => "no quota".into(),
        quota => format!("of {}", unit::bytes(quota)),
    };
    let mut rows = vec![
        vec!["Node:".into(), shown(&status.node).to_string()],
        vec![
            "Agent:".into(),
            format!("{agent}, version {}", shown(&status.version)),
        ],
        vec!["Kernel:".into(), shown(&status.kernel).to_string()],
    ];
    if let Some(started) = status.started {
        let age = unit::age(Timestamp::now().duration_since(started).unsigned_abs());
        rows.push(vec!["Started:".into(), format!("{started} ({age} ago)")]);
    }
    rows.extend([
        vec![
            "Sessions:".into(),
            format!(
                "{} running, at most {}",
                status.sessions_running, status.sessions_limit
            ),
        ],
        vec!["Ring:".into(), unit::bytes(status.ring_bytes)],
        vec![
            "Store:".into(),
            format!("{}, {quota}", unit::bytes(status.store_bytes)),
        ],
        vec![
            "Clock:".into(),
            format!(
                "UTC is the monotonic clock + {} ns, within {} ns",
                status.clock_offset_ns, status.clock_error_ns
            ),
        ],
        vec![
            "Records:".into(),
            format!(
                "{} stale, {} malformed",
                status.records_stale, status.records_malformed
            ),
        ],
        vec![
            "Chain head:".into(),
            match status.chain_head.as_str() {
                "" => "none: nothing was signed yet".into(),
                head => shown(head).to_string(),
            },
        ],
        vec!["Taps:".into(), status.taps.len().to_string()],
    ]);
    rows.extend(status.taps.iter().map(|tap| {
        vec![
            String::new(),
            format!(
                "{} {} (ifindex {}, cgroup {}) {}",
                shown(&tap.hook),
                shown(&tap.interface),
                tap.ifindex,
                tap.cgroup_id,
                shown(&tap.description)
            ),
        ]
    }));
    let rings: Vec<_> = status
        .taps
        .iter()
        .filter_map(|tap| Some((tap, tap.look_back?)))
        .collect();
    let on = rings
        .iter()
        .filter(|(_, ring)| ring.mode != LookBackMode::Off);
    rows.push(vec!["Look-back:".into(), format!("{} rings", on.count())]);
    rows.extend(rings.into_iter().map(|(tap, ring)| {
        let interface = shown(&tap.interface);
        let text = match ring.mode {
            LookBackMode::Off => format!("{interface}: off"),
            LookBackMode::Payload | LookBackMode::Headers => format!(
                "{interface}: {}, {:.1} s back in {}; the flow cutoff left out {} of {} packets",
                ring.mode,
                Duration::from_millis(ring.reach_ms).as_secs_f64(),
                unit::bytes(ring.bytes),
                ring.cut_packets,
                ring.cut_packets.saturating_add(ring.packets),
            ),
        };
        vec![String::new(), text]
    }));
    columns(&rows)
}
