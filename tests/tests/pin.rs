//! Captures that outlive their agent (`--pin`): each packet is in the file once, or counted.

use std::{
    fs, thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_proto::v1;
use remora_tests::{
    agent::{Options, TestAgent, looking_back, of_pod_filtered, recorded},
    bpf::Objects,
    node::{Node, Pod},
    numbered::Numbers,
    packets::Packet,
    proof,
    random::Random,
    run,
    traffic::{self, Sink, Stream},
    veth,
};

const PORT: u16 = 9000;
const FILTER: &str = "udp port 9000";
const LIMIT: Duration = Duration::from_secs(20);
/// Rounds with captures of their own. Some 35 s each; another number by the variable: 10 are 200 kills.
const ROUNDS: u16 = 2;
const ROUNDS_VARIABLE: &str = "REMORA_KILL_ROUNDS";
const KILLS: u32 = 20;

struct Bed<'a> {
    agent: TestAgent<'a>,
    web: Pod,
    api: Pod,
    _sink: Sink,
}

impl<'a> Bed<'a> {
    fn new(node: &'a Node) -> Result<Self> {
        Self::with(node, Options::default())
    }

    fn with(node: &'a Node, options: Options) -> Result<Self> {
        let (web, api) = (node.pod("web")?, node.pod("api")?);
        let options = Options {
            pin: true,
            ..options
        };
        Ok(Self {
            agent: TestAgent::start_with(node, options)?,
            _sink: traffic::sink(PORT, node.directory(), |tool| api.command(tool))?,
            web,
            api,
        })
    }

    fn stream(&self, run: u16, count: u64, rate: u64) -> Stream {
        Stream {
            rate,
            run,
            ..Stream::new(self.api.ipv4(), PORT, count)
        }
    }

    fn send(&self, run: u16, count: u64) -> Result<u64> {
        self.stream(run, count, 0)
            .send(|tool| self.web.command(tool))
    }

    fn kill(&mut self) -> Result<()> {
        let status = self.agent.end_by(Signal::SIGKILL)?;
        ensure!(run::killed_by(status) == Some(Signal::SIGKILL), "{status}");
        Ok(())
    }

    /// Of web's veth, before any hook.
    fn never_there(&self) -> Result<u64> {
        veth::receive_dropped(self.agent.node().netns(), self.web.interface())
    }
}

/// Packets of a run against the number sent, of which so many never reached a hook: each once.
fn each_once(packets: &[Packet], run: u16, sent: u64, never_there: u64) -> Result<()> {
    let numbers = Numbers::collect(run, packets.iter().map(|packet| packet.data.as_slice()));
    ensure!(numbers.foreign == 0, "{} are foreign", numbers.foreign);
    ensure!(
        numbers.duplicates() == 0,
        "{} are there twice",
        numbers.duplicates()
    );
    ensure!(
        numbers.missing_count(sent) == never_there,
        "missing {:?} of {sent}, before the hooks {never_there}",
        numbers.missing(sent)
    );
    Ok(())
}

/// With another seed in each run.
fn random() -> Result<Random> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = now.subsec_nanos().into();
    println!("seed {seed}");
    Ok(Random(seed))
}

/// A time below so many microseconds.
fn moment(random: &mut Random, micros: usize) -> Duration {
    Duration::from_micros(random.below(micros) as u64)
}

#[test]
fn killed_at_random_moments_no_packet_is_lost_or_there_twice() -> Result<()> {
    let node = Node::new()?;
    // Room for half a minute: how long a start takes on a busy machine is not the question here, and
    // what a small ring then loses is that of the test below.
    let options = Options {
        ring_size: "128MiB".into(),
        ..Options::default()
    };
    let mut bed = Bed::with(&node, options)?;
    let mut random = random()?;
    let rounds = match std::env::var(ROUNDS_VARIABLE) {
        Ok(rounds) => rounds.parse()?,
        Err(_not_set) => ROUNDS,
    };
    let mut packets = 0;
    for run in 1..=rounds {
        packets += round(&mut bed, &mut random, run)?;
    }
    println!(
        "{} kills, {packets} packets, each in each file once",
        u32::from(rounds) * KILLS
    );
    Ok(())
}

