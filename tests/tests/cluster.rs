//! A controller of two nodes, with the real agents: what their parts are is one capture, and one file.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use remora_capture::session::CaptureId;
use remora_proto::{
    client::{self, AgentAddress},
    v1::{self, cluster_client::ClusterClient, cluster_stream_response::Message},
};
use remora_tests::{
    agent::{TestAgent, of_pod},
    controller::{C2_RULES, c2_alert, capture_id},
    http::{self, Request},
    node::{Node, Pod},
    packets::{self, Capture},
    run::{self, Place, Proc, Rights},
    traffic, wait, wire,
};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

const LIMIT: Duration = Duration::from_secs(20);
const ALERTS: ([u8; 4], u16) = ([127, 0, 0, 1], 2803);

/// A controller in a node's namespace, with the agents of all nodes.
struct Controller<'a> {
    client: ClusterClient<Channel>,
    runtime: Runtime,
    _process: Proc,
    node: &'a Node,
}

impl<'a> Controller<'a> {
    fn start(name: &str, node: &'a Node, agents: &[(&str, &TestAgent<'_>)]) -> Result<Self> {
        let directory = node.directory();
        let list: String = agents
            .iter()
            .map(|(name, agent)| format!("{name}={}\n", agent.address()))
            .collect();
        let [file, rules, socket] =
            ["agents", "rules.yaml", "sock"].map(|kind| directory.join(format!("{name}.{kind}")));
        fs::write(&file, list)?;
        fs::write(&rules, C2_RULES)?;
        let place = Place {
            netns: Some(node.netns()),
            cgroup: None,
            rights: Rights::Root,
        };
        let mut command = place.command(run::remora_program("remora-controller")?);
        command
            .args(["run", "--listen", &SocketAddr::from(ALERTS).to_string()])
            .arg("--agents")
            .arg(&file)
            .arg("--rules")
            .arg(&rules)
            .arg("--grpc-listen")
            .arg(format!("unix:{}", socket.display()));
        let mut process = Proc::spawn(&mut command, directory, name)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let address = AgentAddress::Unix(socket);
        let channel = wait::until_some(LIMIT, "a controller that serves", || {
            if let Some(status) = process.ended()? {
                bail!("the controller ended ({status}): {}", process.tail());
            }
            Ok(runtime.block_on(client::connect(&address)).ok())
        })?;
        Ok(Self {
            client: ClusterClient::new(channel).max_decoding_message_size(16 << 20),
            runtime,
            _process: process,
            node,
        })
    }

    fn get(&self, id: &str) -> Result<v1::ClusterCapture> {
        let request = v1::ClusterGetRequest { id: id.into() };
        let mut client = self.client.clone();
        let answer = self.runtime.block_on(client.get(request))?.into_inner();
        answer.capture.context("no capture")
    }

    fn stop(&self, id: &str) -> Result<v1::ClusterCapture> {
        let request = v1::ClusterStopRequest { id: id.into() };
        let mut client = self.client.clone();
        let answer = self.runtime.block_on(client.stop(request))?.into_inner();
        answer.capture.context("no capture")
    }

    /// Writes the merged file; the final state.
    fn fetch(&self, id: &str, file: &Path) -> Result<v1::ClusterCapture> {
        let request = v1::ClusterStreamRequest { id: id.into() };
        let mut client = self.client.clone();
        self.runtime.block_on(async {
            let mut messages = client.stream(request).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(message) = messages.message().await? {
                match message.message.context("an empty message")? {
                    Message::Blocks(blocks) => bytes.extend_from_slice(&blocks),
                    Message::Finished(capture) => {
                        fs::write(file, bytes)?;
                        return Ok(capture);
                    }
                }
            }
            bail!("no final state")
        })
    }

    fn post(&self, alert: &serde_json::Value) -> Result<http::Response> {
        let body = serde_json::to_vec(alert)?;
        http::over_tcp(
            self.node.netns(),
            ALERTS.into(),
            Request::post_json("/", &body),
        )
    }
}

/// Two nodes with a pod and an agent each.
struct Beds {
    nodes: [Node; 2],
    pods: [Pod; 2],
}

impl Beds {
    fn new() -> Result<Self> {
        let nodes = [Node::new()?, Node::new()?];
        let pods = [nodes[0].pod("web")?, nodes[1].pod("web")?];
        Ok(Self { nodes, pods })
    }
}

