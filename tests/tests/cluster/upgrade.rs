//! `helm upgrade` of the agents while a capture runs, with pins: their programs stay in the kernel, and not a packet
//! of numbered traffic is missing.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use remora_tests::{
    cluster::{Cluster, release},
    numbered::Numbers,
    packets::Capture,
    traffic::{self, Stream},
    wait, wire,
};

use crate::{
    Test,
    capture::Bed,
    faults::{shown, store, user},
    installed::{USER, agent_on, put_back, taken},
};

pub(crate) const TESTS: [Test; 1] = [(
    "upgrade::a_capture_misses_no_packet_while_its_agent_is_upgraded",
    under_load,
)];

const LIMIT: Duration = Duration::from_secs(60);
const PORT: u16 = 9999;
/// Packets per second.
const RATE: u64 = 500;
const RUN: u16 = 7;

fn under_load(cluster: &Cluster) -> Result<()> {
    let subjects = release::subjects(&[USER]);
    let with = |settings: &[&str]| {
        let release = taken(cluster)?;
        let done = release.upgrade(&[&[subjects.as_str()][..], settings].concat());
        put_back(release);
        done
    };
    with(&["--set=agent.pin=on"])?;
    let outcome = (|| -> Result<()> {
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
            move |tool: &std::path::Path| remora_tests::cluster::pods::in_network(&network, tool)
        };
        let _sink = traffic::sink(PORT, directory, beside(1))?;
        let before = agent_on(cluster, "node-a")?;
        let id = store(&bed, &["pod/from", "-f", &format!("udp port {PORT}")])?;
        let stream = Stream {
            rate: RATE,
            run: RUN,
            ..Stream::new(to.address()?, PORT, 0)
        };
        let sender = stream.send_until_stopped(directory, beside(0))?;
        wait::until(LIMIT, "the first packets", || {
            Ok(shown(&bed.user, &id)?["counts"]["written"].as_u64() > Some(RATE))
        })?;
        // Its pods are others then, of other settings.
        with(&["--set=agent.pin=on", "--set=log=debug"])?;
        let after = agent_on(cluster, "node-a")?;
        ensure!(before.uid != after.uid, "the agent is the same pod");
        let so_far = shown(&bed.user, &id)?;
        let written = so_far["counts"]["written"].as_u64();
        wait::until(LIMIT, "packets by the new agent", || {
            Ok(shown(&bed.user, &id)?["counts"]["written"].as_u64() > written)
        })?;
        let sent = sender.stop_timed()?;
        wait::until(LIMIT, "all packets to be matched", || {
            Ok(shown(&bed.user, &id)?["counts"]["matched"].as_u64() >= Some(sent.packets))
        })?;
        user(&bed.user, &["stop", &id])?;
        let state = shown(&bed.user, &id)?;
        let count = |name: &str| state["counts"][name].as_u64().context(name.to_owned());
        let file = directory.join("upgrade.pcapng");
        user(&bed.user, &["get", &id, "-w", &file.display().to_string()])?;
        wire::assert_readable(&file)?;
        let capture = Capture::read(&file)?;
        let numbers = Numbers::collect(RUN, capture.frames());
        println!(
            "{} packets in {:.1} s over an upgrade: {} written, {} missing, {} twice",
            sent.packets,
            sent.seconds,
            capture.packets.len(),
            numbers.missing_count(sent.packets),
            numbers.duplicates()
        );
        ensure!(count("matched")? == sent.packets, "{state:#}");
        ensure!(count("written")? == sent.packets, "{state:#}");
        ensure!(capture.packets.len() as u64 == sent.packets);
        ensure!(numbers.missing_count(sent.packets) == 0 && numbers.duplicates() == 0);
        ensure!(numbers.foreign == 0, "{} foreign packets", numbers.foreign);
        Ok(())
    })();
    with(&["--set=agent.pin=remove"])?;
    with(&[])?;
    outcome
}
