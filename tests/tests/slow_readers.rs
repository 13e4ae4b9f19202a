//! Readers that stall and disks that are slow or fail lose their own packets, counted, and cost
//! nobody else one.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_proto::v1;
use remora_tests::{
    agent::{TestAgent, of_pod_filtered},
    node::Node,
    numbered::Numbers,
    proof,
    run::{self, Proc},
    traffic::{self, Stream},
    veth,
};

const PORT: u16 = 9000;
const FILTER: &str = "udp port 9000";
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_dozen_readers_that_stall_cost_a_stored_capture_no_packet() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(PORT, node.directory(), |tool| api.command(tool))?;
    // Each on a connection of its own: on one they would share its window, and its answers.
    let mut readers = Vec::new();
    for number in 0..12 {
        let name = format!("remora-{number}");
        let mut command = run::command(run::remora_program("remora")?);
        command
            .args(["--agent", &agent.address(), "capture"])
            .arg(format!("cgroup:{}", web.cgroup().path()))
            .args(["-f", FILTER, "-w"])
            .arg(node.directory().join(format!("{name}.pcapng")));
        let mut reader = node.spawn(&mut command, &name)?;
        reader.wait_for("capturing on", LIMIT)?;
        reader.signal(Signal::SIGSTOP)?;
        readers.push(reader);
    }
    let stalled = agent.list(false)?;
    let stored = agent.capture(of_pod_filtered(&web, FILTER))?;
    // 28 MB a reader: more than every buffer between the agent and a reader that does not read.
    let generator = Stream {
        size: 1400,
        rate: 10_000,
        ..Stream::new(api.ipv4(), PORT, 20_000)
    };
    let sent = generator.send(|tool| web.command(tool))?;
    let proven = proof::prove(&agent, &agent.stop(&stored.id)?)?;
    let never_there = veth::receive_dropped(node.netns(), web.interface())?;
    assert_eq!(proven.counts.matched, sent - never_there);
    println!("stored: {:?}", proven.counts);
    for capture in &stalled {
        let counts = agent.get(&capture.id)?.counts.unwrap_or_default();
        println!(
            "stalled: written {}, dropped {}",
            counts.written, counts.dropped_queue
        );
        assert!(counts.dropped_queue > 0, "{counts:?}: it did not stall");
    }
    assert_eq!(proven.counts.dropped_queue, 0, "others cost it packets");
    Ok(())
}

/// What is to be done to a system call of the thread that writes a capture.
struct Fault<'a> {
    system_call: &'a str,
    /// In strace's words: `error=EIO:when=20+`.
    what: &'a str,
}

impl Fault<'_> {
    /// Has strace inject it into the one thread of `agent` that writes, where it writes `file`.
    fn inject(&self, agent: &TestAgent<'_>, file: &str, node: &Node) -> Result<Proc> {
        let tasks = format!("/proc/{}/task", agent.pid()?);
        let mut thread = None;
        for task in std::fs::read_dir(tasks)? {
            let task = task?;
            let name = std::fs::read_to_string(task.path().join("comm"))?;
            if name.starts_with("writer-") {
                thread = Some(task.file_name());
            }
        }
        let thread = thread.context("no thread writes")?;
        let mut command: Command = run::command("strace");
        command
            .arg("-p")
            .arg(thread)
            .arg("-P")
            .arg(agent.data_dir().join(format!("{file}.part")))
            .args(["-e", &format!("trace={}", self.system_call)])
            .args(["-e", &format!("inject={}:{}", self.system_call, self.what)]);
        let mut strace = Proc::spawn(&mut command, node.directory(), "strace")?;
        strace.wait_for("attached", LIMIT)?;
        Ok(strace)
    }
}

