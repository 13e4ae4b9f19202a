//! A capture ends by itself, exactly where its limits say.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use remora_capture::pcapng::STATISTICS_BYTES_MAX;
use remora_proto::v1;
use remora_tests::{
    agent::{Options, TestAgent, of_pod_filtered},
    node::{Node, Pod},
    numbered::{Number, Numbers},
    packets::{Capture, Packet},
    proof,
    random::Random,
    run,
    traffic::{self, Stream},
    wait,
};

const FILTER: &str = "udp port 9000";
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_packet_limit_takes_the_first_packets_and_counts_the_others() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    for packets in [1, 100, 4999] {
        let limits = v1::Limits {
            packets,
            ..Default::default()
        };
        let spec = v1::CaptureSpec {
            limits: Some(limits),
            ..of_pod_filtered(&web, FILTER)
        };
        let state = agent.capture(spec)?;
        // As fast as it goes: many packets are on their way when the limit is reached.
        Stream::new(api.ipv4(), 9000, 5000).send(|tool| web.command(tool))?;
        let state = agent.wait_final(&state.id, LIMIT)?;
        assert_eq!(state.stop_reason(), v1::StopReason::Packets);
        let proven = proof::prove(&agent, &state)?;
        assert_eq!(proven.counts.written, packets);
        let numbers = Numbers::collect(1, proven.capture.frames());
        assert_eq!(numbers.missing(packets), []);
    }
    Ok(())
}

#[test]
fn a_file_never_outgrows_its_limit_and_comes_close_to_it() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    for (file_bytes, size) in [(20_000, 64), (100_000, 1400), (1_000_000, 333)] {
        let limits = v1::Limits {
            file_bytes,
            ..Default::default()
        };
        let spec = v1::CaptureSpec {
            limits: Some(limits),
            ..of_pod_filtered(&web, FILTER)
        };
        let state = agent.capture(spec)?;
        let stream = Stream {
            size,
            ..Stream::new(api.ipv4(), 9000, 8000)
        };
        stream.send(|tool| web.command(tool))?;
        let state = agent.wait_final(&state.id, LIMIT)?;
        assert_eq!(state.stop_reason(), v1::StopReason::FileBytes);
        let proven = proof::prove(&agent, &state)?;
        let len = fs::metadata(&proven.path)?.len();
        println!(
            "limit {file_bytes}, file {len}, {} packets",
            proven.counts.written
        );
        assert!(len <= file_bytes, "{len} bytes, limit {file_bytes}");
        // The kernel counts each block at its largest, and room is kept for the closing one.
        assert!(len * 10 > file_bytes * 8, "{len} bytes, limit {file_bytes}");
    }
    Ok(())
}

#[test]
fn a_duration_ends_in_the_kernel_and_no_packet_is_later() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let stream = Stream {
        rate: 20_000,
        ..Stream::new(api.ipv4(), 9000, 0)
    };
    let sender = stream.send_until_stopped(node.directory(), |tool| web.command(tool))?;
    let witness = agent.capture(of_pod_filtered(&web, FILTER))?;
    let duration = Duration::from_millis(300);
    let limits = v1::Limits {
        duration: Some(prost_types::Duration {
            seconds: 0,
            nanos: 300_000_000,
        }),
        ..Default::default()
    };
    let spec = v1::CaptureSpec {
        limits: Some(limits),
        ..of_pod_filtered(&web, FILTER)
    };
    let asked = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let state = agent.capture(spec)?;
    let state = agent.wait_final(&state.id, LIMIT)?;
    let last_of = |packets: &[Packet]| packets.last().context("no packets").map(|p| p.time);
    wait::until(LIMIT, "a packet after the end", || {
        let counts = agent.get(&witness.id)?.counts.unwrap_or_default();
        Ok(counts.written > state.counts.unwrap_or_default().written + 1000)
    })?;
    sender.stop()?;
    assert_eq!(state.stop_reason(), v1::StopReason::Duration);
    let proven = proof::prove(&agent, &state)?;
    let packets = &proven.capture.packets;
    let first = packets.first().context("no packets")?.time;
    let last = last_of(packets)?;
    assert!(last - first <= duration, "{:?}", last - first);
    // Of all packets from the first on it has each until the time was over, and none after that.
    let all = proof::prove(&agent, &agent.stop(&witness.id)?)?;
    proof::complete(&all.counts)?;
    let within = all.capture.packets.iter().map(|packet| packet.time);
    let within = within.filter(|time| (first..=last).contains(time)).count();
    assert_eq!(within, packets.len());
    let times = all.capture.packets.iter().map(|packet| packet.time);
    let next = times
        .filter(|time| *time > last)
        .min()
        .context("none later")?;
    let tolerance = Duration::from_millis(5);
    assert!(
        next + tolerance >= asked + duration,
        "ended {:?} early",
        asked + duration - next
    );
    Ok(())
}

