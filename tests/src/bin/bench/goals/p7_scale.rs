//! P7: what more sessions and more CPUs cost.

use std::time::Duration;

use anyhow::Result;
use remora_tests::{
    agent::{self, TestAgent},
    name, run, traffic, wait,
};
use serde_json::json;

use super::{Part, crowd::Pods, p7_rings};
use crate::{
    Bench, agents,
    bed::{Load, PORT},
    figures::median,
    outcome::{Bound, Outcome, Unit},
    peer::{Peer, Tool},
    row::Run,
    subject::{AgentSetup, Capture, NO_MATCH, RING_MIB, Subject, headers},
    table::Table,
    twin,
};

pub(super) const METHOD: &str = "\
*Bystander*: the captured path is idle for the agent, which has 1 or 64 sessions of 64 other pods; beside
it 16 tcpdumps on that path whose filters take nothing. *All matching*: 1 or 64 sessions of the captured
interface, each taking every packet with 96 bytes; that the one CPU for user space cannot write 64 files
at that rate is not the kernel's cost, and told as loss. *Producers*: packets into two pods that are both
captured, from one generator on CPU 0, then from two on CPU 0 and CPU 1; the agent has no CPU of its
own then, so what it takes of both is in the figure, and the reference is the same without an agent.
*By test run*: the tool `ringtwin` runs the entry program with the agent's rights and one session in the
kernel (BPF_PROG_TEST_RUN): *one* CPU; with the other reading (*read*); two CPUs into one ring (*shared*);
two CPUs with an object and a ring each (*apart*: the most that rings per CPU could gain); *missed* by the
filter. *A call each*: a system call lies between two packets, as a packet's way does. *Nobody reads*: most
of the packets find more waiting than wakes the reader.
";

const SESSIONS: usize = 64;
const TCPDUMPS: usize = 16;
/// For 64 sessions all of which match.
const MATCHING_MIB: u32 = 64;
const LOAD: Load = Load::udp(64);

pub(super) fn measure(bench: &Bench) -> Result<Part> {
    let mut part = Part::default();
    bystander(bench, &mut part)?;
    matching(bench, &mut part)?;
    producers(bench, &mut part)?;
    part.tables.push(p7_rings::table(bench)?);
    Ok(part)
}

fn bystander(bench: &Bench, part: &mut Part) -> Result<()> {
    let bed = &bench.bed;
    let others = Pods::gather(bed.node(), SESSIONS)?;
    let agent = |count: usize| {
        let name = match count {
            1 => "agent, 1 session of another pod".to_owned(),
            _ => format!("agent, {count} sessions of other pods"),
        };
        let capture = Capture {
            sessions: others.pods[..count].iter().map(agent::of_pod).collect(),
            ..Capture::default()
        };
        Subject::bystander(name, capture)
    };
    let tcpdumps = format!("{TCPDUMPS} tcpdumps, filters take nothing");
    let peer = Peer {
        count: TCPDUMPS,
        ..Peer::whole(Tool::Tcpdump, RING_MIB).filtered(NO_MATCH)
    };
    let (one, many) = (agent(1), agent(SESSIONS));
    let subjects = [
        Subject::missing(tcpdumps.clone(), peer),
        one.clone(),
        many.clone(),
    ];
    let rows = twin::measure(bench, &[LOAD], &subjects)?;
    let of = |name: &str| anyhow::Ok(rows.get(LOAD, name)?.each(Run::ns_added));
    for (reference, at_most) in [(&one.name, 1.15), (&tcpdumps, 0.05)] {
        let what = format!("{}; {LOAD}", many.name);
        let bound = Bound::RatioAtMost(at_most);
        part.outcomes.push(
            Outcome::new(what, Unit::NsAdded, bound, of(&many.name)?)
                .against(reference, of(reference)?)
                .control(rows.control(LOAD)?),
        );
    }
    part.tables.extend(rows.tables("Bystander", &[LOAD]));
    others.disperse()
}

