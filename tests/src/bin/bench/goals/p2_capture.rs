//! P2: what a capture costs the packets that it takes.

use anyhow::Result;

use super::Part;
use crate::{
    Bench,
    bed::Load,
    outcome::{Bound, Outcome, Unit},
    peer::{Peer, Tool},
    row::Run,
    subject::{AgentSetup, Capture, RING_MIB, Recording, SNAPLEN, Subject, headers, whole},
    twin,
};

pub(super) const METHOD: &str = "\
One capture of all packets of the interface, by the agent and by each peer, with the same snaplen, a
kernel ring of 16 MiB for each (64 MiB for bulk), writing to tmpfs on CPU 1. A row with a loss on our
side does not meet its goal. Bulk goes over TCP connections, 8 MiB on one path, then on the other;
*sent* counts these, *ns* are of a MiB, and *captured* super-packets.
";

/// For bulk, as `tcpdump -B 65536` has it.
const BULK_MIB: u32 = 64;
const RECORDING: [Recording; 2] = [Recording::Default, Recording::Off];

/// One load with one snaplen.
struct Kind {
    name: &'static str,
    size: usize,
    snaplen: Option<u32>,
    at_most: f64,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "whole packets",
        size: 64,
        snaplen: None,
        at_most: 0.30,
    },
    Kind {
        name: "-s 96",
        size: 1400,
        snaplen: Some(SNAPLEN),
        at_most: 0.25,
    },
    Kind {
        name: "whole packets",
        size: 1400,
        snaplen: None,
        at_most: 0.35,
    },
];

pub(super) fn measure(bench: &Bench) -> Result<Part> {
    let mut part = Part::default();
    for kind in &KINDS {
        let ways = bench.plan.ways.iter();
        let loads = ways.map(|&way| Load::Udp {
            way,
            size: kind.size,
        });
        let loads: Vec<Load> = loads.collect();
        let mut subjects: Vec<_> = [Tool::Tcpdump, Tool::Dumpcap, Tool::Tshark]
            .map(|tool| peer(tool, kind, RING_MIB))
            .into();
        subjects.extend(RECORDING.map(|recording| agent(bench, kind, recording, RING_MIB)));
        let rows = twin::measure(bench, &loads, &subjects)?;
        for &load in &loads {
            let tcpdump = rows.get(load, &peer(Tool::Tcpdump, kind, RING_MIB).name)?;
            for recording in RECORDING {
                let ours = rows.get(load, &name(kind, recording))?;
                let what = format!("{}; {load}", ours.subject);
                let bound = Bound::RatioAtMost(kind.at_most);
                part.outcomes.push(
                    Outcome::new(what, Unit::NsAdded, bound, ours.each(Run::ns_added))
                        .against("tcpdump", tcpdump.each(Run::ns_added))
                        .control(rows.control(load)?)
                        .lost(ours.caught().map_or(0, |caught| caught.lost)),
                );
            }
        }
        part.tables.extend(rows.tables(kind.name, &loads));
    }
    bulk(bench, &mut part)?;
    Ok(part)
}

fn bulk(bench: &Bench, part: &mut Part) -> Result<()> {
    let kind = &KINDS[2];
    let load = Load::Bulk;
    let mut subjects = vec![peer(Tool::Tcpdump, kind, BULK_MIB)];
    subjects.extend(RECORDING.map(|recording| agent(bench, kind, recording, BULK_MIB)));
    let rows = twin::measure(bench, &[load], &subjects)?;
    let tcpdump = rows.get(load, &subjects[0].name)?;
    let dropped = tcpdump.caught().map_or(0, |caught| caught.lost);
    for recording in RECORDING {
        let ours = rows.get(load, &name(kind, recording))?;
        let what = format!("{}; {load}", ours.subject);
        let (bound, speed) = (Bound::RatioAtLeast(1.0), ours.each(Run::speed_ratio));
        part.outcomes.push(
            Outcome::new(what, Unit::Speed, bound, speed)
                .against("tcpdump -B 65536", tcpdump.each(Run::speed_ratio))
                .control(rows.control(load)?)
                .lost(ours.caught().map_or(0, |caught| caught.lost))
                .note(format!("tcpdump dropped {dropped}")),
        );
    }
    part.tables.extend(rows.tables(kind.name, &[load]));
    Ok(())
}

fn name(kind: &Kind, recording: Recording) -> String {
    format!("agent {}, {}", recording.name(), kind.name)
}

fn agent(bench: &Bench, kind: &Kind, recording: Recording, ring_mib: u32) -> Subject {
    let spec = match kind.snaplen {
        Some(_) => headers(&bench.bed),
        None => whole(&bench.bed),
    };
    let capture = Capture {
        agent: AgentSetup {
            recording,
            ring_mib,
        },
        sessions: vec![spec],
        ..Capture::default()
    };
    Subject::capturing(name(kind, recording), capture)
}

fn peer(tool: Tool, kind: &Kind, buffer_mib: u32) -> Subject {
    let peer = Peer {
        snaplen: kind.snaplen,
        ..Peer::whole(tool, buffer_mib)
    };
    Subject::peer(format!("{}, {}", tool.name(), kind.name), peer)
}
