//! `list`, `show`, `stop`, `status`, `get`.

use std::{fs, process::Stdio};

use nix::sys::signal::Signal;
use remora_capture::session::CaptureState;

use crate::{
    agent::{Agent, ID, Script, Step, finished, head, packet_blocks},
    capture::target_file,
    program::{Running, await_len, remora, run},
};

fn with_state(packets: u64) -> Agent {
    Agent::run(Script {
        state: finished(packets),
        ..Script::packets(packets)
    })
}

#[test]
fn a_list_has_a_line_for_each_capture() {
    let ended = run(&with_state(4).address(), &["list", "--all"]);
    assert_eq!(ended.code, Some(0));
    let lines: Vec<_> = ended.out().lines().collect();
    assert!(lines[0].starts_with("ID "), "{lines:?}");
    assert!(
        lines[1].starts_with(ID) && lines[1].contains("cgroup:/remora/web"),
        "{lines:?}"
    );
}

#[test]
fn json_is_the_state_itself() {
    let agent = with_state(4);
    let ended = run(&agent.address(), &["show", ID, "-o", "json"]);
    assert_eq!(
        serde_json::from_str::<CaptureState>(ended.out()).unwrap(),
        finished(4)
    );
    let ended = run(&agent.address(), &["list", "-o", "json"]);
    assert_eq!(
        serde_json::from_str::<Vec<CaptureState>>(ended.out()).unwrap(),
        [finished(4)]
    );
}

#[test]
fn a_stop_shows_the_final_counts() {
    let agent = with_state(4);
    let ended = run(&agent.address(), &["stop", ID]);
    assert_eq!(ended.code, Some(0));
    assert_eq!(agent.calls().stopped, [ID]);
    assert!(
        ended.out().contains("The counts balance."),
        "{}",
        ended.out()
    );
}

#[test]
fn the_status_tells_the_nodes_facts() {
    let ended = run(&with_state(0).address(), &["status"]);
    assert_eq!(ended.code, Some(0));
    for part in ["node-1", "6.12.1", "3 running, at most 64", "16.0 MiB"] {
        assert!(
            ended.out().contains(part),
            "no `{part}` in: {}",
            ended.out()
        );
    }
}

#[test]
fn a_stored_capture_is_copied() {
    let (_dir, path, file) = target_file();
    let agent = with_state(4);
    let ended = run(&agent.address(), &["get", ID, "-w", &file]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(
        fs::read(path).unwrap(),
        [head(), packet_blocks(4, 64)].concat()
    );
    assert!(agent.calls().stopped.is_empty());
}

#[test]
fn blocks_that_span_messages_are_joined() {
    let (_dir, path, file) = target_file();
    let bytes = [head(), packet_blocks(4, 64)].concat();
    let mut steps: Vec<_> = bytes
        .chunks(7)
        .map(|part| Step::Blocks(part.to_vec()))
        .collect();
    steps.push(Step::Finish(Box::new(finished(4))));
    let agent = Agent::run(Script::new(steps));
    let ended = run(&agent.address(), &["get", ID, "-w", &file]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stderr.starts_with("4 packets captured\n"),
        "{}",
        ended.stderr
    );
    assert_eq!(fs::read(path).unwrap(), bytes);
}

#[test]
fn a_copy_that_is_interrupted_does_not_stop_the_capture() {
    let (_dir, path, file) = target_file();
    let blocks = [head(), packet_blocks(4, 64)].concat();
    let agent = Agent::run(Script::new(vec![Step::Blocks(blocks.clone()), Step::Hang]));
    let running = Running::spawn(remora(&agent.address(), &["get", ID, "-w", &file]));
    await_len(&path, blocks.len());
    running.signal(Signal::SIGINT);
    let ended = running.end();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("not complete"), "{}", ended.stderr);
    assert_eq!(fs::read(path).unwrap(), blocks);
    assert!(agent.calls().stopped.is_empty());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_fault() {
    let agent = with_state(4);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = remora(&agent.address(), &["list"]);
    command.stdout(Stdio::from(writer));
    let ended = Running::spawn(command).end();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn an_id_that_is_none_is_refused_before_the_agent_is_asked() {
    let ended = run(&with_state(0).address(), &["show", "../../etc/passwd"]);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr.contains("is not a capture id"),
        "{}",
        ended.stderr
    );
}

#[test]
fn help_teaches_by_example() {
    let agent = with_state(0);
    let ended = run(&agent.address(), &["--help"]);
    assert!(
        ended
            .out()
            .contains("remora capture pid:4321 -w - | tshark -r -"),
        "{}",
        ended.out()
    );
    let ended = run(&agent.address(), &["capture", "--help"]);
    assert!(ended.out().contains("unit:NAME"), "{}", ended.out());
}
