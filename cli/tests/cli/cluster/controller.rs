//! A controller that does what its script says and keeps what it was asked.

use std::{
    collections::VecDeque,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    thread,
};

use remora_capture::session::{CaptureState, Counts, Phase};
use remora_proto::v1::{
    self,
    cluster_server::{Cluster, ClusterServer},
    cluster_stream_response::Message,
};
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig},
};

use crate::agent::{ID, finished};

/// What the controller does once a stream is open.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Blocks(Vec<u8>),
    /// Goes on when the client asked to stop.
    AwaitStop,
    Finish(Box<v1::ClusterCapture>),
    /// Ends the stream with this.
    Refuse(Status),
    /// Dies: every connection breaks.
    Die,
}

/// A scripted controller's answers.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// The refusal of Start, if any.
    pub(crate) start_refusal: Option<Status>,
    /// Dies at Start, after the call has come.
    pub(crate) start_dies: bool,
    /// What each stream does in turn; the last is that of all that follow.
    pub(crate) streams: VecDeque<Vec<Step>>,
    /// What Start, Get, List, Stop and Watch tell.
    pub(crate) state: v1::ClusterCapture,
    pub(crate) missing_nodes: Vec<v1::NodeAgent>,
}

impl Script {
    pub(crate) fn new(steps: Vec<Step>) -> Self {
        Self {
            start_refusal: None,
            start_dies: false,
            streams: [steps].into(),
            state: cluster_capture(vec![part("cart-a", "worker-1", 0)]),
            missing_nodes: vec![],
        }
    }
}

/// What was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    pub(crate) started: Vec<v1::ClusterStartRequest>,
    pub(crate) stopped: Vec<String>,
    /// What is wanted, whose, and why.
    pub(crate) kept: Vec<[String; 3]>,
    pub(crate) streamed: Vec<String>,
    pub(crate) listed: Vec<v1::ClusterListRequest>,
    /// The `authorization` of each call, if it had one.
    pub(crate) shown: Vec<Option<String>>,
}

