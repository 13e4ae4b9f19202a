//! What goes wrong on a cluster: the API server is away, an agent is killed, a controller is.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use remora_tests::{
    cluster::{
        Cluster,
        kubectl::Kubectl,
        pods::KubePod,
        release::{CONTROLLERS, NAMESPACE},
    },
    netns,
    packets::Capture,
    run::{self, Proc},
    wait, wire,
};

use crate::{
    Test,
    capture::Bed,
    capturing::Capturing,
    converge::converges,
    node_agent::NodeAgent,
    shop::{POD_LIMIT, PORT},
    witness::{BEGIN, END, assert_equal, contains},
};

pub(crate) const TESTS: [Test; 3] = [
    (
        "faults::captures_go_on_and_begin_while_the_api_server_is_away",
        api_away,
    ),
    (
        "faults::a_killed_agent_comes_back_and_its_capture_is_accounted_for",
        agent_killed,
    ),
    (
        "faults::a_controller_killed_while_captures_start_costs_none",
        controller_killed,
    ),
];

/// How long the API server is away.
const AWAY: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_secs(2);
/// Captures that are started at once.
const STARTS: usize = 8;
const LIMIT: Duration = Duration::from_secs(60);

fn api_away(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "away")?;
    let pods = bed.shop.web(&[("cart", "node-a"), ("peer", "node-a")])?;
    let [cart, peer] = pods.as_slice() else {
        anyhow::bail!("{pods:?}")
    };
    let agent = NodeAgent::on(cluster, "node-a")?;
    agent.wait_recorded(cart)?;
    let filter = format!("tcp port {PORT}");
    let witness = bed.witness(cart, "eth0", &filter)?;
    let by_name = store(&bed, &["pod/cart", "-f", &filter])?;
    ask(cluster, peer, cart, BEGIN)?;

    cluster.control_plane().stop_api()?;
    let (began, mut by_container) = (Instant::now(), None);
    while began.elapsed() < AWAY {
        ask(cluster, peer, cart, "away")?;
        if by_container.is_none() && began.elapsed() > AWAY / 2 {
            let container = format!("container:{}", cart.container("web")?);
            let asked = Instant::now();
            let id = agent.run(&["capture", "--store", "-f", &filter, &container])?;
            println!(
                "armed by container id without the API server, `remora` started and ended: {:?}",
                asked.elapsed()
            );
            by_container = Some(id.trim().to_owned());
            ask(cluster, peer, cart, "begun-while-away")?;
        }
        wait::pace(EVERY)?;
    }
    let by_container = by_container.context("no capture was started")?;
    cluster.control_plane().start_api()?;
    let back = Instant::now();
    let known = converges(&bed, &agent)?;
    // Kubernetes itself has to find the API server again; a pod made after that is captured by name.
    let fresh = bed.shop.web(&[("fresh", "node-a")])?;
    let made = back.elapsed();
    let capturing = bed.start(&["pod/fresh", "-f", &filter])?;
    println!(
        "after the API server's return ({AWAY:?} away) a new pod is known: {known}; one that kubelet starts is ready \
         after {made:?}, captured by name after {:?}",
        back.elapsed()
    );
    capturing.stop()?;
    drop(fresh);

    ask(cluster, peer, cart, END)?;
    let theirs = witness.stop()?;
    let file = cluster.directory().join("away.pcapng");
    let file_name = file.display().to_string();
    user(&bed.user, &["stop", &by_name])?;
    user(&bed.user, &["get", &by_name, "-w", &file_name])?;
    let ours = Capture::read(&file)?.packets;
    assert_equal(&ours, &theirs).context("begun before")?;

    agent.run(&["stop", &by_container])?;
    let file = cluster.directory().join("away-container.pcapng");
    agent.run(&["get", &by_container, "-w", &file.display().to_string()])?;
    let ours = Capture::read(&file)?;
    for page in ["begun-while-away", END] {
        ensure!(
            ours.frames().any(|frame| contains(frame, page)),
            "no packet of {page} in what was begun meanwhile"
        );
    }
    Ok(())
}

fn agent_killed(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "killed")?;
    let pods = bed.shop.web(&[("cart", "node-a"), ("peer", "node-b")])?;
    let [cart, peer] = pods.as_slice() else {
        anyhow::bail!("{pods:?}")
    };
    let agent = NodeAgent::on(cluster, "node-a")?;
    let filter = format!("tcp port {PORT}");
    let id = store(&bed, &["pod/cart", "-f", &filter])?;
    bed.shop.ask(peer, cart.address()?, PORT, BEGIN)?;
    wait::until(LIMIT, "the packets to be written", || {
        Ok(shown(&bed.user, &id)?["counts"]["written"].as_u64() > Some(8))
    })?;
    kill(Pid::from_raw(i32::try_from(agent.pid)?), Signal::SIGKILL)?;
    let name = agent.pod.name.clone();
    wait::until(LIMIT, "the agent's next container", || {
        let pod = cluster.kubectl().get(&["pod", "-n", NAMESPACE, &name])?;
        let status = &pod["status"]["containerStatuses"][0];
        Ok(status["restartCount"].as_u64() >= Some(1) && status["ready"] == true)
    })?;

    // Its account says that it ended by a crash, and its file is whole.
    let state = wait::until_some(LIMIT, "the old capture's account", || {
        let shown = shown(&bed.user, &id);
        Ok(shown.ok().filter(|state| state["phase"] != "capturing"))
    })?;
    let file = cluster.directory().join("killed.pcapng");
    user(&bed.user, &["get", &id, "-w", &file.display().to_string()])?;
    wire::assert_readable(&file)?;
    let kept = Capture::read(&file)?;
    ensure!(
        kept.frames().any(|frame| contains(frame, BEGIN)),
        "{} packets are left, {state}",
        kept.packets.len()
    );

    let witness = bed.witness(cart, "eth0", &filter)?;
    let mut capturing = bed.start(&["pod/cart", "-f", &filter])?;
    bed.shop.ask(peer, cart.address()?, PORT, BEGIN)?;
    bed.finish(&mut capturing, peer, cart)?;
    let captured = capturing.stop()?;
    assert_equal(&captured.of(&bed.owner(cart)), &witness.stop()?)
}

