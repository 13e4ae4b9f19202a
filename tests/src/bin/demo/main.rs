//! The demo: a pod calls home, Falco alerts, and the packets of that endpoint are in a file before
//! the next call.
//!
//! Everything is real but Falco: namespaces, cgroups, traffic, the agent with two capabilities, the
//! controller. A tcpdump on the same veth is the witness: the file must have what it saw of the
//! endpoint, packet for packet, and nothing else. Any count that is off ends the demo with 1.
#![forbid(unsafe_code)]

mod account;
mod actor;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use actor::Actor;
use anyhow::{Context as _, Result, ensure};
use remora_proto::v1;
use remora_tests::{
    agent::TestAgent,
    bpf::Objects,
    controller::{self, TestController, c2_alert},
    name,
    netns::Netns,
    node::{Node, Pod},
    packets::Packet,
    proof::{self, Proven},
    run::Proc,
    screen::Screen,
    signals, traffic, wait, wire,
    wire::Tcpdump,
};

const C2: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 23);
const C2_PORT: u16 = 4444;
/// Calls home after the alert.
const BEACONS: usize = 5;
/// Pages that the pod fetches between two calls home.
const PAGES: usize = 4;
const RULES: &str = r#"
- action: Capture C2 endpoint
  actionner: remora:capture
  parameters:
    duration: 3s
- rule: C2 traffic
  match:
    rules: [Outbound Connection to C2 Servers]
    priority: ">=Warning"
  actions:
    - action: Capture C2 endpoint
