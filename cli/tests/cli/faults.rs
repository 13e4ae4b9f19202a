//! What goes wrong: each on one line with what to do, nothing armed, nothing lost.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
};

use nix::{sys::signal::Signal, unistd::geteuid};
use remora_proto::{
    client::AgentAddress,
    reason::{self, Reason},
};
use tonic::{Code, Status};

use crate::{
    agent::{Agent, ID, Script, Start, Step, finished, head, packet_blocks, statistics},
    capture::target_file,
    program::{Ended, Running, remora, run},
};

#[track_caller]
fn assert_failed(ended: &Ended, line: &str) {
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(ended.stderr, format!("remora: {line}\n"));
}

#[test]
fn without_an_agent_nothing_is_made() {
    let (dir, path, file) = target_file();
    let socket = dir.path().join("agent.sock");
    let ended = run(
        &AgentAddress::Unix(socket.clone()),
        &["capture", "pid:1", "-w", &file],
    );
    let socket = socket.display();
    assert_failed(
        &ended,
        &format!("no agent at unix:{socket}: is remora-agent running? (remora-agent run)"),
    );
    assert!(!path.exists());
}

#[test]
fn a_socket_of_others_names_the_group() {
    if !geteuid().is_root() {
        println!("skipped: only root can become someone else");
        return;
    }
    let agent = Agent::run(Script::packets(0));
    let socket = agent.socket();
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    open(&socket, 0o660);
    open(socket.parent().unwrap(), 0o755);
    // The binary may lie where only root may go.
    let program = socket.with_file_name("remora");
    fs::copy(env!("CARGO_BIN_EXE_remora"), &program).unwrap();
    let mut command = Command::new(program);
    command
        .args(["--agent", &agent.address().to_string(), "list"])
        .uid(65_534)
        .gid(65_534);
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let ended = Running::spawn(command).end();
    assert_eq!(ended.code, Some(1));
    assert!(
        ended
            .stderr
            .contains("no permission for the agent's socket"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("join the group"), "{}", ended.stderr);
}

#[test]
fn a_path_that_cannot_be_written_arms_nothing() {
    let agent = Agent::run(Script::packets(1));
    let ended = run(
        &agent.address(),
        &["capture", "pid:1", "-w", "/nowhere/x.pcapng"],
    );
    assert_failed(
        &ended,
        "/nowhere/x.pcapng cannot be written; is the directory there?: No such file or directory \
         (os error 2)",
    );
    assert!(agent.calls().started.is_empty());
}

#[test]
fn without_an_output_it_says_which_there_are() {
    let agent = Agent::run(Script::packets(1));
    let ended = run(&agent.address(), &["capture", "pid:1"]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("-w - | tshark -r -"),
        "{}",
        ended.stderr
    );
    assert!(agent.calls().started.is_empty());
}

#[test]
fn a_bad_filter_is_pointed_at_and_the_agent_is_not_asked() {
    let agent = Agent::run(Script::packets(1));
    let ended = run(
        &agent.address(),
        &["capture", "pid:1", "-w", "-", "tcp", "prot", "80"],
    );
    assert_eq!(ended.code, Some(1));
    assert!(
        ended
            .stderr
            .starts_with("remora: filter: syntax error at `prot` (word 2)"),
        "{}",
        ended.stderr
    );
    assert!(
        ended.stderr.ends_with("\ntcp prot 80\n    ^^^^\n"),
        "{}",
        ended.stderr
    );
    assert!(agent.calls().started.is_empty());
}

#[test]
fn a_start_that_is_refused_leaves_the_files_as_they_were() {
    let line = "all 64 sessions of this node are in use; stop one, or wait";
    let refusal = reason::status(Code::ResourceExhausted, Reason::SessionLimit, line);
    let (_dir, path, file) = target_file();
    let agent = Agent::run(Script::refusing(refusal));
    assert_failed(
        &run(&agent.address(), &["capture", "pid:1", "-w", &file]),
        line,
    );
    assert!(!path.exists());

    fs::write(&path, "evidence").unwrap();
    assert_failed(
        &run(&agent.address(), &["capture", "pid:1", "-w", &file]),
        line,
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "evidence");
}

#[test]
fn refusals_keep_their_lines_but_reach_no_terminal_unescaped() {
    let refusal = reason::status(
        Code::InvalidArgument,
        Reason::InvalidFilter,
        "`\u{1b}]0;x\u{7}` is odd\ntcp odd\n    ^^^",
    );
    let agent = Agent::run(Script::refusing(refusal));
    let ended = run(&agent.address(), &["capture", "pid:1", "-w", "-"]);
    assert_failed(
        &ended,
        "filter: `\\u{1b}]0;x\\u{7}` is odd\ntcp odd\n    ^^^",
    );
    assert!(ended.stdout.is_empty());
}

#[test]
fn an_agent_that_dies_leaves_a_file_of_whole_blocks() {
    let (_dir, path, file) = target_file();
    let blocks = [head(), packet_blocks(3, 60)].concat();
    let agent = Agent::run(Script::new(vec![Step::Blocks(blocks.clone()), Step::Die]));
    let ended = run(&agent.address(), &["capture", "pid:1", "-w", &file]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("3 packets captured\n"),
        "{}",
        ended.stderr
    );
    assert!(
        ended.stderr.contains("is remora-agent running?"),
        "{}",
        ended.stderr
    );
    assert_eq!(fs::read(path).unwrap(), blocks);
}

#[test]
fn an_agent_that_never_answers_is_given_up() {
    let (_dir, path, file) = target_file();
    let agent = Agent::run(Script {
        start: Start::Hang,
        ..Script::packets(0)
    });
    let ended = run(&agent.address(), &["capture", "pid:1", "-w", &file]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("did not answer within 10s"),
        "{}",
        ended.stderr
    );
    assert!(!path.exists());
}

#[test]
fn an_agent_that_does_not_end_a_stopped_capture_is_given_up() {
    let (_dir, path, file) = target_file();
    let blocks = [head(), packet_blocks(3, 60)].concat();
    let agent = Agent::run(Script::new(vec![Step::Blocks(blocks.clone()), Step::Hang]));
    let mut running = Running::spawn(remora(&agent.address(), &["capture", "pid:1", "-w", &file]));
    running.await_line("capturing on");
    running.signal(Signal::SIGTERM);
    let ended = running.end();
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("did not end the capture within 10s"),
        "{}",
        ended.stderr
    );
    assert!(
        ended.stderr.contains(&format!("`remora stop {ID}`")),
        "{}",
        ended.stderr
    );
    assert_eq!(fs::read(path).unwrap(), blocks);
}

