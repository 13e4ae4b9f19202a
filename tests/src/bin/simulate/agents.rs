//! Agents that answer at once and capture nothing.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Result;
use remora_capture::session::CaptureId;
use remora_proto::v1::{self, capture_server, node_server};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::world::World;

#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) starts: AtomicU64,
    pub(crate) lists: AtomicU64,
}

#[derive(Clone, Debug)]
struct Agent(Arc<Asked>);

type None<T> = tokio_stream::Empty<Result<T, Status>>;

#[tonic::async_trait]
impl capture_server::Capture for Agent {
    async fn start(
        &self,
        request: Request<v1::StartRequest>,
    ) -> Result<Response<v1::StartResponse>, Status> {
        self.0.starts.fetch_add(1, Ordering::Relaxed);
        let capture = v1::CaptureState {
            id: CaptureId::generate().to_string(),
            spec: request.into_inner().spec,
            phase: v1::Phase::Capturing.into(),
            ..Default::default()
        };
        Ok(Response::new(v1::StartResponse {
            capture: Some(capture),
            ..Default::default()
        }))
    }

    async fn list(
        &self,
        _: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        self.0.lists.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(v1::ListResponse::default()))
    }

    async fn stop(
        &self,
        _: Request<v1::StopRequest>,
    ) -> Result<Response<v1::StopResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn extend(
        &self,
        _: Request<v1::ExtendRequest>,
    ) -> Result<Response<v1::ExtendResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete(
        &self,
        _: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn hold(
        &self,
        _: Request<v1::HoldRequest>,
    ) -> Result<Response<v1::HoldResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn release(
        &self,
        _: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type WatchStream = None<v1::WatchResponse>;
    async fn watch(
        &self,
        _: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented(""))
    }

    type StreamStream = None<v1::StreamResponse>;
    async fn stream(
        &self,
        _: Request<v1::StreamRequest>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        Err(Status::unimplemented(""))
    }

    type EvidenceStream = None<v1::EvidenceResponse>;
    async fn evidence(
        &self,
        _: Request<v1::EvidenceRequest>,
    ) -> Result<Response<Self::EvidenceStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl node_server::Node for Agent {
    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(v1::StatusResponse::default()))
    }
}

/// One on each node's socket; returns the list for `--agents`.
pub(crate) fn listen(directory: &Path, nodes: usize, asked: &Arc<Asked>) -> Result<String> {
    let mut list = String::new();
    for number in 0..nodes {
        let socket = directory.join(format!("{number}.sock"));
        let listener = UnixListener::bind(&socket)?;
        list += &format!("{}=unix:{}\n", World::node_name(number), socket.display());
        let agent = Agent(asked.clone());
        let server = tonic::transport::Server::builder()
            .add_service(capture_server::CaptureServer::new(agent.clone()))
            .add_service(node_server::NodeServer::new(agent));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    }
    Ok(list)
}
