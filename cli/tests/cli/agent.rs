//! An agent that does what its script says and keeps what it was asked.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    thread,
};

use remora_capture::session::{
    CaptureId, CaptureState, Counts, Phase, SessionSpec, StopReason, Target,
};
use remora_proto::{
    client::AgentAddress,
    v1::{
        self,
        capture_server::{Capture, CaptureServer},
        node_server::{Node, NodeServer},
        stream_response::Message,
    },
};
use tempfile::TempDir;
use tokio::{net::UnixListener, sync::mpsc, sync::watch};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tonic::{Request, Response, Status, transport::Server};

pub(crate) const ID: &str = "01J9ZQ3C7M8N4R5T6V7W8X9YZA";

/// What the agent does once a stream is open.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Sends these bytes.
    Blocks(Vec<u8>),
    /// Goes on when the client asked to stop.
    AwaitStop,
    /// Sends the final state.
    Finish(Box<CaptureState>),
    /// Dies: every connection breaks.
    Die,
    /// Says nothing more.
    Hang,
}

/// What the agent answers to Start.
#[derive(Clone, Debug)]
pub(crate) enum Start {
    Accept,
    Refuse(Status),
    /// Nothing, ever.
    Hang,
}

/// A scripted agent's answers.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) start: Start,
    /// The refusal of Stream, if any.
    pub(crate) stream_refusal: Option<Status>,
    pub(crate) steps: Vec<Step>,
    /// What Get, List, Stop and Watch tell.
    pub(crate) state: CaptureState,
}

impl Script {
    pub(crate) fn new(steps: Vec<Step>) -> Self {
        Self {
            start: Start::Accept,
            stream_refusal: None,
            steps,
            state: finished(0),
        }
    }

    /// `packets` packets in one message, then the end.
    pub(crate) fn packets(packets: u64) -> Self {
        Self::new(vec![
            Step::Blocks(head()),
            Step::Blocks(packet_blocks(packets, 64)),
            Step::Finish(Box::new(finished(packets))),
        ])
    }

    /// Refuses to start.
    pub(crate) fn refusing(status: Status) -> Self {
        Self {
            start: Start::Refuse(status),
            ..Self::packets(0)
        }
    }
}

/// The agent, in a thread of its own until it is dropped.
#[derive(Debug)]
pub(crate) struct Agent {
    dir: TempDir,
    calls: Arc<Mutex<Calls>>,
    end: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    pub(crate) started: Vec<v1::StartRequest>,
    pub(crate) stopped: Vec<String>,
    pub(crate) streamed: Vec<String>,
}

impl Agent {
    pub(crate) fn run(script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = std::os::unix::net::UnixListener::bind(dir.path().join("agent.sock")).unwrap();
        socket.set_nonblocking(true).unwrap();
        let calls = Arc::new(Mutex::new(Calls::default()));
        let (end, mut ended) = mpsc::channel(1);
        let service = Service {
            script: Arc::new(script),
            calls: Arc::clone(&calls),
            stop: watch::Sender::new(false),
            die: end.clone(),
        };
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let incoming = UnixListenerStream::new(UnixListener::from_std(socket).unwrap());
                let served = Server::builder()
                    .add_service(CaptureServer::new(service.clone()))
                    .add_service(NodeServer::new(service))
                    .serve_with_incoming(incoming);
                tokio::select! {
                    served = served => served.unwrap(),
                    _ = ended.recv() => {}
                }
            });
        });
        Self {
            dir,
            calls,
            end: Some(end),
            thread: Some(thread),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub(crate) fn address(&self) -> AgentAddress {
        AgentAddress::Unix(self.socket())
    }

    pub(crate) fn calls(&self) -> Calls {
        self.calls.lock().unwrap().clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            let _dead_already = end.try_send(());
        }
        if let Some(thread) = self.thread.take() {
            let _its_panic_was_shown = thread.join();
        }
    }
}

