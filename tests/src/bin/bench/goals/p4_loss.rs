//! P4: how fast packets may come before one is lost, and that none is ever lost uncounted.

use std::time::Duration;

use anyhow::Result;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use remora_tests::wait;
use serde_json::json;

use super::Part;
use crate::{
    Bench,
    agents::{self, Agents},
    figures::median,
    outcome::{Bound, Outcome, Unit},
    peer::{Peer, Tool},
    row::Caught,
    subject::{AgentSetup, Capture, Recording, filtered},
    table::Table,
};

pub(super) const METHOD: &str = "\
Bursts of whole packets on the captured path alone, with equal kernel rings and the filter
`udp port 9000` on both sides, so that nothing but the burst is in the files, which are counted by
capinfos (tcpdump's by itself). The first burst is as fast as the generator goes with the capture on
its path; if that loses packets, the rate is closed in on by halving, five times. The figure is the rate really sent in the fastest burst without a loss (the capturer's own
count, and none untold); 0 if there was none. *Stalled*: in the middle of each burst the capturer's
process is stopped for 200 ms (SIGSTOP, SIGCONT), so its kernel ring must hold what comes meanwhile.
At 1400 B both rings hold about as many packets, so there the ratio cannot be far from 1.
";

const SIZES: [usize; 2] = [64, 1400];
/// The generator's packets, and no neighbour discovery.
const FILTER: &str = "udp port 9000";
const BURST: Duration = Duration::from_millis(700);
/// From the burst's start.
const STALL_AFTER: Duration = Duration::from_millis(200);
const STALL: Duration = Duration::from_millis(200);
const STEPS: usize = 5;
const GENERATOR_CPU: u16 = 0;
const ROUNDS_MAX: usize = 3;

/// Who captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Capturer {
    Nobody,
    Agent,
    Tcpdump,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Runs,
    Stalls,
}

/// One search's circumstances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    capturer: Capturer,
    reader: Reader,
    ring_mib: u32,
    size: usize,
}

#[derive(Clone, Copy, Debug)]
struct Burst {
    /// Packets a second; 0: as fast as it goes.
    asked: u64,
    sent: u64,
    kpps: f64,
    caught: Caught,
}

impl Burst {
    /// Packets by which the file and the count of the lost differ from what was sent, either way.
    fn untold(&self) -> u64 {
        let Caught { captured, lost } = self.caught;
        self.sent.abs_diff(captured + lost)
    }

    fn is_lossless(&self) -> bool {
        self.caught.lost == 0 && self.untold() == 0
    }
}

/// All bursts of one search.
#[derive(Clone, Debug)]
struct Search(Vec<Burst>);

impl Search {
    /// With the capture on the path.
    fn generator_kpps(&self) -> f64 {
        self.0.first().map_or(0.0, |burst| burst.kpps)
    }

    fn lossless_kpps(&self) -> f64 {
        let lossless = self.0.iter().filter(|burst| burst.is_lossless());
        lossless.map(|burst| burst.kpps).fold(0.0, f64::max)
    }

    fn untold(&self) -> u64 {
        self.0.iter().map(Burst::untold).sum()
    }
}

pub(super) fn measure(bench: &Bench) -> Result<Part> {
    let case = |capturer, reader, ring_mib| {
        SIZES.map(move |size| Case {
            capturer,
            reader,
            ring_mib,
            size,
        })
    };
    let cases = [
        case(Capturer::Nobody, Reader::Runs, 0),
        case(Capturer::Tcpdump, Reader::Runs, 64),
        case(Capturer::Tcpdump, Reader::Stalls, 16),
        case(Capturer::Agent, Reader::Runs, 64),
        case(Capturer::Agent, Reader::Stalls, 16),
    ]
    .concat();
    let mut found: Vec<(Case, Vec<Search>)> = cases.iter().map(|case| (*case, vec![])).collect();
    let rounds = bench.plan.runs.min(ROUNDS_MAX);
    for number in 1..=rounds {
        eprintln!("  round {number} of {rounds}");
        let mut agents = Agents::new(&bench.bed);
        for (case, searches) in &mut found {
            searches.push(search(bench, &mut agents, *case)?);
        }
        agents.end()?;
    }

    let of = |case: Case, figure: &dyn Fn(&Search) -> f64| -> Vec<f64> {
        let found = found.iter().find(|(found, _)| *found == case);
        found.map_or(vec![], |(_, searches)| {
            searches.iter().map(figure).collect()
        })
    };
    let mut part = Part::default();
    for size in SIZES {
        let running = Case {
            capturer: Capturer::Agent,
            reader: Reader::Runs,
            ring_mib: 64,
            size,
        };
        let what = format!("agent, ring of 64 MiB; {size} B, into the pod");
        part.outcomes.push(
            Outcome::new(
                what,
                Unit::Kpps,
                Bound::RatioAtLeast(0.95),
                of(running, &Search::lossless_kpps),
            )
            .against("generator", of(running, &Search::generator_kpps)),
        );
    }
    for size in SIZES {
        let stalled = Case {
            capturer: Capturer::Agent,
            reader: Reader::Stalls,
            ring_mib: 16,
            size,
        };
        let tcpdumps = Case {
            capturer: Capturer::Tcpdump,
            ..stalled
        };
        let what = format!("agent stalled 200 ms, ring of 16 MiB; {size} B, into the pod");
        part.outcomes.push(
            Outcome::new(
                what,
                Unit::Kpps,
                Bound::RatioAtLeast(3.0),
                of(stalled, &Search::lossless_kpps),
            )
            .against("tcpdump -B 16384", of(tcpdumps, &Search::lossless_kpps)),
        );
    }
    let ours = found
        .iter()
        .filter(|(case, _)| case.capturer == Capturer::Agent);
    let untold: u64 = ours
        .flat_map(|(_, searches)| searches)
        .map(Search::untold)
        .sum();
    part.outcomes.push(Outcome::new(
        "agent: sent, neither in the file nor counted as lost, in all bursts",
        Unit::Packets,
        Bound::AtMost(0.0),
        vec![untold as f64],
    ));
    part.tables.push(table(&found));
    Ok(part)
}

