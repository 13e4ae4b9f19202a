//! `remora.v1.Node`.

use remora_proto::v1::{self, node_server::Node};
use tonic::{Request, Response, Status};

use super::PeerPolicy;
use crate::{
    clock::{self, ClockOffset},
    node::{AskNumbers, NodeFacts, NodeNumbers},
    session::DriverHandle,
};

/// What `Status` is answered from.
#[derive(Clone)]
pub struct StatusSource {
    pub node: NodeFacts,
    pub started: jiff::Timestamp,
    pub numbers: AskNumbers,
}

pub(super) struct NodeService {
    pub(super) driver: DriverHandle,
    pub(super) peers: PeerPolicy,
    pub(super) source: StatusSource,
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        self.peers.check(&request)?;
        let running = self
            .driver
            .list()
            .await
            .iter()
            .filter(|state| !state.phase.is_final())
            .count();
        let clock = ClockOffset::known();
        let StatusSource {
            node,
            started,
            numbers,
        } = &self.source;
        let NodeNumbers {
            sessions_limit,
            ring_bytes,
            store_bytes,
            store_quota_bytes,
            records_stale,
            records_malformed,
            taps,
            chain_head,
            // Told as metrics.
            filters_loaded: _,
            filters_refused: _,
            pods: _,
            tls: _,
            retention: _,
            uploads: _,
        } = numbers();
        Ok(Response::new(v1::StatusResponse {
            node: node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: node.kernel.clone(),
            started: Some(timestamp(*started)),
            sessions_running: u32::try_from(running).unwrap_or(u32::MAX),
            sessions_limit,
            ring_bytes,
            store_bytes,
            store_quota_bytes,
            taps: taps.iter().map(Into::into).collect(),
            clock_offset_ns: clock.offset_ns,
            clock_error_ns: clock.error_ns,
            records_stale,
            records_malformed,
            chain_head: chain_head.map(|head| head.to_string()).unwrap_or_default(),
            // The last of all: who asks holds it against the time of the answer.
            time: Some(now(clock)),
        }))
    }
}

/// As packets are stamped: not CLOCK_REALTIME, which somebody may have set since.
fn now(clock: ClockOffset) -> prost_types::Timestamp {
    let ns = i64::try_from(clock::monotonic_ns()).unwrap_or(i64::MAX);
    let ns = ns.saturating_add(clock.offset_ns);
    prost_types::Timestamp {
        seconds: ns.div_euclid(1_000_000_000),
        nanos: ns.rem_euclid(1_000_000_000) as i32,
    }
}

fn timestamp(time: jiff::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}
