//! `kubectl remora capture` by a controller's socket.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use nix::{pty::openpty, sys::signal::Signal};
use remora_proto::reason::{self, Reason};
use tonic::{Code, Status};

use super::controller::{Controller, Script, Step, cluster_capture, missing_part, part};
use crate::{
    agent::{ID, head, packet_blocks, statistics},
    capture::target_file,
    program::{Ended, Running, await_len},
};

/// The built program, called as kubectl calls it.
pub(super) fn kubectl(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remora"));
    command
        .arg0("kubectl-remora")
        .args(words)
        .env_clear()
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Run with the controller's address.
pub(super) fn run(controller: &Controller, words: &[&str]) -> Ended {
    Running::spawn(with(controller, words)).end()
}

pub(super) fn with(controller: &Controller, words: &[&str]) -> Command {
    let mut command = kubectl(words);
    command.env("REMORA_CONTROLLER", controller.address());
    command
}

/// Two pods' packets, `packets` in all, then the end.
fn script(packets: u64) -> Script {
    let parts = vec![
        part("cart-a", "worker-1", packets - 1),
        part("cart-b", "worker-2", 1),
    ];
    let state = cluster_capture(parts);
    Script {
        state: state.clone(),
        ..Script::new(vec![
            Step::Blocks(head()),
            Step::Blocks(packet_blocks(packets, 64)),
            Step::Finish(Box::new(state)),
        ])
    }
}

/// Runs until it is stopped, with packets before and after.
fn stoppable() -> Script {
    let state = cluster_capture(vec![part("cart-a", "worker-1", 5)]);
    Script {
        state: state.clone(),
        ..Script::new(vec![
            Step::Blocks(head()),
            Step::Blocks(packet_blocks(3, 60)),
            Step::AwaitStop,
            Step::Blocks(packet_blocks(2, 60)),
            Step::Blocks(statistics()),
            Step::Finish(Box::new(state)),
        ])
    }
}

#[test]
fn the_file_is_the_stream_and_the_lines_are_tcpdumps_per_pod_and_in_sum() {
    let (_dir, path, file) = target_file();
    let controller = Controller::run(script(7));
    let words = [
        "capture",
        "deploy/cart",
        "-n",
        "shop",
        "-w",
        &file,
        "tcp",
        "port",
        "80",
    ];
    let ended = run(&controller, &words);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(
        ended.stderr,
        format!(
            "capturing on deploy/cart in shop: 2 pods on 2 nodes, capture {ID}\n\
             7 packets captured\n\
             7 packets matched\n\
             0 packets lost in kernel\n\
             0 packets dropped by writer\n  \
             shop/cart-a on worker-1: 6 packets captured, 0 lost in kernel, 0 dropped\n  \
             shop/cart-b on worker-2: 1 packet captured, 0 lost in kernel, 0 dropped\n\
             the packets are in {file}\n"
        )
    );
    assert_eq!(
        fs::read(&path).unwrap(),
        [head(), packet_blocks(7, 64)].concat()
    );
    let calls = controller.calls();
    let start = &calls.started[0];
    let selector = start.selector.clone().unwrap();
    assert_eq!(selector.namespace, "shop");
    let spec = start.spec.clone().unwrap();
    assert_eq!(spec.filter, "tcp port 80");
    assert!(spec.target.is_none() && spec.part.is_none());
    assert_eq!(start.idempotency_key.len(), 26);
    assert_eq!(calls.streamed, [ID]);
    assert_eq!(calls.stopped, [""; 0], "it ended by itself");
    // A socket needs no token, and none was there.
    assert!(calls.shown.iter().all(Option::is_none));
}

#[test]
fn standard_output_gets_the_same_bytes() {
    let controller = Controller::run(script(2));
    let ended = run(&controller, &["capture", "pod/cart-a", "-w", "-"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout, [head(), packet_blocks(2, 64)].concat());
    assert!(
        !ended.stderr.contains("the packets are in"),
        "{}",
        ended.stderr
    );
}

#[test]
fn ctrl_c_stops_in_order_and_says_where_the_file_is() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (_dir, path, file) = target_file();
        let controller = Controller::run(stoppable());
        let words = ["capture", "deploy/cart", "-w", &file];
        let mut running = Running::spawn(with(&controller, &words));
        running.await_line("capturing on");
        await_len(&path, head().len() + packet_blocks(3, 60).len());
        running.signal(signal);
        let ended = running.end();
        assert_eq!(ended.code, Some(0), "{signal}: {}", ended.stderr);
        assert_eq!(controller.calls().stopped, [ID]);
        assert!(
            ended.stderr.contains("5 packets captured\n")
                && ended
                    .stderr
                    .ends_with(&format!("the packets are in {file}\n")),
            "{}",
            ended.stderr
        );
        let all = [
            head(),
            packet_blocks(3, 60),
            packet_blocks(2, 60),
            statistics(),
        ];
        assert_eq!(fs::read(path).unwrap(), all.concat());
    }
}

