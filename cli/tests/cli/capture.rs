//! `remora capture` when all goes well.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Stdio,
};

use nix::{pty::openpty, sys::signal::Signal};
use remora_capture::session::{
    CaptureState, Destination, Limits, Phase, SessionSpec, StopReason, Target,
};
use remora_proto::convert::Start;
use tempfile::TempDir;

use crate::{
    agent::{Agent, ID, Script, Step, finished, head, packet_blocks, statistics},
    program::{Running, await_len, remora, run},
};

pub(crate) fn target_file() -> (TempDir, PathBuf, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.pcapng");
    let text = path.to_str().unwrap().to_owned();
    (dir, path, text)
}

/// Runs until it is stopped, with packets before and after.
fn stoppable() -> Script {
    Script::new(vec![
        Step::Blocks(head()),
        Step::Blocks(packet_blocks(3, 60)),
        Step::AwaitStop,
        Step::Blocks(packet_blocks(2, 60)),
        Step::Blocks(statistics()),
        Step::Finish(Box::new(finished(5))),
    ])
}

#[test]
fn the_file_is_the_stream_and_the_lines_are_tcpdumps() {
    let (_dir, path, file) = target_file();
    let agent = Agent::run(Script::packets(7));
    let ended = run(
        &agent.address(),
        &[
            "capture",
            "cgroup:/remora/web",
            "-w",
            &file,
            "-c",
            "7",
            "-s",
            "96",
            "tcp",
            "port",
            "80",
        ],
    );
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(
        ended.stderr,
        format!(
            "capturing on cgroup /remora/web (id 4711), capture {ID}\n\
             7 packets captured\n\
             7 packets matched\n\
             0 packets lost in kernel\n\
             0 packets dropped by writer\n"
        )
    );
    assert_eq!(
        fs::read(&path).unwrap(),
        [head(), packet_blocks(7, 64)].concat()
    );
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let start = Start::try_from(agent.calls().started.remove(0)).unwrap();
    let spec = SessionSpec {
        filter: "tcp port 80".parse().unwrap(),
        snaplen: 96.try_into().unwrap(),
        limits: Limits {
            packets: 7.try_into().ok(),
            ..Limits::default()
        },
        destination: Destination::Stream,
        trigger: start.spec.trigger.clone(),
        ..SessionSpec::new(Target::CgroupPath("/remora/web".into()))
    };
    assert_eq!(start.spec, spec);
    assert_eq!(start.spec.trigger.source, "cli");
    assert_eq!(agent.calls().streamed, [ID]);
    assert_eq!(agent.calls().stopped, [""; 0], "it ended by itself");
}

#[test]
fn standard_output_gets_the_same_bytes() {
    let agent = Agent::run(Script::packets(2));
    let ended = run(&agent.address(), &["capture", "-i", "lo", "-U", "-w", "-"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout, [head(), packet_blocks(2, 64)].concat());
}

#[test]
fn a_signal_stops_in_order_and_the_last_blocks_are_in_the_file() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (_dir, path, file) = target_file();
        let agent = Agent::run(stoppable());
        let mut running =
            Running::spawn(remora(&agent.address(), &["capture", "pid:1", "-w", &file]));
        running.await_line("capturing on");
        running.signal(signal);
        let ended = running.end();
        assert_eq!(ended.code, Some(0), "{signal}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("5 packets captured\n"),
            "{}",
            ended.stderr
        );
        assert_eq!(agent.calls().stopped, [ID]);
        let all = [
            head(),
            packet_blocks(3, 60),
            packet_blocks(2, 60),
            statistics(),
        ]
        .concat();
        assert_eq!(fs::read(path).unwrap(), all);
    }
}

#[test]
fn packets_are_in_the_file_as_they_come() {
    let (_dir, path, file) = target_file();
    let agent = Agent::run(stoppable());
    let mut running = Running::spawn(remora(&agent.address(), &["capture", "pid:1", "-w", &file]));
    running.await_line("capturing on");
    await_len(&path, head().len() + packet_blocks(3, 60).len());
    running.signal(Signal::SIGINT);
    assert_eq!(running.end().code, Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let (_dir, path, file) = target_file();
    let blocks = [head(), packet_blocks(3, 60)].concat();
    let agent = Agent::run(Script::new(vec![Step::Blocks(blocks.clone()), Step::Hang]));
    let mut running = Running::spawn(remora(&agent.address(), &["capture", "pid:1", "-w", &file]));
    running.await_line("capturing on");
    await_len(&path, blocks.len());
    running.signal(Signal::SIGINT);
    crate::program::await_condition("the stop", || agent.calls().stopped == [ID]);
    running.signal(Signal::SIGINT);
    let ended = running.end();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("ended at once"), "{}", ended.stderr);
    assert_eq!(fs::read(path).unwrap(), blocks);
}

