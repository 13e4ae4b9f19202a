//! An API server that knows the controller's pods and forwards their port: nothing else of Kubernetes.
//!
//! A request that asks for a WebSocket is a port-forward to the pod that its path names; every message
//! has its channel's number first, 0 for data and 1 for an error (`v4.channel.k8s.io`).

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::oneshot,
};
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
        http::HeaderValue,
    },
};

/// What is spoken on the WebSocket.
const PROTOCOL: &str = "v4.channel.k8s.io";

/// What the API server knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Knowledge {
    /// Sockets of the controller's pods, by name; those of no socket refuse connections.
    pub(super) pods: BTreeMap<String, Option<PathBuf>>,
    /// Those of them that Kubernetes takes for unready.
    pub(super) unready: Vec<&'static str>,
    /// PEM of the ConfigMap.
    pub(super) authority: Option<String>,
    /// What is forbidden, by a part of its path.
    pub(super) forbidden: Option<&'static str>,
}

/// What came, as `METHOD PATH AUTHORIZATION`.
type Seen = Arc<Mutex<Vec<String>>>;

/// The server, in a thread of its own until it is dropped.
#[derive(Debug)]
pub(super) struct Api {
    address: SocketAddr,
    seen: Seen,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Api {
    pub(super) fn run(knowledge: Knowledge) -> Self {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let seen = Seen::default();
        let (end, mut ended) = oneshot::channel();
        let shared = (Arc::new(knowledge), Arc::clone(&seen));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(socket).unwrap();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let (stream, _) = accepted.unwrap();
                            let (knowledge, seen) = shared.clone();
                            tokio::spawn(serve(stream, knowledge, seen));
                        }
                        _ = &mut ended => return,
                    }
                }
            });
        });
        Self {
            address,
            seen,
            end: Some(end),
            thread: Some(thread),
        }
    }

    /// A kubeconfig with a token for this server.
    pub(super) fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             current-context: x\n\
             clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\n\
             users: [{{name: u, user: {{token: secret-token}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u, namespace: shop}}}}]\n",
            self.address
        )
    }

    pub(super) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            let _dead_already = end.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _its_panic_was_shown = thread.join();
        }
    }
}

async fn serve(mut stream: TcpStream, knowledge: Arc<Knowledge>, seen: Seen) {
    // A request's head is in the socket's buffer before any of it is taken out.
    let mut head = vec![0; 8192];
    let len = loop {
        let Ok(len) = stream.peek(&mut head).await else {
            return;
        };
        if len == 0 {
            return;
        }
        if head[..len].windows(4).any(|end| end == b"\r\n\r\n") {
            break len;
        }
        tokio::task::yield_now().await;
    };
    let head = String::from_utf8(head[..len].to_vec()).unwrap();
    if head.to_ascii_lowercase().contains("upgrade: websocket") {
        forward(stream, &knowledge, &seen).await;
        return;
    }
    // With its body: an answer to a request that is not read may be lost.
    let end = head.find("\r\n\r\n").unwrap() + 4;
    let body: usize = header(&head, "content-length").parse().unwrap_or(0);
    let mut request = vec![0; end + body];
    stream.read_exact(&mut request).await.unwrap();
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let authorization = header(&head, "authorization");
    seen.lock()
        .unwrap()
        .push(format!("{method} {path} {authorization}"));
    let (code, body) = answer(path, &knowledge);
    let body = body.to_string();
    let response = format!(
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let _gone = stream.write_all(response.as_bytes()).await;
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let mut found = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
    found.next().map_or("", |(_, value)| value)
}

fn answer(path: &str, knowledge: &Knowledge) -> (u16, Value) {
    if let Some(part) = knowledge.forbidden
        && path.contains(part)
    {
        let message = format!("pods is forbidden: User \"alice\" cannot list {part}");
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                            "message": message, "reason": "Forbidden", "code": 403});
        return (403, status);
    }
    if path.starts_with("/api/v1/namespaces/remora/pods?") {
        assert!(path.contains("app.kubernetes.io"), "{path}");
        let is_ready = |name: &String| !knowledge.unready.contains(&name.as_str());
        let pods = knowledge.pods.keys();
        let pods: Vec<_> = pods.map(|name| pod(name, is_ready(name))).collect();
        return (
            200,
            json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}),
        );
    }
    if path.starts_with("/api/v1/namespaces/remora/configmaps/remora-ca")
        && let Some(pem) = &knowledge.authority
    {
        let map = json!({"kind": "ConfigMap", "apiVersion": "v1",
                         "metadata": {"name": "remora-ca"}, "data": {"ca.crt": pem}});
        return (200, map);
    }
    if path.starts_with("/api/v1/namespaces/shop/pods") {
        let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                          "metadata": {}, "items": [
            {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
             "metadata": {"name": "cart-a", "namespace": "shop"}},
            {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
             "metadata": {"name": "web-b", "namespace": "shop"}}]});
        return (200, list);
    }
    if path.starts_with("/apis/authentication.k8s.io/v1/selfsubjectreviews") {
        let review = json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1",
                            "metadata": {}, "status": {"userInfo": {"username": "alice"}}});
        return (201, review);
    }
    if path.starts_with("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews") {
        let review = json!({"kind": "SelfSubjectAccessReview",
                            "apiVersion": "authorization.k8s.io/v1", "metadata": {}, "spec": {},
                            "status": {"allowed": false}});
        return (201, review);
    }
    if path.starts_with("/version") {
        let version = json!({"major": "1", "minor": "37", "gitVersion": "v1.37.0",
                             "gitCommit": "", "gitTreeState": "", "buildDate": "",
                             "goVersion": "", "compiler": "", "platform": ""});
        return (200, version);
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                        "message": format!("{path} not found"), "reason": "NotFound", "code": 404});
    (404, status)
}

