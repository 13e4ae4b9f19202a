//! `remora.v1.Node`.

use std::sync::Arc;

use remora_agent_common::SESSION_SLOTS;
use remora_capture::session::TapInfo;
use remora_proto::v1::{self, node_server::Node};
use tonic::{Request, Response, Status};

use super::PeerPolicy;
use crate::{clock::ClockOffset, node::NodeFacts, session::DriverHandle};

/// What changes of the node while it runs.
#[derive(Clone, Debug, Default)]
pub struct NodeNumbers {
    pub store_bytes: u64,
    pub store_quota_bytes: u64,
    pub records_stale: u64,
    pub records_malformed: u64,
    /// Interfaces that programs are attached to.
    pub taps: Vec<TapInfo>,
}

/// What `Status` is answered from.
#[derive(Clone)]
pub struct StatusSource {
    pub node: NodeFacts,
    pub started: jiff::Timestamp,
    pub ring_bytes: u64,
    pub numbers: Arc<dyn Fn() -> NodeNumbers + Send + Sync>,
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
        let clock = ClockOffset::measure();
        let StatusSource {
            node,
            started,
            ring_bytes,
            numbers,
        } = &self.source;
        let NodeNumbers {
            store_bytes,
            store_quota_bytes,
            records_stale,
            records_malformed,
            taps,
        } = numbers();
        Ok(Response::new(v1::StatusResponse {
            node: node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: node.kernel.clone(),
            started: Some(timestamp(*started)),
            sessions_running: u32::try_from(running).unwrap_or(u32::MAX),
            sessions_limit: SESSION_SLOTS,
            ring_bytes: *ring_bytes,
            store_bytes,
            store_quota_bytes,
            taps: taps.iter().map(Into::into).collect(),
            clock_offset_ns: clock.offset_ns,
            clock_error_ns: clock.error_ns,
            records_stale,
            records_malformed,
        }))
    }
}

fn timestamp(time: jiff::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}
