//! Files that rotate and files that are compressed: each is whole, whatever happens, and together
//! they have every packet that the counts tell.

use std::{path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_proto::v1;
use remora_tests::{
    agent::{Options, TestAgent, of_pod_filtered},
    node::{Node, Pod},
    numbered::Numbers,
    packets::Capture,
    proof::{self, ProvenSet},
    run,
    traffic::{self, Sink, Stream},
    veth, wait, wire,
};

const PORT: u16 = 9000;
const FILTER: &str = "udp port 9000";
const LIMIT: Duration = Duration::from_secs(20);
/// Of 1400-byte packets some 700 are in a file of it.
const MEBIBYTE: u64 = 1 << 20;

struct Bed<'a> {
    agent: TestAgent<'a>,
    web: Pod,
    api: Pod,
    _sink: Sink,
}

impl<'a> Bed<'a> {
    fn new(node: &'a Node, options: Options) -> Result<Self> {
        let (web, api) = (node.pod("web")?, node.pod("api")?);
        Ok(Self {
            agent: TestAgent::start_with(node, options)?,
            _sink: traffic::sink(PORT, node.directory(), |tool| api.command(tool))?,
            web,
            api,
        })
    }

    fn capture(&self, writing: v1::Writing) -> Result<v1::CaptureState> {
        Ok(self.agent.capture(v1::CaptureSpec {
            writing: Some(writing),
            ..of_pod_filtered(&self.web, FILTER)
        })?)
    }

    /// Packets of 1400 bytes, each with the next number.
    fn send(&self, count: u64, rate: u64) -> Result<u64> {
        let stream = Stream {
            size: 1400,
            rate,
            ..Stream::new(self.api.ipv4(), PORT, count)
        };
        stream.send(|tool| self.web.command(tool))
    }

    fn never_there(&self) -> Result<u64> {
        veth::receive_dropped(self.agent.node().netns(), self.web.interface())
    }
}

fn by_size(bytes: u64, files: u32, compression: v1::Compression) -> v1::Writing {
    v1::Writing {
        rotate_bytes: bytes,
        files,
        compression: compression.into(),
        ..Default::default()
    }
}

/// The numbers in a set are all those sent but for what the counts tell.
fn account(set: &ProvenSet, sent: u64, never_there: u64) -> Result<()> {
    let numbers = Numbers::collect(1, set.frames());
    println!("sent {sent}, {:?}, {:?}", set.counts, set.files);
    ensure!((numbers.duplicates(), numbers.foreign) == (0, 0));
    let elsewhere = set.counts.matched - set.counts.written + set.files.removed_packets;
    ensure!(
        numbers.missing_count(sent) == elsewhere + never_there,
        "{:?} are missing",
        numbers.missing(sent)
    );
    Ok(())
}

fn files_by_size(compression: v1::Compression) -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, Options::default())?;
    let state = bed.capture(by_size(MEBIBYTE, 0, compression))?;
    let sent = bed.send(4000, 20_000)?;
    let set = proof::prove_set(&bed.agent, &bed.agent.stop(&state.id)?)?;
    account(&set, sent, bed.never_there()?)?;
    assert!(set.paths.len() >= 5, "{:?}", set.paths);
    let mut sorted = set.paths.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, set.paths, "names do not sort");
    if compression == v1::Compression::Unspecified {
        for path in &set.paths {
            let bytes = path.metadata()?.len();
            assert!(bytes <= MEBIBYTE, "{} has {bytes} bytes", path.display());
        }
    }
    Ok(())
}

#[test]
fn stored_files_that_rotate_by_size_have_every_packet_once() -> Result<()> {
    files_by_size(v1::Compression::Unspecified)
}

#[test]
fn compressed_files_that_rotate_have_every_packet_once() -> Result<()> {
    files_by_size(v1::Compression::Zstd)
}

