//! Fake agents of many nodes: each knows idempotency keys and parts as the real one does, streams
//! packets of its own, and has a clock of its own. Told to, it is late, silent or wrong.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use remora_capture::{
    pcapng::{
        Interface, PacketDirection, PacketMeta, Section, encode_packet, interface_description,
        section_header,
    },
    session::{CaptureId, Snaplen},
};
use remora_proto::{
    convert::Start,
    reason::{Reason, status},
    v1::{self, capture_server, node_server, stream_response::Message, target::Target},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::UnixListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Code, Request, Response, Status};

/// How it answers a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Temper {
    Well,
    /// Takes the call and says nothing.
    Silent,
    /// Starts it, and answers when nobody waits any more.
    Late,
    /// Says that it started nothing.
    Empty,
    /// Says that it started what is no capture's id.
    Nameless,
    /// Its blocks are no pcapng.
    Garbled,
    Full,
}

#[derive(Debug)]
pub(crate) struct NodeState {
    name: String,
    /// Its clock less the true one.
    skew: Duration,
    pub(crate) temper: Mutex<Temper>,
    /// By idempotency key.
    pub(crate) sessions: Mutex<BTreeMap<String, v1::CaptureState>>,
    /// Starts that came, those of known keys included.
    pub(crate) starts: Mutex<Vec<v1::StartRequest>>,
    /// Raised when sessions change.
    changed: watch::Sender<u64>,
    /// Packets that each session's stream has.
    packets: u64,
}

impl NodeState {
    fn now_ns(&self) -> i64 {
        let now = jiff::Timestamp::now().as_nanosecond();
        i64::try_from(now).unwrap() + i64::try_from(self.skew.as_nanos()).unwrap()
    }

    /// A session, or the one that has the key, which the bool says.
    fn start(&self, key: String, checked: &Start) -> (v1::CaptureState, bool) {
        let mut sessions = self.sessions.lock().unwrap();
        let existing = sessions.contains_key(&key);
        let state = sessions.entry(key).or_insert_with(|| v1::CaptureState {
            id: CaptureId::generate().to_string(),
            spec: Some((&checked.spec).into()),
            phase: v1::Phase::Capturing.into(),
            started: Some(timestamp(self.now_ns())),
            node: self.name.clone(),
            ..Default::default()
        });
        let state = state.clone();
        drop(sessions);
        self.changed.send_modify(|n| *n += 1);
        (state, existing)
    }

    fn find(&self, id: &str) -> Result<v1::CaptureState, Status> {
        let sessions = self.sessions.lock().unwrap();
        let found = sessions.values().find(|state| state.id == id).cloned();
        found.ok_or_else(|| status(Code::NotFound, Reason::CaptureNotFound, "no such capture"))
    }
}

fn timestamp(ns: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: ns / 1_000_000_000,
        nanos: (ns % 1_000_000_000) as i32,
    }
}

#[derive(Clone, Debug)]
struct Service(Arc<NodeState>);