/// Of a capture over several nodes, as a controller would ask for it.
fn part_of(pod: &Pod, id: CaptureId, selector: &v1::Selector) -> v1::CaptureSpec {
    v1::CaptureSpec {
        part: Some(v1::Part {
            capture: id.to_string(),
            selector: Some(selector.clone()),
            fixed: true,
        }),
        ..of_pod(pod)
    }
}

fn deployment() -> v1::Selector {
    v1::Selector {
        namespace: "shop".into(),
        kind: Some(v1::selector::Kind::Workload(v1::WorkloadSelector {
            kind: v1::WorkloadKind::Deployment.into(),
            name: "web".into(),
        })),
    }
}

fn talk(beds: &Beds, rounds: u32) -> Result<()> {
    for round in 0..rounds {
        for (node, pod) in beds.nodes.iter().zip(&beds.pods) {
            let to = SocketAddr::new(node.address(), 9);
            traffic::datagram(pod.netns(), to, format!("round {round}").as_bytes())?;
        }
        traffic::ping(beds.pods[0].netns(), beds.nodes[0].address(), 1)?;
    }
    Ok(())
}

#[test]
fn the_merged_file_of_two_agents_has_the_packets_of_its_parts_in_order() -> Result<()> {
    let beds = Beds::new()?;
    let agents = [
        TestAgent::start(&beds.nodes[0])?,
        TestAgent::start(&beds.nodes[1])?,
    ];
    let named = [("worker-1", &agents[0]), ("worker-2", &agents[1])];
    let id = CaptureId::generate();
    let mut sessions = Vec::new();
    for (agent, pod) in agents.iter().zip(&beds.pods) {
        sessions.push(agent.capture(part_of(pod, id, &deployment()))?.id);
    }
    // What no controller of this process ever started: found again by its agents.
    let controller = Controller::start("one", &beds.nodes[0], &named)?;
    let id = id.to_string();
    let found = controller.get(&id)?;
    assert_eq!(
        (found.parts.len(), found.phase()),
        (2, v1::Phase::Capturing)
    );
    assert_eq!(found.selector, Some(deployment()));
    talk(&beds, 20)?;
    let stopped = controller.stop(&id)?;
    assert_eq!(stopped.phase(), v1::Phase::Finished);

    let file = beds.nodes[0].directory().join("merged.pcapng");
    let finished = controller.fetch(&id, &file)?;
    assert_eq!(finished.counts, stopped.counts);
    let merged = wire::readable(&file)?;
    let mut parts = Vec::new();
    for (agent, session) in agents.iter().zip(&sessions) {
        parts.extend(Capture::read(&agent.file(&agent.get(session)?))?.packets);
    }
    packets::assert_same(&merged.packets, &parts)?;
    assert_eq!(
        merged.packets.len() as u64,
        stopped.counts.context("no counts")?.written
    );
    assert!(merged.packets.is_sorted_by_key(|packet| packet.time));
    assert_eq!(wire::capinfos_count(&file)?, parts.len() as u64);
    for node in ["worker-1", "worker-2"] {
        let described = |i: &packets::Interface| {
            i.description
                .contains(&format!("node {node}; clock within"))
        };
        assert!(
            merged.interfaces.iter().any(described),
            "{:?}",
            merged.interfaces
        );
    }
    // Each interface's account is what the file has of it.
    let delivered: u64 = merged.statistics.values().map(|s| s.delivered).sum();
    assert_eq!(delivered, parts.len() as u64);
    // The parts' own files are as their nodes signed them.
    for (agent, session) in agents.iter().zip(&sessions) {
        agent.manifest(session)?;
    }
    Ok(())
}

