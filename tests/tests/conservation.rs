//! Every packet is in the file or in a counter, by number, whatever happens meanwhile.
//!
//! The true count comes from a generator whose packets are numbered (`udpgen`); what the kernel
//! took from it and dropped before any hook (a full backlog of the veth) is asked of the veth.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_capture::session::StopReason;
use remora_proto::v1;
use remora_tests::{
    agent::{Options, TestAgent, of_pod_filtered},
    node::{Node, Pod},
    numbered::Numbers,
    packets::Capture,
    proof::{self, Proven},
    run,
    traffic::{self, Stream},
    veth, wait,
};

const PORT: u16 = 9000;
const FILTER: &str = "udp port 9000";
const PACKETS: u64 = 200_000;
const LIMIT: Duration = Duration::from_secs(20);

/// Numbers in the file and counts of the capture against the number sent and those that never
/// reached a hook.
fn account(proven: &Proven, sent: u64, never_there: u64) -> Result<()> {
    let numbers = Numbers::collect(1, proven.capture.frames());
    let counts = &proven.counts;
    println!(
        "sent {sent}, before the hook {never_there}, matched {}, written {}, lost {}, dropped {}",
        counts.matched,
        counts.written,
        counts.lost,
        counts.dropped_queue + counts.dropped_io
    );
    ensure!(
        counts.matched == sent - never_there,
        "{counts:?}: sent {sent} - {never_there}"
    );
    ensure!(numbers.foreign == 0, "{} foreign packets", numbers.foreign);
    ensure!(
        numbers.duplicates() == 0,
        "{} duplicates",
        numbers.duplicates()
    );
    ensure!(
        numbers.missing_count(sent) == proven.missing() + never_there,
        "{} numbers are missing, counted are {} + {never_there}: {:?}",
        numbers.missing_count(sent),
        proven.missing(),
        numbers.missing(sent)
    );
    Ok(())
}

/// 200 000 packets of `size` bytes from a captured pod to another.
fn through_a_veth(size: usize) -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(PORT, node.directory(), |tool| api.command(tool))?;
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    let never_there = veth::receive_dropped(node.netns(), web.interface())?;

    let stream = Stream {
        size,
        ..Stream::new(api.ipv4(), PORT, PACKETS)
    };
    let sent = stream.send(|tool| web.command(tool))?;
    assert_eq!(sent, PACKETS);

    let never_there = veth::receive_dropped(node.netns(), web.interface())? - never_there;
    let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
    account(&proven, sent, never_there)?;
    let len = u32::try_from(size)?;
    assert!(
        proven
            .capture
            .packets
            .iter()
            .all(|packet| packet.original_len == len)
    );
    Ok(())
}

#[test]
fn packets_of_64_bytes_through_a_veth() -> Result<()> {
    through_a_veth(64)
}

#[test]
fn packets_of_1400_bytes_through_a_veth() -> Result<()> {
    through_a_veth(1400)
}

/// 200 000 packets of `size` bytes from a pod to itself: each is in the file once.
fn through_loopback(size: usize) -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(PORT, node.directory(), |tool| web.command(tool))?;
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    let softnet = softnet_dropped()?;
    let stream = Stream {
        size,
        ..Stream::new([127, 0, 0, 1].into(), PORT, PACKETS)
    };
    let sent = stream.send(|tool| web.command(tool))?;
    assert_eq!(sent, PACKETS);
    let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
    // A loopback packet is taken at its receiver. One that a full backlog dropped on the way is
    // counted by the kernel for the whole machine only, so that is an upper bound.
    let never_there = sent - proven.counts.matched.min(sent);
    assert!(
        never_there <= softnet_dropped()? - softnet,
        "{never_there} are nowhere"
    );
    account(&proven, sent, never_there)
}

/// Packets that the machine's backlogs dropped: second column of each CPU's line, hexadecimal
/// (net/core/net-procfs.c).
fn softnet_dropped() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/net/softnet_stat")?;
    text.lines()
        .map(|line| {
            let column = line.split(' ').nth(1).context("no second column")?;
            Ok(u64::from_str_radix(column, 16)?)
        })
        .sum()
}

