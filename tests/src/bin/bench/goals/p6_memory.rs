//! P6: memory.

use std::{borrow::Borrow, time::Duration};

use anyhow::Result;
use remora_proto::v1;
use remora_tests::{agent, node::Pod, wait};
use serde_json::json;

use super::{Part, crowd::Pods};
use crate::{
    Bench, agents,
    outcome::{Bound, Outcome, Unit},
    peer::{Peer, Tool},
    subject::{AgentSetup, RING_MIB, Recording},
    table::Table,
    usage::Memory,
};

pub(super) const METHOD: &str = "\
*own* is resident memory without mappings of BPF maps and packet sockets, *rings* the agent's BPF ring
or tcpdump's mapped buffer (16 MiB each), *maps* the agent's other BPF maps as the kernel charges them, the
look-back rings among them; each page counts once. The goal for an idle agent is of its memory without
the ring and the look-back rings that its status tells (the spare ones stay in), tcpdump's without its
buffer; that for 64 sessions is of the whole, on a node with 64 recorded pods. Sessions are of these pods,
without traffic, then all of one pod that gets 20 kpps of 64 B.
";

const SESSIONS: usize = 64;
const RATE: u64 = 20_000;
const TRAFFIC: Duration = Duration::from_secs(1);
const GENERATOR_CPU: u16 = 0;
/// A tcpdump has its whole buffer when it listens; the agent's allocator settles.
const SETTLED: Duration = Duration::from_millis(500);

pub(super) fn measure(bench: &Bench) -> Result<Part> {
    let bed = &bench.bed;
    let mut part = Part::default();
    let mut table = Table {
        title: "MiB".into(),
        columns: vec!["who", "own", "maps", "rings", "whole"],
        lines: vec![],
        raw: serde_json::Value::Array(vec![]),
    };
    let peer = Peer::whole(Tool::Tcpdump, RING_MIB);
    let running = peer.start(bed.node(), bed.interface(), bench.directory.path())?;
    wait::pace(SETTLED)?;
    let pids = running.pids();
    let tcpdump = Memory::of(pids[0])?;
    running.stop()?;
    add(&mut table, "tcpdump, idle", tcpdump);

    for recording in [Recording::Default, Recording::Off] {
        let agent = agents::start(bed, AgentSetup::recording(recording))?;
        let memory = Memory::of(agent.pid()?)?;
        let name = format!("agent {}, idle", recording.name());
        add(&mut table, &name, memory);
        let look_back: u64 = agent
            .status()?
            .taps
            .iter()
            .filter_map(|tap| tap.look_back.as_ref())
            .map(|ring| ring.bytes)
            .sum();
        let ours = mib((memory.own + memory.maps).saturating_sub(look_back));
        let bound = Bound::RatioAtMost(2.0);
        part.outcomes.push(
            Outcome::new(
                format!("{name}, without rings"),
                Unit::MiB,
                bound,
                vec![ours],
            )
            .against("tcpdump", vec![mib(tcpdump.own)])
            .note(format!("look-back rings of {:.1} MiB", mib(look_back))),
        );
    }
    let others = Pods::gather(bed.node(), SESSIONS)?;
    let quiet = |count: usize| measure_with(bench, &others.pods[..count], None);
    let (one, many) = (quiet(1)?, quiet(SESSIONS)?);
    add(&mut table, "agent, 1 session", one);
    add(&mut table, "agent, 64 sessions of 64 pods", many);
    part.outcomes
        .push(compared("64 sessions of 64 quiet pods", one, many));

    let busy: Vec<&Pod> = vec![bed.pod(); SESSIONS];
    let with_traffic = |count: usize| measure_with(bench, &busy[..count], Some(bed.pod()));
    let (one, many) = (with_traffic(1)?, with_traffic(SESSIONS)?);
    add(&mut table, "agent, 1 session, 20 kpps", one);
    add(&mut table, "agent, 64 sessions of one pod, 20 kpps", many);
    part.outcomes
        .push(compared("64 sessions of one pod, 20 kpps", one, many));
    part.tables.push(table);
    others.disperse()?;
    Ok(part)
}

fn compared(what: &str, one: Memory, many: Memory) -> Outcome {
    let bound = Bound::RatioAtMost(1.25);
    Outcome::new(what, Unit::MiB, bound, vec![mib(many.whole())])
        .against("one", vec![mib(one.whole())])
}

/// The agent's memory with a session of each of these pods, perhaps while one of them gets packets.
fn measure_with<P: Borrow<Pod>>(bench: &Bench, pods: &[P], to: Option<&Pod>) -> Result<Memory> {
    let agent = agents::start(&bench.bed, AgentSetup::default())?;
    let specs = pods.iter().map(|pod| agent::of_pod(pod.borrow()));
    let sessions: Vec<v1::CaptureState> = specs
        .map(|spec| Ok(agent.capture(spec)?))
        .collect::<Result<_>>()?;
    let memory = match to {
        None => {
            wait::pace(SETTLED)?;
            Memory::of(agent.pid()?)?
        }
        Some(pod) => {
            let stream = bench.bed.send(pod, GENERATOR_CPU, 64, RATE)?;
            wait::pace(TRAFFIC)?;
            let memory = Memory::of(agent.pid()?)?;
            stream.stop()?;
            memory
        }
    };
    agents::end(&agent, &sessions)?;
    Ok(memory)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn add(table: &mut Table, name: &str, memory: Memory) {
    let Memory { own, maps, rings } = memory;
    let mut line = vec![name.to_owned()];
    line.extend([own, maps, rings, memory.whole()].map(|bytes| format!("{:.1}", mib(bytes))));
    table.lines.push(line);
    if let Some(raw) = table.raw.as_array_mut() {
        raw.push(json!({ "who": name, "own": own, "maps": maps, "rings": rings }));
    }
}
