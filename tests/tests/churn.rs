//! Pods that come and go by the thousand, with the same names, ifindexes and addresses: no capture ever
//! has a packet of another, and the agent ends as it began.

use std::{
    collections::HashMap,
    fs,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use remora_proto::v1::{self, target::Target};
use remora_tests::{
    agent::{Options, TestAgent, looking_back, spec},
    bpf::Objects,
    fleet::{Fleet, SmallPod},
    node::Node,
    numbered::Number,
    packets::Capture,
    proof,
    random::Random,
    run::Proc,
    wait,
};

const LIMIT: Duration = Duration::from_secs(30);
/// Pods that come, and later go, together.
const BATCH: u32 = 16;
/// Batches that live at a time.
const BATCHES: u32 = 3;
const PODS: u32 = 1_000;
/// Another number of pods: 10000 take some ten minutes.
const PODS_VARIABLE: &str = "REMORA_CHURNS";
/// Between two packets of a pod.
const PAUSE: Duration = Duration::from_millis(10);
/// Rings that may lie ready for the next pods: 64 MiB / 8 / 1 MiB, and the spares of a pod's own.
const READY: usize = 8;
/// What the agent may have more than before, in bytes: its allocator's, and the list of captures.
const GROWTH: u64 = 24 << 20;

/// One of those that ever lived.
#[derive(Clone, Debug)]
struct Known {
    run: u16,
    seat: u32,
    cgroup_id: u64,
    path: String,
}

/// What the agent holds.
#[derive(Clone, Debug)]
struct Held {
    fds: usize,
    objects: Objects,
    taps: usize,
    resident: u64,
}

impl Held {
    fn by(agent: &TestAgent<'_>) -> Result<Self> {
        let pid = agent.pid()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next())
            .context("no VmRSS")?;
        Ok(Self {
            fds: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            objects: Objects::of_process(pid)?,
            taps: agent.status()?.taps.len(),
            resident: resident.parse::<u64>()? << 10,
        })
    }

    fn shown(&self) -> String {
        format!(
            "{} taps, {} links, {} maps, {} programs, {} fds, {} KiB resident",
            self.taps,
            self.objects.links.len(),
            self.objects.maps.len(),
            self.objects.programs.len(),
            self.fds,
            self.resident >> 10
        )
    }
}

fn back(target: Target) -> v1::CaptureSpec {
    let spec = v1::CaptureSpec {
        filter: "udp port 9000".into(),
        ..spec(target)
    };
    looking_back(spec, 60)
}

/// What captures showed.
#[derive(Debug, Default)]
struct Shown {
    of_living: usize,
    of_dead: usize,
    /// The agent knows nothing of it, or the pod ended while it looked.
    refused: usize,
    empty: usize,
    packets: usize,
    /// Run, and the time of its first packet since the epoch.
    first: HashMap<u16, Duration>,
    /// Run of a pod whose recording began after its first packet, and how many it lacks.
    late: HashMap<u16, u64>,
}

impl Shown {
    /// Captures one that lives, or lived, by one of its names.
    fn capture(&mut self, agent: &TestAgent<'_>, of: &Known, target: Target) -> Result<()> {
        let by_id = matches!(target, Target::CgroupId(_));
        let Ok(state) = agent.capture(back(target.clone())) else {
            self.refused += 1;
            return Ok(());
        };
        let is_past = state.resolved_target.contains("behind");
        let state = if is_past {
            agent.wait_final(&state.id, LIMIT)?
        } else {
            agent.stop(&state.id)?
        };
        proof::law(&state.counts.context("no counts")?)?;
        let path = agent.file(&state);
        let capture = Capture::read(&path)?;
        fs::remove_file(&path)?;
        if is_past {
            self.of_dead += 1;
        } else {
            self.of_living += 1;
        }
        let numbers = capture
            .packets
            .iter()
            .map(|packet| Number::of_frame(&packet.data).context("a packet of nobody"));
        let numbers: Vec<Number> = numbers.collect::<Result<_>>()?;
        let Some(first) = numbers.first() else {
            self.empty += 1;
            return Ok(());
        };
        self.packets += numbers.len();
        // A name may be the next one's by now, but one pod's alone.
        let foreign: Vec<_> = numbers.iter().filter(|n| n.run != first.run).collect();
        ensure!(
            foreign.is_empty() && (!by_id || first.run == of.run),
            "{target:?} of {of:?} has packets of {} and of {foreign:?}\n{state:?}",
            first.run
        );
        let mut sequences: Vec<u64> = numbers.iter().map(|n| n.sequence).collect();
        sequences.sort_unstable();
        ensure!(
            sequences.windows(2).all(|pair| pair[0] + 1 == pair[1]),
            "a gap or a packet twice in {sequences:?}\n{state:?}"
        );
        let time = capture.packets.first().context("no packet")?.time;
        self.first.insert(first.run, time);
        if let Some(&lacking) = sequences.first()
            && lacking > 0
        {
            self.late.insert(first.run, lacking);
        }
        Ok(())
    }
}