#[test]
fn packets_of_64_bytes_through_loopback() -> Result<()> {
    through_loopback(64)
}

#[test]
fn packets_of_1400_bytes_through_loopback() -> Result<()> {
    through_loopback(1400)
}

#[test]
fn a_stopped_reader_and_a_small_ring_lose_most_and_count_all() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let options = Options {
        ring_size: "256KiB".into(),
        ..Default::default()
    };
    let mut agent = TestAgent::start_with(&node, options)?;
    let _sink = traffic::sink(PORT, node.directory(), |tool| api.command(tool))?;
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;

    // The ring's consumer is a thread of the agent.
    agent.process()?.signal(Signal::SIGSTOP)?;
    let sent = Stream::new(api.ipv4(), PORT, PACKETS).send(|tool| web.command(tool))?;
    agent.process()?.signal(Signal::SIGCONT)?;
    // What comes after a loss tells of it.
    let more = Stream {
        run: 2,
        rate: 1000,
        ..Stream::new(api.ipv4(), PORT, 10)
    };
    let more = more.send(|tool| web.command(tool))?;

    let never_there = veth::receive_dropped(node.netns(), web.interface())?;
    let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
    let counts = &proven.counts;
    println!("matched {}, lost {}", counts.matched, counts.lost);
    assert_eq!(counts.matched, sent + more - never_there);
    assert!(
        counts.lost * 2 > counts.matched,
        "{counts:?}: no forced loss"
    );
    let numbers = Numbers::collect(1, proven.capture.frames());
    assert_eq!(numbers.duplicates(), 0);
    assert_eq!(numbers.missing_count(sent), proven.missing() + never_there);
    assert_eq!(
        Numbers::collect(2, proven.capture.frames()).missing(more),
        []
    );
    let told: u64 = proven
        .capture
        .packets
        .iter()
        .map(|packet| packet.dropped)
        .sum();
    // A CPU tells its loss at its own next packet, or else only the closing statistics do.
    assert!(told > 0, "no packet after the loss tells of it");
    Ok(())
}

#[test]
fn a_full_disk_ends_the_capture_and_counts_what_did_not_fit() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let options = Options {
        data_tmpfs: Some("64k".into()),
        ..Default::default()
    };
    let agent = TestAgent::start_with(&node, options)?;
    let _sink = traffic::sink(PORT, node.directory(), |tool| api.command(tool))?;
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    let stream = Stream {
        size: 1400,
        rate: 5000,
        ..Stream::new(api.ipv4(), PORT, 2000)
    };
    let sender = thread::scope(|scope| -> Result<(u64, v1::CaptureState)> {
        let sender = scope.spawn(|| stream.send(|tool| web.command(tool)));
        let state = agent.wait_final(&state.id, LIMIT)?;
        let sent = sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((sent, state))
    })?;
    let (sent, state) = sender;
    assert_eq!(sent, 2000);
    assert_eq!(
        state.stop_reason(),
        v1::StopReason::NoSpace,
        "{}",
        state.message
    );
    let proven = proof::prove(&agent, &state)?;
    let counts = &proven.counts;
    println!("{counts:?}: {}", state.message);
    assert!(
        counts.written > 10,
        "{counts:?}: the disk has room for more"
    );
    assert!(counts.dropped_io > 0, "{counts:?}");
    let numbers = Numbers::collect(1, proven.capture.frames());
    assert_eq!((numbers.duplicates(), numbers.foreign), (0, 0));
    // The file has the first numbers without a gap; what did not fit is all at its end.
    assert_eq!(numbers.highest(), Some(counts.written - 1));
    Ok(())
}

