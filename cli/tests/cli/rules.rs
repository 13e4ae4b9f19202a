//! `remora rules`: no agent is asked.

use std::{
    io::Write as _,
    process::{Output, Stdio},
};

use remora_proto::client::AgentAddress;

use crate::program::remora;

const DEFAULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/rules/falco.yaml");
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/rules/example.yaml");

const ALERT: &str = r#"{"rule": "Outbound Connection to C2 Servers", "priority": "Critical",
    "tags": ["network"], "output_fields": {"container.id": "ee97d9c4186f",
    "fd.name": "10.244.1.7:43812->198.51.100.23:4444", "fd.l4proto": "tcp"}}"#;

/// Runs it with this on standard input.
fn rules(words: &[&str], input: &str) -> Output {
    let nobody = AgentAddress::Unix("/nonexistent/agent.sock".into());
    let words: Vec<_> = ["rules"].iter().chain(words).copied().collect();
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
fn test_says_which_rule_which_target_and_which_filter() {
    let tested = rules(&["test", DEFAULT, "--alert", "-"], ALERT);
    assert_eq!(
        text(&tested.stdout),
        "rule `Command and control` matches\n  \
           `Capture the remote host` captures\n    \
             target     container:ee97d9c4186f\n    \
             filter     host 198.51.100.23 or port 53\n    \
             duration   120s\n    \
             look-back  60s before the alert's time\n    \
             at most    67108864 bytes of file\n\
         the 3 rules after it are not looked at\n"
    );
    assert_eq!(text(&tested.stderr), "");
    assert_eq!(tested.status.code(), Some(0));
}

/// Falco's rules that the default rules name: `- NAME   # list`.
fn named() -> Vec<(&'static str, &'static str)> {
    let mut entry = "";
    let mut named = Vec::new();
    for line in include_str!("../../../deploy/rules/falco.yaml").lines() {
        if let Some(name) = line.strip_prefix("- rule: ") {
            entry = name;
        }
        let listed = line
            .trim()
            .strip_prefix("- ")
            .and_then(|l| l.split_once("  #"));
        if let Some((name, list)) = listed {
            let lists = ["stable", "incubating", "sandbox", "retired"];
            assert!(lists.contains(&list.trim()), "{line}");
            named.push((entry, name.trim()));
        }
    }
    named
}

#[test]
fn test_says_of_each_rule_that_the_default_rules_name_what_is_captured() {
    let named = named();
    assert_eq!(named.len(), 29);
    for (entry, name) in named {
        // By its name, whatever its priority and tags.
        let alert = ALERT
            .replace("Outbound Connection to C2 Servers", name)
            .replace("Critical", "Debug")
            .replace(r#""network""#, "");
        let tested = rules(&["test", DEFAULT, "--alert", "-"], &alert);
        assert_eq!(tested.status.code(), Some(0), "{name}: {tested:?}");
        let out = text(&tested.stdout);
        for line in [
            &*format!("rule `{entry}` matches"),
            "target     container:ee97d9c4186f",
            "look-back ",
        ] {
            assert!(out.contains(line), "{name}: {line}\n{out}");
        }
        let filter = match entry {
            "Command and control" => Some("host 198.51.100.23 or port 53"),
            "Unexpected connection" => Some("host 198.51.100.23 and tcp port 4444"),
            _ => None,
        };
        match filter {
            Some(filter) => assert!(out.contains(&format!("filter     {filter}\n")), "{out}"),
            None => assert!(!out.contains("198.51.100.23"), "{name}\n{out}"),
        }
    }
}

#[test]
fn test_says_why_nothing_is_captured_and_ends_with_1() {
    let shell = ALERT
        .replace(
            "Outbound Connection to C2 Servers",
            "Unexpected UDP Trafic\\u001b[2J",
        )
        .replace("Critical", "Notice");
    let tested = rules(&["test", DEFAULT, "--alert", "-"], &shell);
    assert_eq!(tested.status.code(), Some(1), "{tested:?}");
    let out = text(&tested.stdout);
    for line in [
        "rule `Command and control` does not match: its `rules` do not name",
        "the nearest is `Unexpected UDP Traffic`",
        "rule `Anything else on the network` does not match: priority Notice is not >=Warning",
    ] {
        assert!(out.contains(line), "{line}\n{out}");
    }
    assert!(!out.contains('\u{1b}'), "{out:?}");

    let broken = rules(&["test", DEFAULT, "--alert", "-"], "[]");
    assert_eq!(broken.status.code(), Some(1));
    assert!(
        text(&broken.stderr).contains("is not a JSON object"),
        "{broken:?}"
    );
}

#[test]
fn check_takes_files_together_and_names_file_line_and_key() {
    let right = rules(&["check", DEFAULT], "");
    assert_eq!(right.status.code(), Some(0));
    assert!(
        text(&right.stdout).starts_with("ok: 4 rules\n"),
        "{right:?}"
    );

    let wrong = rules(&["check", DEFAULT, EXAMPLE], "");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(
        text(&wrong.stderr).contains("example.yaml:")
            && text(&wrong.stderr).contains("was there before"),
        "{wrong:?}"
    );
}
