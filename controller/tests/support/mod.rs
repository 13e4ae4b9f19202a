//! A controller in this process, with a fake agent on a Unix socket of its own.
//!
//! The fake answers as told, so that faults can be forced; the real agent's part is proved in the
//! workspace's end-to-end suites.
#![allow(dead_code, reason = "each suite uses a part")]

mod agent;
pub(crate) mod apiserver;
pub(crate) mod bed;
pub(crate) mod nodes;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub(crate) use agent::{Behaviour, FakeAgent};
use remora_controller::{
    app::{App, Drained},
    args::{AccessArgs, AlertsArgs, LogFormat, RunArgs, TalonArgs, TlsArgs},
};
use remora_proto::client::AgentAddress;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};

/// Longest wait for anything in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A rule that captures the endpoint of every alert.
pub(crate) const ANY: &str = "
- rule: any
  actions:
    - action: capture
      actionner: remora:capture
";

/// An alert as Falcosidekick sends it, about the connection to `remote`.
pub(crate) fn alert(remote: &str) -> Value {
    serde_json::json!({
        "output": format!("03:00:05.478445995: Critical Outbound connection to C2 server | connection=10.244.1.7:43812->{remote}:4444"),
        "priority": "Critical",
        "rule": "Outbound Connection to C2 Servers",
        "time": "2026-11-24T03:00:05.478445995Z",
        "source": "syscall",
        "hostname": "worker-1",
        "tags": ["network", "T1071"],
        "output_fields": {
            "container.id": "ee97d9c4186f",
            "evt.type": "connect",
            "fd.is_server": false,
            "fd.l4proto": "tcp",
            "fd.name": format!("10.244.1.7:43812->{remote}:4444"),
            "fd.sip": remote,
            "fd.sip.name": "c2.example",
            "fd.sport": 4444,
            "k8s.ns.name": "shop",
            "k8s.pod.name": "cart-7d9f8c6b5-x2x4q",
            "proc.pid": 1234567,
        },
    })
}

/// A running controller. Its directory, socket and port go with it.
#[derive(Debug)]
pub(crate) struct TestController {
    dir: tempfile::TempDir,
    pub(crate) address: std::net::SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Drained>,
}

impl TestController {
    /// With these rules, and an agent's socket at [`TestController::socket`].
    pub(crate) async fn start(rules: &str) -> Self {
        Self::start_with(rules, |_, _| {}).await
    }

    /// With arguments that are set in its directory.
    pub(crate) async fn start_with(rules: &str, set: impl FnOnce(&Path, &mut RunArgs)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rules.yaml");
        std::fs::write(&file, rules).unwrap();
        let mut args = RunArgs {
            config: None,
            agent: AgentAddress::Unix(dir.path().join("agent.sock")),
            listen: "127.0.0.1:0".parse().unwrap(),
            alerts: AlertsArgs::default(),
            talon: TalonArgs::default(),
            tls: TlsArgs::default(),
            access: AccessArgs::default(),
            rules: vec![file],
            sinks: Vec::new(),
            log_format: LogFormat::Text,
            notify: Default::default(),
            cluster: Default::default(),
        };
        set(dir.path(), &mut args);
        let app = App::build(&args).await.unwrap();
        let address = app.address();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(app.run(async { drop(stopped.await) }));
        Self {
            dir,
            address,
            stop: Some(stop),
            running,
        }
    }

    /// With an agent that behaves so.
    pub(crate) async fn with_agent(rules: &str, behaviour: Behaviour) -> (Self, FakeAgent) {
        let controller = Self::start(rules).await;
        let agent = FakeAgent::listen(controller.socket(), behaviour);
        (controller, agent)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// Asks it to end, as SIGTERM does.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub(crate) async fn wait(self) -> Drained {
        tokio::time::timeout(PATIENCE, self.running)
            .await
            .expect("ends in time")
            .unwrap()
    }

    pub(crate) async fn post(&self, alert: &Value) -> Answer {
        self.post_bytes("/", &serde_json::to_vec(alert).unwrap())
            .await
    }

    pub(crate) async fn post_bytes(&self, path: &str, body: &[u8]) -> Answer {
        self.send(&request(
            "POST",
            path,
            &["Content-Type: application/json"],
            body,
        ))
        .await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(&request("GET", path, &[], b"")).await
    }

    /// Sends these bytes and reads one answer. The connection's write side stays open.
    pub(crate) async fn send(&self, request: &[u8]) -> Answer {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            // A refusal may come before the whole request is out.
            let _reset = stream.write_all(request).await;
            let mut bytes = Vec::new();
            while !Answer::is_whole(&bytes) {
                if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                    break;
                }
            }
            Answer::parse(&bytes)
        };
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .expect("answers in time")
    }

    /// The value of a counter, by its line's start.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await.body;
        let line = text
            .lines()
            .find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// received = accepted + existing + ignored + refused, once nothing is in work.
    pub(crate) async fn law(&self) -> Law {
        let in_work = || self.metric("remora_controller_alerts_in_flight");
        let quiet = async { while in_work().await > 0 {} };
        tokio::time::timeout(PATIENCE, quiet)
            .await
            .expect("comes to rest");
        let decided = |decision| {
            let name = format!("remora_controller_alerts_total{{decision=\"{decision}\"}}");
            async move { self.metric(&name).await }
        };
        let law = Law {
            received: self.metric("remora_controller_alerts_received_total").await,
            accepted: decided("accepted").await,
            existing: decided("existing").await,
            ignored: decided("ignored").await,
            refused: decided("refused").await,
        };
        assert_eq!(
            law.received,
            law.accepted + law.existing + law.ignored + law.refused
        );
        law
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Law {
    pub(crate) received: u64,
    pub(crate) accepted: u64,
    pub(crate) existing: u64,
    pub(crate) ignored: u64,
    pub(crate) refused: u64,
}

/// One HTTP/1.1 request that closes its connection.
pub(crate) fn request(method: &str, path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
    for header in headers {
        request += header;
        request += "\r\n";
    }
    if !body.is_empty() {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    request += "\r\n";
    [request.as_bytes(), body].concat()
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    fn is_whole(bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return false;
        };
        // No content has no length.
        if head.starts_with("HTTP/1.1 204 ") {
            return true;
        }
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        length.is_some_and(|length| body.len() >= length.parse().unwrap())
    }

    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        Self {
            status: status.unwrap_or_else(|| panic!("no answer: {text:?}")),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    pub(crate) fn text(&self, key: &str) -> String {
        self.json()[key]
            .as_str()
            .unwrap_or_else(|| panic!("no {key}: {}", self.body))
            .to_owned()
    }
}