/// Kills under traffic with four captures; tells how many packets were sent.
fn round(bed: &mut Bed<'_>, random: &mut Random, run: u16) -> Result<u64> {
    let never_there = bed.never_there()?;
    let plain = of_pod_filtered(&bed.web, FILTER);
    let rotating = v1::CaptureSpec {
        writing: Some(v1::Writing {
            rotate_bytes: 256 << 10,
            ..v1::Writing::default()
        }),
        ..plain.clone()
    };
    let segmented = v1::CaptureSpec {
        segment: true,
        ..plain.clone()
    };
    let received = of_pod_filtered(&bed.api, "udp and len < 100 and dst port 9000");
    let ids: Vec<_> = [plain, rotating, segmented, received]
        .into_iter()
        .map(|spec| Ok(bed.agent.capture(spec)?.id))
        .collect::<Result<_>>()?;
    let sender = bed
        .stream(run, 0, 10_000)
        .send_until_stopped(bed.agent.node().directory(), |tool| bed.web.command(tool))?;
    for kill in 0..KILLS {
        if kill % 2 == 0 {
            thread::sleep(moment(random, 60_000));
            bed.kill()?;
            thread::sleep(moment(random, 50_000));
        } else {
            bed.agent.start_and_kill(moment(random, 600_000))?;
            bed.agent.start_again()?;
        }
    }
    let sent = sender.stop()?;
    let never_there = bed.never_there()? - never_there;
    for (at, id) in ids.iter().enumerate() {
        let state = bed.agent.stop(id)?;
        let counts = state.counts.context("no counts")?;
        let (packets, counts) = match at {
            1 => {
                let set = proof::prove_set(&bed.agent, &state)
                    .with_context(|| format!("{counts:?} {}", bed.agent.tail()))?;
                (set.packets, set.counts)
            }
            _ => {
                let proven = proof::prove(&bed.agent, &state)
                    .with_context(|| format!("{at}: {counts:?} {}", bed.agent.tail()))?;
                (proven.capture.packets, proven.counts)
            }
        };
        ensure!(
            state.message.contains("the agent was away"),
            "{}",
            state.message
        );
        each_once(&packets, run, sent, never_there)
            .with_context(|| format!("capture {at}: {counts:?}"))?;
        proof::complete(&counts)?;
    }
    Ok(sent)
}

