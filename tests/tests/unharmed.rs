//! The pod's traffic is none the worse for being captured, and nothing is left in the kernel.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use remora_proto::v1;
use remora_tests::{
    agent::{TestAgent, of_pod},
    bpf::{ForeignTcx, Objects},
    node::{Node, Pod},
    packets::Capture,
    run::{self, Proc},
    traffic,
};

const GIGABYTE: u64 = 1 << 30;
const PORT: u16 = 5001;
const LIMIT: Duration = Duration::from_secs(60);

/// A transfer from `web` to `api` that is under way.
struct Transfer {
    receiver: Proc,
    sender: Proc,
}

impl Transfer {
    fn start(node: &Node, web: &Pod, api: &Pod, bytes: u64) -> Result<Self> {
        let tool = run::tool("tcpbulk")?;
        let at = SocketAddr::from((api.ipv4(), PORT)).to_string();
        let bytes = bytes.to_string();
        let arguments = |verb: &'static str| [verb, &at, "--bytes", &bytes].map(str::to_owned);
        let mut receiver = node.spawn(api.command(&tool).args(arguments("receive")), "receive")?;
        receiver.wait_for("ready", LIMIT)?;
        let sender = node.spawn(web.command(&tool).args(arguments("send")), "send")?;
        Ok(Self { receiver, sender })
    }

    /// Waits for both ends; the receiver compared every byte. Answers how long it took.
    fn finish(mut self) -> Result<f64> {
        self.sender.wait_success(LIMIT)?;
        let log = self.receiver.wait_success(LIMIT)?;
        let json = log.lines().last().context("the receiver said nothing")?;
        let value: serde_json::Value = serde_json::from_str(json)?;
        value["seconds"].as_f64().context("no time")
    }
}

/// A gigabyte crosses a captured veth, and in the middle the agent is ended.
fn a_gigabyte_survives(signal: Signal) -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let uncaptured = Transfer::start(&node, &web, &api, GIGABYTE)?.finish()?;

    let mut agent = TestAgent::start(&node)?;
    let state = agent.capture(v1::CaptureSpec {
        snaplen: 96,
        ..of_pod(&web)
    })?;
    let objects = Objects::of_process(agent.pid()?)?;
    assert!(
        !objects.programs.is_empty() && !objects.links.is_empty(),
        "{objects:?}"
    );
    let transfer = Transfer::start(&node, &web, &api, GIGABYTE)?;
    // In the middle: a GSO packet has up to 64 KiB, so a third of the data is on its way.
    agent.wait_state(&state.id, "a third of the transfer", |state| {
        state
            .counts
            .is_some_and(|counts| counts.matched > GIGABYTE / 3 / 65_536)
    })?;
    agent.end_by(signal)?;
    let captured = transfer.finish()?;
    println!("1 GiB took {uncaptured:.2} s alone, {captured:.2} s with {signal} in the middle");
    objects.gone()
}

#[test]
fn a_gigabyte_crosses_a_captured_veth_while_the_agent_is_killed() -> Result<()> {
    a_gigabyte_survives(Signal::SIGKILL)
}

#[test]
fn a_gigabyte_crosses_a_captured_veth_while_the_agent_is_stopped() -> Result<()> {
    a_gigabyte_survives(Signal::SIGTERM)
}

#[test]
fn fifty_rounds_of_start_and_kill_leave_nothing_in_the_kernel() -> Result<()> {
    const ROUNDS: u32 = 50;
    let node = Node::new()?;
    let web = node.pod("web")?;
    let mut agent = TestAgent::start(&node)?;
    let mut all = Objects::default();
    for round in 0..ROUNDS {
        if round > 0 {
            agent.start_again()?;
        }
        agent.capture(of_pod(&web))?;
        all.extend(Objects::of_process(agent.pid()?)?);
        agent.end_by(Signal::SIGKILL)?;
    }
    // Four programs a round at the least, none of them twice.
    assert!(
        all.programs.len() >= 4 * ROUNDS as usize,
        "{} programs",
        all.programs.len()
    );
    all.gone()?;
    // Each round's capture was closed at the next start, but for the last one.
    agent.start_again()?;
    let captures = agent.list(true)?;
    assert_eq!(captures.len(), ROUNDS as usize);
    assert!(
        captures
            .iter()
            .all(|capture| capture.stop_reason() == v1::StopReason::CrashRecovered)
    );
    for capture in captures.iter().filter(|capture| !capture.file.is_empty()) {
        Capture::read(&agent.file(capture))?;
    }
    // The last one's manifest is made after the start.
    for capture in &captures {
        agent.manifest(&capture.id)?;
    }
    remora_tests::wait::until(LIMIT, "the chain's head", || {
        let head = agent.status()?.chain_head;
        let is_last = head.split(':').nth(1) == Some(&captures.len().to_string());
        Ok(is_last && !agent.data_dir().join("chain.head.part").exists())
    })?;
    let data: Vec<_> = std::fs::read_dir(agent.data_dir())?
        .flatten()
        .map(|e| e.path())
        .collect();
    assert!(
        data.iter().all(|path| {
            let extension = path.extension().unwrap_or_default();
            let kept = ["pcapng", "json", "head"]
                .iter()
                .any(|end| extension == *end);
            kept || path.is_dir() || is_own(path)
        }),
        "left in the data directory: {data:?}"
    );
    Ok(())
}

/// Of the directory, not of a capture.
fn is_own(path: &Path) -> bool {
    let own = ["lock", "tombstone.reserve"];
    let name = path.file_name().unwrap_or_default();
    own.iter().any(|own| name == *own)
}

/// A datagram from `web` to a port of the node arrives, which the foreign program drops at 9009.
fn arrives(node: &Node, web: &Pod, port: u16) -> Result<bool> {
    traffic::arrives(node, web, port, 9008)
}

/// The foreign program drops its port and passes the rest, while `agent` captures both.
fn runs_beside(node: &Node, web: &Pod, agent: &TestAgent<'_>) -> Result<()> {
    let state = agent.capture(v1::CaptureSpec {
        filter: "udp".into(),
        ..of_pod(web)
    })?;
    assert!(arrives(node, web, 9008)?);
    assert!(
        !arrives(node, web, 9009)?,
        "the foreign program does not run"
    );
    let counts = agent.stop(&state.id)?.counts.context("no counts")?;
    assert_eq!(
        counts.written, 3,
        "the capture sees what came before the foreign program"
    );
    Ok(())
}

#[test]
fn a_foreign_program_attached_before_the_agent_runs_on() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let mut foreign = ForeignTcx::attach(node.netns(), web.interface(), 9009)?;
    let id = foreign.program_id()?;
    let mut agent = TestAgent::start(&node)?;
    runs_beside(&node, &web, &agent)?;
    agent.end_by(Signal::SIGTERM)?;
    assert!(
        !arrives(&node, &web, 9009)?,
        "the agent's end took the foreign program away"
    );
    let objects = Objects::of_process(std::process::id())?;
    assert!(objects.programs.contains(&id));
    foreign.detach()
}

#[test]
fn a_foreign_program_attached_after_the_agent_runs_too() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let mut agent = TestAgent::start(&node)?;
    let foreign = ForeignTcx::attach(node.netns(), web.interface(), 9009)?;
    runs_beside(&node, &web, &agent)?;
    agent.end_by(Signal::SIGKILL)?;
    assert!(
        !arrives(&node, &web, 9009)?,
        "the agent's death took the foreign program away"
    );
    foreign.detach()?;
    assert!(arrives(&node, &web, 9009)?);
    Ok(())
}