#[test]
fn a_stream_that_does_not_begin_is_stopped() {
    let (_dir, path, file) = target_file();
    let taken = reason::status(
        Code::FailedPrecondition,
        Reason::StreamTaken,
        "it has a reader",
    );
    let agent = Agent::run(Script {
        stream_refusal: Some(taken),
        ..Script::packets(0)
    });
    let ended = run(&agent.address(), &["capture", "pid:1", "-w", &file]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("remora: it has a reader\n"),
        "{}",
        ended.stderr
    );
    assert_eq!(agent.calls().stopped, [ID]);
    assert!(!path.exists());
}

#[test]
fn a_stream_without_its_end_is_not_complete() {
    let (_dir, _path, file) = target_file();
    let agent = Agent::run(Script::new(vec![Step::Blocks(head())]));
    let ended = run(&agent.address(), &["capture", "pid:1", "-w", &file]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("went away in the middle"),
        "{}",
        ended.stderr
    );
}

#[test]
fn packets_that_did_not_come_are_told() {
    let (_dir, _path, file) = target_file();
    let agent = Agent::run(Script::new(vec![
        Step::Blocks([head(), packet_blocks(3, 60)].concat()),
        Step::Finish(Box::new(finished(5))),
    ]));
    let ended = run(&agent.address(), &["capture", "pid:1", "-w", &file]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("sent 5 packets and 3 came"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_torn_stream_leaves_whole_blocks() {
    let (_dir, path, file) = target_file();
    let mut torn = packet_blocks(2, 60);
    torn.truncate(torn.len() - 4);
    let agent = Agent::run(Script::new(vec![
        Step::Blocks(head()),
        Step::Blocks(torn),
        Step::Finish(Box::new(finished(2))),
    ]));
    let ended = run(&agent.address(), &["capture", "pid:1", "-w", &file]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("ended within a block"),
        "{}",
        ended.stderr
    );
    assert_eq!(
        fs::read(path).unwrap(),
        [head(), packet_blocks(1, 60)].concat()
    );
}

#[test]
fn what_is_not_pcapng_does_not_reach_the_file() {
    let (_dir, path, file) = target_file();
    let agent = Agent::run(Script::new(vec![
        Step::Blocks(head()),
        Step::Blocks(vec![0; 100]),
        Step::Finish(Box::new(finished(0))),
    ]));
    let ended = run(&agent.address(), &["capture", "pid:1", "-w", &file]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("is not pcapng"), "{}", ended.stderr);
    assert_eq!(fs::read(path).unwrap(), head());
}

#[test]
fn a_device_without_room_stops_the_capture() {
    let agent = Agent::run(Script::new(vec![
        Step::Blocks([head(), packet_blocks(3, 60)].concat()),
        Step::AwaitStop,
        Step::Blocks(packet_blocks(2, 60)),
        Step::Finish(Box::new(finished(5))),
    ]));
    let ended = run(&agent.address(), &["capture", "pid:1", "-w", "/dev/full"]);
    assert_eq!(ended.code, Some(1));
    assert_eq!(agent.calls().stopped, [ID]);
    assert!(
        ended.stderr.contains("0 packets captured\n"),
        "{}",
        ended.stderr
    );
    assert!(
        ended.stderr.contains("5 packets dropped by writer\n"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("No space left"), "{}", ended.stderr);
}

#[test]
fn a_full_disk_leaves_whole_blocks_and_counts_the_rest() {
    let (dir, copy, _) = target_file();
    // 192 packets of 1036 bytes do not fit into 64 KiB, wherever the disk cuts them.
    let packets = packet_blocks(192, 1004);
    let agent = Agent::run(Script::new(vec![
        Step::Blocks(head()),
        Step::Blocks(packets.clone()),
        Step::AwaitStop,
        Step::Blocks(statistics()),
        Step::Finish(Box::new(finished(192))),
    ]));
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    // A mount namespace of its own: the tmpfs goes with the process.
    let script = "mount -t tmpfs -o size=64k none \"$1\" || exit 77
                  shift; \"$@\"; code=$?
                  cp \"${copy%/*}/small/x.pcapng\" \"$copy\"; exit $code";
    let mut command = remora(&agent.address(), &[]);
    let program = command.get_program().to_owned();
    command = {
        let mut unshare = Command::new("unshare");
        unshare.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        unshare
            .arg(&small)
            .arg(program)
            .arg("capture")
            .args(["pid:1", "-w"]);
        unshare.arg(small.join("x.pcapng")).env("copy", &copy);
        unshare.env("REMORA_AGENT", agent.address().to_string());
        unshare
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        unshare
    };
    let ended = Running::spawn(command).end();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(agent.calls().stopped, [ID]);

    let bytes = fs::read(copy).unwrap();
    let written = (bytes.len() - head().len()) / 1036;
    assert_eq!(
        bytes,
        [&head()[..], &packets[..written * 1036]].concat(),
        "a torn tail"
    );
    assert!((1..192).contains(&written), "{written}");
    let dropped = 192 - written;
    for line in [
        format!("{written} packets captured\n"),
        format!("{dropped} packets dropped by writer\n"),
        "No space left on device".to_owned(),
    ] {
        assert!(
            ended.stderr.contains(&line),
            "no `{line}` in: {}",
            ended.stderr
        );
    }
}

#[test]
fn other_failures_of_a_call_have_the_agents_words() {
    let agent = Agent::run(Script::refusing(Status::data_loss("odd")));
    let ended = run(&agent.address(), &["capture", "pid:1", "-w", "-"]);
    let address = agent.address();
    assert_failed(
        &ended,
        &format!("the agent at {address} refused: odd (DataLoss)"),
    );
}
