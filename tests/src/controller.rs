//! `remora-controller`, and alerts as Falco sends them.

use std::{fs, net::SocketAddr, process::ExitStatus, time::Duration};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    agent::TestAgent,
    host::Host,
    http::{self, Request, Response},
    node::Pod,
    run::{self, Place, Proc, Rights},
    sigv4::{Signer, Unsigned},
    wait,
};

const START_LIMIT: Duration = Duration::from_secs(20);

/// Captures for every alert of "Outbound Connection to C2 Servers".
pub const C2_RULES: &str = r#"
- action: Capture C2 endpoint
  actionner: remora:capture
  parameters:
    duration: 10s
- rule: C2 traffic
  match:
    rules: [Outbound Connection to C2 Servers]
    priority: ">=Warning"
  actions:
    - action: Capture C2 endpoint
"#;

/// What [`TestController::invoke`] signs with.
const TALON_KEYS: (&str, &str) = ("AKIDREMORATEST", "a-secret-key-of-the-tests");

/// A controller on the agent's node; without any rights.
#[derive(Debug)]
pub struct TestController<'a> {
    process: Proc,
    node: &'a dyn Host,
    address: SocketAddr,
}

impl<'a> TestController<'a> {
    /// Starts it with a rule file and waits until it is healthy.
    ///
    /// # Errors
    /// It does not; with its log.
    pub fn start(agent: &TestAgent<'a>, rules: &str) -> Result<Self> {
        Self::start_with(agent, rules, &[])
    }

    /// With sinks, as `NAME=URL`, and the credentials of [`objects`](crate::objects).
    ///
    /// # Errors
    /// It does not; with its log.
    pub fn start_with_sinks(agent: &TestAgent<'a>, rules: &str, sinks: &[String]) -> Result<Self> {
        let audit = agent.node().directory().join("audit.log");
        let mut args = vec!["--audit-log".to_owned(), audit.display().to_string()];
        args.extend(
            sinks
                .iter()
                .flat_map(|sink| ["--sink".to_owned(), sink.clone()]),
        );
        let (key, secret) = crate::objects::KEYS;
        let keys = [
            ("AWS_ACCESS_KEY_ID", key),
            ("AWS_SECRET_ACCESS_KEY", secret),
        ];
        Self::start_in(agent, rules, (&args, &keys))
    }

    /// With a key pair for Falco Talon's `aws:lambda`, `TALON_KEYS`.
    ///
    /// # Errors
    /// It does not; with its log.
    pub fn start_for_talon(agent: &TestAgent<'a>, rules: &str) -> Result<Self> {
        let directory = agent.node().directory();
        let mut args = Vec::new();
        for (name, text) in [("access", TALON_KEYS.0), ("secret", TALON_KEYS.1)] {
            let file = directory.join(format!("talon-{name}-key"));
            fs::write(&file, text)?;
            args.push(format!("--talon-{name}-key-file"));
            args.push(file.display().to_string());
        }
        Self::start_with(agent, rules, &args)
    }

    /// With more of its command line.
    ///
    /// # Errors
    /// It does not; with its log.
    pub fn start_with(agent: &TestAgent<'a>, rules: &str, args: &[String]) -> Result<Self> {
        Self::start_in(agent, rules, (args, &[]))
    }

    fn start_in(
        agent: &TestAgent<'a>,
        rules: &str,
        (args, environment): (&[String], &[(&str, &str)]),
    ) -> Result<Self> {
        let node = agent.node();
        let address: SocketAddr = ([127, 0, 0, 1], 2803).into();
        let file = node.directory().join("rules.yaml");
        fs::write(&file, rules)?;
        let program = run::remora_program("remora-controller")?;
        // Root by uid, so that the agent's socket lets it in; it needs no capability.
        let place = Place {
            netns: Some(node.netns()),
            cgroup: None,
            rights: Rights::Root,
        };
        let mut process = Proc::spawn(
            place
                .command(program)
                .args([
                    "run",
                    "--agent",
                    &agent.address(),
                    "--listen",
                    &address.to_string(),
                ])
                .arg("--rules")
                .arg(&file)
                .args(args)
                .envs(environment.iter().copied()),
            node.directory(),
            "controller",
        )?;
        wait::until(START_LIMIT, "a healthy controller", || {
            if let Some(status) = process.ended()? {
                bail!("the controller ended ({status})");
            }
            let answer = http::over_tcp(node.netns(), address, Request::get("/healthz"));
            Ok(answer.is_ok_and(|answer| answer.status == 200))
        })
        .with_context(|| process.tail())?;
        Ok(Self {
            process,
            node,
            address,
        })
    }

    /// Posts an alert, as Falcosidekick does.
    ///
    /// # Errors
    /// No answer.
    pub fn post(&self, alert: &[u8]) -> Result<Response> {
        self.request(Request::post_json("/", alert))
    }

    /// # Errors
    /// No answer.
    pub fn request(&self, request: Request<'_>) -> Result<Response> {
        http::over_tcp(self.node.netns(), self.address, request)
            .with_context(|| self.process.tail())
    }

