//! P1: what the agent costs a pod that nobody captures.

use std::time::Duration;

use anyhow::Result;
use remora_tests::{agent, wait};

use super::{Part, crowd::Crowd};
use crate::{
    Bench, agents,
    bed::Load,
    outcome::{Bound, Outcome, Unit},
    peer::{Peer, Tool},
    row::Run,
    subject::{AgentSetup, Capture, NO_MATCH, RING_MIB, Recording, Subject},
    table::Table,
    twin, usage,
};

pub(super) const METHOD: &str = "\
The node has many more veths (their number is in the rows), which the agent takes for pods: it is attached
to each and, where it records, each has a ring. (Their other ends are in one namespace; they have no
processes, and no traffic.) The goal says 1000: `--pods 1000` measures that, but each agent then takes
its time until it is on all of them, so by default there are 100. The captured path is idle for the agent but for its look-back ring; *session on another pod*
is one capture of a pod without traffic. *both paths* is what the time of a packet on both paths is
longer than in the control of the same round, which *ns added* cannot tell: it is to show that an agent
costs nothing where it is not attached; these figures are of times that lie apart, and move with what else
the machine does.
";

const SIZE: usize = 64;
/// How long an agent without a session is watched.
const WATCHED: Duration = Duration::from_secs(10);
const WATCHED_QUICK: Duration = Duration::from_secs(3);
const RECORDING: [Recording; 2] = [Recording::Default, Recording::Off];

pub(super) fn measure(bench: &Bench) -> Result<Part> {
    let bed = &bench.bed;
    let crowd = Crowd::gather(bed.node(), bench.plan.pods)?;
    let pods = format!("{} pods known", bench.plan.pods);
    let loads: Vec<Load> = bench
        .plan
        .ways
        .iter()
        .map(|&way| Load::Udp { way, size: SIZE })
        .collect();
    let miss = "tcpdump, filter takes nothing";
    let peer = Peer::whole(Tool::Tcpdump, RING_MIB).filtered(NO_MATCH);
    let mut subjects = vec![Subject::empty_tcx(), Subject::missing(miss.into(), peer)];
    for recording in RECORDING {
        let agent = AgentSetup::recording(recording);
        for (name, sessions) in [
            (idle(recording), vec![]),
            (beside(recording), vec![agent::of_pod(bed.other())]),
        ] {
            let capture = Capture {
                agent,
                sessions,
                ..Capture::default()
            };
            subjects.push(Subject::bystander(name, capture));
        }
    }
    let rows = twin::measure(bench, &loads, &subjects)?;

    let mut part = Part {
        tables: rows.tables("Bystander", &loads),
        ..Part::default()
    };
    let mut both = Table {
        title: "On both paths".into(),
        columns: vec!["agent", "ns of a packet"],
        lines: vec![],
        raw: serde_json::Value::Null,
    };
    for load in loads {
        let control = rows.control(load)?;
        let of = |subject: &str| rows.get(load, subject);
        for recording in RECORDING {
            let name = beside(recording);
            let ours = of(&name)?.each(Run::ns_added);
            let added = |bound| {
                let what = what(&name, load);
                Outcome::new(what, Unit::NsAdded, bound, ours.clone()).note(&pods)
            };
            let reference = of(miss)?.each(Run::ns_added);
            part.outcomes.push(
                added(Bound::RatioAtMost(0.25))
                    .against("tcpdump, no match", reference)
                    .control(control),
            );
            let reference = of(Subject::EMPTY_TCX)?.each(Run::ns_added);
            part.outcomes.push(
                added(Bound::MoreByAtMost(25.0))
                    .against(Subject::EMPTY_TCX, reference)
                    .control(control),
            );
            let name = idle(recording);
            let speed = of(&name)?.each(Run::speed_ratio);
            let bound = Bound::RatioAtLeast(0.99);
            part.outcomes.push(
                Outcome::new(what(&name, load), Unit::Speed, bound, speed)
                    .against(
                        Subject::CONTROL,
                        of(Subject::CONTROL)?.each(Run::speed_ratio),
                    )
                    .control(control)
                    .note(&pods),
            );
            let ns = rows.ns_on_both_paths(load, &name)?;
            both.lines
                .push(vec![what(&name, load), format!("{ns:+.0}")]);
        }
    }
    part.tables.push(both);
    for recording in RECORDING {
        part.outcomes.push(at_rest(bench, recording)?.note(&pods));
    }
    crowd.disperse()?;
    Ok(part)
}

fn idle(recording: Recording) -> String {
    format!("agent {}, no session", recording.name())
}

fn beside(recording: Recording) -> String {
    format!("agent {}, session on another pod", recording.name())
}

fn what(name: &str, load: Load) -> String {
    format!("{name}; {load}")
}

/// An agent with nothing to do, and what it takes of a core all the same.
fn at_rest(bench: &Bench, recording: Recording) -> Result<Outcome> {
    let watched = if bench.plan.quick {
        WATCHED_QUICK
    } else {
        WATCHED
    };
    let agent = agents::start(&bench.bed, AgentSetup::recording(recording))?;
    let pids = [agent.pid()?];
    let before = usage::cpu(&pids)?;
    wait::pace(watched)?;
    let took = usage::cpu(&pids)?.saturating_sub(before);
    let share = took.as_secs_f64() / watched.as_secs_f64() * 100.0;
    let what = format!(
        "{}: of a core over {} s, no traffic",
        idle(recording),
        watched.as_secs()
    );
    let bound = Bound::AtMost(0.2);
    Ok(Outcome::new(what, Unit::Percent, bound, vec![share]))
}
