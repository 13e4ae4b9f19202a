//! The agents upgraded by Helm while a capture runs, with pins: their programs stay in the kernel, and of numbered
//! traffic no packet is missing that is not counted.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use remora_tests::{
    cluster::{Cluster, pods::in_network},
    numbered::Numbers,
    packets::Capture,
    traffic::{self, Sent, Stream},
    wait, wire,
};

use crate::{
    Test,
    capture::Bed,
    faults::{shown, store, user},
    installed::{agent_on, upgrade},
    shop::POD_LIMIT,
};

pub(crate) const TESTS: [Test; 1] = [(
    "upgrade::a_capture_goes_on_while_its_agent_is_upgraded_and_killed",
    under_load,
)];

const LIMIT: Duration = Duration::from_secs(60);
const PORT: u16 = 9999;
/// Packets per second.
const RATE: u64 = 2000;
const RUN: u16 = 7;
const PINNED: &str = "--set=agent.pin=on";

fn under_load(cluster: &Cluster) -> Result<()> {
    upgrade(cluster, &[PINNED])?;
    let outcome = upgraded(cluster);
    // What agents with pins leave is removed by those that are told so.
    upgrade(cluster, &["--set=agent.pin=remove"])?;
    upgrade(cluster, &[])?;
    outcome
}

fn upgraded(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "upgrade")?;
    let pods = bed.shop.web(&[("from", "node-a"), ("to", "node-a")])?;
    let [from, to] = pods.as_slice() else {
        anyhow::bail!("{pods:?}")
    };
    let node = cluster.node("node-a")?;
    let directory = cluster.directory();
    let networks = [node.network_of(from)?, node.network_of(to)?];
    let beside = |network: usize| {
        let network = networks[network].clone();
        move |tool: &Path| in_network(&network, tool)
    };
    let _sink = traffic::sink(PORT, directory, beside(1))?;
    let id = store(&bed, &["pod/from", "-f", &format!("udp port {PORT}")])?;
    let stream = Stream {
        rate: RATE,
        run: RUN,
        ..Stream::new(to.address()?, PORT, 0)
    };
    let sender = stream.send_until_stopped(directory, beside(0))?;
    goes_on(&bed, &id)?;

    let before = agent_on(cluster, "node-a")?;
    // Its pods are others then, of another setting.
    upgrade(cluster, &[PINNED, "--set=log=debug"])?;
    let after = agent_on(cluster, "node-a")?;
    ensure!(before.uid != after.uid, "the agent is the same pod");
    goes_on(&bed, &id)?;

    // Without Helm, and without a moment to say goodbye.
    let gone = ["delete", "pod", &after.name, "-n", &after.namespace];
    let at_once = ["--grace-period=0", "--force"];
    cluster.kubectl().run(&[&gone[..], &at_once].concat())?;
    let next = wait::until_some(POD_LIMIT, "the agent's next pod", || {
        let agent = agent_on(cluster, "node-a").ok();
        Ok(agent.filter(|agent| agent.uid != after.uid))
    })?;
    // Until it has the data directory, the one before it, of which Kubernetes knows nothing any more, may answer.
    let name = format!("pod/{}", next.name);
    let ready = ["wait", "--for=condition=Ready", "--timeout=60s", &name];
    cluster
        .kubectl()
        .run(&[&ready[..], &["-n", &next.namespace]].concat())?;
    goes_on(&bed, &id)?;

    let sent = sender.stop_timed()?;
    wait::until(LIMIT, "all packets to be matched", || {
        Ok(shown(&bed.user, &id)?["counts"]["matched"].as_u64() >= Some(sent.packets))
    })?;
    user(&bed.user, &["stop", &id])?;
    let state = shown(&bed.user, &id)?;
    let file = directory.join("upgrade.pcapng");
    user(&bed.user, &["get", &id, "-w", &file.display().to_string()])?;
    accounted(&state, &file, sent)
}

/// Packets are written, by the agent that is there.
fn goes_on(bed: &Bed<'_>, id: &str) -> Result<()> {
    // While an agent comes, nobody tells of its captures.
    let written = || {
        let state = shown(&bed.user, id).ok()?;
        state["counts"]["written"].as_u64()
    };
    let so_far = wait::until_some(LIMIT, "the capture's agent", || Ok(written()))?;
    wait::until(LIMIT, "more packets to be written", || {
        Ok(written() > Some(so_far + RATE / 2))
    })
}

/// Each number is in the file once, or counted as lost.
fn accounted(state: &Value, file: &Path, sent: Sent) -> Result<()> {
    wire::assert_readable(file)?;
    let capture = Capture::read(file)?;
    let numbers = Numbers::collect(RUN, capture.frames());
    let count = |name: &str| state["counts"][name].as_u64().context(name.to_owned());
    let (matched, written) = (count("matched")?, count("written")?);
    let missing = numbers.missing_count(sent.packets);
    println!(
        "{} packets in {:.1} s over an upgrade and a kill of the agent: {written} written, {missing} missing, {} \
         twice, {} counted as lost",
        sent.packets,
        sent.seconds,
        numbers.duplicates(),
        matched - written,
    );
    ensure!(matched == sent.packets, "{state:#}");
    ensure!(capture.packets.len() as u64 == written, "{state:#}");
    ensure!(missing == matched - written, "{missing}: {state:#}");
    ensure!(
        numbers.duplicates() == 0 && numbers.foreign == 0,
        "{numbers:?}"
    );
    Ok(())
}