"#;
/// Lines of tshark's that are shown: the first call home, and the start of the next.
const LINES_SHOWN: usize = 12;
/// Ends the witness's file.
const END: &[u8] = b"remora demo: end";
const LIMIT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if let Err(error) = signals::interrupt_waits() {
        eprintln!("demo: {error:#}");
        return ExitCode::FAILURE;
    }
    let screen = Screen::begin();
    // What `run` made is gone when it returns, also by an error.
    match run(&screen).and_then(|(kept, objects)| clean(&objects).map(|()| kept)) {
        Ok(kept) => {
            screen.heading("Done");
            screen.step(
                "cleaned up",
                "no namespace, cgroup, eBPF object or process is left",
            );
            screen.note(format!("the file stays: {}", kept.display()));
            ExitCode::SUCCESS
        }
        Err(_) if wait::is_interrupted() => {
            let left = name::left();
            if !left.is_empty() {
                eprintln!("demo: interrupted; left behind: {left:?}");
                return ExitCode::FAILURE;
            }
            eprintln!("demo: interrupted; all that it made is removed");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The stage, in the order in which it must go.
struct Stage {
    _servers: Vec<Proc>,
    cart: Pod,
    shop: Pod,
    _c2: Netns,
    node: Node,
}

/// Nothing that the demo made is left.
fn clean(objects: &Objects) -> Result<()> {
    let left = name::left();
    ensure!(left.is_empty(), "left behind: {left:?}");
    objects.gone()
}

/// Answers what is kept, and what of the kernel's was used.
fn run(screen: &Screen) -> Result<(PathBuf, Objects)> {
    screen.title("Remora demo: from a Falco alert to a capture file");
    screen.heading("The scene");
    let stage = Stage::set(screen)?;
    let mut agent = TestAgent::start(&stage.node)?;
    screen.step(
        "remora-agent",
        "uid 65532, CAP_BPF and CAP_NET_ADMIN alone, no_new_privs",
    );
    let objects = Objects::of_process(agent.pid()?)?;
    let controller = TestController::start(&agent, RULES)?;
    screen.step(
        "controller",
        format!("takes alerts at http://{}/", controller.address()),
    );

    screen.heading("The incident");
    let incident = play(screen, &stage, &agent, &controller)?;
    let kept = keep(&incident.proven)?;

    screen.heading("The conversation, as tshark prints it");
    let lines = wire::tshark(&incident.proven.path, &["-N", "n"])?;
    for line in lines.lines().take(LINES_SHOWN) {
        screen.quote(line.trim_end());
    }
    let more = lines.lines().count().saturating_sub(LINES_SHOWN);
    screen.note(format!("and {more} more packets of the same kind"));

    screen.heading("The account");
    account::account(screen, &stage, &incident)?;
    let status = agent.end_by(nix::sys::signal::Signal::SIGTERM)?;
    ensure!(status.success(), "the agent ended with {status}");
    screen.fact("file", kept.display());
    screen.note(format!(
        "sidecar beside it; {:.1} s in all",
        screen.seconds()
    ));
    Ok((kept, objects))
}

impl Stage {
    fn set(screen: &Screen) -> Result<Self> {
        let node = Node::new()?;
        let (cart, shop) = (node.pod("cart")?, node.pod("shop")?);
        for (name, pod, role) in [
            ("pod cart", &cart, "browses, and calls home"),
            ("pod shop", &shop, "serves HTTP"),
        ] {
            screen.step(
                name,
                format!(
                    "{:<15} {role:<24} cgroup {}",
                    pod.ipv4(),
                    pod.cgroup().path()
                ),
            );
        }
        let c2 = node.outside("c2", C2)?;
        screen.step(
            "host c2",
            format!(
                "{C2:<15} {:<24} beyond the node, port {C2_PORT}",
                "the C2 server"
            ),
        );
        let directory = node.directory();
        let servers = vec![
            actor::serve(
                |tool| shop.command(tool),
                (shop.ipv4(), 80).into(),
                directory,
                "shop",
            )?,
            actor::serve(
                |tool| c2.command(tool),
                (C2, C2_PORT).into(),
                directory,
                "c2",
            )?,
        ];
        Ok(Self {
            _servers: servers,
            cart,
            shop,
            _c2: c2,
            node,
        })
    }
}

/// What happened, with the times since the alert was sent.
struct Incident {
    proven: Proven,
    witness: Vec<Packet>,
    /// Port of the call that the alert is about: before the capture.
    alerted_port: u16,
    pages: usize,
    answered: Duration,
    first_packet: Duration,
}

fn play(
    screen: &Screen,
    stage: &Stage,
    agent: &TestAgent<'_>,
    controller: &TestController<'_>,
) -> Result<Incident> {
    let Stage {
        cart, shop, node, ..
    } = stage;
    let endpoint = SocketAddr::from((C2, C2_PORT));
    let actor = |pod: &Pod, verb, at, name| {
        Actor::start(|tool| pod.command(tool), verb, at, node.directory(), name)
    };
    let mut visitor = actor(cart, "browse", (shop.ipv4(), 80).into(), "browse")?;
    let mut malware = actor(cart, "beacon", endpoint, "beacon")?;
    let mut neighbour = actor(shop, "beacon", endpoint, "neighbour")?;
    let tcpdump = Tcpdump::start(
        |tool| node.command(tool),
        cart.interface(),
        "",
        node.directory(),
    )?;

    for _ in 0..PAGES {
        visitor.request()?;
    }
    screen.step(
        "cart",
        format!("fetches pages from http://{}/", shop.ipv4()),
    );
    let alerted_port = malware.request()?;
    screen.step(
        "cart",
        format!("connects to {endpoint} from port {alerted_port}: Falco sees that"),
    );

    let alert = serde_json::to_vec(&c2_alert(cart, endpoint, alerted_port))?;
    let (asked, begun) = (std::time::SystemTime::now(), Instant::now());
    let answer = controller.post(&alert)?;
    let answered = begun.elapsed();
    let id = controller::capture_id(&answer)
        .with_context(|| format!("the controller answered {} {}", answer.status, answer.body))?;
    screen.step(
        "alert",
        format!(
            "POSTed to the controller as Falcosidekick does, {} bytes",
            alert.len()
        ),
    );
    screen.step(
        "armed",
        format!(
            "after {:.2} ms: the answer is {} with capture {id}",
            answered.as_secs_f64() * 1e3,
            answer.status
        ),
    );
    let state = agent.get(&id)?;
    let filter = state
        .spec
        .as_ref()
        .map(|spec| spec.filter.clone())
        .unwrap_or_default();
    screen.step("filter", filter);
    screen.step("target", state.resolved_target);

    for _ in 0..BEACONS {
        malware.request()?;
        for _ in 0..PAGES {
            visitor.request()?;
        }
        // The same endpoint, another pod: none of its packets is this capture's.
        neighbour.request()?;
        wait::pace(Duration::from_millis(200))?;
    }
    screen.step(
        "traffic",
        format!(
            "cart calls home {BEACONS} times and fetches {} pages; shop calls the same endpoint",
            visitor.requests() - PAGES
        ),
    );
    traffic::datagram(cart.netns(), (C2, 9).into(), END)?;
    tcpdump.wait_for_frame("the end of the witness's file", |frame| {
        frame.ends_with(END)
    })?;
    let state = agent.wait_final(&id, LIMIT)?;
    ensure!(
        state.stop_reason() == v1::StopReason::Duration,
        "ended by {:?}",
        state.stop_reason()
    );
    screen.step(
        "finished",
        "the rule's 3 s are over; the kernel let nothing in after them",
    );
    let first = state.first_packet.context("no packet")?;
    let first = Duration::new(first.seconds.try_into()?, first.nanos.try_into()?);
    Ok(Incident {
        proven: proof::prove(agent, &state)?,
        witness: tcpdump.stop()?.packets,
        alerted_port,
        pages: visitor.requests(),
        answered,
        first_packet: first.saturating_sub(asked.duration_since(std::time::UNIX_EPOCH)?),
    })
}

/// Copies file and sidecar to a directory that stays.
fn keep(proven: &Proven) -> Result<PathBuf> {
    let directory = tempfile::Builder::new()
        .prefix("remora-demo-")
        .tempdir()?
        .keep();
    let name = proven.path.file_name().context("no file name")?;
    let kept = directory.join(name);
    fs::copy(&proven.path, &kept)?;
    let sidecar = |path: &Path| path.with_extension("json");
    fs::copy(sidecar(&proven.path), sidecar(&kept))?;
    Ok(kept)
}