#[derive(Clone, Debug)]
struct Service {
    script: Arc<Script>,
    calls: Arc<Mutex<Calls>>,
    stop: watch::Sender<bool>,
    die: mpsc::Sender<()>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Capture for Service {
    type WatchStream = Answers<v1::WatchResponse>;
    type StreamStream = Answers<v1::StreamResponse>;
    type EvidenceStream = Answers<v1::EvidenceResponse>;

    async fn evidence(
        &self,
        _request: Request<v1::EvidenceRequest>,
    ) -> Result<Response<Self::EvidenceStream>, Status> {
        Err(Status::unimplemented("this agent signs nothing"))
    }

    async fn delete(
        &self,
        _: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        Err(Status::unimplemented("this agent signs nothing"))
    }

    async fn hold(
        &self,
        _: Request<v1::HoldRequest>,
    ) -> Result<Response<v1::HoldResponse>, Status> {
        Err(Status::unimplemented("this agent signs nothing"))
    }

    async fn release(
        &self,
        _: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        Err(Status::unimplemented("this agent signs nothing"))
    }

    async fn start(
        &self,
        request: Request<v1::StartRequest>,
    ) -> Result<Response<v1::StartResponse>, Status> {
        self.calls
            .lock()
            .unwrap()
            .started
            .push(request.into_inner());
        match &self.script.start {
            Start::Accept => {}
            Start::Refuse(status) => return Err(status.clone()),
            Start::Hang => std::future::pending().await,
        }
        let state = CaptureState {
            phase: Phase::Capturing,
            stop_reason: None,
            finished: None,
            ..self.script.state.clone()
        };
        Ok(Response::new(v1::StartResponse {
            capture: Some((&state).into()),
            existing: false,
            coalesced: false,
        }))
    }

    async fn extend(
        &self,
        _: Request<v1::ExtendRequest>,
    ) -> Result<Response<v1::ExtendResponse>, Status> {
        Err(Status::unimplemented("this agent lengthens nothing"))
    }

    async fn stop(
        &self,
        request: Request<v1::StopRequest>,
    ) -> Result<Response<v1::StopResponse>, Status> {
        self.calls
            .lock()
            .unwrap()
            .stopped
            .push(request.into_inner().id);
        self.stop.send_replace(true);
        Ok(Response::new(v1::StopResponse {
            capture: Some((&self.script.state).into()),
        }))
    }

    async fn get(
        &self,
        _request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        Ok(Response::new(v1::GetResponse {
            capture: Some((&self.script.state).into()),
        }))
    }

    async fn list(
        &self,
        _request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        Ok(Response::new(v1::ListResponse {
            captures: vec![(&self.script.state).into()],
        }))
    }

    /// Silent until the stop, then the end.
    async fn watch(
        &self,
        _request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let (mut stop, state) = (self.stop.subscribe(), self.script.state.clone());
        tokio::spawn(async move {
            let _stopped = stop.wait_for(|stop| *stop).await.is_ok();
            let event = v1::WatchResponse {
                capture: Some((&state).into()),
            };
            let _gone = sender.send(Ok(event)).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn stream(
        &self,
        request: Request<v1::StreamRequest>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        self.calls
            .lock()
            .unwrap()
            .streamed
            .push(request.into_inner().id);
        if let Some(refusal) = &self.script.stream_refusal {
            return Err(refusal.clone());
        }
        let (sender, receiver) = mpsc::channel(1);
        let (mut stop, die) = (self.stop.subscribe(), self.die.clone());
        let steps = self.script.steps.clone();
        tokio::spawn(async move {
            for step in steps {
                let message = match step {
                    Step::Blocks(blocks) => Message::Blocks(blocks.into()),
                    Step::Finish(state) => Message::Finished((&*state).into()),
                    Step::AwaitStop => {
                        let _stopped = stop.wait_for(|stop| *stop).await.is_ok();
                        continue;
                    }
                    Step::Die => {
                        // What was sent before reaches the client first.
                        let _gone = sender.reserve().await;
                        let _dead_already = die.send(()).await;
                        // The stream may not end in order before the connection breaks.
                        return std::future::pending().await;
                    }
                    Step::Hang => {
                        sender.closed().await;
                        return;
                    }
                };
                let _gone = sender
                    .send(Ok(v1::StreamResponse {
                        message: Some(message),
                    }))
                    .await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl Node for Service {
    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(v1::StatusResponse {
            node: "node-1".into(),
            version: "0.1.0".into(),
            kernel: "6.12.1".into(),
            sessions_running: 3,
            sessions_limit: 64,
            ring_bytes: 16 << 20,
            ..v1::StatusResponse::default()
        }))
    }
}

/// A capture of `packets` packets that was stopped on request.
pub(crate) fn finished(packets: u64) -> CaptureState {
    CaptureState {
        id: ID.parse::<CaptureId>().unwrap(),
        spec: SessionSpec::new(Target::CgroupPath("/remora/web".into())),
        phase: Phase::Finished,
        stop_reason: Some(StopReason::Requested),
        message: String::new(),
        counts: Counts {
            seen: packets,
            matched: packets,
            submitted: packets,
            read: packets,
            written: packets,
            ..Counts::default()
        },
        started: "2026-01-02T03:04:05Z".parse().unwrap(),
        finished: Some("2026-01-02T03:04:15Z".parse().unwrap()),
        first_packet: None,
        last_packet: None,
        file: format!("{ID}.pcapng"),
        files: Default::default(),
        taps: vec![],
        node: "node-1".into(),
        caller: String::new(),
        resolved_target: "cgroup /remora/web (id 4711)".into(),
        pod: None,
    }
}

/// A section header and one Ethernet interface.
pub(crate) fn head() -> Vec<u8> {
    let mut section = 0x1a2b_3c4du32.to_le_bytes().to_vec();
    section.extend([1, 0, 0, 0]);
    section.extend([0xff; 8]);
    let interface = [1, 0, 0, 0, 0, 0, 4, 0];
    [block(0x0a0d_0d0a, &section), block(1, &interface)].concat()
}

/// `count` packets of `len` bytes.
pub(crate) fn packet_blocks(count: u64, len: usize) -> Vec<u8> {
    let mut body = vec![0; 12];
    body.extend((len as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.resize(body.len() + len.next_multiple_of(4), 0x55);
    block(6, &body).repeat(count as usize)
}

/// An interface statistics block, as a capture ends with.
pub(crate) fn statistics() -> Vec<u8> {
    block(5, &[0; 12])
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let total = (12 + body.len() as u32).to_le_bytes();
    [&kind.to_le_bytes()[..], &total, body, &total].concat()
}