/// The controller, in a thread of its own until it is dropped.
#[derive(Debug)]
pub(crate) struct Controller {
    dir: TempDir,
    calls: Arc<Mutex<Calls>>,
    end: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Controller {
    pub(crate) fn run(script: Script) -> Self {
        Self::start(script, None)
    }

    /// By TLS, with this certificate and key.
    pub(crate) fn run_tls(script: Script, identity: Identity) -> Self {
        Self::start(script, Some(identity))
    }

    fn start(script: Script, identity: Option<Identity>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("controller.sock");
        let socket = std::os::unix::net::UnixListener::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let calls = Arc::new(Mutex::new(Calls::default()));
        let (end, mut ended) = mpsc::channel(1);
        let service = Service {
            script: Arc::new(Mutex::new(script)),
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
                let mut server = Server::builder();
                if let Some(identity) = identity {
                    let config = ServerTlsConfig::new().identity(identity);
                    server = server.tls_config(config).unwrap();
                }
                let served = server
                    .add_service(ClusterServer::new(service))
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
        self.dir.path().join("controller.sock")
    }

    pub(crate) fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    pub(crate) fn calls(&self) -> Calls {
        self.calls.lock().unwrap().clone()
    }
}

impl Drop for Controller {
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
    script: Arc<Mutex<Script>>,
    calls: Arc<Mutex<Calls>>,
    stop: watch::Sender<bool>,
    die: mpsc::Sender<()>,
}

impl Service {
    fn ask<Q>(&self, request: Request<Q>, keep: impl FnOnce(&mut Calls, Q)) {
        let shown = request.metadata().get("authorization");
        let shown = shown.map(|value| value.to_str().unwrap().to_owned());
        let mut calls = self.calls.lock().unwrap();
        calls.shown.push(shown);
        keep(&mut calls, request.into_inner());
    }

    fn state(&self) -> v1::ClusterCapture {
        self.script.lock().unwrap().state.clone()
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Cluster for Service {
    type WatchStream = Answers<v1::ClusterWatchResponse>;
    type StreamStream = Answers<v1::ClusterStreamResponse>;

    async fn start(
        &self,
        request: Request<v1::ClusterStartRequest>,
    ) -> Result<Response<v1::ClusterStartResponse>, Status> {
        self.ask(request, |calls, request| calls.started.push(request));
        let script = self.script.lock().unwrap().clone();
        if script.start_dies {
            let _dead_already = self.die.send(()).await;
            std::future::pending::<()>().await;
        }
        if let Some(refusal) = script.start_refusal {
            return Err(refusal);
        }
        Ok(Response::new(v1::ClusterStartResponse {
            capture: Some(v1::ClusterCapture {
                phase: v1::Phase::Capturing.into(),
                finished: None,
                ..script.state
            }),
            existing: false,
        }))
    }

    async fn stop(
        &self,
        request: Request<v1::ClusterStopRequest>,
    ) -> Result<Response<v1::ClusterStopResponse>, Status> {
        self.ask(request, |calls, request| calls.stopped.push(request.id));
        self.stop.send_replace(true);
        Ok(Response::new(v1::ClusterStopResponse {
            capture: Some(self.state()),
        }))
    }

    async fn delete(
        &self,
        request: Request<v1::ClusterDeleteRequest>,
    ) -> Result<Response<v1::ClusterDeleteResponse>, Status> {
        let deleted = v1::DeleteResponse {
            files: 2,
            bytes: 4096,
            chain_head: "head".into(),
            ..Default::default()
        };
        self.ask(request, |calls, request| {
            calls.kept.push(["delete".into(), request.id, request.why]);
        });
        let mut parts = custody();
        parts[0].deleted = Some(deleted);
        Ok(Response::new(v1::ClusterDeleteResponse { parts }))
    }

    async fn hold(
        &self,
        request: Request<v1::ClusterHoldRequest>,
    ) -> Result<Response<v1::ClusterHoldResponse>, Status> {
        self.ask(request, |calls, request| {
            calls.kept.push(["hold".into(), request.id, request.why]);
        });
        let mut parts = custody();
        parts[0].hold = Some(v1::LegalHold {
            by: "ann, by san=remora-controller".into(),
            ..Default::default()
        });
        Ok(Response::new(v1::ClusterHoldResponse { parts }))
    }

    async fn release(
        &self,
        request: Request<v1::ClusterReleaseRequest>,
    ) -> Result<Response<v1::ClusterReleaseResponse>, Status> {
        self.ask(request, |calls, request| {
            calls
                .kept
                .push(["release".into(), request.id, String::new()]);
        });
        let mut parts = custody();
        parts.truncate(1);
        Ok(Response::new(v1::ClusterReleaseResponse { parts }))
    }

    async fn get(
        &self,
        request: Request<v1::ClusterGetRequest>,
    ) -> Result<Response<v1::ClusterGetResponse>, Status> {
        self.ask(request, |_, _| {});
        Ok(Response::new(v1::ClusterGetResponse {
            capture: Some(self.state()),
        }))
    }

    async fn list(
        &self,
        request: Request<v1::ClusterListRequest>,
    ) -> Result<Response<v1::ClusterListResponse>, Status> {
        self.ask(request, |calls, request| calls.listed.push(request));
        Ok(Response::new(v1::ClusterListResponse {
            captures: vec![self.state()],
            missing: self.script.lock().unwrap().missing_nodes.clone(),
        }))
    }

    /// The present state, then the final one after the stop.
    async fn watch(
        &self,
        _request: Request<v1::ClusterWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(2);
        let (mut stop, state) = (self.stop.subscribe(), self.state());
        tokio::spawn(async move {
            let event = |phase: v1::Phase| v1::ClusterWatchResponse {
                capture: Some(v1::ClusterCapture {
                    phase: phase.into(),
                    ..state.clone()
                }),
            };
            let _gone = sender.send(Ok(event(v1::Phase::Capturing))).await;
            let _stopped = stop.wait_for(|stop| *stop).await.is_ok();
            let _gone = sender.send(Ok(event(v1::Phase::Finished))).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn stream(
        &self,
        request: Request<v1::ClusterStreamRequest>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        self.ask(request, |calls, request| calls.streamed.push(request.id));
        let steps = {
            let streams = &mut self.script.lock().unwrap().streams;
            match streams.len() {
                1 => streams[0].clone(),
                _ => streams.pop_front().unwrap(),
            }
        };
        let (sender, receiver) = mpsc::channel(1);
        let (mut stop, die) = (self.stop.subscribe(), self.die.clone());
        tokio::spawn(async move {
            for step in steps {
                let message = match step {
                    Step::Blocks(blocks) => Message::Blocks(blocks.into()),
                    Step::Finish(state) => Message::Finished(*state),
                    Step::AwaitStop => {
                        let _stopped = stop.wait_for(|stop| *stop).await.is_ok();
                        continue;
                    }
                    Step::Refuse(status) => {
                        let _gone = sender.send(Err(status)).await;
                        return;
                    }
                    Step::Die => {
                        // What was sent before reaches the client first.
                        let _gone = sender.reserve().await;
                        let _dead_already = die.send(()).await;
                        return std::future::pending().await;
                    }
                };
                let response = v1::ClusterStreamResponse {
                    message: Some(message),
                };
                let _gone = sender.send(Ok(response)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn status(
        &self,
        request: Request<v1::ClusterStatusRequest>,
    ) -> Result<Response<v1::ClusterStatusResponse>, Status> {
        self.ask(request, |_, _| {});
        let node = |node: &str, reachable: bool, error: &str| v1::NodeAgent {
            node: node.into(),
            agent: "https://10.0.0.1:2804".into(),
            reachable,
            error: error.into(),
            version: "0.1.0".into(),
            kernel: "6.12.1".into(),
            sessions_running: 1,
            sessions_limit: 64,
            ..v1::NodeAgent::default()
        };
        Ok(Response::new(v1::ClusterStatusResponse {
            version: "0.1.0".into(),
            nodes: vec![
                node("worker-2", false, "connection refused\u{1b}[2J"),
                node("worker-1", true, ""),
            ],
            synced: true,
        }))
    }
}

/// A deployment's capture that has ended.
pub(crate) fn cluster_capture(parts: Vec<v1::ClusterPart>) -> v1::ClusterCapture {
    let mut sum = Counts::default();
    for state in parts.iter().filter_map(|part| part.state.clone()) {
        let counts: Counts = state.counts.unwrap().into();
        sum.seen += counts.seen;
        sum.matched += counts.matched;
        sum.submitted += counts.submitted;
        sum.read += counts.read;
        sum.written += counts.written;
        sum.lost += counts.lost;
    }
    v1::ClusterCapture {
        id: ID.into(),
        selector: Some(v1::Selector {
            namespace: "shop".into(),
            kind: Some(v1::selector::Kind::Workload(v1::WorkloadSelector {
                kind: v1::WorkloadKind::Deployment.into(),
                name: "cart".into(),
            })),
        }),
        fixed: false,
        phase: v1::Phase::Finished.into(),
        counts: Some(sum.into()),
        parts,
        started: None,
        finished: None,
        message: String::new(),
    }
}

/// One pod's part with so many packets.
pub(crate) fn part(pod: &str, node: &str, packets: u64) -> v1::ClusterPart {
    let state = CaptureState {
        node: node.into(),
        phase: Phase::Finished,
        ..finished(packets)
    };
    v1::ClusterPart {
        node: node.into(),
        pod: Some(named(pod)),
        capture: ID.into(),
        state: Some((&state).into()),
        error: String::new(),
    }
}

/// A pod's part that could not be started.
pub(crate) fn missing_part(pod: &str, node: &str, error: &str) -> v1::ClusterPart {
    v1::ClusterPart {
        node: node.into(),
        pod: Some(named(pod)),
        capture: String::new(),
        state: None,
        error: error.into(),
    }
}

fn named(pod: &str) -> v1::Pod {
    v1::Pod {
        namespace: "shop".into(),
        name: pod.into(),
        uid: String::new(),
        container: String::new(),
    }
}

/// A part that was dealt with, and a node that is silent.
fn custody() -> Vec<v1::CustodyPart> {
    vec![
        v1::CustodyPart {
            node: "worker-1".into(),
            capture: ID.into(),
            ..Default::default()
        },
        v1::CustodyPart {
            node: "worker-2".into(),
            error: "timeout\u{1b}[2J".into(),
            ..Default::default()
        },
    ]
}