fn controller_killed(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "replica")?;
    let peer = bed.shop.web(&[("peer", "node-b")])?.remove(0);
    let pods = bed.shop.deployment("cart", 3)?;
    // All controllers know the deployment then.
    bed.start(&["deploy/cart"])?.stop()?;

    let controllers = cluster.kubectl().pods(NAMESPACE, CONTROLLERS)?;
    let victim = controllers.first().context("no controller")?;
    let node = cluster.node(&victim.node)?;
    let pids = node.processes_of(victim, "controller")?;
    let mut starts = Vec::new();
    for number in 0..STARTS {
        let mut command = bed.user.remora()?;
        command.args([
            "capture",
            "deploy/cart",
            "-n",
            &bed.shop.namespace,
            "--store",
        ]);
        let name = format!("replica-{number}");
        starts.push(Proc::spawn(&mut command, cluster.directory(), &name)?);
    }
    wait::until(LIMIT, "a first capture", || {
        Ok(starts.iter().any(|start| id_in(&start.log()).is_some()))
    })?;
    for pid in pids {
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    }
    let mut ids = Vec::new();
    for start in &mut starts {
        let log = start.wait_success(LIMIT)?;
        ids.push(id_in(&log).with_context(|| log.clone())?);
    }
    ids.sort();
    ids.dedup();
    ensure!(ids.len() == STARTS, "{ids:?}");
    bed.shop.ask(&peer, pods[0].address()?, PORT, BEGIN)?;

    let list = ["list", "-n", &bed.shop.namespace, "-o", "json"];
    let listed: Value = serde_json::from_str(&user(&bed.user, &list)?)?;
    let listed = listed.as_array().context("no list")?;
    ensure!(listed.len() == STARTS, "{} captures run", listed.len());
    for capture in listed {
        let parts = capture["parts"].as_array().context("no parts")?;
        ensure!(parts.len() == pods.len(), "{capture}");
    }
    for id in &ids {
        user(&bed.user, &["stop", id, "-n", &bed.shop.namespace])?;
        let state = shown(&bed.user, id)?;
        ensure!(state["counts"]["written"].as_u64() > Some(0), "{state}");
    }
    let is_back = || {
        let pod = cluster
            .kubectl()
            .get(&["pod", "-n", NAMESPACE, &victim.name])?;
        Ok(pod["status"]["containerStatuses"][0]["ready"] == true)
    };
    wait::until(POD_LIMIT, "the controller to be back", is_back)
}

/// Starts a capture that the nodes keep; its id.
pub(crate) fn store(bed: &Bed<'_>, words: &[&str]) -> Result<String> {
    // All that it is about is known then.
    Capturing::stop(bed.start(words)?)?;
    let namespace = ["--store", "-n", &bed.shop.namespace];
    let words = [&["capture"], words, &namespace].concat();
    let said = user(&bed.user, &words)?;
    id_in(&said).context(said)
}

/// The capture as the controllers tell of it.
pub(crate) fn shown(kubectl: &Kubectl, id: &str) -> Result<Value> {
    Ok(serde_json::from_str(&user(
        kubectl,
        &["show", id, "-o", "json"],
    )?)?)
}

/// What `kubectl remora` prints.
pub(crate) fn user(kubectl: &Kubectl, words: &[&str]) -> Result<String> {
    run::output(kubectl.remora()?.args(words))
}

/// A line that is a capture's id (a ULID) and nothing else.
fn id_in(said: &str) -> Option<String> {
    let is_id = |line: &&str| line.len() == 26 && line.bytes().all(|b| b.is_ascii_alphanumeric());
    said.lines().map(str::trim).find(is_id).map(str::to_owned)
}

/// A request from a pod's network, not by `kubectl exec`: the API server may be away.
pub(crate) fn ask(cluster: &Cluster, from: &KubePod, to: &KubePod, page: &str) -> Result<()> {
    let network = cluster.node(&from.node)?.network_of(from)?;
    let (to, page): (Ipv4Addr, String) = (to.address()?, page.to_owned());
    netns::enter(&network, move || {
        let mut stream = TcpStream::connect((to, PORT))?;
        stream.write_all(format!("GET /{page} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        ensure!(contains(&answer, "404"), "another answer");
        Ok(())
    })
}