/// A stream that goes on while the agent is ended by a signal that lets it drain.
fn drains_on(signal: Signal) -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let mut agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(PORT, node.directory(), |tool| api.command(tool))?;
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    let stream = Stream {
        rate: 30_000,
        ..Stream::new(api.ipv4(), PORT, 0)
    };
    let sender = stream.send_until_stopped(node.directory(), |tool| web.command(tool))?;
    wait_for_packets(&agent, &state.id, 10_000)?;

    let status = agent.end_by(signal)?;
    let sent = sender.stop()?;
    ensure!(status.success(), "{signal} ended the agent with {status}");
    let sidecar = agent.sidecar(&state.id)?.capture;
    assert_eq!(sidecar.stop_reason, Some(StopReason::Shutdown));
    assert!(sidecar.counts.balanced(), "{:?}", sidecar.counts);
    let counts: v1::Counts = sidecar.counts.into();
    let capture = proof::prove_file(&agent.data_dir().join(&sidecar.file), &counts)?;
    let never_there = veth::receive_dropped(node.netns(), web.interface())?;
    assert!(counts.matched <= sent, "{counts:?}, sent {sent}");
    let numbers = Numbers::collect(1, capture.frames());
    let highest = numbers.highest().context("no packets")?;
    assert_eq!((numbers.duplicates(), numbers.foreign), (0, 0));
    // Up to the last that was taken, each is in the file or counted.
    assert!(
        numbers.missing_count(highest + 1) <= counts.matched - counts.written + never_there,
        "{:?} are missing, {counts:?}",
        numbers.missing(highest + 1)
    );
    Ok(())
}

fn wait_for_packets(agent: &TestAgent<'_>, id: &str, packets: u64) -> Result<()> {
    agent.wait_state(id, "packets of the capture", |state| {
        state.counts.is_some_and(|counts| counts.written >= packets)
    })?;
    Ok(())
}

#[test]
fn sigterm_in_the_middle_of_traffic_loses_nothing() -> Result<()> {
    drains_on(Signal::SIGTERM)
}

#[test]
fn sigint_in_the_middle_of_traffic_loses_nothing() -> Result<()> {
    drains_on(Signal::SIGINT)
}

#[test]
fn kill_9_in_the_middle_of_traffic_loses_less_than_250_ms_and_says_so() -> Result<()> {
    let most = Duration::from_millis(250);
    wait::within(most, "packets missing at the end", killed_in_the_middle)
}

/// How much of the traffic before the kill is missing.
fn killed_in_the_middle() -> Result<Duration> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let mut agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(PORT, node.directory(), |tool| api.command(tool))?;
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    let stream = Stream {
        rate: 20_000,
        ..Stream::new(api.ipv4(), PORT, 0)
    };
    let sender = stream.send_until_stopped(node.directory(), |tool| web.command(tool))?;
    wait_for_packets(&agent, &state.id, 20_000)?;

    let killed = std::time::SystemTime::now();
    let status = agent.end_by(Signal::SIGKILL)?;
    assert_eq!(run::killed_by(status), Some(Signal::SIGKILL));
    sender.stop()?;
    agent.start_again()?;

    let sidecar = agent.sidecar(&state.id)?;
    let recovered = sidecar
        .recovered
        .context("the sidecar does not tell of the crash")?;
    assert!(
        !recovered.statement.is_empty(),
        "what may be missing is not stated"
    );
    let sidecar = sidecar.capture;
    assert_eq!(sidecar.stop_reason, Some(StopReason::CrashRecovered));
    let found = agent.get(&state.id)?;
    assert_eq!(found.stop_reason(), v1::StopReason::CrashRecovered);
    assert!(agent.list(true)?.iter().any(|listed| listed.id == state.id));

    let path = agent.data_dir().join(&sidecar.file);
    remora_tests::wire::assert_readable(&path)?;
    let capture = Capture::read(&path)?;
    assert_eq!(capture.packets.len() as u64, sidecar.counts.written);
    assert_eq!(
        remora_tests::wire::capinfos_count(&path)?,
        sidecar.counts.written
    );
    let numbers = Numbers::collect(1, capture.frames());
    let highest = numbers.highest().context("no packets")?;
    assert_eq!((numbers.duplicates(), numbers.foreign), (0, 0));
    let never_there = veth::receive_dropped(node.netns(), web.interface())?;
    assert!(
        numbers.missing_count(highest + 1) <= never_there,
        "missing within the file: {:?}",
        numbers.missing(highest + 1)
    );
    let last = Duration::from_nanos(*numbers.sent_ns.context("no packets")?.end());
    let killed = killed.duration_since(std::time::UNIX_EPOCH)?;
    let lost = killed.saturating_sub(last);
    println!("{lost:?}; the sidecar says: {}", recovered.statement);
    still_captures(&agent, &web, &api)?;
    Ok(lost)
}