#[test]
fn a_ring_of_files_keeps_the_last_and_says_what_it_removed() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, Options::default())?;
    let state = bed.capture(by_size(MEBIBYTE, 2, v1::Compression::Unspecified))?;
    let sent = bed.send(4000, 20_000)?;
    let set = proof::prove_set(&bed.agent, &bed.agent.stop(&state.id)?)?;
    account(&set, sent, bed.never_there()?)?;
    assert_eq!(set.files.count, 2);
    assert!(set.files.removed >= 3, "{:?}", set.files);
    let highest = Numbers::collect(1, set.frames()).highest();
    assert_eq!(highest, Some(sent - 1), "the last packets are not there");
    // The quota got back what the ring removed.
    let there: u64 = sizes(&set.paths)?.into_iter().sum();
    assert_eq!(bed.agent.status()?.store_bytes, there);
    Ok(())
}

fn sizes(paths: &[PathBuf]) -> Result<Vec<u64>> {
    paths
        .iter()
        .map(|path| Ok(path.metadata()?.len()))
        .collect()
}

#[test]
fn a_number_of_files_that_rotate_by_time_ends_the_capture() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, Options::default())?;
    let state = bed.capture(v1::Writing {
        rotate_interval: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        files: 3,
        ..Default::default()
    })?;
    let stream = Stream {
        rate: 500,
        ..Stream::new(bed.api.ipv4(), PORT, 0)
    };
    let sender = stream.send_until_stopped(node.directory(), |tool| bed.web.command(tool))?;
    let state = bed.agent.wait_final(&state.id, LIMIT)?;
    sender.stop()?;
    assert_eq!(state.stop_reason(), v1::StopReason::Duration);
    let set = proof::prove_set(&bed.agent, &state)?;
    println!("{:?}", set.paths);
    assert_eq!(set.files.count, 3);
    // Each has the packets of its second.
    let started = state.started.context("no start")?;
    let start = Duration::new(started.seconds.try_into()?, started.nanos.try_into()?);
    for (number, path) in (0..).zip(&set.paths) {
        let from = start + Duration::from_secs(number);
        for packet in Capture::read(path)?.packets {
            assert!(
                number == 2 || packet.time < from + Duration::from_secs(1),
                "a packet of {:?} in file {number} from {from:?}",
                packet.time
            );
            assert!(packet.time >= from);
        }
    }
    Ok(())
}

/// kill -9 in the middle of a set, and what the next agent makes of it; less than 250 ms are missing.
fn killed(writing: v1::Writing) -> Result<()> {
    let most = Duration::from_millis(250);
    wait::within(most, "packets missing at the end", || {
        killed_in_the_middle(writing)
    })
}

/// How much of the traffic before the kill is missing.
fn killed_in_the_middle(writing: v1::Writing) -> Result<Duration> {
    let node = Node::new()?;
    let mut bed = Bed::new(&node, Options::default())?;
    let state = bed.capture(writing)?;
    let stream = Stream {
        size: 1400,
        rate: 10_000,
        ..Stream::new(bed.api.ipv4(), PORT, 0)
    };
    let sender = stream.send_until_stopped(node.directory(), |tool| bed.web.command(tool))?;
    bed.agent.wait_state(&state.id, "packets", |state| {
        state.counts.is_some_and(|counts| counts.written >= 5000)
    })?;
    let killed = std::time::SystemTime::now();
    let status = bed.agent.end_by(Signal::SIGKILL)?;
    assert_eq!(run::killed_by(status), Some(Signal::SIGKILL));
    sender.stop()?;
    bed.agent.start_again()?;

    let state = bed.agent.get(&state.id)?;
    assert_eq!(state.stop_reason(), v1::StopReason::CrashRecovered);
    let (counts, frames) = if writing.rotate_bytes > 0 {
        let set = proof::prove_set(&bed.agent, &state)?;
        (set.counts, set.packets)
    } else {
        let proven = proof::prove(&bed.agent, &state)?;
        (proven.counts, proven.capture.packets)
    };
    let numbers = Numbers::collect(1, frames.iter().map(|packet| packet.data.as_slice()));
    assert_eq!((numbers.duplicates(), numbers.foreign), (0, 0));
    let highest = numbers.highest().context("no packets")?;
    let removed = state.files.unwrap_or_default().removed_packets;
    assert!(
        numbers.missing_count(highest + 1) <= removed + bed.never_there()?,
        "missing within the files: {:?}, {counts:?}",
        numbers.missing(highest + 1)
    );
    let last = Duration::from_nanos(*numbers.sent_ns.context("no packets")?.end());
    let lost = killed
        .duration_since(std::time::UNIX_EPOCH)?
        .saturating_sub(last);
    println!("{lost:?}, {counts:?}");
    Ok(lost)
}