#[test]
fn sixty_four_captures_run_and_a_sixty_fifth_is_refused_with_the_limit() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let ids = (0..64)
        .map(|_| Ok(agent.capture(of_pod_filtered(&web, FILTER))?.id))
        .collect::<Result<Vec<_>>>()?;
    let refusal = agent.capture(of_pod_filtered(&web, FILTER)).unwrap_err();
    assert_eq!(refusal.code(), tonic::Code::ResourceExhausted);
    assert_eq!(
        refusal
            .metadata()
            .get("remora-reason")
            .context("no reason")?,
        "session_limit"
    );
    assert!(refusal.message().contains("64"), "{}", refusal.message());
    assert_eq!(agent.status()?.sessions_running, 64);

    let stream = Stream {
        rate: 5000,
        ..Stream::new(api.ipv4(), 9000, 1000)
    };
    let sent = stream.send(|tool| web.command(tool))?;
    for id in &ids {
        let state = agent.stop(id)?;
        let counts = state.counts.context("no counts")?;
        proof::law(&counts)?;
        assert_eq!((counts.matched, counts.written), (sent, sent), "{counts:?}");
        let packets = Capture::read(&agent.file(&state))?.packets.len() as u64;
        assert_eq!(packets, sent, "capture {id}");
    }
    // A slot is free again.
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    agent.stop(&state.id)?;
    Ok(())
}

#[test]
fn a_full_quota_ends_a_capture_refuses_the_next_and_is_free_again_with_its_files() -> Result<()> {
    const QUOTA: u64 = 200 << 10;
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let options = Options {
        arguments: vec!["--quota".into(), QUOTA.to_string()],
        ..Options::default()
    };
    let mut agent = TestAgent::start_with(&node, options)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    let stream = Stream {
        size: 1400,
        rate: 2000,
        ..Stream::new(api.ipv4(), 9000, 400)
    };
    stream.send(|tool| web.command(tool))?;
    let state = agent.wait_final(&state.id, LIMIT)?;
    assert_eq!(state.stop_reason(), v1::StopReason::NoSpace);
    assert!(state.message.contains("quota"), "{}", state.message);
    let proven = proof::prove(&agent, &state)?;
    assert!(proven.counts.dropped_io > 0, "{:?}", proven.counts);
    // What is refused is all that had come since the writer's last turn: on a busy machine most of the quota.
    let len = fs::metadata(&proven.path)?.len();
    assert!(len <= QUOTA, "{len} bytes");

    // What is left of it is less than a file's first blocks and its account.
    let mut kept = Vec::new();
    let refusal = loop {
        match agent.capture(of_pod_filtered(&web, FILTER)) {
            Ok(state) => kept.push(agent.stop(&state.id)?),
            Err(refusal) => break refusal,
        }
        anyhow::ensure!(kept.len() < 200, "never full");
    };
    assert!(
        refusal.code() == tonic::Code::ResourceExhausted && refusal.message().contains("--quota"),
        "{}",
        refusal.message()
    );
    // Files that somebody removed are missed at the next start.
    agent.end_by(nix::sys::signal::Signal::SIGTERM)?;
    for state in kept.iter().chain([&state]) {
        fs::remove_file(agent.file(state))?;
    }
    agent.start_again()?;
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    agent.stop(&state.id)?;
    Ok(())
}

#[test]
fn a_pod_that_goes_ends_its_capture_with_what_it_had() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    let stream = Stream {
        rate: 20_000,
        ..Stream::new(api.ipv4(), 9000, 1000)
    };
    let sent = stream.send(|tool| web.command(tool))?;
    drop(web);
    let state = agent.wait_final(&state.id, LIMIT)?;
    assert_eq!(
        state.stop_reason(),
        v1::StopReason::TargetGone,
        "{}",
        state.message
    );
    let proven = proof::prove(&agent, &state)?;
    assert_eq!(
        Numbers::collect(1, proven.capture.frames()).missing(sent),
        []
    );
    Ok(())
}