/// The agent captures as if nothing had been.
fn still_captures(agent: &TestAgent<'_>, web: &Pod, api: &Pod) -> Result<()> {
    let state = agent.capture(of_pod_filtered(web, FILTER))?;
    let sent = Stream {
        run: 9,
        ..Stream::new(api.ipv4(), PORT, 100)
    }
    .send(|tool| web.command(tool))?;
    let proven = proof::prove(agent, &agent.stop(&state.id)?)?;
    assert_eq!(
        Numbers::collect(9, proven.capture.frames()).missing(sent),
        []
    );
    Ok(())
}

#[test]
fn a_stream_that_nobody_reads_drops_its_own_packets_and_no_others() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(PORT, node.directory(), |tool| api.command(tool))?;
    let stored = agent.capture(of_pod_filtered(&web, FILTER))?;
    let streamed = agent.capture(v1::CaptureSpec {
        destination: v1::Destination::Stream.into(),
        ..of_pod_filtered(&web, FILTER)
    })?;
    let stream = agent.stream(&streamed.id)?;
    // 70 MB: more than every buffer between the agent and a reader that does not read.
    let size = 1400;
    let generator = Stream {
        size,
        rate: 40_000,
        ..Stream::new(api.ipv4(), PORT, 50_000)
    };
    let sent = generator.send(|tool| web.command(tool))?;
    let proven = proof::prove(&agent, &agent.stop(&stored.id)?)?;
    let never_there = veth::receive_dropped(node.netns(), web.interface())?;
    account(&proven, sent, never_there)?;
    assert_eq!(
        proven.counts.dropped_queue, 0,
        "the slow reader cost the file packets"
    );

    // The reader wakes; the stream is stopped and drained meanwhile.
    let (bytes, last) = thread::scope(|scope| {
        let stop = scope.spawn(|| agent.stop(&streamed.id));
        let read = stream.read_to_end();
        stop.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        read
    })
    .with_context(|| agent.tail())?;
    let counts = last.counts.context("no counts")?;
    println!("{counts:?}: {:?} {}", last.stop_reason(), last.message);
    proof::law(&counts)?;
    assert!(
        counts.dropped_queue > 0,
        "{counts:?}: nothing was dropped for the slow reader"
    );
    assert_eq!(counts.written_bytes, bytes.len() as u64);
    let capture = Capture::read_pcapng(bytes.as_slice())?;
    assert_eq!(capture.packets.len() as u64, counts.written);
    let numbers = Numbers::collect(1, capture.frames());
    assert_eq!(
        numbers.missing_count(sent),
        counts.matched - counts.written + never_there
    );
    Ok(())
}

#[test]
fn the_counts_of_a_running_capture_reach_the_number_sent() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(PORT, node.directory(), |tool| api.command(tool))?;
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    let sent = Stream {
        rate: 10_000,
        ..Stream::new(api.ipv4(), PORT, 1000)
    }
    .send(|tool| web.command(tool))?;
    wait::until(LIMIT, "the running capture's counts", || {
        let counts = agent.get(&state.id)?.counts.context("no counts")?;
        Ok(counts.matched == sent && counts.written == sent)
    })?;
    let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
    proof::complete(&proven.counts)
}
