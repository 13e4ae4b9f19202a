//! A fake agent: answers as told, so that faults can be forced.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use remora_capture::session::CaptureId;
use remora_proto::{
    convert::Start,
    reason::{Reason, status},
    v1::{self, capture_server},
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

use super::PATIENCE;

/// What the fake agent does with a Start.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    /// As the real one: arms, and knows idempotency keys again.
    Arm,
    /// Refuses with this status.
    Refuse(Code, Option<Reason>, &'static str),
    /// Arms, but says so after this time.
    Slow(Duration),
    /// Answers a state whose id is none.
    Garbage,
    /// Panics in the middle of the call.
    Break,
}

#[derive(Debug)]
pub(crate) struct Shared {
    behaviour: Mutex<Behaviour>,
    /// By idempotency key.
    started: Mutex<HashMap<String, CaptureId>>,
    /// Every request that came, with what it means.
    requests: Mutex<Vec<(v1::StartRequest, Start)>>,
    /// Of each deletion and release, whether it said that it came again.
    kept: Mutex<Vec<bool>>,
}

impl Shared {
    /// The first call is never answered.
    async fn keep<T: Default>(&self, again: bool) -> Result<Response<T>, Status> {
        self.kept.lock().unwrap().push(again);
        if !again {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(T::default()))
    }
}

/// The service.
#[derive(Clone, Debug)]
struct Fake(Arc<Shared>);

#[tonic::async_trait]
impl capture_server::Capture for Fake {
    async fn start(
        &self,
        request: Request<v1::StartRequest>,
    ) -> Result<Response<v1::StartResponse>, Status> {
        let request = request.into_inner();
        let start = Start::try_from(request.clone())?;
        self.0
            .requests
            .lock()
            .unwrap()
            .push((request.clone(), start));
        let behaviour = self.0.behaviour.lock().unwrap().clone();
        match behaviour {
            Behaviour::Arm => {}
            Behaviour::Slow(time) => tokio::time::sleep(time).await,
            Behaviour::Refuse(code, Some(reason), text) => return Err(status(code, reason, text)),
            Behaviour::Refuse(code, None, text) => return Err(Status::new(code, text)),
            Behaviour::Garbage => {
                let capture = v1::CaptureState {
                    id: "../\u{1b}[2J".into(),
                    ..Default::default()
                };
                return Ok(Response::new(v1::StartResponse {
                    capture: Some(capture),
                    existing: false,
                    coalesced: false,
                }));
            }
            Behaviour::Break => panic!("the fake agent breaks, as told"),
        }
        let mut started = self.0.started.lock().unwrap();
        let existing = started.contains_key(&request.idempotency_key);
        let id = *started
            .entry(request.idempotency_key)
            .or_insert_with(CaptureId::generate);
        let capture = v1::CaptureState {
            id: id.to_string(),
            spec: request.spec,
            ..Default::default()
        };
        Ok(Response::new(v1::StartResponse {
            capture: Some(capture),
            existing,
            coalesced: false,
        }))
    }

    async fn extend(
        &self,
        _: Request<v1::ExtendRequest>,
    ) -> Result<Response<v1::ExtendResponse>, Status> {
        Err(Status::unimplemented("fake"))
    }

    async fn stop(
        &self,
        _: Request<v1::StopRequest>,
    ) -> Result<Response<v1::StopResponse>, Status> {
        Err(Status::unimplemented("fake"))
    }
    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        Err(Status::unimplemented("fake"))
    }
    async fn list(
        &self,
        _: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        Err(Status::unimplemented("fake"))
    }
    type WatchStream = tokio_stream::Empty<Result<v1::WatchResponse, Status>>;
    async fn watch(
        &self,
        _: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("fake"))
    }
    type StreamStream = tokio_stream::Empty<Result<v1::StreamResponse, Status>>;
    async fn stream(
        &self,
        _: Request<v1::StreamRequest>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        Err(Status::unimplemented("fake"))
    }
    type EvidenceStream = tokio_stream::Empty<Result<v1::EvidenceResponse, Status>>;
    async fn evidence(
        &self,
        _: Request<v1::EvidenceRequest>,
    ) -> Result<Response<Self::EvidenceStream>, Status> {
        Err(Status::unimplemented("fake"))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        self.0.keep(request.get_ref().again).await
    }

    async fn hold(
        &self,
        _: Request<v1::HoldRequest>,
    ) -> Result<Response<v1::HoldResponse>, Status> {
        Err(Status::unimplemented("fake"))
    }

    async fn release(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        self.0.keep(request.get_ref().again).await
    }
}

/// A fake agent that listens until it is dropped; then its connections break, as those of a
/// killed process do.
#[derive(Debug)]
pub(crate) struct FakeAgent {
    shared: Arc<Shared>,
    socket: PathBuf,
    listener: std::os::unix::net::UnixListener,
    /// Of its own: what tonic spawned for a connection ends with it and not before.
    runtime: Option<tokio::runtime::Runtime>,
}

impl FakeAgent {
    pub(crate) fn listen(socket: PathBuf, behaviour: Behaviour) -> Self {
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            started: Mutex::default(),
            requests: Mutex::default(),
            kept: Mutex::default(),
        });
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut agent = Self {
            shared,
            socket,
            listener,
            runtime: None,
        };
        agent.serve();
        agent
    }

    fn serve(&mut self) {
        let listener = self.listener.try_clone().unwrap();
        let service = capture_server::CaptureServer::new(Fake(self.shared.clone()))
            .max_decoding_message_size(remora_proto::limits::REQUEST_BYTES_MAX);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.spawn(async move {
            let listener = UnixListener::from_std(listener).unwrap();
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        self.runtime = Some(runtime);
    }

    /// Its connections break, as when it is killed; it listens on, so that nobody finds it away.
    pub(crate) fn start_again(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Where one may wait: what it has accepted is gone after this.
            let ended = std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE));
            ended.join().unwrap();
        }
        self.serve();
    }

    /// Of each deletion and release that came, whether it said that it came again.
    pub(crate) fn kept(&self) -> Vec<bool> {
        self.shared.kept.lock().unwrap().clone()
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = behaviour;
    }

    pub(crate) fn requests(&self) -> Vec<(v1::StartRequest, Start)> {
        self.shared.requests.lock().unwrap().clone()
    }

    pub(crate) fn captures(&self) -> usize {
        self.shared.started.lock().unwrap().len()
    }

    /// Ends when it has been asked for something.
    pub(crate) async fn asked(&self) {
        let asked = async {
            while self.requests().is_empty() && self.kept().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, asked)
            .await
            .expect("the agent is asked");
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        let _gone = std::fs::remove_file(&self.socket);
    }
}
