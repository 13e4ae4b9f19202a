//! A capture that has ended is told to receivers: real ones, by HTTP.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_capture::evidence::Digest;
use remora_tests::{
    agent::TestAgent,
    certificates::{Ca, Wanted},
    controller::{self, C2_RULES, TestController, c2_alert},
    netns::Netns,
    node::{Node, Pod},
    run::{self, Proc},
    traffic, wait,
};
use serde_json::Value;

const C2: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 23);
const RECEIVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 2801);
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const LIMIT: Duration = Duration::from_secs(30);

struct Scene {
    web: Pod,
    c2: Netns,
    node: Node,
}

impl Scene {
    fn new() -> Result<Self> {
        let node = Node::new()?;
        Ok(Self {
            web: node.pod("web")?,
            c2: node.outside("c2", C2)?,
            node,
        })
    }

    /// A capture of the pod's C2 traffic, by an alert; with some in it.
    fn captured(&self, controller: &TestController<'_>, port: u16) -> Result<String> {
        let beacon = SocketAddr::from((C2, port));
        let mut alert = c2_alert(&self.web, beacon, 43812);
        alert["uuid"] = format!("00000000-0000-4000-8000-{port:012}").into();
        let alert = serde_json::to_vec(&alert)?;
        let id = controller::capture_id(&controller.post(&alert)?)?;
        traffic::tcp_exchange(self.web.netns(), &self.c2, beacon, 5000)?;
        Ok(id)
    }
}

/// A request as it came.
#[derive(Clone, Debug, Default)]
struct Post {
    head: Vec<String>,
    body: String,
}

/// What a receiver does with one connection.
#[derive(Clone, Copy)]
enum Then {
    HangUp,
    Answer(&'static str),
}

/// Takes notifications on the node until the test ends.
struct Receiver(Arc<Mutex<Vec<Post>>>);

impl Receiver {
    /// Does so with its first connections, and answers those after them well.
    fn start(node: &Node, first: &'static [Then]) -> Result<Self> {
        let listener = node.netns().enter(|| Ok(TcpListener::bind(RECEIVER)?))?;
        let posts = Arc::<Mutex<Vec<Post>>>::default();
        let kept = posts.clone();
        thread::spawn(move || {
            for (n, stream) in listener.incoming().enumerate() {
                let then = first.get(n).copied().unwrap_or(Then::Answer("200 OK"));
                if let Ok(Some(post)) = stream.map_err(Into::into).and_then(|s| take(s, then)) {
                    kept.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(post);
                }
            }
        });
        Ok(Self(posts))
    }

    fn posts(&self) -> Vec<Post> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn wait(&self, count: usize, controller: &TestController<'_>) -> Result<Vec<Post>> {
        let posts = wait::until_some(LIMIT, "the notifications", || {
            let posts = self.posts();
            Ok((posts.len() >= count).then_some(posts))
        });
        posts.with_context(|| format!("{:?}, {}", self.posts(), controller.log()))
    }
}

fn take(stream: TcpStream, then: Then) -> Result<Option<Post>> {
    let Then::Answer(status) = then else {
        return Ok(None);
    };
    stream.set_read_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(stream);
    let mut post = Post::default();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            line => post.head.push(line.to_ascii_lowercase()),
        }
    }
    let length = post
        .head
        .iter()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.context("no length")?.parse()?];
    reader.read_exact(&mut body)?;
    post.body = String::from_utf8(body)?;
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    reader.into_inner().write_all(answer.as_bytes())?;
    Ok(Some(post))
}

fn notifying(node: &Node) -> Result<Vec<String>> {
    let secret = node.directory().join("notify-secret");
    std::fs::write(&secret, SECRET)?;
    Ok(vec![
        format!("--notify=http://{RECEIVER}/hook?x=1"),
        format!("--notify-secret={}", secret.display()),
    ])
}

/// A receiver by TLS, in Python: prints the bodies that it takes.
const HTTPS_RECEIVER: &str = r#"
import http.server, ssl, sys
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
        print("took", body.decode(), flush=True)
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 2801), Receiver)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
"#;

