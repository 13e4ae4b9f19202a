//! P5: how long a trigger takes, how soon a packet can be read, what looking back costs.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use remora_tests::{
    agent::{TestAgent, of_pod_filtered},
    latency::{self, Triggers, quantile},
    wait,
};
use serde_json::json;

use super::Part;
use crate::{
    Bench, agents,
    bed::{Load, PORT},
    outcome::{Bound, Outcome, Unit},
    peer::{Peer, Tool},
    row::Run,
    subject::{AgentSetup, Capture, RING_MIB, Recording, Subject, whole},
    table::Table,
    twin,
};

pub(super) const METHOD: &str = "\
*Start → answered* is what a client sees: its question on the agent's socket, until the answer says that
the capture is armed. *→ first packet* is until the kernel's time of the first packet that is captured,
of a stream of 20 kpps. *Packet → readable*: a datagram is sent into a quiet pod, and the file is looked
at until it has grown. The look-back rows are of an agent without a session, beside a tcpdump that
captures: by default a flow's packets after its first 16 KiB are only counted, and the generator sends
one flow; *recording whole flows* writes each into its ring.
";

const TIMES: usize = 200;
const TIMES_QUICK: usize = 40;
const TCPDUMPS: usize = 20;
const RATE: u64 = 20_000;
const FILTER: &str = "udp port 9000";
const STREAM_CPU: u16 = 0;
/// Between two packets that are looked for, and what each pause is longer than the one before: so
/// that they meet the agent's own pace at every point.
const PAUSE: Duration = Duration::from_millis(6);
const PAUSE_STEP: Duration = Duration::from_micros(300);
const PAUSES: u32 = 16;
const READABLE_LIMIT: Duration = Duration::from_secs(2);
const RECORDING: [Recording; 2] = [Recording::Default, Recording::WholeFlows];

pub(super) fn measure(bench: &Bench) -> Result<Part> {
    let mut part = Part::default();
    times(bench, &mut part)?;
    look_back(bench, &mut part)?;
    Ok(part)
}

fn times(bench: &Bench, part: &mut Part) -> Result<()> {
    let bed = &bench.bed;
    let count = if bench.plan.quick { TIMES_QUICK } else { TIMES };
    let agent = agents::start(bed, AgentSetup::default())?;

    let stream = bed.send(bed.pod(), STREAM_CPU, 64, RATE)?;
    let mut triggers = Triggers::default();
    for _ in 0..count {
        let spec = of_pod_filtered(bed.pod(), FILTER);
        triggers.add(&agent, || Ok(agent.capture(spec)?.id))?;
    }
    let spawned = (0..TCPDUMPS.min(count))
        .map(|_| {
            let place = |program: &str| bed.node().command(program);
            let directory = bed.node().directory();
            latency::spawned_tcpdump(place, bed.interface(), FILTER, directory)
        })
        .collect::<Result<Vec<_>>>()?;
    stream.stop()?;
    let readable = readable(bench, &agent, count)?;

    let ms = |times: &[Duration], share: f64| vec![quantile(times, share).as_secs_f64() * 1e3];
    let row = |what: &str, times: &[Duration], share: f64, most: f64| {
        let what = format!("{what}, p{:.0} of {}", share * 100.0, times.len());
        let bound = Bound::AtMost(most);
        Outcome::new(what, Unit::Milliseconds, bound, ms(times, share))
    };
    let tcpdumps = "tcpdump -U --immediate-mode spawned";
    part.outcomes.extend([
        row("Start sent → answered, armed", &triggers.answered, 0.5, 0.2),
        row("Start sent → first packet", &triggers.to_first, 0.5, 1.0)
            .against(tcpdumps, ms(&spawned, 0.5)),
        row("Start sent → first packet", &triggers.to_first, 0.99, 5.0)
            .against(tcpdumps, ms(&spawned, 0.99)),
        row("packet sent → readable in the file", &readable, 0.5, 10.0),
        row("packet sent → readable in the file", &readable, 0.99, 10.0),
    ]);
    let all = [
        ("Start sent → answered, armed", &triggers.answered),
        ("Start sent → first packet", &triggers.to_first),
        (tcpdumps, &spawned),
        ("packet sent → readable in the file", &readable),
    ];
    let line = |(what, times): &(&str, &Vec<Duration>)| {
        let at = |share| format!("{:.3}", quantile(times, share).as_secs_f64() * 1e3);
        let count = times.len().to_string();
        vec![(*what).to_owned(), count, at(0.5), at(0.99), at(1.0)]
    };
    let raw = |(what, times): &(&str, &Vec<Duration>)| {
        let ns: Vec<_> = times.iter().map(|time| time.as_nanos() as u64).collect();
        json!({ "what": what, "ns": ns })
    };
    part.tables.push(Table {
        title: "Milliseconds".into(),
        columns: vec!["from, to", "n", "p50", "p99", "largest"],
        lines: all.iter().map(line).collect(),
        raw: all.iter().map(raw).collect(),
    });
    Ok(())
}

