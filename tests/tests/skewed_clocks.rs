//! Two nodes whose clocks were set apart: the controller's one file has their packets in true order, at the
//! controller's time, within the error that it states.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use remora_capture::session::{CaptureId, Selector};
use remora_proto::v1::{self, target::Target};
use remora_tests::{
    agent::{Options, TestAgent, spec},
    controller::C2_RULES,
    name,
    node::{Node, Pod},
    packets::Capture,
    run::{self, Place, Proc, Rights},
    traffic, wait, wire,
};

const LIMIT: Duration = Duration::from_secs(20);
/// Between two packets: far less than the clocks are apart, and more than a measurement of them errs by.
const PACE: Duration = Duration::from_millis(20);
const PACKETS: usize = 40;
const PORT: u16 = 9;
/// What the nodes' clocks are ahead of the controller's, in milliseconds.
const AHEAD: [i64; 2] = [750, -400];

#[test]
fn packets_of_nodes_with_clocks_apart_are_merged_in_true_order() -> Result<()> {
    let nodes = [Node::new()?, Node::new()?];
    let pods = [nodes[0].pod("ahead")?, nodes[1].pod("behind")?];
    let directory = name::directory()?;
    let library = library(directory.path())?;
    let mut agents = Vec::new();
    for (node, ahead) in nodes.iter().zip(AHEAD) {
        let environment = vec![
            ("LD_PRELOAD".to_owned(), library.display().to_string()),
            ("SET_CLOCK_NS".to_owned(), (ahead * 1_000_000).to_string()),
        ];
        let options = Options {
            environment,
            ..Options::default()
        };
        agents.push(TestAgent::start_with(node, options)?);
    }
    let controller = Controller::start(&nodes[0], &agents)?;
    let id = CaptureId::generate();
    let mut parts = Vec::new();
    for (agent, pod) in agents.iter().zip(&pods) {
        parts.push(agent.capture(part(id, pod))?);
    }

    // One after the other, whose clock is which: the truth is ours.
    let mut sent = Vec::new();
    for number in 0..PACKETS {
        let pod = &pods[number % 2];
        let to = SocketAddr::from(([10, 77, 0, 1], PORT));
        let before = now()?;
        traffic::datagram(pod.netns(), to, payload(number).as_bytes())?;
        sent.push((before, now()?));
        wait::pace(PACE)?;
    }
    for (agent, part) in agents.iter().zip(&parts) {
        let state = agent.stop(&part.id)?;
        let written = state.counts.map(|counts| counts.written);
        ensure!(written == Some(PACKETS as u64 / 2), "{state:?}");
    }

    let file = directory.path().join("merged.pcapng");
    controller.get(id, &file)?;
    wire::assert_readable(&file)?;
    let merged = Capture::read(&file)?;
    ensure!(merged.packets.len() == PACKETS, "{}", merged.packets.len());
    for (number, packet) in merged.packets.iter().enumerate() {
        ensure!(
            packet.data.ends_with(payload(number).as_bytes()),
            "packet {number} of the file is another"
        );
        let interface = &merged.interfaces[packet.interface as usize];
        let (stated, error) = stated(&interface.description)?;
        let ahead = AHEAD[number % 2] as f64;
        ensure!(
            (stated - ahead).abs() <= error,
            "{stated} ms, give or take {error} ms, is not {ahead} ms"
        );
        let error = Duration::from_secs_f64(error / 1000.0);
        let (before, after) = sent[number];
        ensure!(
            before <= packet.time + error && packet.time <= after + error,
            "packet {number} is said to be of {:?}, was sent between {before:?} and {after:?}, error {error:?}",
            packet.time
        );
    }
    let times: Vec<Duration> = merged.packets.iter().map(|packet| packet.time).collect();
    ensure!(times.is_sorted(), "{times:?}");
    let descriptions = merged.interfaces.iter().map(|one| &one.description);
    println!("{:#?}", descriptions.collect::<Vec<_>>());
    Ok(())
}

/// What an interface's description says: how far ahead its node's clock is, and the error, in milliseconds.
fn stated(description: &str) -> Result<(f64, f64)> {
    let parsed = || {
        let (_, rest) = description.split_once("clock ")?;
        let (offset, rest) = rest.split_once(" ms ")?;
        let sign = if rest.starts_with("ahead of") {
            1.0
        } else {
            -1.0
        };
        let (_, rest) = rest.split_once("give or take ")?;
        let (error, _) = rest.split_once(" ms")?;
        Some((sign * offset.parse::<f64>().ok()?, error.parse().ok()?))
    };
    parsed().with_context(|| description.to_owned())
}

fn payload(number: usize) -> String {
    format!("remora skewed clocks {number:04}")
}

fn part(id: CaptureId, pod: &Pod) -> v1::CaptureSpec {
    let selector = Selector::Labels {
        namespace: "shop".into(),
        labels: "app=cart".into(),
    };
    v1::CaptureSpec {
        filter: format!("udp port {PORT}"),
        destination: v1::Destination::Store.into(),
        part: Some(v1::Part {
            capture: id.to_string(),
            selector: Some((&selector).into()),
            fixed: true,
        }),
        ..spec(Target::CgroupPath(pod.cgroup().path().to_owned()))
    }
}

fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?)
}

/// The library that sets a process's clock, for whoever runs it.
fn library(directory: &Path) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/set_clock.c");
    let library = directory.join("set_clock.so");
    let mut cc = run::command("cc");
    cc.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library);
    run::output(cc.arg(source).arg("-ldl"))?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    Ok(library)
}

/// A controller of these agents, by their sockets.
struct Controller {
    _process: Proc,
    socket: PathBuf,
}

impl Controller {
    fn start(node: &Node, agents: &[TestAgent<'_>]) -> Result<Self> {
        let directory = node.directory();
        let lines: Vec<String> = (1..)
            .zip(agents)
            .map(|(number, agent)| format!("worker-{number}={}\n", agent.address()))
            .collect();
        let roster = directory.join("agents");
        fs::write(&roster, lines.concat())?;
        let (socket, rules) = (
            directory.join("controller.sock"),
            directory.join("rules.yaml"),
        );
        fs::write(&rules, C2_RULES)?;
        let place = Place {
            netns: Some(node.netns()),
            cgroup: None,
            rights: Rights::Root,
        };
        let mut command = place.command(run::remora_program("remora-controller")?);
        command.args(["run", "--listen", "127.0.0.1:2803", "--agents"]);
        command.arg(roster).arg("--rules").arg(rules);
        command.arg("--grpc-listen");
        command.arg(format!("unix:{}", socket.display()));
        let mut process = Proc::spawn(&mut command, directory, "controller")?;
        let there = wait::until(LIMIT, "a controller", || {
            let ended = process.ended()?;
            ensure!(ended.is_none(), "it ended: {ended:?}");
            Ok(socket.exists())
        });
        there.with_context(|| process.tail())?;
        Ok(Self {
            _process: process,
            socket,
        })
    }

    fn get(&self, id: CaptureId, file: &Path) -> Result<()> {
        let mut remora = run::command(run::remora_program("remora")?);
        remora.arg("--controller");
        remora.arg(format!("unix:{}", self.socket.display()));
        remora.args(["get", &id.to_string(), "-w"]).arg(file);
        run::output(&mut remora).map(drop)
    }
}