#[test]
fn an_upgrade_is_no_gap_and_streams_end_in_order() -> Result<()> {
    let node = Node::new()?;
    let mut bed = Bed::new(&node)?;
    let stored = bed.agent.start_request(v1::StartRequest {
        spec: Some(of_pod_filtered(&bed.web, FILTER)),
        idempotency_key: "once".into(),
        ..Default::default()
    })?;
    let stored = stored.capture.context("no state")?;
    let streamed = bed.agent.capture(v1::CaptureSpec {
        destination: v1::Destination::Stream.into(),
        ..of_pod_filtered(&bed.web, FILTER)
    })?;
    let sender = bed
        .stream(1, 0, 30_000)
        .send_until_stopped(node.directory(), |tool| bed.web.command(tool))?;
    let stream = bed.agent.stream(&streamed.id)?;
    let (_, ended) = thread::scope(|scope| -> Result<_> {
        let reader = scope.spawn(|| stream.read_to_end());
        thread::sleep(Duration::from_millis(300));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(bed.agent.pid()?)?);
        nix::sys::signal::kill(pid, Signal::SIGTERM)?;
        reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    assert_eq!(ended.stop_reason(), v1::StopReason::Shutdown);
    let status = bed.agent.process()?.wait(LIMIT)?;
    ensure!(status.success(), "{status}: {}", bed.agent.tail());
    thread::sleep(Duration::from_millis(300));
    bed.agent.start_again()?;

    let again = bed.agent.start_request(v1::StartRequest {
        spec: Some(of_pod_filtered(&bed.web, FILTER)),
        idempotency_key: "once".into(),
        ..Default::default()
    })?;
    ensure!(again.existing, "its key is forgotten");
    thread::sleep(Duration::from_millis(300));
    let sent = sender.stop()?;
    let proven = proof::prove(&bed.agent, &bed.agent.stop(&stored.id)?)?;
    each_once(&proven.capture.packets, 1, sent, bed.never_there()?)?;
    proof::complete(&proven.counts)
}

#[test]
fn what_was_before_a_capture_and_what_came_while_no_agent_was_there_are_in_one_file() -> Result<()>
{
    let node = Node::new()?;
    let options = Options {
        arguments: ["--flow-cutoff", "0"].map(str::to_owned).into(),
        ..Options::default()
    };
    let mut bed = Bed::with(&node, options)?;
    recorded(&bed.agent, &[&bed.web])?;
    let stream = |first: u64| Stream {
        rate: 2000,
        run: u16::try_from(first).unwrap_or_default(),
        ..Stream::new(bed.api.ipv4(), PORT, 300)
    };
    let streams = [1, 2, 3].map(stream);
    let send = |web: &Pod, at: usize| streams[at].send(|tool| web.command(tool));
    let mut sent = send(&bed.web, 0)?;
    let spec = looking_back(of_pod_filtered(&bed.web, FILTER), 60);
    let state = bed.agent.capture(spec)?;
    bed.agent.wait_state(&state.id, "its past", |state| {
        state.counts.is_some_and(|counts| counts.written == sent)
    })?;
    bed.kill()?;
    sent += send(&bed.web, 1)?;
    bed.agent.start_again()?;
    sent += send(&bed.web, 2)?;
    let proven = proof::prove(&bed.agent, &bed.agent.stop(&state.id)?)?;
    proof::complete(&proven.counts)?;
    ensure!(bed.never_there()? == 0, "packets did not come to the veth");
    let of_runs = (1..=3).map(|run| Numbers::collect(run, proven.capture.frames()));
    for numbers in of_runs {
        ensure!(numbers.missing(300).is_empty() && numbers.duplicates() == 0);
    }
    ensure!(proven.counts.written == sent, "{:?}", proven.counts);
    Ok(())
}

#[test]
fn a_ring_that_is_too_small_for_the_time_loses_what_it_counts() -> Result<()> {
    let node = Node::new()?;
    let mut bed = Bed::new(&node)?;
    bed.kill()?;
    bed.agent.options().ring_size = "256KiB".into();
    bed.agent.start_again()?;
    let state = bed.agent.capture(of_pod_filtered(&bed.web, FILTER))?;
    bed.kill()?;
    let sent = bed.send(1, 20_000)?;
    bed.agent.start_again()?;
    let more = bed.stream(2, 10, 1000).send(|tool| bed.web.command(tool))?;
    let never_there = bed.never_there()?;
    let proven = proof::prove(&bed.agent, &bed.agent.stop(&state.id)?)?;
    let counts = &proven.counts;
    assert_eq!(counts.matched, sent + more - never_there);
    assert!(counts.lost > 10_000, "{counts:?}: no forced loss");
    assert_eq!(proven.missing(), counts.lost, "{counts:?}");
    let numbers = Numbers::collect(1, proven.capture.frames());
    assert_eq!(numbers.duplicates(), 0);
    assert_eq!(numbers.missing_count(sent), counts.lost + never_there);
    Ok(())
}

#[test]
fn a_changed_layout_is_refused_while_captures_go_on_and_costs_them_nothing() -> Result<()> {
    let node = Node::new()?;
    let mut bed = Bed::new(&node)?;
    let state = bed.agent.capture(of_pod_filtered(&bed.web, FILTER))?;
    let mut sent = bed.send(1, 100)?;
    bed.kill()?;
    bed.agent.options().ring_size = "32MiB".into();
    let said = bed.agent.refuses()?;
    for word in ["a ring of 16777216 bytes", "remora stop", "cleanup --pin"] {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    bed.agent.options().ring_size = "16MiB".into();
    bed.agent.start_again()?;
    let proven = proof::prove(&bed.agent, &bed.agent.stop(&state.id)?)?;
    sent -= bed.never_there()?;
    assert_eq!(proven.counts.written, sent);

    // With no capture it begins anew.
    bed.kill()?;
    bed.agent.options().ring_size = "32MiB".into();
    bed.agent.start_again()?;
    assert_eq!(bed.agent.status()?.ring_bytes, 32 << 20);
    Ok(())
}

#[test]
fn cleanup_refuses_beside_an_agent_and_leaves_nothing_behind_a_dead_one() -> Result<()> {
    let node = Node::new()?;
    let mut bed = Bed::new(&node)?;
    let state = bed.agent.capture(of_pod_filtered(&bed.web, FILTER))?;
    let objects = Objects::of_process(bed.agent.pid()?)?;
    let pins = bed.agent.pins().display().to_string();
    let refused = bed.agent.run(&["cleanup", "--pin", &pins])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("another agent"),
        "{said}"
    );

    bed.kill()?;
    let left = objects.still_there()?;
    assert!(
        !left.maps.is_empty() && !left.programs.is_empty(),
        "{left:?}"
    );
    let cleaned = bed.agent.run(&["cleanup", "--pin", &pins])?;
    let said = String::from_utf8_lossy(&cleaned.stdout).into_owned();
    assert!(
        cleaned.status.success() && !said.contains("removed 0 links"),
        "{said}"
    );
    assert!(!fs::exists(bed.agent.pins())?);
    objects.gone()?;
    let again = bed.agent.run(&["cleanup", "--pin", &pins])?;
    assert!(again.status.success());

    bed.agent.start_again()?;
    let state = bed.agent.get(&state.id)?;
    assert_eq!(state.stop_reason(), v1::StopReason::CrashRecovered);
    Ok(())
}

#[test]
fn what_ends_a_capture_while_no_agent_is_there_ends_it_to_the_packet() -> Result<()> {
    let node = Node::new()?;
    let mut bed = Bed::new(&node)?;
    let limited = bed.agent.capture(v1::CaptureSpec {
        limits: Some(v1::Limits {
            packets: 150,
            ..v1::Limits::default()
        }),
        ..of_pod_filtered(&bed.web, FILTER)
    })?;
    let timed = bed.agent.capture(v1::CaptureSpec {
        limits: Some(v1::Limits {
            duration: Some(prost_types::Duration {
                seconds: 2,
                nanos: 0,
            }),
            ..v1::Limits::default()
        }),
        ..of_pod_filtered(&bed.web, FILTER)
    })?;
    let gone = bed.agent.capture(of_pod_filtered(&bed.web, FILTER))?;
    let mut sent = bed.send(1, 100)?;
    bed.kill()?;
    let stream = Stream {
        rate: 1000,
        ..Stream::new(bed.api.ipv4(), PORT, 100)
    };
    sent += stream.send(|tool| bed.web.command(tool))?;
    sent -= bed.never_there()?;
    let Bed {
        mut agent,
        web,
        api: _api,
        _sink,
    } = bed;
    drop(web);
    thread::sleep(Duration::from_secs(2));
    agent.start_again()?;
    for (id, reason, written) in [
        (&limited.id, v1::StopReason::Packets, 150),
        (&timed.id, v1::StopReason::Duration, sent),
        (&gone.id, v1::StopReason::TargetGone, sent),
    ] {
        let state = agent.wait_final(id, LIMIT)?;
        assert_eq!(state.stop_reason(), reason, "{state:?}");
        let proven = proof::prove(&agent, &state)?;
        assert_eq!(proven.counts.written, written, "{:?}", proven.counts);
    }
    Ok(())
}

#[test]
fn a_compressed_capture_is_refused_and_leaves_nothing() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node)?;
    let refused = bed.agent.capture(v1::CaptureSpec {
        writing: Some(v1::Writing {
            compression: v1::Compression::Zstd.into(),
            ..v1::Writing::default()
        }),
        ..of_pod_filtered(&bed.web, FILTER)
    });
    let said = format!("{:#}", refused.err().context("it was started")?);
    assert!(said.contains("leave out --compress"), "{said}");
    for entry in fs::read_dir(bed.agent.data_dir())? {
        let name = entry?.file_name();
        let is_own = ["lock", "keys", "tombstone.reserve"]
            .iter()
            .any(|own| name == *own);
        assert!(is_own, "{}", name.display());
    }
    Ok(())
}

#[test]
fn traffic_passes_unharmed_while_no_agent_is_there() -> Result<()> {
    let node = Node::new()?;
    let mut bed = Bed::new(&node)?;
    bed.agent.capture(of_pod_filtered(&bed.web, FILTER))?;
    bed.kill()?;
    let at = (bed.api.ipv4(), 9100).into();
    traffic::tcp_exchange(bed.web.netns(), bed.api.netns(), at, 1 << 20)?;
    traffic::ping(bed.web.netns(), bed.api.ipv4().into(), 5)
}