#[test]
fn a_reader_that_goes_stops_the_capture() {
    let controller = Controller::run(stoppable());
    let mut command = with(&controller, &["capture", "deploy/cart", "-w", "-"]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    command.stdout(writer);
    let mut running = Running::spawn(command);
    running.await_line("capturing on");
    let mut bytes = vec![0; head().len() + packet_blocks(3, 60).len()];
    reader.read_exact(&mut bytes).unwrap();
    drop(reader);
    let ended = running.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(controller.calls().stopped, [ID]);
}

#[test]
fn what_is_missing_is_named_at_the_start_and_at_the_end_and_is_exit_code_3() {
    let (_dir, _path, file) = target_file();
    let parts = vec![
        part("cart-a", "worker-1", 1),
        missing_part("cart-b", "worker-2", "the agent \u{1b}[31mdoes not answer"),
    ];
    let state = cluster_capture(parts);
    let controller = Controller::run(Script {
        state: state.clone(),
        ..Script::new(vec![
            Step::Blocks([head(), packet_blocks(1, 64)].concat()),
            Step::Finish(Box::new(state)),
        ])
    });
    let ended = run(&controller, &["capture", "deploy/cart", "-w", &file]);
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    let line = "remora: missing: shop/cart-b on worker-2: the agent \\u{1b}[31mdoes not answer\n";
    assert_eq!(ended.stderr.matches(line).count(), 2, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("1 pod on 1 node,"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_missing_right_is_told_with_the_command_that_grants_it() {
    let (_dir, path, file) = target_file();
    let refusal = reason::status(
        Code::PermissionDenied,
        Reason::PermissionDenied,
        "alice may not create captures.remora.dev in namespace shop",
    );
    let controller = Controller::run(Script {
        start_refusal: Some(refusal),
        ..script(1)
    });
    let ended = run(
        &controller,
        &["capture", "deploy/cart", "-n", "shop", "-w", &file],
    );
    assert_eq!(ended.code, Some(1));
    assert_eq!(
        ended.stderr,
        "remora: alice may not create captures.remora.dev in namespace shop\n\
         whoever may grant it can do so by\n  \
         kubectl create rolebinding remora-capturer-NAME -n shop --clusterrole=remora-capturer \
         --user=NAME\n"
    );
    assert!(!path.exists(), "a start that failed leaves no file");
}

#[test]
fn refusals_keep_the_controllers_words() {
    for (status, part) in [
        (
            reason::status(
                Code::NotFound,
                Reason::TargetNotFound,
                "no pod of deploy/cart in shop",
            ),
            "remora: no pod of deploy/cart in shop\n",
        ),
        (
            reason::status(Code::InvalidArgument, Reason::InvalidFilter, "a\ntcp\n^^^"),
            "remora: filter: a\ntcp\n^^^\n",
        ),
        (
            Status::unauthenticated("token expired"),
            "kubectl auth whoami",
        ),
        (Status::unimplemented("x"), "older"),
        (
            Status::resource_exhausted("10000 pods are too many"),
            "10000 pods are too many",
        ),
    ] {
        let (_dir, path, file) = target_file();
        let controller = Controller::run(Script {
            start_refusal: Some(status.clone()),
            ..script(1)
        });
        let ended = run(&controller, &["capture", "deploy/cart", "-w", &file]);
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains(part), "{status}: {}", ended.stderr);
        assert!(!path.exists());
    }
}

#[test]
fn a_controller_that_dies_ends_a_streamed_capture_with_what_came() {
    let (_dir, path, file) = target_file();
    let blocks = [head(), packet_blocks(3, 64)].concat();
    let controller = Controller::run(Script::new(vec![Step::Blocks(blocks.clone()), Step::Die]));
    let ended = run(&controller, &["capture", "deploy/cart", "-w", &file]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("3 packets captured\n")
            && ended.stderr.contains("went away")
            && ended.stderr.contains("the output ends there"),
        "{}",
        ended.stderr
    );
    assert_eq!(fs::read(path).unwrap(), blocks);
}

#[test]
fn a_stored_capture_whose_stream_broke_is_sent_again_from_its_start() {
    let (_dir, path, file) = target_file();
    let mut script = script(7);
    let broken = vec![
        Step::Blocks([head(), packet_blocks(3, 64)].concat()),
        Step::Refuse(Status::unavailable("this replica ends")),
    ];
    script.streams.push_front(broken);
    let controller = Controller::run(script);
    let ended = run(
        &controller,
        &["capture", "deploy/cart", "--store", "-w", &file],
    );
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(
        fs::read(path).unwrap(),
        [head(), packet_blocks(7, 64)].concat()
    );
    assert_eq!(controller.calls().streamed, [ID, ID]);
    assert!(
        ended.stderr.contains("7 packets captured\n")
            && ended
                .stderr
                .contains("another controller sends it from its start")
            && ended
                .stderr
                .contains(&format!("kubectl remora get {ID} -w FILE")),
        "{}",
        ended.stderr
    );
}

#[test]
fn packets_that_did_not_come_are_told() {
    let (_dir, _path, file) = target_file();
    let state = cluster_capture(vec![part("cart-a", "worker-1", 5)]);
    let controller = Controller::run(Script::new(vec![
        Step::Blocks([head(), packet_blocks(3, 64)].concat()),
        Step::Finish(Box::new(state)),
    ]));
    let ended = run(&controller, &["capture", "deploy/cart", "-w", &file]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended
            .stderr
            .contains("the controller sent 5 packets and 3 came"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_file_that_cannot_be_made_starts_nothing() {
    let controller = Controller::run(script(1));
    let ended = run(
        &controller,
        &["capture", "deploy/cart", "-w", "/nonexistent/x.pcapng"],
    );
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("is the directory there?"),
        "{}",
        ended.stderr
    );
    assert!(controller.calls().started.is_empty());
}

#[test]
fn a_controller_that_is_not_there_leaves_no_file() {
    let (_dir, path, file) = target_file();
    let words = [
        "capture",
        "pod/x",
        "-w",
        &file,
        "--controller",
        "unix:/nonexistent.sock",
    ];
    let ended = Running::spawn(kubectl(&words)).end();
    assert_eq!(ended.code, Some(1));
    assert!(
        ended
            .stderr
            .contains("no connection to the controller at unix:/nonexistent.sock"),
        "{}",
        ended.stderr
    );
    assert!(!path.exists());
}

#[test]
fn a_terminal_sees_nodes_packets_losses_and_the_time_left() {
    let (_dir, _path, file) = target_file();
    let controller = Controller::run(stoppable());
    let pty = openpty(None, None).unwrap();
    let words = ["capture", "deploy/cart", "-a", "duration:3600", "-w", &file];
    let mut command = with(&controller, &words);
    command.stdout(Stdio::null()).stderr(Stdio::from(pty.slave));
    let running = Running::spawn(command);
    let mut terminal = File::from(pty.master);
    let mut seen = String::new();
    let is_there = |seen: &str| {
        seen.contains("\rNodes: 1/1 Packets: 3 (") && seen.contains(" Lost: 0 Left: 5")
    };
    while !is_there(&seen) {
        let mut chunk = [0; 256];
        let len = terminal.read(&mut chunk).unwrap();
        seen += std::str::from_utf8(&chunk[..len]).unwrap();
    }
    running.signal(Signal::SIGINT);
    assert_eq!(running.end().code, Some(0));
}

#[test]
fn a_stored_capture_prints_its_id_and_is_left_running() {
    let controller = Controller::run(script(1));
    let ended = run(&controller, &["capture", "deploy/cart", "--store"]);
    assert_eq!(
        (ended.code, ended.out()),
        (Some(0), format!("{ID}\n").as_str())
    );
    let calls = controller.calls();
    assert!(calls.streamed.is_empty() && calls.stopped.is_empty());
}

#[test]
fn a_stored_capture_that_is_awaited_stops_on_a_signal() {
    let mut script = stoppable();
    script.state.phase = remora_proto::v1::Phase::Capturing.into();
    let controller = Controller::run(script);
    let words = ["capture", "deploy/cart", "--store", "--wait"];
    let mut running = Running::spawn(with(&controller, &words));
    running.await_line("capturing on");
    running.signal(Signal::SIGINT);
    let ended = running.end();
    assert_eq!(
        (ended.code, ended.out()),
        (Some(0), format!("{ID}\n").as_str())
    );
    assert_eq!(controller.calls().stopped, [ID]);
    assert!(
        ended.stderr.contains("5 packets captured\n"),
        "{}",
        ended.stderr
    );
}
