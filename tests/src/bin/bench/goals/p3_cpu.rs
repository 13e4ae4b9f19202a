//! P3: what a million packets in a finished file cost of CPU.

use anyhow::{Context as _, Result};

use super::Part;
use crate::{
    Bench,
    bed::Load,
    outcome::{Bound, Outcome, Unit},
    peer::{Peer, Tool},
    subject::{AgentSetup, Capture, RING_MIB, Recording, Subject, whole},
    twin,
};

pub(super) const METHOD: &str = "\
User and system time of the capturer's process for a million packets in its file on tmpfs: the agent's
from before the first packet until the file is closed, with its comments and statistics; the peers'
until they have taken the last packet from the kernel, without their end. Whole packets, a kernel ring
of 16 MiB each.
";

const SIZES: [usize; 2] = [64, 1400];
const OURS: &str = "agent, whole packets";

pub(super) fn measure(bench: &Bench) -> Result<Part> {
    let loads = SIZES.map(Load::udp);
    let peers = [(Tool::Tcpdump, 0.5), (Tool::Dumpcap, 0.2)];
    let mut subjects: Vec<_> = peers
        .map(|(tool, _)| Subject::peer(tool.name().into(), Peer::whole(tool, RING_MIB)))
        .into();
    let capture = Capture {
        agent: AgentSetup::recording(Recording::Default),
        sessions: vec![whole(&bench.bed)],
        ..Capture::default()
    };
    subjects.push(Subject::capturing(OURS.into(), capture));
    let rows = twin::measure(bench, &loads, &subjects)?;
    let mut part = Part {
        tables: rows.tables("Whole packets", &loads),
        ..Part::default()
    };
    for load in loads {
        let cpu = |subject: &str| {
            let row = rows.get(load, subject)?;
            row.cpu_s_per_million().context("no CPU time")
        };
        let lost = rows.get(load, OURS)?.caught().map_or(0, |c| c.lost);
        for (tool, at_most) in peers {
            let what = format!("agent, whole packets; {load}");
            let bound = Bound::RatioAtMost(at_most);
            part.outcomes.push(
                Outcome::new(what, Unit::CpuPerMillion, bound, cpu(OURS)?)
                    .against(tool.name(), cpu(tool.name())?)
                    .control(rows.control(load)?)
                    .lost(lost),
            );
        }
    }
    Ok(part)
}
