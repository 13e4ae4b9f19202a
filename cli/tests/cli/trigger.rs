//! `remora trigger`: where alerts do not go.

use std::{
    io::Write as _,
    net::TcpListener,
    process::{Output, Stdio},
};

use remora_proto::client::AgentAddress;

use crate::program::remora;

/// Runs it with this on standard input.
fn trigger(words: &[&str], input: &str) -> Output {
    let nobody = AgentAddress::Unix("/nonexistent/agent.sock".into());
    let words: Vec<_> = ["trigger"].iter().chain(words).copied().collect();
    let mut command = remora(&nobody, &words);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // What is refused for another reason is not read.
    let _unread = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn an_alert_that_no_controller_takes_is_refused_and_counted() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = free.local_addr().unwrap().to_string();
    drop(free);
    let ended = trigger(&["--stdin", "--to", &to], "{\"rule\": \"r\"}\n\n{}\n");
    let told = text(&ended.stdout);
    assert_eq!(told.lines().count(), 2, "{told}");
    for line in told.lines() {
        assert!(line.starts_with("refused controller_away: "), "{told}");
        assert!(line.ends_with("is remora-controller running?"), "{told}");
    }
    let sum = "2 alerts received: 0 accepted, 0 existing, 0 ignored, 2 refused\n";
    assert_eq!(text(&ended.stderr), sum);
    assert_eq!(ended.status.code(), Some(1));
}

#[test]
fn no_alert_goes_to_another_machine_in_the_clear() {
    for (words, expected) in [
        (
            &["--stdin", "--to", "192.0.2.1:2803"][..],
            "is another machine",
        ),
        (
            &["--stdin", "--secret", "/nonexistent"],
            "cannot read the secret",
        ),
        (&[], "`--stdin` takes alerts from standard input"),
    ] {
        let ended = trigger(words, "{\"rule\": \"r\"}\n");
        let told = text(&ended.stderr);
        assert!(told.contains(expected), "{told}");
        assert_eq!(text(&ended.stdout), "");
        assert_eq!(ended.status.code(), Some(1));
    }
}