#[test]
fn a_reader_that_goes_stops_the_capture_even_when_no_packet_comes() {
    let agent = Agent::run(stoppable());
    let mut command = remora(&agent.address(), &["capture", "pid:1", "-w", "-"]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    command.stdout(writer);
    let mut running = Running::spawn(command);
    running.await_line("capturing on");
    let mut bytes = vec![0; head().len() + packet_blocks(3, 60).len()];
    reader.read_exact(&mut bytes).unwrap();
    drop(reader);
    let ended = running.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(agent.calls().stopped, [ID]);
    assert!(
        ended.stderr.contains("3 packets captured\n"),
        "{}",
        ended.stderr
    );
    assert!(
        ended.stderr.contains("2 packets dropped by writer\n"),
        "{}",
        ended.stderr
    );
}

#[test]
fn an_existing_file_is_replaced_as_a_whole() {
    let (_dir, path, file) = target_file();
    fs::write(&path, vec![b'x'; 100_000]).unwrap();
    let agent = Agent::run(Script::packets(1));
    assert_eq!(
        run(&agent.address(), &["capture", "pid:1", "-w", &file]).code,
        Some(0)
    );
    assert_eq!(
        fs::read(&path).unwrap(),
        [head(), packet_blocks(1, 64)].concat()
    );
}

#[test]
fn packets_beyond_a_limit_and_an_early_end_are_told() {
    let (_dir, _path, file) = target_file();
    let mut state = finished(1);
    state.stop_reason = Some(StopReason::TargetGone);
    state.counts.matched += 4;
    state.counts.over_budget = 4;
    let agent = Agent::run(Script::new(vec![
        Step::Blocks([head(), packet_blocks(1, 64)].concat()),
        Step::Finish(Box::new(state)),
    ]));
    let ended = run(&agent.address(), &["capture", "pid:1", "-w", &file]);
    assert_eq!(ended.code, Some(0));
    assert!(
        ended.stderr.ends_with(
            "1 packet captured\n\
             1 packet matched\n\
             0 packets lost in kernel\n\
             0 packets dropped by writer\n\
             4 more packets matched after the limit\n\
             remora: ended early: the target is gone\n"
        ),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_terminal_gets_no_packets() {
    let agent = Agent::run(Script::packets(1));
    let pty = openpty(None, None).unwrap();
    let mut command = remora(&agent.address(), &["capture", "pid:1", "-w", "-"]);
    command.stdout(Stdio::from(pty.slave));
    let ended = Running::spawn(command).end();
    assert_eq!(ended.code, Some(1));
    assert_eq!(
        ended.stderr,
        "remora: packets are binary and this is a terminal; use -w FILE, or -w - | tshark -r -\n"
    );
    assert!(agent.calls().started.is_empty());
}

#[test]
fn a_terminal_sees_the_count_live() {
    let (_dir, _path, file) = target_file();
    let agent = Agent::run(stoppable());
    let pty = openpty(None, None).unwrap();
    let mut command = remora(&agent.address(), &["capture", "pid:1", "-w", &file]);
    command.stdout(Stdio::null()).stderr(Stdio::from(pty.slave));
    let running = Running::spawn(command);
    let mut terminal = File::from(pty.master);
    let mut seen = String::new();
    while !seen.contains("\rPackets: 3 ") {
        let mut chunk = [0; 256];
        let len = terminal.read(&mut chunk).unwrap();
        seen += std::str::from_utf8(&chunk[..len]).unwrap();
    }
    running.signal(Signal::SIGINT);
    assert_eq!(running.end().code, Some(0));
    let mut chunk = [0; 4096];
    let len = terminal.read(&mut chunk).unwrap();
    let rest = std::str::from_utf8(&chunk[..len]).unwrap();
    assert!(
        rest.contains("Packets: 5 \r\n5 packets captured\r\n"),
        "{rest:?}"
    );
}

#[test]
fn a_stored_capture_prints_its_id_and_is_left_running() {
    let agent = Agent::run(Script::packets(1));
    let ended = run(&agent.address(), &["capture", "pid:1", "--store"]);
    assert_eq!(
        (ended.code, ended.out()),
        (Some(0), format!("{ID}\n").as_str())
    );
    let calls = agent.calls();
    let start = Start::try_from(calls.started[0].clone()).unwrap();
    assert_eq!(start.spec.destination, Destination::Store);
    assert!(calls.streamed.is_empty() && calls.stopped.is_empty());
}

#[test]
fn a_stored_capture_that_is_awaited_stops_on_a_signal() {
    let state = CaptureState {
        phase: Phase::Capturing,
        stop_reason: None,
        ..finished(5)
    };
    // Get answers `Capturing`: the end comes by Stop alone.
    let agent = Agent::run(Script {
        state,
        ..stoppable()
    });
    let mut running = Running::spawn(remora(
        &agent.address(),
        &["capture", "pid:1", "--store", "--wait"],
    ));
    running.await_line("capturing on");
    running.signal(Signal::SIGINT);
    let ended = running.end();
    assert_eq!(
        (ended.code, ended.out()),
        (Some(0), format!("{ID}\n").as_str())
    );
    assert_eq!(agent.calls().stopped, [ID]);
    assert!(
        ended.stderr.contains("5 packets captured\n"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_stored_capture_that_has_ended_is_not_awaited() {
    let agent = Agent::run(Script {
        state: finished(9),
        ..Script::packets(9)
    });
    let ended = run(&agent.address(), &["capture", "pid:1", "--store", "--wait"]);
    assert_eq!(ended.code, Some(0));
    assert!(
        ended.stderr.contains("9 packets captured\n"),
        "{}",
        ended.stderr
    );
}