#[test]
fn a_running_capture_is_streamed_until_it_is_stopped() -> Result<()> {
    let beds = Beds::new()?;
    let agents = [
        TestAgent::start(&beds.nodes[0])?,
        TestAgent::start(&beds.nodes[1])?,
    ];
    let named = [("worker-1", &agents[0]), ("worker-2", &agents[1])];
    let id = CaptureId::generate();
    for (agent, pod) in agents.iter().zip(&beds.pods) {
        agent.capture(part_of(pod, id, &deployment()))?;
    }
    let id = id.to_string();
    let controller = Controller::start("one", &beds.nodes[0], &named)?;
    let other = Controller::start("two", &beds.nodes[1], &named)?;
    let file = beds.nodes[0].directory().join("live.pcapng");
    let finished = std::thread::scope(|scope| {
        let reading = scope.spawn(|| controller.fetch(&id, &file));
        let talked = talk(&beds, 20);
        let stopped = other.stop(&id);
        let read = reading.join().expect("the reader does not panic");
        talked.and(stopped).and(read)
    })?;
    let merged = wire::readable(&file)?;
    assert_eq!(
        merged.packets.len() as u64,
        finished.counts.context("no counts")?.written
    );
    assert!(merged.packets.len() >= 60, "{}", merged.packets.len());
    Ok(())
}

#[test]
fn an_alert_goes_to_the_agent_of_its_node_without_any_api_server() -> Result<()> {
    let beds = Beds::new()?;
    let agents = [
        TestAgent::start(&beds.nodes[0])?,
        TestAgent::start(&beds.nodes[1])?,
    ];
    let named = [("worker-1", &agents[0]), ("worker-2", &agents[1])];
    let controller = Controller::start("one", &beds.nodes[0], &named)?;
    let remote = (Ipv4Addr::new(198, 51, 100, 23), 4444).into();
    for (node, pod, agent, other) in [
        ("worker-2", &beds.pods[1], &agents[1], &agents[0]),
        ("worker-1", &beds.pods[0], &agents[0], &agents[1]),
    ] {
        let mut alert = c2_alert(pod, remote, 43812);
        alert["hostname"] = node.into();
        alert["uuid"] = format!("{node}-alert").into();
        let before = other.list(true)?.len();
        let answer = controller.post(&alert)?;
        assert_eq!(answer.status, 202, "{}", answer.body);
        let id = capture_id(&answer)?;
        let running = agent.list(false)?;
        let part = running
            .last()
            .and_then(|s| s.spec.clone()?.part)
            .context("no part")?;
        assert_eq!(part.capture, id);
        assert_eq!(other.list(true)?.len(), before);
        assert_eq!(controller.get(&id)?.parts.len(), 1);
        // The same alert again is the same capture.
        assert_eq!(capture_id(&controller.post(&alert)?)?, id);
        assert_eq!(agent.list(false)?.len(), running.len());
    }
    let mut alert = c2_alert(&beds.pods[0], remote, 43812);
    alert["hostname"] = "worker-9".into();
    let answer = controller.post(&alert)?;
    ensure!(
        answer.status == 503 && answer.body.contains("worker-9"),
        "{answer:?}"
    );
    Ok(())
}

#[test]
fn an_agent_that_is_killed_leaves_the_rest_and_is_named() -> Result<()> {
    let beds = Beds::new()?;
    let mut agents = [
        TestAgent::start(&beds.nodes[0])?,
        TestAgent::start(&beds.nodes[1])?,
    ];
    let id = CaptureId::generate();
    for (agent, pod) in agents.iter().zip(&beds.pods) {
        agent.capture(part_of(pod, id, &deployment()))?;
    }
    let id = id.to_string();
    let named = [("worker-1", &agents[0]), ("worker-2", &agents[1])];
    let controller = Controller::start("one", &beds.nodes[0], &named)?;
    talk(&beds, 5)?;
    agents[1].end_by(nix::sys::signal::Signal::SIGKILL)?;
    let found = controller.get(&id)?;
    assert_eq!(found.parts.len(), 1);
    assert!(found.message.contains("node worker-2"), "{}", found.message);
    let stopped = controller.stop(&id)?;
    assert_eq!(stopped.phase(), v1::Phase::Finished);
    // After its next start it tells of its part again, and the file has both.
    agents[1].start_again()?;
    let found = wait::until_some(LIMIT, "both parts", || {
        let found = controller.get(&id)?;
        Ok((found.parts.len() == 2).then_some(found))
    })?;
    let file = beds.nodes[0].directory().join("both.pcapng");
    controller.fetch(&id, &file)?;
    let merged = wire::readable(&file)?;
    assert_eq!(
        merged.packets.len() as u64,
        found.counts.context("no counts")?.written
    );
    Ok(())
}
