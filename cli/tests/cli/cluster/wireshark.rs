//! `remoradump`: what Wireshark asks, and tshark itself asking it.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::controller::{Controller, Script, Step, cluster_capture, part};
use crate::{
    agent::{ID, head, packet_blocks},
    program::{Ended, Running, await_condition},
};

/// The built program, called as Wireshark calls it.
fn remoradump(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remora"));
    command
        .arg0("/x/extcap/remoradump")
        .args(words)
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("REMORA_CONTROLLER", "unix:/nonexistent.sock")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(words: &[&str]) -> Ended {
    Running::spawn(remoradump(words)).end()
}

#[test]
fn wireshark_learns_what_there_is() {
    let ended = run(&["--extcap-interfaces", "--extcap-version=4.0"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines: Vec<_> = ended.out().lines().collect();
    assert!(lines[0].starts_with("extcap {version="), "{lines:?}");
    assert!(
        lines[1].starts_with("interface {value=remora}{display="),
        "{lines:?}"
    );
    assert!(
        lines[2].starts_with("interface {value=remoranode}{display="),
        "{lines:?}"
    );
    let ended = run(&["--extcap-dlts", "--extcap-interface", "remora"]);
    assert_eq!(
        ended.out(),
        "dlt {number=1}{name=EN10MB}{display=Ethernet}\n"
    );
    let ended = run(&["--extcap-config", "--extcap-interface=remora"]);
    assert!(ended.out().contains("{call=--target}") && ended.out().contains("{call=--namespace}"));
    let ended = run(&["--extcap-config", "--extcap-interface=remoranode"]);
    assert!(ended.out().contains("{call=--agent}") && !ended.out().contains("--namespace"));
    assert!(
        run(&["--extcap-version"])
            .out()
            .starts_with("extcap {version=")
    );
}

#[test]
fn a_filter_is_checked_by_what_is_printed() {
    let check = |filter: &str| {
        run(&[
            "--extcap-interface",
            "remora",
            "--extcap-capture-filter",
            filter,
        ])
    };
    let good = check("tcp port 80");
    assert_eq!((good.code, good.out()), (Some(0), ""));
    let bad = check("tcp prot 80");
    // Wireshark reads nothing of a program that failed.
    assert_eq!(bad.code, Some(0));
    assert!(
        bad.out().starts_with("filter: syntax error at `prot`"),
        "{}",
        bad.out()
    );
    assert_eq!(bad.out().lines().count(), 1);
}

#[test]
fn what_cannot_be_is_refused() {
    for (words, code, part) in [
        (&[][..], 2, "required"),
        (&["--capture"], 2, "--fifo"),
        (&["--extcap-dlts"], 2, "--extcap-interface"),
        (
            &["--extcap-dlts", "--extcap-interface", "eth0"],
            1,
            "is not an interface of remoradump",
        ),
        (
            &["--capture", "--extcap-interface", "remora", "--fifo", "/x"],
            1,
            "no target",
        ),
        (
            &[
                "--capture",
                "--extcap-interface",
                "remora",
                "--fifo",
                "/x",
                "--target",
                "cron/x",
            ],
            1,
            "use pod/NAME",
        ),
        (
            &[
                "--capture",
                "--extcap-interface",
                "remoranode",
                "--fifo",
                "/x",
                "--target",
                "x",
            ],
            1,
            "is not a target",
        ),
    ] {
        let ended = run(words);
        assert_eq!(ended.code, Some(code), "{words:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(part), "{words:?}: {}", ended.stderr);
    }
}

/// A home with the program in Wireshark's personal folder.
struct Wireshark(TempDir);

impl Wireshark {
    /// `None`, with a word of it, on a machine without tshark.
    fn new() -> Option<Self> {
        if Command::new("tshark")
            .arg("-v")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            eprintln!("skipped: there is no tshark (cargo xtask setup)");
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_remora"));
        command
            .args(["extcap", "--install"])
            .env_clear()
            .env("HOME", home.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Some(Self(home))
    }

    /// Nothing but our program asks anybody: the others of its folder need no cluster.
    fn tshark(&self, words: &[&str]) -> Command {
        let mut command = Command::new("tshark");
        command
            .args(words)
            .env_clear()
            .env("HOME", self.0.path())
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

#[test]
fn tshark_lists_the_interfaces() {
    let Some(wireshark) = Wireshark::new() else {
        return;
    };
    let ended = Running::spawn(wireshark.tshark(&["-D"])).end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for part in [
        "remora (Remora: pods of a Kubernetes cluster)",
        "remoranode (Remora: this node)",
    ] {
        assert!(ended.out().contains(part), "{part}: {}", ended.out());
    }
}

#[test]
fn tshark_captures_and_its_end_is_the_captures() {
    let Some(wireshark) = Wireshark::new() else {
        return;
    };
    let state = cluster_capture(vec![part("cart-a", "worker-1", 5)]);
    let controller = Controller::run(Script {
        state: state.clone(),
        ..Script::new(vec![
            Step::Blocks([head(), packet_blocks(5, 64)].concat()),
            Step::AwaitStop,
            Step::Finish(Box::new(state)),
        ])
    });
    let path = wireshark.0.path().join("out.pcapng");
    let mut command = wireshark.tshark(&[
        "-i",
        "remora",
        "-o",
        "extcap.remora.target:deploy/cart",
        "-o",
        "extcap.remora.namespace:shop",
        "-o",
        "extcap.remora.lookback:30s",
        "-f",
        "tcp port 80",
        "-c",
        "5",
        "-w",
        path.to_str().unwrap(),
    ]);
    command.env("REMORA_CONTROLLER", controller.address());
    let ended = Running::spawn(command).end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    await_condition("the stop", || controller.calls().stopped == [ID]);
    let start = &controller.calls().started[0];
    assert_eq!(start.selector.clone().unwrap().namespace, "shop");
    let spec = start.spec.clone().unwrap();
    assert_eq!(spec.filter, "tcp port 80");
    assert_eq!(spec.look_back.unwrap().seconds, 30);
    assert_eq!(packets(&wireshark, &path), 5);
}

/// Packets that tshark reads in a file.
fn packets(wireshark: &Wireshark, path: &Path) -> usize {
    assert!(fs::metadata(path).unwrap().len() > 0);
    let words = [
        "-r",
        path.to_str().unwrap(),
        "-T",
        "fields",
        "-e",
        "frame.number",
    ];
    let ended = Running::spawn(wireshark.tshark(&words)).end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.out().lines().count()
}

#[test]
fn a_capture_that_fails_ends_tshark_with_the_reason() {
    let Some(wireshark) = Wireshark::new() else {
        return;
    };
    let refusal = tonic::Status::not_found("no pod of deploy/cart in shop");
    let controller = Controller::run(Script {
        start_refusal: Some(refusal),
        ..Script::new(vec![])
    });
    let path = wireshark.0.path().join("out.pcapng");
    let words = [
        "-i",
        "remora",
        "-o",
        "extcap.remora.target:deploy/cart",
        "-w",
        path.to_str().unwrap(),
    ];
    let mut command = wireshark.tshark(&words);
    command.env("REMORA_CONTROLLER", controller.address());
    let ended = Running::spawn(command).end();
    assert!(
        ended.stderr.contains("no pod of deploy/cart in shop"),
        "{:?} {}",
        ended.code,
        ended.stderr
    );
}
