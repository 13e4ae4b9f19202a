//! Pods that come and go, a hundred of them: each interface of a capture has its own pod's packets, and the agents
//! keep nothing of who has gone.

use std::{collections::BTreeMap, fs, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use remora_tests::{
    cluster::{Cluster, pods::KubePod},
    packets::Packet,
    wait,
};

use crate::{
    Test, capture::Bed, faults::ask, node_agent::NodeAgent, shop::PORT, witness::contains,
};

pub(crate) const TESTS: [Test; 1] = [(
    "churn::a_hundred_pods_come_and_go_and_nothing_of_them_stays",
    churn,
)];

const ROUNDS: usize = 10;
/// On each of two nodes.
const PODS: usize = 5;
const LIMIT: Duration = Duration::from_secs(60);
/// What an agent's memory may grow by, once it has seen a round.
const GROWTH_MAX: u64 = 24 * 1024 * 1024;

fn churn(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "churn")?;
    let peer = bed.shop.web(&[("peer", "node-b")])?.remove(0);
    let agents = [
        NodeAgent::on(cluster, "node-a")?,
        NodeAgent::on(cluster, "node-b")?,
    ];
    let mut before = Vec::new();
    let mut captured = 0;
    for round in 0..=ROUNDS {
        // The first is not counted: what an agent allocates once, it has then.
        if round == 1 {
            before = settled(&agents)?;
        }
        captured += pass(&bed, &peer, round)?;
    }
    let after = settled(&agents)?;
    for (agent, (before, after)) in agents.iter().zip(before.iter().zip(&after)) {
        println!(
            "{}: before {} pods: {before:?}; after: {after:?}",
            agent.pod.node,
            ROUNDS * PODS
        );
        ensure!(
            before.taps == after.taps && before.objects == after.objects,
            "{before:?}, {after:?}"
        );
        ensure!(
            after.resident < before.resident + GROWTH_MAX,
            "{before:?}, {after:?}"
        );
    }
    println!(
        "{} pods came and went; {captured} packets, each its own pod's",
        (ROUNDS + 1) * PODS * 2
    );
    Ok(())
}

/// Pods that are made, captured and gone again; how many packets were captured.
fn pass(bed: &Bed<'_>, peer: &KubePod, round: usize) -> Result<usize> {
    let names: Vec<String> = (0..2 * PODS)
        .map(|number| format!("churn-{round}-{number}"))
        .collect();
    let placed: Vec<(&str, &str)> = names
        .iter()
        .enumerate()
        .map(|(number, name)| (name.as_str(), ["node-a", "node-b"][number % 2]))
        .collect();
    let pods = bed.shop.web(&placed)?;
    let labels = format!("app in ({})", names.join(","));
    let mut capturing = bed.start(&["-l", &labels, "-f", &format!("tcp port {PORT}")])?;
    for pod in &pods {
        ask(bed.shop.cluster, peer, pod, &marker(&pod.name))?;
    }
    capturing.wait_for("a packet of each pod", |capture| {
        let has = |pod: &KubePod| {
            capture
                .frames()
                .any(|frame| contains(frame, &marker(&pod.name)))
        };
        pods.iter().all(has)
    })?;
    let captured = capturing.stop()?;
    let addresses: BTreeMap<String, Ipv4Addr> = pods
        .iter()
        .map(|pod| Ok((bed.owner(pod), pod.address()?)))
        .collect::<Result<_>>()?;
    for packet in &captured.capture.packets {
        let interface = &captured.capture.interfaces[packet.interface as usize].name;
        let owner = interface.rsplit_once('/').map_or("", |(owner, _)| owner);
        let own = addresses.get(owner).context(interface.clone())?;
        ensure!(
            is_of(packet, *own) && !says_another(packet, &pods, owner),
            "a foreign packet at {interface}"
        );
    }
    let which: Vec<&str> = names.iter().map(String::as_str).collect();
    let gone = [&["delete", "pod", "--wait=true"][..], &which].concat();
    bed.shop.run(&gone)?;
    Ok(captured.capture.packets.len())
}

fn marker(name: &str) -> String {
    format!("page-of-{name}.")
}

/// From or to the address.
fn is_of(packet: &Packet, address: Ipv4Addr) -> bool {
    let own = address.octets();
    let at = |at: usize| packet.data.get(at..at + 4) == Some(&own[..]);
    at(26) || at(30)
}

fn says_another(packet: &Packet, pods: &[KubePod], owner: &str) -> bool {
    let name = owner.rsplit_once('/').map_or(owner, |(_, name)| name);
    let mut others = pods.iter().filter(|pod| pod.name != name);
    others.any(|pod| contains(&packet.data, &marker(&pod.name)))
}

/// What an agent has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holdings {
    taps: usize,
    /// Open maps, programs and links in the kernel, by kind.
    objects: BTreeMap<String, usize>,
    /// Memory, in bytes.
    resident: u64,
}

/// Once what was kept of the dead for look-back is the same twice: it is freed in the background.
fn settled(agents: &[NodeAgent]) -> Result<Vec<Holdings>> {
    let mut last = Vec::new();
    wait::until_some(LIMIT, "agents that have let go of who left", || {
        let now = agents.iter().map(holdings).collect::<Result<Vec<_>>>()?;
        let kept = |all: &[Holdings]| -> Vec<(usize, BTreeMap<String, usize>)> {
            all.iter()
                .map(|one| (one.taps, one.objects.clone()))
                .collect()
        };
        let is_same = kept(&now) == kept(&last);
        last.clone_from(&now);
        if is_same {
            return Ok(Some(now));
        }
        wait::pace(Duration::from_secs(2))?;
        Ok(None)
    })
}

fn holdings(agent: &NodeAgent) -> Result<Holdings> {
    let status: Value = serde_json::from_str(&agent.run(&["status", "-o", "json"])?)?;
    let taps = status["taps"].as_array().context("no taps")?.len();
    let mut objects = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", agent.pid))? {
        let Ok(target) = fs::read_link(entry?.path()) else {
            continue;
        };
        let target = target.display().to_string();
        if let Some(kind) = target
            .strip_prefix("anon_inode:")
            .filter(|kind| kind.contains("bpf"))
        {
            *objects.entry(kind.to_owned()).or_default() += 1;
        }
    }
    ensure!(!objects.is_empty(), "the agent has no maps");
    let statm = fs::read_to_string(format!("/proc/{}/statm", agent.pid))?;
    let pages: u64 = statm.split(' ').nth(1).context("no statm")?.parse()?;
    Ok(Holdings {
        taps,
        objects,
        resident: pages * 4096,
    })
}