/// As openssl has it, which is none of ours.
fn signature(node: &Node, body: &str) -> Result<String> {
    let file = node.directory().join("body");
    std::fs::write(&file, body)?;
    let said = run::output(
        run::command("openssl")
            .args(["dgst", "-sha256", "-r", "-hmac", SECRET])
            .arg(&file),
    )?;
    Ok(said
        .split_whitespace()
        .next()
        .context("no digest")?
        .to_owned())
}

#[test]
fn a_receiver_that_fails_first_is_told_in_the_end_with_counts_and_digest() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start(&scene.node)?;
    let receiver = Receiver::start(
        &scene.node,
        &[Then::HangUp, Then::Answer("503 Service Unavailable")],
    )?;
    let controller = TestController::start_with(&agent, C2_RULES, &notifying(&scene.node)?)?;
    let id = scene.captured(&controller, 4444)?;
    let state = agent.stop(&id)?;
    let counts = state.counts.context("no counts")?;
    // The one that got 503, and the one that was taken.
    let posts = receiver.wait(2, &controller)?;
    assert_eq!(posts[0].body, posts[1].body);
    let post = &posts[1];
    assert_eq!(post.head[0], "post /hook?x=1 http/1.1");
    let signed = format!(
        "x-remora-signature-256: sha256={}",
        signature(&scene.node, &post.body)?
    );
    ensure!(post.head.contains(&signed), "{signed}: {:?}", post.head);

    let event: Value = serde_json::from_str(&post.body)?;
    // What Falcosidekick wants of an alert.
    for key in ["output", "priority", "rule", "time", "source"] {
        ensure!(
            event[key].as_str().is_some_and(|text| !text.is_empty()),
            "{key}: {event}"
        );
    }
    assert_eq!(
        (&event["source"], &event["priority"]),
        (&"remora".into(), &"Notice".into())
    );
    let fields = &event["output_fields"];
    assert_eq!(fields["remora.capture_id"], *id);
    assert_eq!(fields["remora.packets.written"], counts.written);
    ensure!(counts.written > 5, "{counts:?}");
    assert_eq!(fields["remora.packets.missing"], 0);
    assert_eq!(fields["remora.stop_reason"], "requested");
    assert_eq!(
        fields["remora.trigger.rule"],
        "Outbound Connection to C2 Servers"
    );
    let file = agent.file(&state);
    let digest = Digest::of(&std::fs::read(&file)?).to_string();
    assert_eq!(fields["remora.file.0.sha256"], *digest);
    assert_eq!(
        fields["remora.file.0.bytes"],
        std::fs::metadata(&file)?.len()
    );

    let metrics = remora_tests::http::over_tcp(
        scene.node.netns(),
        controller.address(),
        remora_tests::http::Request::get("/metrics"),
    )?;
    ensure!(
        metrics
            .body
            .contains("remora_controller_notifications_total{result=\"sent\"} 1\n"),
        "{}",
        metrics.body
    );
    Ok(())
}

#[test]
fn what_an_agent_that_was_killed_repairs_is_told_once() -> Result<()> {
    let scene = Scene::new()?;
    let mut agent = TestAgent::start(&scene.node)?;
    let receiver = Receiver::start(&scene.node, &[])?;
    let controller = TestController::start_with(&agent, C2_RULES, &notifying(&scene.node)?)?;
    let id = scene.captured(&controller, 4444)?;
    // Told by the agent that it runs: else nobody could know that it ended.
    let second = scene.captured(&controller, 4445)?;
    agent.stop(&second)?;
    receiver.wait(1, &controller)?;
    let status = agent.end_by(Signal::SIGKILL)?;
    ensure!(run::killed_by(status) == Some(Signal::SIGKILL), "{status}");
    agent.start_again()?;
    let posts = receiver.wait(2, &controller)?;
    let told: Vec<Value> = posts
        .iter()
        .map(|post| serde_json::from_str(&post.body))
        .collect::<Result<_, _>>()?;
    let of = |n: usize| &told[n]["output_fields"];
    assert_eq!(of(0)["remora.capture_id"], *second);
    assert_eq!(of(1)["remora.capture_id"], *id);
    assert_eq!(of(1)["remora.stop_reason"], "crash_recovered");
    assert_eq!(told[1]["priority"], "Warning");
    ensure!(receiver.posts().len() == 2, "{:?}", receiver.posts());
    Ok(())
}

