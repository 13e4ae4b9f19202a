//! The other commands of `kubectl remora`.

use std::fs;

use remora_proto::v1;

use super::{
    capture::{kubectl, run},
    controller::{Controller, Script, Step, cluster_capture, missing_part, part},
};
use crate::{
    agent::{ID, head, packet_blocks},
    capture::target_file,
    program::Running,
};

fn script() -> Script {
    let state = cluster_capture(vec![
        part("cart-a", "worker-1", 2),
        missing_part("cart-b", "worker-2", "no agent\u{1b}[2J"),
    ]);
    Script {
        state: state.clone(),
        ..Script::new(vec![
            Step::Blocks([head(), packet_blocks(2, 64)].concat()),
            Step::Finish(Box::new(state)),
        ])
    }
}

#[test]
fn a_list_is_of_the_namespace_or_of_all() {
    let controller = Controller::run(script());
    let ended = run(&controller, &["list", "-n", "shop"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines: Vec<_> = ended.out().lines().collect();
    assert!(
        lines[0].starts_with("ID ") && lines[0].ends_with("AGE"),
        "{lines:?}"
    );
    let words: Vec<_> = lines[1].split_whitespace().collect();
    assert_eq!(
        words,
        [ID, "shop", "deploy/cart", "Finished", "1/2", "2", "0", "-"]
    );
    run(&controller, &["list", "-A", "--all"]);
    let listed = controller.calls().listed;
    let expected = |namespace: &str, all| v1::ClusterListRequest {
        namespace: namespace.into(),
        all,
    };
    assert_eq!(listed, [expected("shop", false), expected("", true)]);
}

#[test]
fn a_list_without_some_nodes_says_so_and_is_exit_code_3() {
    let controller = Controller::run(Script {
        missing_nodes: vec![v1::NodeAgent {
            node: "worker-9".into(),
            error: "timeout".into(),
            ..v1::NodeAgent::default()
        }],
        ..script()
    });
    let ended = run(&controller, &["list"]);
    assert_eq!(ended.code, Some(3));
    assert_eq!(
        ended.stderr,
        "remora: node worker-9 did not answer, its captures may be missing: timeout\n"
    );
}

#[test]
fn json_is_json_of_everything() {
    let controller = Controller::run(script());
    let list = run(&controller, &["list", "-o", "json"]);
    let list: serde_json::Value = serde_json::from_str(list.out()).unwrap();
    assert_eq!(list[0]["id"], ID);
    let show = run(&controller, &["show", ID, "-o", "json"]);
    let show: serde_json::Value = serde_json::from_str(show.out()).unwrap();
    assert_eq!(show["parts"][0]["pod"]["name"], "cart-a");
    assert_eq!(show["counts"]["written"], 2);
    let status = run(&controller, &["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(status.out()).unwrap();
    assert_eq!(status["nodes"][0]["node"], "worker-1");
}

#[test]
fn a_capture_is_shown_with_its_parts() {
    let controller = Controller::run(script());
    let ended = run(&controller, &["show", ID]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for part in [
        "Target:    deploy/cart in shop",
        "Nodes:     1 of 2",
        "shop/cart-a   worker-1   Finished   2",
        "shop/cart-b   worker-2   Missing",
        "no agent\\u{1b}[2J",
    ] {
        assert!(ended.out().contains(part), "{part}: {}", ended.out());
    }
    assert!(!ended.out().contains('\u{1b}'));
}

#[test]
fn nodes_are_shown_with_what_is_wrong() {
    let controller = Controller::run(script());
    let ended = run(&controller, &["status"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines: Vec<_> = ended.out().lines().collect();
    assert_eq!(lines[0], "Controller version 0.1.0");
    assert!(lines[2].starts_with("worker-1   reachable "), "{lines:?}");
    assert!(lines[3].starts_with("worker-2   unreachable "), "{lines:?}");
    assert!(
        lines[3].ends_with("connection refused\\u{1b}[2J"),
        "{lines:?}"
    );
}

#[test]
fn several_captures_are_stopped() {
    let controller = Controller::run(script());
    let ended = run(&controller, &["stop", ID, ID]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(controller.calls().stopped, [ID, ID]);
    assert_eq!(ended.out().matches("Capture:").count(), 2);
}

#[test]
fn what_the_nodes_keep_is_deleted_held_and_let_go_part_by_part() {
    let controller = Controller::run(script());
    let ended = run(&controller, &["delete", ID, "--reason", "old"]);
    // Of one node it is not known.
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    let line = format!("{ID} on worker-1: {ID} deleted, 2 files of 4.0 KiB; chain head head\n");
    assert_eq!(ended.out(), line);
    let note = format!(
        "remora: {ID} on worker-2: it is not known whether it has a part: timeout\\u{{1b}}[2J\n"
    );
    assert_eq!(ended.stderr, note);
    let ended = run(&controller, &["hold", ID, "--reason", "case 42"]);
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(
        ended
            .out()
            .ends_with("held by ann, by san=remora-controller\n"),
        "{}",
        ended.out()
    );
    let ended = run(&controller, &["release", ID]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(
        controller.calls().kept,
        [
            ["delete", ID, "old"],
            ["hold", ID, "case 42"],
            ["release", ID, ""]
        ]
    );
}

#[test]
fn a_copy_is_the_stream_and_stops_nothing() {
    let (_dir, path, file) = target_file();
    let controller = Controller::run(script());
    let ended = run(&controller, &["get", ID, "-w", &file]);
    // A part is missing.
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert_eq!(
        fs::read(path).unwrap(),
        [head(), packet_blocks(2, 64)].concat()
    );
    assert!(controller.calls().stopped.is_empty());
    let ended = run(&controller, &["get", ID, "-w", "-"]);
    assert_eq!(ended.stdout, [head(), packet_blocks(2, 64)].concat());
}

#[test]
fn a_copy_into_a_file_that_cannot_be_made_is_refused() {
    let controller = Controller::run(script());
    let ended = run(&controller, &["get", ID, "-w", "/nonexistent/x"]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("is the directory there?"),
        "{}",
        ended.stderr
    );
}

#[test]
fn doctor_tells_each_step_and_fails_for_what_is_wrong() {
    let controller = Controller::run(script());
    let ended = run(&controller, &["doctor"]);
    assert_eq!(ended.code, Some(1), "an agent is unreachable");
    for part in [
        "ok    kubeconfig: no kubeconfig, controller unix:",
        "ok    connection: the controller at unix:",
        "ok    controller: version 0.1.0",
        "ok    agents: 1 reachable",
        "FAIL  agent on worker-2: connection refused\\u{1b}[2J",
    ] {
        assert!(ended.out().contains(part), "{part}: {}", ended.out());
    }
    let ended = Running::spawn(kubectl(&["doctor"])).end();
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.out().contains("FAIL  kubeconfig: no kubeconfig"),
        "{}",
        ended.out()
    );
}

#[test]
fn the_same_commands_are_remoras_with_a_controller() {
    let controller = Controller::run(script());
    let address = controller.address();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_remora"));
    command
        .args(["--controller", &address, "list", "-n", "shop"])
        .env_clear();
    let output = command.output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(out.contains("deploy/cart"), "{out}");
}

#[test]
fn without_a_cluster_it_says_what_to_do() {
    let ended = Running::spawn(kubectl(&["list"])).end();
    assert_eq!(ended.code, Some(1));
    assert_eq!(
        ended.stderr,
        "remora: no kubeconfig: set KUBECONFIG or use --kubeconfig FILE; --controller names a \
         controller without one\n"
    );
}

#[test]
fn a_shell_gets_completions() {
    let ended = Running::spawn(kubectl(&["completions", "bash"])).end();
    assert_eq!(ended.code, Some(0));
    assert!(ended.out().contains("--look-back"));
    let mut command = kubectl(&["cap"]);
    std::os::unix::process::CommandExt::arg0(&mut command, "kubectl_complete-remora");
    let ended = Running::spawn(command).end();
    assert_eq!(ended.out(), "capture\n:4\n");
}