    /// Calls it as Falco Talon's `aws:lambda` does, with `event` and our parameters of the action.
    ///
    /// # Errors
    /// No answer.
    pub fn invoke(&self, invocation: &str, event: &Value, parameters: &str) -> Result<Response> {
        let mut event = event.clone();
        event["context"] = json!({
            "falco-talon.rule": "C2 traffic",
            "falco-talon.action": "Remora capture",
            "falco-talon.actionner": "aws:lambda",
            "falco-talon.action.parameters": parameters,
        });
        let body = serde_json::to_vec(&event)?;
        self.invoke_body((invocation, "attempt=1; max=3"), &body)
    }

    /// The same with a whole event as Talon sends it. `call`: its id and attempt.
    ///
    /// # Errors
    /// No answer.
    pub fn invoke_body(
        &self,
        (invocation, attempt): (&str, &str),
        body: &[u8],
    ) -> Result<Response> {
        let date = jiff::Timestamp::now()
            .strftime("%Y%m%dT%H%M%SZ")
            .to_string();
        let path = "/talon/lambda/2015-03-31/functions/remora-capture/invocations";
        let signer = Signer {
            access_key: TALON_KEYS.0,
            secret_key: TALON_KEYS.1,
            service: "lambda",
            date: &date,
        };
        let headers = signer.sign(Unsigned {
            method: "POST",
            path,
            host: "remora",
            headers: &[
                ("amz-sdk-invocation-id", invocation),
                ("amz-sdk-request", attempt),
                ("x-amz-invocation-type", "RequestResponse"),
            ],
            body,
        });
        let mut message = format!("POST {path} HTTP/1.1\r\nConnection: close\r\n");
        for (name, value) in headers {
            message += &format!("{name}: {value}\r\n");
        }
        let message = [message.as_bytes(), b"\r\n", body].concat();
        http::bytes_over_tcp(self.node.netns(), self.address, &message)
            .with_context(|| self.process.tail())
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends a signal and waits for its end.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn end_by(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.process.end_by(signal, START_LIMIT)
    }

    /// All that it printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// An answer's body, and what it says under `capture_id`.
///
/// # Errors
/// It is not JSON, or has no id.
pub fn capture_id(answer: &Response) -> Result<String> {
    let id = json(answer)?["capture_id"].as_str().map(str::to_owned);
    id.with_context(|| format!("no capture id in {} {}", answer.status, answer.body))
}

/// An answer's body.
///
/// # Errors
/// It is not JSON.
pub fn json(answer: &Response) -> Result<Value> {
    serde_json::from_str(&answer.body)
        .with_context(|| format!("not JSON: {} {}", answer.status, answer.body))
}

/// The alert of a pod's outbound connection, as Falcosidekick's webhook sends Falco's event
/// (recorded from the real programs, with this pod's container and this connection put in).
#[must_use]
pub fn c2_alert(pod: &Pod, remote: SocketAddr, local_port: u16) -> Value {
    let local = pod.ipv4();
    let connection = format!("{local}:{local_port}->{remote}");
    let container = &pod.container_id()[..12];
    json!({
        "uuid": "e7bcd738-6957-4276-af83-2da9c3bb24da",
        "output": format!(
            "03:00:05.478445995: Critical Outbound connection to C2 server | c2_addr={} \
             connection={connection} lport={local_port} rport={} fd_type=ipv4 fd_proto=tcp \
             evt_type=connect user=root process=xmrig k8s_ns=shop k8s_pod_name=cart-7d9f8c6b5-x2x4q",
            remote.ip(),
            remote.port()
        ),
        "priority": "Critical",
        "rule": "Outbound Connection to C2 Servers",
        "time": "2026-11-24T03:00:05.478445995Z",
        "output_fields": {
            "container.id": container,
            "container.image.repository": "registry.example/shop/cart",
            "container.image.tag": "1.4.2",
            "container.name": "cart",
            "evt.time": 1_795_489_205_478_445_995_u64,
            "evt.type": "connect",
            "fd.is_server": false,
            "fd.l4proto": "tcp",
            "fd.lport": local_port,
            "fd.name": connection,
            "fd.rport": remote.port(),
            "fd.sip": remote.ip().to_string(),
            "fd.sip.name": "c2.example",
            "fd.sport": remote.port(),
            "fd.type": "ipv4",
            "k8s.ns.name": "shop",
            "k8s.pod.name": "cart-7d9f8c6b5-x2x4q",
            "k8s.pod.uid": "0b9c5a4e-6a0b-4c1e-9a57-2f4c2f0f6a11",
            "proc.cmdline": "xmrig -o c2.example:4444",
            "proc.exepath": "/tmp/xmrig",
            "proc.name": "xmrig",
            "proc.pid": 1_234_567,
            "proc.tty": 0,
            "user.loginuid": -1,
            "user.name": "root",
            "user.uid": 0
        },
        "source": "syscall",
        "tags": ["T1071", "mitre_command_and_control", "network"],
        "hostname": "worker-1"
    })
}