/// A capture while its file fails; its end is told as `reason`.
fn fails(fault: &Fault<'_>, writing: v1::Writing, reason: v1::StopReason) -> Result<v1::Counts> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(PORT, node.directory(), |tool| api.command(tool))?;
    let state = agent.capture(v1::CaptureSpec {
        writing: Some(writing),
        ..of_pod_filtered(&web, FILTER)
    })?;
    let mut strace = fault.inject(&agent, &state.file, &node)?;
    let stream = Stream {
        size: 1400,
        rate: 20_000,
        ..Stream::new(api.ipv4(), PORT, 0)
    };
    let sender = stream.send_until_stopped(node.directory(), |tool| web.command(tool))?;
    let state = if reason == v1::StopReason::Requested {
        agent.wait_state(&state.id, "dropped packets", |state| {
            state.counts.is_some_and(|counts| counts.dropped_queue > 0)
        })?;
        agent.stop(&state.id)?
    } else {
        agent.wait_final(&state.id, LIMIT)?
    };
    sender.stop()?;
    println!("{:?}: {}", state.stop_reason(), state.message);
    let proven = proof::prove(&agent, &state)?;
    let counts = proven.counts;
    println!("{counts:?}");
    let numbers = Numbers::collect(1, proven.capture.frames());
    ensure!((numbers.duplicates(), numbers.foreign) == (0, 0));
    ensure!(state.stop_reason() == reason, "{:?}", state.stop_reason());
    if reason == v1::StopReason::IoError {
        ensure!(state.phase() == v1::Phase::Failed && !state.message.is_empty());
    }
    // The thread that it traced has ended.
    strace.wait(LIMIT)?;
    Ok(counts)
}

#[test]
fn a_disk_that_fails_ends_the_capture_with_whole_blocks_and_counts_the_rest() -> Result<()> {
    let fault = Fault {
        system_call: "write",
        what: "error=EIO:when=20",
    };
    let counts = fails(&fault, v1::Writing::default(), v1::StopReason::IoError)?;
    assert!(counts.written > 0 && counts.dropped_io > 0, "{counts:?}");
    let compressed = v1::Writing {
        compression: v1::Compression::Zstd.into(),
        ..Default::default()
    };
    let counts = fails(&fault, compressed, v1::StopReason::IoError)?;
    assert!(counts.written > 0 && counts.dropped_io > 0, "{counts:?}");
    Ok(())
}

#[test]
fn a_disk_that_does_not_confirm_what_it_was_given_ends_a_capture_that_wants_it_to() -> Result<()> {
    let fault = Fault {
        system_call: "fdatasync",
        what: "error=EIO:when=2+",
    };
    let writing = v1::Writing {
        sync: true,
        ..Default::default()
    };
    fails(&fault, writing, v1::StopReason::IoError)?;
    Ok(())
}

#[test]
fn a_slow_disk_drops_what_its_queue_does_not_hold_and_counts_it() -> Result<()> {
    let fault = Fault {
        system_call: "write",
        what: "delay_enter=400000:when=5+",
    };
    let counts = fails(&fault, v1::Writing::default(), v1::StopReason::Requested)?;
    assert!(
        counts.dropped_queue > 0 && counts.dropped_io == 0,
        "{counts:?}"
    );
    Ok(())
}

#[test]
fn what_was_written_is_synced_every_250_ms_when_that_is_asked_for_and_never_else() -> Result<()> {
    for (sync, least, most) in [(true, 4, 40), (false, 0, 1)] {
        let node = Node::new()?;
        let (web, api) = (node.pod("web")?, node.pod("api")?);
        let agent = TestAgent::start(&node)?;
        let _sink = traffic::sink(PORT, node.directory(), |tool| api.command(tool))?;
        let state = agent.capture(v1::CaptureSpec {
            writing: Some(v1::Writing {
                sync,
                ..Default::default()
            }),
            ..of_pod_filtered(&web, FILTER)
        })?;
        let watch = Fault {
            system_call: "fdatasync",
            what: "delay_enter=0",
        };
        let mut strace = watch.inject(&agent, &state.file, &node)?;
        // Two seconds of them.
        let stream = Stream {
            rate: 500,
            ..Stream::new(api.ipv4(), PORT, 1000)
        };
        stream.send(|tool| web.command(tool))?;
        proof::complete(&proof::prove(&agent, &agent.stop(&state.id)?)?.counts)?;
        strace.wait(LIMIT)?;
        let syncs = strace.log().matches("fdatasync(").count();
        println!("sync {sync}: {syncs} times");
        assert!((least..=most).contains(&syncs), "{}", strace.log());
    }
    Ok(())
}