#[test]
fn a_set_whose_agent_was_killed_reads_and_adds_up() -> Result<()> {
    killed(by_size(MEBIBYTE, 0, v1::Compression::Unspecified))
}

#[test]
fn a_ring_whose_agent_was_killed_still_tells_what_it_removed() -> Result<()> {
    killed(by_size(MEBIBYTE, 2, v1::Compression::Zstd))
}

#[test]
fn a_compressed_file_whose_agent_was_killed_reads_and_adds_up() -> Result<()> {
    killed(by_size(0, 0, v1::Compression::Zstd))
}

/// A disk that is full in the middle.
fn full(writing: v1::Writing, tmpfs: &str, packets: u64) -> Result<()> {
    let node = Node::new()?;
    let options = Options {
        data_tmpfs: Some(tmpfs.into()),
        ..Default::default()
    };
    let bed = Bed::new(&node, options)?;
    let state = bed.capture(writing)?;
    let (sent, state) = thread::scope(|scope| -> Result<_> {
        let sender = scope.spawn(|| bed.send(packets, 5000));
        let state = bed.agent.wait_final(&state.id, LIMIT)?;
        let sent = sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((sent, state))
    })?;
    assert_eq!(sent, packets);
    assert_eq!(
        state.stop_reason(),
        v1::StopReason::NoSpace,
        "{}",
        state.message
    );
    let (counts, packets) = if writing.rotate_bytes > 0 {
        let set = proof::prove_set(&bed.agent, &state)?;
        assert!(set.files.count > 1, "{:?}", set.files);
        (set.counts, set.packets)
    } else {
        let proven = proof::prove(&bed.agent, &state)?;
        (proven.counts, proven.capture.packets)
    };
    println!("{counts:?}: {}", state.message);
    assert!(counts.dropped_io > 0 && counts.written > 50, "{counts:?}");
    let numbers = Numbers::collect(1, packets.iter().map(|packet| packet.data.as_slice()));
    // The first numbers without a gap; what did not fit is all at the end.
    assert_eq!(numbers.highest(), Some(counts.written - 1));
    Ok(())
}

#[test]
fn a_full_disk_ends_a_set_with_whole_files_and_counts_what_did_not_fit() -> Result<()> {
    full(
        by_size(64 << 10, 0, v1::Compression::Unspecified),
        "512k",
        3000,
    )
}

#[test]
fn a_full_disk_ends_a_compressed_set_with_whole_files() -> Result<()> {
    full(by_size(64 << 10, 0, v1::Compression::Zstd), "96k", 10_000)
}

#[test]
fn a_full_disk_ends_a_compressed_file_that_reads() -> Result<()> {
    full(by_size(0, 0, v1::Compression::Zstd), "64k", 10_000)
}