#[test]
fn two_agents_on_a_node_do_not_disturb_each_other() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let (one, mut other) = (TestAgent::start(&node)?, TestAgent::start(&node)?);
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let of_one = one.capture(of_pod_filtered(&web, FILTER))?;
    let of_other = other.capture(of_pod_filtered(&web, FILTER))?;
    let stream = |run| Stream {
        run,
        rate: 20_000,
        ..Stream::new(api.ipv4(), 9000, 2000)
    };
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(|| stream(1).send(|tool| web.command(tool)));
        sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let proven = proof::prove(&other, &other.stop(&of_other.id)?)?;
    assert_eq!(
        Numbers::collect(1, proven.capture.frames()).missing(sent),
        []
    );
    let killed = other.end_by(nix::sys::signal::Signal::SIGKILL)?;
    assert!(run::killed_by(killed).is_some());
    let more = stream(2).send(|tool| web.command(tool))?;
    let proven = proof::prove(&one, &one.stop(&of_one.id)?)?;
    assert_eq!(
        Numbers::collect(1, proven.capture.frames()).missing(sent),
        []
    );
    assert_eq!(
        Numbers::collect(2, proven.capture.frames()).missing(more),
        []
    );
    Ok(())
}

/// Captures beside each other, so that both senders' CPUs count in the budgets of all of them.
const AT_ONCE: usize = 50;
const ROUNDS: usize = 20;
/// Bytes of the frames of the sender on CPU 0, and of the one on CPU 1.
const SIZES: [usize; 2] = [64, 700];

#[derive(Clone, Copy, Debug)]
struct Limited {
    /// 0: not limited; so for `file_bytes`, of which there is at least one.
    packets: u64,
    file_bytes: u64,
    snaplen: u32,
}

impl Limited {
    /// Small ones more often.
    fn random(random: &mut Random) -> Self {
        let mut up_to = |most: usize| {
            let most = 1 + random.below(most);
            1 + random.below(most) as u64
        };
        let (packets, file_bytes) = (up_to(2000), 2500 + up_to(300_000));
        let (packets, file_bytes) = match random.below(4) {
            0 => (packets, file_bytes),
            1 => (0, file_bytes),
            _ => (packets, 0),
        };
        let snaplen = match random.below(2) {
            0 => 0,
            _ => 1 + random.below(800) as u32,
        };
        Self {
            packets,
            file_bytes,
            snaplen,
        }
    }

    fn spec(&self, pod: &Pod) -> v1::CaptureSpec {
        v1::CaptureSpec {
            limits: Some(v1::Limits {
                packets: self.packets,
                file_bytes: self.file_bytes,
                duration: None,
            }),
            snaplen: self.snaplen,
            ..of_pod_filtered(pod, "udp")
        }
    }

    /// Bytes that a packet of `len` bytes takes in the file at the most: its block with flags, drop
    /// count, packet id and the end of options (pcapng draft-05, section 4.3), in words of 4 bytes.
    fn cost(&self, len: usize) -> u64 {
        let kept = match self.snaplen {
            0 => len,
            snaplen => len.min(snaplen as usize),
        };
        (32 + 8 + 12 + 12 + 4 + kept.next_multiple_of(4)) as u64
    }