/// How long packets take into the file.
fn readable(bench: &Bench, agent: &TestAgent<'_>, count: usize) -> Result<Vec<Duration>> {
    let bed = &bench.bed;
    let state = agent.capture(whole(bed))?;
    let closed = agent.file(&state);
    let mut open = closed.into_os_string();
    open.push(".part");
    let open = Path::new(&open);
    let to = SocketAddr::from((bed.pod().ipv4(), PORT));
    let times = bed.node().netns().enter(|| {
        // The agent's CPU is its own.
        let mut cpus = CpuSet::new();
        cpus.set(STREAM_CPU.into())?;
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let mut times = Vec::new();
        for number in 0..count {
            wait::pace(PAUSE + PAUSE_STEP * (u32::try_from(number)? % PAUSES))?;
            times.push(one_readable(&socket, to, open)?);
        }
        Ok(times)
    })?;
    agents::end(agent, &[state])?;
    Ok(times)
}

fn one_readable(socket: &UdpSocket, to: SocketAddr, file: &Path) -> Result<Duration> {
    let size = || Ok::<_, anyhow::Error>(fs::metadata(file)?.len());
    let before = size().with_context(|| format!("no {}", file.display()))?;
    let sent = Instant::now();
    socket.send_to(&[0; 22], to)?;
    while size()? == before {
        anyhow::ensure!(
            sent.elapsed() < READABLE_LIMIT,
            "a packet is not in the file after {READABLE_LIMIT:?}"
        );
    }
    Ok(sent.elapsed())
}

fn look_back(bench: &Bench, part: &mut Part) -> Result<()> {
    let load = Load::udp(64);
    let tcpdump = "tcpdump, whole packets";
    let name = |recording: Recording| format!("agent {}, no session", recording.name());
    let peer = Peer::whole(Tool::Tcpdump, RING_MIB);
    let mut subjects = vec![Subject::peer(tcpdump.into(), peer)];
    subjects.extend([Recording::Off].iter().chain(&RECORDING).map(|&recording| {
        let capture = Capture {
            agent: AgentSetup::recording(recording),
            ..Capture::default()
        };
        Subject::bystander(name(recording), capture)
    }));
    let rows = twin::measure(bench, &[load], &subjects)?;
    for recording in RECORDING {
        let what = format!("{}; {load}", name(recording));
        let ours = rows.get(load, &name(recording))?.each(Run::ns_added);
        part.outcomes.push(
            Outcome::new(what, Unit::NsAdded, Bound::RatioAtMost(0.4), ours)
                .against("tcpdump -w", rows.get(load, tcpdump)?.each(Run::ns_added))
                .control(rows.control(load)?),
        );
    }
    part.tables.extend(rows.tables("Look-back", &[load]));
    Ok(())
}