#[test]
fn a_ring_goes_on_where_a_disk_would_be_full() -> Result<()> {
    let node = Node::new()?;
    let options = Options {
        data_tmpfs: Some("512k".into()),
        ..Default::default()
    };
    let bed = Bed::new(&node, options)?;
    let state = bed.capture(by_size(64 << 10, 3, v1::Compression::Unspecified))?;
    let sent = bed.send(2000, 5000)?;
    let set = proof::prove_set(&bed.agent, &bed.agent.stop(&state.id)?)?;
    account(&set, sent, bed.never_there()?)?;
    proof::complete(&set.counts)
}

/// A file or a set as one stream, followed from the middle and read when it is finished.
fn followed(writing: v1::Writing) -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, Options::default())?;
    let state = bed.capture(writing)?;
    let before = bed.send(1500, 20_000)?;
    let (stream, after) = thread::scope(|scope| -> Result<_> {
        let stream = bed.agent.stream(&state.id)?;
        let reader = scope.spawn(move || stream.read_to_end());
        let more = Stream {
            run: 2,
            size: 1400,
            rate: 10_000,
            ..Stream::new(bed.api.ipv4(), PORT, 1500)
        };
        let after = more.send(|tool| bed.web.command(tool))?;
        bed.agent.stop(&state.id)?;
        let read = reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((read.0, after))
    })?;
    let file = node.directory().join("followed.pcapng");
    std::fs::write(&file, &stream)?;
    wire::assert_readable(&file)?;
    assert_eq!(wire::capinfos_count(&file)?, before + after);
    let (again, finished) = bed.agent.stream(&state.id)?.read_to_end()?;
    assert_eq!(again, stream, "a finished capture reads as it was followed");
    assert_eq!(finished.counts.unwrap_or_default().written, before + after);
    Ok(())
}

#[test]
fn a_set_is_followed_from_file_to_file_as_one_stream() -> Result<()> {
    followed(by_size(MEBIBYTE, 0, v1::Compression::Unspecified))
}

#[test]
fn a_compressed_file_is_followed_as_the_blocks_that_it_holds() -> Result<()> {
    followed(by_size(0, 0, v1::Compression::Zstd))
}

#[test]
fn remora_rotates_and_compresses_what_it_streams() -> Result<()> {
    let node = Node::new()?;
    let bed = Bed::new(&node, Options::default())?;
    for (name, flags) in [
        ("sets/web.pcapng", &["-C", "1m"][..]),
        ("ring/web.pcapng.zst", &["-C", "1m", "-W", "2"]),
        ("one/web.pcapng.zst", &[]),
    ] {
        let path = node.directory().join(name);
        let directory = path.parent().context("no directory")?;
        std::fs::create_dir(directory)?;
        let mut command = run::command(run::remora_program("remora")?);
        command
            .args(["--agent", &bed.agent.address(), "capture"])
            .arg(format!("cgroup:{}", bed.web.cgroup().path()))
            .args(["-f", FILTER, "-w"])
            .arg(&path)
            .args(flags);
        let mut process = node.spawn(&mut command, "remora")?;
        process.wait_for("capturing on", LIMIT)?;
        let sent = bed.send(4000, 20_000)?;
        let status = process.end_by(Signal::SIGINT, LIMIT)?;
        let log = process.log();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains(&format!("{sent} packets captured")), "{log}");
        let mut paths: Vec<_> = std::fs::read_dir(directory)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        paths.sort_unstable();
        let mut packets = Vec::new();
        for path in &paths {
            packets.extend(wire::readable(path)?.packets);
        }
        let numbers = Numbers::collect(1, packets.iter().map(|packet| packet.data.as_slice()));
        println!("{paths:?}\n{log}");
        assert_eq!(numbers.duplicates(), 0);
        assert_eq!(numbers.highest(), Some(sent - 1));
        match (flags.len(), paths.len()) {
            (0, 1) => assert_eq!(numbers.missing(sent), []),
            (2, 5..) => assert_eq!(numbers.missing(sent), []),
            (4, 2) => assert!(log.contains("removed"), "{log}"),
            other => panic!("{other:?}: {paths:?}"),
        }
    }
    Ok(())
}