    /// The capture ended where its limits say; its packets.
    fn confirm(&self, agent: &TestAgent<'_>, state: &v1::CaptureState) -> Result<Vec<Packet>> {
        let counts = state.counts.unwrap_or_default();
        proof::law(&counts)?;
        let path = agent.file(state);
        let packets = Capture::read(&path)?.packets;
        let written = packets.len() as u64;
        ensure!(
            counts.written == written && counts.submitted == written,
            "{written} in the file"
        );
        let len = fs::metadata(&path)?.len();
        match state.stop_reason() {
            v1::StopReason::Packets => ensure!(written == self.packets, "{written} packets"),
            v1::StopReason::FileBytes => {
                let room = (self.file_bytes - STATISTICS_BYTES_MAX as u64)
                    .saturating_sub(before_packets(&path)?);
                let costs: u64 = packets
                    .iter()
                    .map(|packet| self.cost(packet.data.len()))
                    .sum();
                // Refused was one that did not fit, while the other CPU had at most one in hand.
                let beyond = costs + 2 * self.cost(SIZES[1]);
                ensure!(
                    (costs..beyond).contains(&room),
                    "room for {room} bytes, packets take {costs}"
                );
            }
            other => anyhow::bail!("ended by {other:?}: {}", state.message),
        }
        ensure!(
            self.packets == 0 || written <= self.packets,
            "{written} packets"
        );
        ensure!(
            self.file_bytes == 0 || len <= self.file_bytes,
            "{len} bytes"
        );
        if self.file_bytes == 0 {
            // What each CPU got in before the last packet has no gap.
            for run in [1, 2] {
                let numbers = numbers_of(run, &packets);
                let gaps = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1);
                ensure!(gaps.count() == 0, "run {run} has gaps");
            }
        }
        Ok(packets)
    }
}

/// Bytes of a pcapng file before its first packet.
fn before_packets(path: &Path) -> Result<u64> {
    const ENHANCED_PACKET: u32 = 6;
    let bytes = fs::read(path)?;
    let word = |at: usize| {
        let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
        word.map(|word| u32::from_le_bytes(*word))
    };
    let mut at = 0;
    while word(at).is_some_and(|kind| kind != ENHANCED_PACKET) {
        at += word(at + 4).context("a torn block")? as usize;
    }
    Ok(at as u64)
}

/// The numbers of one sender's packets, in their order in the file.
fn numbers_of(run: u16, packets: &[Packet]) -> Vec<u64> {
    let numbers = packets.iter().filter_map(|packet| {
        let size = SIZES[usize::from(run) - 1] as u32;
        // A short snaplen leaves no number; the length tells whose it is.
        (packet.original_len == size)
            .then(|| Number::of_frame(&packet.data))
            .flatten()
    });
    numbers.map(|number| number.sequence).collect()
}

#[test]
fn a_thousand_random_limits_are_exact_while_two_cpus_send_at_full_rate() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    // Until the neighbour is known the sender's own stack drops packets.
    traffic::ping(web.netns(), api.ipv4().into(), 1)?;
    let senders = [1, 2].map(|run: u16| {
        let at = usize::from(run) - 1;
        let stream = Stream {
            run,
            size: SIZES[at],
            cpu: Some(at),
            ..Stream::new(api.ipv4(), 9000, 0)
        };
        stream.send_until_stopped(node.directory(), |tool| web.command(tool))
    });
    let mut random = Random(1000);
    let (mut by_packets, mut by_bytes, mut by_both_cpus, mut packets) = (0, 0, 0, 0);
    let (mut over_budget, mut lost) = (0, 0);
    for round in 0..ROUNDS {
        let captures = (0..AT_ONCE)
            .map(|_| {
                let limited = Limited::random(&mut random);
                Ok((limited, agent.capture(limited.spec(&web))?.id))
            })
            .collect::<Result<Vec<_>>>()?;
        for (limited, id) in captures {
            let state = agent.wait_final(&id, LIMIT)?;
            let found = limited
                .confirm(&agent, &state)
                .with_context(|| format!("round {round}, {limited:?}, {:?}", state.counts))?;
            match state.stop_reason() {
                v1::StopReason::Packets => by_packets += 1,
                _ => by_bytes += 1,
            }
            let of_size = |size| found.iter().any(|p| p.original_len as usize == size);
            by_both_cpus += usize::from(SIZES.into_iter().all(of_size));
            packets += found.len();
            let counts = state.counts.unwrap_or_default();
            over_budget += counts.over_budget;
            lost += counts.lost;
            fs::remove_file(agent.file(&state))?;
        }
    }
    let sent = senders
        .into_iter()
        .map(|sender| sender?.stop())
        .sum::<Result<u64>>()?;
    println!(
        "{by_packets} ended by packets, {by_bytes} by bytes, {by_both_cpus} with packets of both \
         CPUs; {sent} sent, {packets} in files, {over_budget} over budget, {lost} lost"
    );
    assert_eq!(by_packets + by_bytes, ROUNDS * AT_ONCE);
    // Otherwise nothing was contended.
    assert!(by_both_cpus > ROUNDS * AT_ONCE / 4, "{by_both_cpus}");
    Ok(())
}