#[test]
fn a_receiver_by_https_is_told_if_its_certificate_is_by_the_ca_that_was_given() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start(&scene.node)?;
    let directory = scene.node.directory();
    let (ca, stranger) = (Ca::new("receivers"), Ca::new("others"));
    let wanted = Wanted::server(&["127.0.0.1"]);
    let receiver = |ca: &Ca, name: &str| -> Result<Proc> {
        let files = ca.sign(directory, name, &wanted);
        let mut python = scene.node.command("python3");
        python
            .args(["-c", HTTPS_RECEIVER])
            .arg(files.cert)
            .arg(files.key);
        let mut process = scene.node.spawn(&mut python, name)?;
        process.wait_for("ready", LIMIT)?;
        Ok(process)
    };
    let args = [
        format!("--notify=https://{RECEIVER}/hook"),
        format!("--notify-ca={}", ca.file(directory, "ca").display()),
    ];
    // Somebody in the receiver's place is told nothing.
    let mut other = receiver(&stranger, "stranger")?;
    let controller = TestController::start_with(&agent, C2_RULES, &args)?;
    let id = scene.captured(&controller, 4444)?;
    agent.stop(&id)?;
    let refused = || Ok(controller.log().contains("notification waits"));
    wait::until(LIMIT, "a refusal", || {
        other
            .ended()?
            .map_or_else(refused, |status| anyhow::bail!("{status}"))
    })
    .with_context(|| controller.log())?;
    assert!(!other.log().contains("took"), "{}", other.log());
    drop(other);
    let mut own = receiver(&ca, "receiver")?;
    own.wait_for("took", LIMIT)
        .with_context(|| controller.log())?;
    assert!(own.log().contains(&id), "{}", own.log());
    Ok(())
}

#[test]
fn what_ended_while_no_controller_ran_is_told_by_the_next() -> Result<()> {
    let scene = Scene::new()?;
    let agent = TestAgent::start(&scene.node)?;
    let receiver = Receiver::start(&scene.node, &[])?;
    let args = notifying(&scene.node)?;
    let (first, second);
    {
        let controller = TestController::start_with(&agent, C2_RULES, &args)?;
        first = scene.captured(&controller, 4444)?;
        second = scene.captured(&controller, 4445)?;
        agent.stop(&first)?;
        receiver.wait(1, &controller)?;
    }
    agent.stop(&second)?;
    // The one that was told before comes again, with the same uuid.
    let controller = TestController::start_with(&agent, C2_RULES, &args)?;
    let posts = receiver.wait(3, &controller)?;
    let events = posts.iter().map(|post| serde_json::from_str(&post.body));
    let events: Vec<Value> = events.collect::<Result<_, _>>()?;
    let id = |n: usize| &events[n]["output_fields"]["remora.capture_id"];
    assert_eq!(*id(0), *first);
    assert_eq!(
        events
            .iter()
            .filter(|e| e["uuid"] == events[0]["uuid"])
            .count(),
        2
    );
    ensure!((1..3).any(|n| *id(n) == *second), "{events:?}");
    drop(controller);

    // Not if it is not wanted.
    let args = [args, vec!["--notify-since=0".to_owned()]].concat();
    let controller = TestController::start_with(&agent, C2_RULES, &args)?;
    let third = scene.captured(&controller, 4446)?;
    agent.stop(&third)?;
    let posts = receiver.wait(4, &controller)?;
    ensure!(
        posts.len() == 4 && posts[3].body.contains(&third),
        "{posts:?}"
    );
    Ok(())
}