type Responses<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl capture_server::Capture for Service {
    async fn start(
        &self,
        request: Request<v1::StartRequest>,
    ) -> Result<Response<v1::StartResponse>, Status> {
        let request = request.into_inner();
        let checked = Start::try_from(request.clone())?;
        self.0.starts.lock().unwrap().push(request.clone());
        let temper = *self.0.temper.lock().unwrap();
        match temper {
            Temper::Well | Temper::Late | Temper::Nameless | Temper::Garbled => {}
            Temper::Silent => std::future::pending().await,
            Temper::Empty => return Ok(Response::new(v1::StartResponse::default())),
            Temper::Full => {
                return Err(status(
                    Code::ResourceExhausted,
                    Reason::SessionLimit,
                    "64 captures run",
                ));
            }
        }
        let (mut capture, existing) = self.0.start(request.idempotency_key, &checked);
        match temper {
            Temper::Late => std::future::pending().await,
            Temper::Nameless => capture.id = "../01J\u{1b}[2J".into(),
            _ => {}
        }
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
        request: Request<v1::StopRequest>,
    ) -> Result<Response<v1::StopResponse>, Status> {
        let id = request.into_inner().id;
        self.0.find(&id)?;
        let mut sessions = self.0.sessions.lock().unwrap();
        let state = sessions.values_mut().find(|state| state.id == id).unwrap();
        state.set_phase(v1::Phase::Finished);
        state.finished = Some(timestamp(self.0.now_ns()));
        let packets = self.0.packets;
        state.counts = Some(v1::Counts {
            matched: packets,
            written: packets,
            ..Default::default()
        });
        let capture = Some(state.clone());
        drop(sessions);
        self.0.changed.send_modify(|n| *n += 1);
        Ok(Response::new(v1::StopResponse { capture }))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let capture = Some(self.0.find(&request.into_inner().id)?);
        Ok(Response::new(v1::GetResponse { capture }))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        if *self.0.temper.lock().unwrap() == Temper::Silent {
            std::future::pending::<()>().await;
        }
        let v1::ListRequest { all, part_of } = request.into_inner();
        let is_wanted = |state: &&v1::CaptureState| {
            let part = state.spec.as_ref().and_then(|spec| spec.part.as_ref());
            (all || state.phase() == v1::Phase::Capturing)
                && (part_of.is_empty() || part.is_some_and(|part| part.capture == part_of))
        };
        let sessions = self.0.sessions.lock().unwrap();
        let captures = sessions.values().filter(is_wanted).cloned().collect();
        Ok(Response::new(v1::ListResponse { captures }))
    }

    type WatchStream = Responses<v1::WatchResponse>;
    async fn watch(
        &self,
        _: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("fake"))
    }

    type StreamStream = Responses<v1::StreamResponse>;
    async fn stream(
        &self,
        request: Request<v1::StreamRequest>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let id = request.into_inner().id;
        let state = self.0.find(&id)?;
        let (sender, receiver) = mpsc::channel(4);
        let node = self.0.clone();
        if *node.temper.lock().unwrap() == Temper::Garbled {
            let blocks = Message::Blocks(vec![0xa5; 64 * 1024].into());
            let garbled = v1::StreamResponse {
                message: Some(blocks),
            };
            sender.try_send(Ok(garbled)).unwrap();
            return Ok(Response::new(ReceiverStream::new(receiver)));
        }
        tokio::spawn(async move {
            let mut changed = node.changed.subscribe();
            let mut message = heading(&pod(&state));
            for n in 0..node.packets {
                let blocks = Message::Blocks(std::mem::take(&mut message).into());
                let _gone = sender
                    .send(Ok(v1::StreamResponse {
                        message: Some(blocks),
                    }))
                    .await;
                message = packet(&node, &pod(&state), n);
            }
            let blocks = Message::Blocks(message.into());
            let _gone = sender
                .send(Ok(v1::StreamResponse {
                    message: Some(blocks),
                }))
                .await;
            loop {
                let state = node.find(&id).unwrap();
                if state.phase() == v1::Phase::Finished {
                    let finished = Some(Message::Finished(state));
                    let _gone = sender
                        .send(Ok(v1::StreamResponse { message: finished }))
                        .await;
                    return;
                }
                tokio::select! {
                    _ = changed.changed() => {}
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type EvidenceStream = Responses<v1::EvidenceResponse>;
    async fn evidence(
        &self,
        _: Request<v1::EvidenceRequest>,
    ) -> Result<Response<Self::EvidenceStream>, Status> {
        Err(Status::unimplemented("fake"))
    }

    async fn delete(
        &self,
        _: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        Err(Status::unimplemented("fake"))
    }

    async fn hold(
        &self,
        _: Request<v1::HoldRequest>,
    ) -> Result<Response<v1::HoldResponse>, Status> {
        Err(Status::unimplemented("fake"))
    }

    async fn release(
        &self,
        _: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        Err(Status::unimplemented("fake"))
    }
}

fn pod(state: &v1::CaptureState) -> String {
    let target = state.spec.as_ref().and_then(|spec| spec.target.clone());
    match target.and_then(|target| target.target) {
        Some(Target::Pod(pod)) => pod.name,
        other => format!("{other:?}"),
    }
}

fn heading(pod: &str) -> Vec<u8> {
    let interface = Interface {
        name: &format!("shop/{pod}/eth0"),
        description: "host end",
        filter: &"".parse().unwrap(),
        snaplen: Snaplen::MAX,
    };
    [
        section_header(&Section::default()),
        interface_description(&interface),
    ]
    .concat()
}

/// Packet `n` of a pod: at the true second `n`, stamped by the node's clock.
fn packet(node: &NodeState, pod: &str, n: u64) -> Vec<u8> {
    let mut block = Vec::new();
    let meta = PacketMeta {
        interface_id: 0,
        time_ns: TRUE_NS + n * 1_000_000_000 + u64::try_from(node.skew.as_nanos()).unwrap(),
        direction: PacketDirection::Egress,
        packet_id: Some(n),
        drop_count: 0,
        original_len: 0,
        comment: None,
    };
    encode_packet(&mut block, &meta, &[0; 14], format!("{pod}:{n}").as_bytes());
    block
}

/// When the first packets are, in nanoseconds of UTC.
pub(crate) const TRUE_NS: u64 = 1_795_489_205_000_000_000;

#[tonic::async_trait]
impl node_server::Node for Service {
    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        if *self.0.temper.lock().unwrap() == Temper::Silent {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(v1::StatusResponse {
            node: self.0.name.clone(),
            version: "0.1.0".into(),
            sessions_limit: 64,
            time: Some(timestamp(self.0.now_ns())),
            ..Default::default()
        }))
    }
}

/// A node's agent, until it is dropped.
#[derive(Debug)]
pub(crate) struct FakeNode {
    pub(crate) state: Arc<NodeState>,
    pub(crate) socket: PathBuf,
    serving: tokio::task::JoinHandle<()>,
}

impl FakeNode {
    pub(crate) fn listen(
        directory: &std::path::Path,
        name: &str,
        skew: Duration,
        packets: u64,
    ) -> Self {
        let socket = directory.join(format!("{name}.sock"));
        let state = Arc::new(NodeState {
            name: name.to_owned(),
            skew,
            temper: Mutex::new(Temper::Well),
            sessions: Mutex::default(),
            starts: Mutex::default(),
            changed: watch::Sender::new(0),
            packets,
        });
        let listener = UnixListener::bind(&socket).unwrap();
        let service = Service(state.clone());
        let server = tonic::transport::Server::builder()
            .add_service(capture_server::CaptureServer::new(service.clone()))
            .add_service(node_server::NodeServer::new(service));
        let serving = tokio::spawn(async move {
            server
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self {
            state,
            socket,
            serving,
        }
    }

    pub(crate) fn temper(&self, temper: Temper) {
        *self.state.temper.lock().unwrap() = temper;
    }

    /// From now on it answers whatever comes with bytes that are no HTTP/2.
    pub(crate) fn babble(&mut self) {
        self.serving.abort();
        std::fs::remove_file(&self.socket).unwrap();
        let listener = UnixListener::bind(&self.socket).unwrap();
        self.serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _gone = stream.write_all(&[0xa5; 4096]).await;
            }
        });
    }

    /// Pods that it captures.
    pub(crate) fn pods(&self) -> Vec<String> {
        let sessions = self.state.sessions.lock().unwrap();
        let running = sessions
            .values()
            .filter(|state| state.phase() == v1::Phase::Capturing);
        let mut pods: Vec<_> = running.map(pod).collect();
        pods.sort();
        pods
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