fn pod(name: &str, is_ready: bool) -> Value {
    let ready = if is_ready { "True" } else { "False" };
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "remora"},
        "spec": {"containers": [{"name": "controller",
                                 "ports": [{"name": "grpc", "containerPort": 2805}]}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
    })
}

#[allow(
    clippy::result_large_err,
    reason = "the signature that the WebSocket's handshake asks for"
)]
async fn forward(stream: TcpStream, knowledge: &Knowledge, seen: &Seen) {
    let mut pod = String::new();
    let accepted = accept_hdr_async(stream, |request: &Request, mut response: Response| {
        let path = request.uri().path();
        pod = path.split('/').nth(6).unwrap_or_default().to_owned();
        let query = request.uri().query().unwrap_or_default();
        let authorization = request.headers().get("authorization");
        let authorization = authorization.map(|value| value.to_str().unwrap_or_default());
        seen.lock().unwrap().push(format!(
            "GET {path}?{query} {}",
            authorization.unwrap_or_default()
        ));
        let protocol = HeaderValue::from_static(PROTOCOL);
        response
            .headers_mut()
            .insert("sec-websocket-protocol", protocol);
        Ok(response)
    });
    let Ok(mut socket) = accepted.await else {
        return;
    };
    let port = 2805_u16.to_le_bytes();
    for channel in [0, 1] {
        let first = vec![channel, port[0], port[1]];
        if socket.send(Message::Binary(first.into())).await.is_err() {
            return;
        }
    }
    let there = knowledge.pods.get(&pod).cloned().flatten();
    let there = match there {
        Some(path) => UnixStream::connect(path).await.ok(),
        None => None,
    };
    let Some(mut there) = there else {
        let error = [&[1][..], b"failed to connect to localhost:2805"].concat();
        let _gone = socket.send(Message::Binary(error.into())).await;
        let _gone = socket.close(None).await;
        return;
    };
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            read = there.read(&mut buffer) => {
                let Ok(len @ 1..) = read else { break };
                let message = [&[0][..], &buffer[..len]].concat();
                if socket.send(Message::Binary(message.into())).await.is_err() {
                    break;
                }
            }
            message = socket.next() => {
                let Some(Ok(message)) = message else { break };
                if let Message::Binary(bytes) = message
                    && let [0, data @ ..] = &*bytes
                    && there.write_all(data).await.is_err()
                {
                    break;
                }
            }
        }
    }
    let _gone = socket.close(None).await;
}