fn search<'a>(bench: &'a Bench, agents: &mut Agents<'a>, case: Case) -> Result<Search> {
    let mut bursts = vec![burst(bench, agents, case, 0)?];
    let first = bursts[0];
    if case.capturer == Capturer::Nobody || first.is_lossless() {
        return Ok(Search(bursts));
    }
    let (mut good, mut bad) = (0.0, first.kpps);
    for _ in 0..STEPS {
        let asked = f64::midpoint(good, bad);
        let burst = burst(bench, agents, case, (asked * 1e3) as u64)?;
        if burst.is_lossless() {
            good = asked;
        } else {
            bad = asked;
        }
        bursts.push(burst);
    }
    Ok(Search(bursts))
}

fn burst<'a>(bench: &'a Bench, agents: &mut Agents<'a>, case: Case, asked: u64) -> Result<Burst> {
    let bed = &bench.bed;
    let send = |pids: &[u32]| send(bench, case, asked, pids);
    if case.capturer != Capturer::Agent {
        agents.end()?;
    }
    let (sent, caught) = match case.capturer {
        Capturer::Nobody => (send(&[])?, Caught::default()),
        Capturer::Agent => {
            let setup = AgentSetup {
                recording: Recording::Default,
                ring_mib: case.ring_mib,
            };
            let agent = agents.get(setup)?;
            let capture = Capture {
                agent: setup,
                sessions: vec![filtered(bed, FILTER)],
                ..Capture::default()
            };
            let sessions = agents::begin(agent, &capture)?;
            let sent = send(&[agent.pid()?])?;
            (sent, agents::end(agent, &sessions)?)
        }
        Capturer::Tcpdump => {
            let peer = Peer::whole(Tool::Tcpdump, case.ring_mib).filtered(FILTER);
            let running = peer.start(bed.node(), bed.interface(), bench.directory.path())?;
            let sent = send(&running.pids())?;
            running.wait_for_block(sent.packets)?;
            (sent, running.stop()?)
        }
    };
    Ok(Burst {
        asked,
        sent: sent.packets,
        kpps: sent.packets as f64 / sent.seconds / 1e3,
        caught,
    })
}

/// One burst, in which the readers may stall.
fn send(
    bench: &Bench,
    case: Case,
    asked: u64,
    readers: &[u32],
) -> Result<remora_tests::traffic::Sent> {
    let bed = &bench.bed;
    let sender = bed.send(bed.pod(), GENERATOR_CPU, case.size, asked)?;
    match case.reader {
        Reader::Runs => wait::pace(BURST)?,
        Reader::Stalls => {
            wait::pace(STALL_AFTER)?;
            signal(readers, Signal::SIGSTOP)?;
            let stalled = wait::pace(STALL);
            // Also when it was interrupted.
            signal(readers, Signal::SIGCONT)?;
            stalled?;
            wait::pace(BURST - STALL_AFTER - STALL)?;
        }
    }
    sender.stop_timed()
}

fn signal(pids: &[u32], signal: Signal) -> Result<()> {
    for &pid in pids {
        kill(Pid::from_raw(pid.try_into()?), signal)?;
    }
    Ok(())
}

fn table(found: &[(Case, Vec<Search>)]) -> Table {
    let lines = found.iter().map(|(case, searches)| {
        let medians = |figure: fn(&Search) -> f64| {
            let values: Vec<f64> = searches.iter().map(figure).collect();
            format!("{:.0}", median(&values))
        };
        let untold: u64 = searches.iter().map(Search::untold).sum();
        let who = match (case.capturer, case.reader) {
            (Capturer::Nobody, _) => "nobody".to_owned(),
            (Capturer::Agent, Reader::Runs) => format!("agent, {} MiB", case.ring_mib),
            (Capturer::Tcpdump, Reader::Runs) => format!("tcpdump, {} MiB", case.ring_mib),
            (Capturer::Agent, Reader::Stalls) => format!("agent, {} MiB, stalled", case.ring_mib),
            (Capturer::Tcpdump, Reader::Stalls) => {
                format!("tcpdump, {} MiB, stalled", case.ring_mib)
            }
        };
        let captures = case.capturer != Capturer::Nobody;
        let if_captures = |text: String| if captures { text } else { "-".into() };
        vec![
            who,
            case.size.to_string(),
            medians(Search::generator_kpps),
            if_captures(medians(Search::lossless_kpps)),
            if_captures(untold.to_string()),
        ]
    });
    let raw = found.iter().map(|(case, searches)| {
        let bursts = |search: &Search| -> Vec<_> {
            let bursts = search.0.iter();
            bursts
                .map(|burst| {
                    json!({
                        "asked_pps": burst.asked,
                        "sent": burst.sent,
                        "kpps": burst.kpps,
                        "captured": burst.caught.captured,
                        "lost": burst.caught.lost,
                        "untold": burst.untold(),
                    })
                })
                .collect()
        };
        json!({
            "case": format!("{case:?}"),
            "searches": searches.iter().map(bursts).collect::<Vec<_>>(),
        })
    });
    Table {
        title: "Rates, kpps".into(),
        columns: vec!["who captures", "B", "fastest", "without a loss", "untold"],
        lines: lines.collect(),
        raw: raw.collect(),
    }
}