/// When each seat's interface came, time and time again: what `ip monitor` of the node saw.
fn arrivals(log: &str) -> HashMap<u32, Vec<Duration>> {
    let mut arrivals: HashMap<u32, Vec<Duration>> = HashMap::new();
    let mut is_there = HashMap::new();
    // "[2026-11-24T22:30:00.123456] 5003: small-3@if2: <BROADCAST…" or "…] Deleted 5003: small-3@…"
    for line in log.lines() {
        let Some((time, rest)) = line
            .strip_prefix('[')
            .and_then(|line| line.split_once("] "))
        else {
            continue;
        };
        let (rest, is_gone) = match rest.strip_prefix("Deleted ") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let seat = rest
            .split_once(": small-")
            .and_then(|(_, name)| name.split(['@', ':']).next()?.parse::<u32>().ok());
        let Some(seat) = seat else { continue };
        if is_gone {
            is_there.insert(seat, false);
        } else if is_there.insert(seat, true) != Some(true) {
            let time = format!("{time}Z").parse::<Timestamp>();
            let Ok(time) = time else { continue };
            let since = Duration::try_from(time.as_duration()).unwrap_or_default();
            arrivals.entry(seat).or_default().push(since);
        }
    }
    arrivals
}

fn percent(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

#[test]
fn pods_that_come_and_go_by_the_thousand_leave_nothing_to_each_other() -> Result<()> {
    let pods = pods()?;
    let node = Node::new()?;
    let options = Options {
        arguments: "--flow-cutoff 0 --look-back-keep 5s"
            .split(' ')
            .map(String::from)
            .collect(),
        ..Options::default()
    };
    let agent = TestAgent::start_with(&node, options)?;
    let fleet = Fleet::new(&node, PAUSE)?;
    let mut monitor = node.command("ip");
    monitor
        .env("TZ", "UTC")
        .args(["-ts", "-o", "monitor", "link"]);
    let monitor = Proc::spawn(&mut monitor, node.directory(), "monitor")?;
    let before = Held::by(&agent)?;

    let known: Mutex<Vec<Known>> = Mutex::default();
    let ended = AtomicBool::new(false);
    let begun = Instant::now();
    let (shown, middle, last) = thread::scope(|scope| {
        let captures = scope.spawn(|| -> Result<Shown> {
            let mut shown = Shown::default();
            let mut dice = Random(1);
            while !ended.load(Ordering::Relaxed) {
                let of = {
                    let known = known.lock().unwrap_or_else(PoisonError::into_inner);
                    // Those that live, and twice as many that lived.
                    let latest = known.len().min((3 * BATCH * BATCHES) as usize);
                    let at = known.len() - dice.below(latest + 1).min(latest);
                    known.get(at).cloned()
                };
                let Some(of) = of else {
                    thread::sleep(PAUSE);
                    continue;
                };
                let target = match dice.below(4) {
                    0 => Target::CgroupPath(of.path.clone()),
                    1 => Target::Interface(Fleet::interface(of.seat)),
                    _ => Target::CgroupId(of.cgroup_id),
                };
                shown.capture(&agent, &of, target)?;
            }
            Ok(shown)
        });
        let churned = churn(&fleet, &agent, &known, pods, || captures.is_finished());
        ended.store(true, Ordering::Relaxed);
        let shown = captures
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (middle, last) = churned?;
        anyhow::Ok((shown, middle, last))
    })?;
    let took = begun.elapsed();

    wait::until(LIMIT, "the end of what was kept", || {
        Ok(agent.status()?.taps.is_empty())
    })?;
    // What is kept of the last goes in its time.
    wait::pace(Duration::from_secs(7))?;
    let after = Held::by(&agent)?;
    let Shown {
        of_living,
        of_dead,
        refused,
        empty,
        packets,
        ..
    } = shown;
    println!(
        "{pods} pods in {took:.1?}; captures: {of_living} of living, {of_dead} of dead, {empty} of \
         these without a packet, {refused} refused; {packets} packets, 0 foreign"
    );
    for (when, held) in [
        ("before", &before),
        ("with 48 pods, after the first 480", &middle),
        ("with 48 pods, at the end", &last),
        ("after", &after),
    ] {
        println!("{when}: {}", held.shown());
    }
    report_delays(&monitor.log(), &shown);

    let few = pods as usize / 100;
    ensure!(of_living > few && of_dead > few, "few captures");
    ensure!(empty * 10 < of_living + of_dead, "many were empty");
    ensure!(after.taps == 0 && after.objects.links == before.objects.links);
    ensure!(after.objects.programs == before.objects.programs);
    ensure!(after.objects.maps.len() <= before.objects.maps.len() + READY);
    ensure!(after.fds <= before.fds + READY);
    ensure!(last.taps == middle.taps);
    // One capture of a living pod may be running, or may have been: two links of its cgroup.
    let [then, now] = [&middle, &last].map(|held| held.objects.links.len());
    ensure!(now.abs_diff(then) <= 2, "{then} and {now} links");
    ensure!(last.objects.maps.len() <= middle.objects.maps.len() + READY);
    ensure!(last.resident < middle.resident + GROWTH);
    Ok(())
}

/// What the agent held early, and at the end with as many pods.
fn churn(
    fleet: &Fleet<'_>,
    agent: &TestAgent<'_>,
    known: &Mutex<Vec<Known>>,
    pods: u32,
    is_over: impl Fn() -> bool,
) -> Result<(Held, Held)> {
    let mut living: Vec<Vec<SmallPod>> = Vec::new();
    let mut middle = None;
    let mut run = 0;
    let all_tapped = || {
        wait::until(LIMIT, "a tap of each pod", || {
            Ok(agent.status()?.taps.len() == (BATCH * BATCHES) as usize)
        })
    };
    for step in 0..pods / BATCH {
        if is_over() {
            break;
        }
        if living.len() == BATCHES as usize {
            fleet.end(living.remove(0))?;
        }
        let runs: Vec<u16> = (run..run + BATCH as u16).collect();
        run += BATCH as u16;
        let batch = fleet.begin(step % BATCHES * BATCH, &runs)?;
        known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(batch.iter().map(|pod| Known {
                run: pod.run(),
                seat: pod.seat(),
                cgroup_id: pod.cgroup_id(),
                path: pod.cgroup().path(),
            }));
        living.push(batch);
        if step == 30 {
            all_tapped()?;
            middle = Some(Held::by(agent)?);
        }
    }
    if !is_over() {
        all_tapped()?;
    }
    let last = Held::by(agent)?;
    for batch in living {
        fleet.end(batch)?;
    }
    Ok((middle.unwrap_or_else(|| last.clone()), last))
}

/// From a veth's arrival to its first recorded packet, as far as pods were captured.
fn report_delays(log: &str, shown: &Shown) {
    let arrivals = arrivals(log);
    let mut delays: Vec<Duration> = shown
        .first
        .iter()
        .filter_map(|(&run, first)| {
            let (step, place) = (u32::from(run) / BATCH, u32::from(run) % BATCH);
            let seat = step % BATCHES * BATCH + place;
            let arrival = arrivals.get(&seat)?.get((step / BATCHES) as usize)?;
            first.checked_sub(*arrival)
        })
        .collect();
    delays.sort_unstable();
    println!(
        "from the veth's arrival to the first recorded packet ({} pods, a packet each {PAUSE:?}): \
         median {:.1?}, 90 % {:.1?}, 99 % {:.1?}, largest {:.1?}; {} pods had sent packets before",
        delays.len(),
        percent(&delays, 50),
        percent(&delays, 90),
        percent(&delays, 99),
        delays.last().copied().unwrap_or_default(),
        shown.late.len()
    );
}

fn pods() -> Result<u32> {
    let pods = match std::env::var(PODS_VARIABLE) {
        Ok(pods) => pods.parse()?,
        Err(_not_set) => PODS,
    };
    ensure!(pods <= u32::from(u16::MAX), "a pod's number has 16 bits");
    Ok(pods)
}