fn matching(bench: &Bench, part: &mut Part) -> Result<()> {
    let agent = |count: usize| {
        let capture = Capture {
            agent: AgentSetup {
                ring_mib: MATCHING_MIB,
                ..AgentSetup::default()
            },
            sessions: vec![headers(&bench.bed); count],
            ..Capture::default()
        };
        Subject::capturing(format!("agent, {count} matching, -s 96"), capture)
    };
    let (one, many) = (agent(1), agent(SESSIONS));
    let rows = twin::measure(bench, &[LOAD], &[one.clone(), many.clone()])?;
    let of = |name: &str| anyhow::Ok(rows.get(LOAD, name)?.each(Run::ns_added));
    let lost = rows.get(LOAD, &many.name)?.caught().map_or(0, |c| c.lost);
    part.outcomes.push(
        Outcome::new(
            format!("{}; {LOAD}", many.name),
            Unit::NsAdded,
            Bound::RatioAtMost(2.0),
            of(&many.name)?,
        )
        .against(&one.name, of(&one.name)?)
        .control(rows.control(LOAD)?)
        .note(format!("{lost} lost by all 64 together, counted")),
    );
    part.tables.extend(rows.tables("All matching", &[LOAD]));
    Ok(())
}

/// Rates of one producer and of two, kpps together.
#[derive(Clone, Copy, Debug)]
struct Rates {
    one: f64,
    two: f64,
}

fn producers(bench: &Bench, part: &mut Part) -> Result<()> {
    let bed = &bench.bed;
    // The other pod drops what comes, as the first does.
    let logs = name::directory()?;
    let _sink = traffic::sink(PORT, logs.path(), |tool| bed.other().command(tool))?;
    let (mut without, mut with) = (vec![], vec![]);
    let mut lost = 0;
    for number in 1..=bench.plan.runs {
        eprintln!("  round {number} of {}", bench.plan.runs);
        without.push(rates(bench)?);
        let agent = agents::start(bed, AgentSetup::default())?;
        spread(&agent)?;
        let capture = Capture {
            sessions: vec![headers(bed), agent::of_pod(bed.other())],
            ..Capture::default()
        };
        let sessions = agents::begin(&agent, &capture)?;
        with.push(rates(bench)?);
        lost += agents::end(&agent, &sessions)?.lost;
    }
    let times = |rates: &[Rates]| rates.iter().map(|rates| rates.two / rates.one).collect();
    part.outcomes.push(
        Outcome::new(
            "two producers on two CPUs, both captured: rate against one's",
            Unit::Times,
            Bound::AtLeast(1.8),
            times(&with),
        )
        .against("no agent", times(&without))
        .note(format!(
            "agent on the same two CPUs, {lost} lost and counted"
        )),
    );
    let line = |who: &str, rates: &[Rates]| {
        let of = |figure: fn(&Rates) -> f64| {
            let values: Vec<f64> = rates.iter().map(figure).collect();
            format!("{:.0}", median(&values))
        };
        vec![who.to_owned(), of(|rates| rates.one), of(|rates| rates.two)]
    };
    let raw = |rates: &[Rates]| -> Vec<_> {
        let rates = rates.iter();
        rates
            .map(|r| json!({ "one": r.one, "two": r.two }))
            .collect()
    };
    part.tables.push(Table {
        title: "Producers, kpps".into(),
        columns: vec!["", "one", "two"],
        lines: vec![line("no agent", &without), line("agent", &with)],
        raw: json!({ "no agent": raw(&without), "agent": raw(&with) }),
    });
    Ok(())
}

/// Lets an agent run on both CPUs.
fn spread(agent: &TestAgent<'_>) -> Result<()> {
    let pid = agent.pid()?.to_string();
    run::output(run::command("taskset").args(["-a", "-c", "-p", "0,1", &pid]))?;
    Ok(())
}

fn rates(bench: &Bench) -> Result<Rates> {
    let bed = &bench.bed;
    let together = |cpus: &[u16]| -> Result<f64> {
        let pods = [bed.pod(), bed.other()];
        let senders = cpus
            .iter()
            .map(|&cpu| bed.send(pods[usize::from(cpu)], cpu, 64, 0))
            .collect::<Result<Vec<_>>>()?;
        wait::pace(bench.plan.length.max(Duration::from_millis(100)))?;
        let mut kpps = 0.0;
        for sender in senders {
            let sent = sender.stop_timed()?;
            kpps += sent.packets as f64 / sent.seconds / 1e3;
        }
        Ok(kpps)
    };
    Ok(Rates {
        one: together(&[0])?,
        two: together(&[0, 1])?,
    })
}
