//! Bad input gets a clear message and the right code; it arms nothing, loses nothing, writes
//! nothing outside the data directory, and brings no escape sequence to a terminal or a file name.
//!
//! - Here: targets, values, ids, the command line. [`filters`], [`alerts`]: the rest.

mod alerts;
mod filters;

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use remora_proto::v1::{self, target::Target};
use remora_tests::{
    agent::{TestAgent, of_pod, of_pod_filtered, spec},
    node::{Node, Pod},
    proof, run,
    traffic::{self, Stream},
    wire,
};
use tonic::{Code, Status};

/// Longest message of a refusal, in bytes.
const MESSAGE_MAX: usize = 4096;

/// A refusal as the API promises it: code, stable reason, and a message that a terminal can show.
fn assert_refused(
    case: &str,
    answer: Result<impl Sized, Status>,
    code: Code,
    reason: &str,
) -> Result<String> {
    let Err(status) = answer else {
        anyhow::bail!("{case}: was taken")
    };
    let found = status
        .metadata()
        .get("remora-reason")
        .map(|value| value.to_str().unwrap_or("?"));
    let message = status.message();
    ensure!(
        status.code() == code,
        "{case}: {:?}: {message}",
        status.code()
    );
    ensure!(found == Some(reason), "{case}: reason {found:?}: {message}");
    ensure!(
        !message.is_empty() && message.len() <= MESSAGE_MAX,
        "{case}: {} bytes",
        message.len()
    );
    assert_printable(case, message)?;
    Ok(message.to_owned())
}

/// No control character and none that changes the direction of text.
fn assert_printable(case: &str, text: &str) -> Result<()> {
    let bad = text.chars().find(|&c| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    });
    ensure!(bad.is_none(), "{case}: {bad:?} in {text:?}");
    Ok(())
}

/// Names of all files below a directory.
fn files(directory: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory)?.flatten() {
        found.insert(entry.file_name().to_string_lossy().into_owned());
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        }
    }
    Ok(found)
}

/// A capture that runs through all of the bad input, and what must still hold after it.
struct Witness {
    id: String,
    files: BTreeSet<String>,
}

impl Witness {
    fn start(agent: &TestAgent<'_>, pod: &Pod) -> Result<Self> {
        let id = agent.capture(of_pod_filtered(pod, "udp port 9000"))?.id;
        Ok(Self {
            id,
            files: files(&agent.data_dir())?,
        })
    }

    fn assert_undisturbed(
        self,
        agent: &TestAgent<'_>,
        node: &Node,
        from: &Pod,
        to: &Pod,
    ) -> Result<()> {
        let running: Vec<_> = agent
            .list(true)?
            .into_iter()
            .map(|capture| capture.id)
            .collect();
        assert_eq!(
            running,
            std::slice::from_ref(&self.id),
            "something else was started"
        );
        assert_eq!(agent.status()?.sessions_running, 1);
        assert_eq!(files(&agent.data_dir())?, self.files, "files came or went");
        let _sink = traffic::sink(9000, node.directory(), |tool| to.command(tool))?;
        let stream = Stream {
            rate: 10_000,
            ..Stream::new(to.ipv4(), 9000, 500)
        };
        let sent = stream.send(|tool| from.command(tool))?;
        let proven = proof::prove(agent, &agent.stop(&self.id)?)?;
        assert_eq!(proven.counts.written, sent);
        Ok(())
    }
}

#[test]
fn bad_targets_are_refused() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let witness = Witness::start(&agent, &web)?;

    let mut dead = run::command("true").spawn()?;
    dead.wait()?;
    let missing = [
        (
            "a cgroup that is not there",
            Target::CgroupPath("/remora-test/none".into()),
        ),
        ("a cgroup id that is not there", Target::CgroupId(u64::MAX)),
        ("a dead process", Target::Pid(dead.id())),
        (
            "a unit that is not there",
            Target::Unit("remora-test-none.service".into()),
        ),
        (
            "a container that is not there",
            Target::ContainerId("f".repeat(64)),
        ),
        (
            "an interface that is not there",
            Target::Interface("none0".into()),
        ),
    ];
    for (case, target) in missing {
        let message = assert_refused(
            case,
            agent.capture(spec(target)),
            Code::NotFound,
            "target_not_found",
        );
        println!("{case}: {}", message?);
    }

    let names = [
        "",
        "..",
        "../../etc",
        "/a/../../b",
        "a\nb",
        "\x1b[31mred",
        "\u{202e}txt",
        "a\0b",
    ];
    let mut invalid = vec![
        (
            "a short container id".to_owned(),
            Target::ContainerId("abc".into()),
        ),
        (
            "a container id that is none".to_owned(),
            Target::ContainerId("../../../../etc".into()),
        ),
        ("process 0".to_owned(), Target::Pid(0)),
        ("a pid beyond all pids".to_owned(), Target::Pid(u32::MAX)),
        (
            "a long path".to_owned(),
            Target::CgroupPath(format!("/{}", "x".repeat(1 << 16))),
        ),
    ];
    for name in names {
        invalid.push((format!("cgroup {name:?}"), Target::CgroupPath(name.into())));
        invalid.push((format!("unit {name:?}"), Target::Unit(name.into())));
        invalid.push((
            format!("interface {name:?}"),
            Target::Interface(name.into()),
        ));
    }
    for (case, target) in invalid {
        assert_refused(
            &case,
            agent.capture(spec(target)),
            Code::InvalidArgument,
            "invalid_spec",
        )?;
    }
    let empty = v1::CaptureSpec {
        target: Some(v1::Target { target: None }),
        ..of_pod(&web)
    };
    assert_refused(
        "no target",
        agent.capture(empty),
        Code::InvalidArgument,
        "invalid_spec",
    )?;
    let absent = v1::CaptureSpec {
        target: None,
        ..of_pod(&web)
    };
    assert_refused(
        "no target",
        agent.capture(absent),
        Code::InvalidArgument,
        "invalid_spec",
    )?;
    let request = v1::StartRequest::default();
    assert_refused(
        "no spec",
        agent.start_request(request),
        Code::InvalidArgument,
        "invalid_spec",
    )?;
    witness.assert_undisturbed(&agent, &node, &web, &api)
}

#[test]
fn values_out_of_range_are_refused() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let witness = Witness::start(&agent, &web)?;
    let duration = |seconds: i64, nanos: i32| v1::CaptureSpec {
        limits: Some(v1::Limits {
            duration: Some(prost_types::Duration { seconds, nanos }),
            ..Default::default()
        }),
        ..of_pod(&web)
    };
    let trigger = |trigger| v1::CaptureSpec {
        trigger: Some(trigger),
        ..of_pod(&web)
    };
    let name = |address: &str, name: &str| v1::CaptureSpec {
        names: vec![v1::NameHint {
            address: address.into(),
            name: name.into(),
        }],
        ..of_pod(&web)
    };
    let labels = |count: usize, len: usize| v1::CaptureSpec {
        labels: (0..count)
            .map(|n| (n.to_string(), "x".repeat(len)))
            .collect(),
        ..of_pod(&web)
    };
    let cases = [
        (
            "snaplen 2^32 - 1",
            v1::CaptureSpec {
                snaplen: u32::MAX,
                ..of_pod(&web)
            },
        ),
        (
            "snaplen 262145",
            v1::CaptureSpec {
                snaplen: 262_145,
                ..of_pod(&web)
            },
        ),
        ("a negative duration", duration(-1, 0)),
        ("a duration of mixed signs", duration(1, -5)),
        (
            "a duration of too many nanoseconds",
            duration(0, 2_000_000_000),
        ),
        ("an endless duration", duration(i64::MAX, 0)),
        ("8 days", duration(8 * 86_400, 0)),
        (
            "a file of 10 bytes",
            v1::CaptureSpec {
                limits: Some(v1::Limits {
                    file_bytes: 10,
                    ..Default::default()
                }),
                ..of_pod(&web)
            },
        ),
        (
            "a direction that is none",
            v1::CaptureSpec {
                direction: 77,
                ..of_pod(&web)
            },
        ),
        (
            "a destination that is none",
            v1::CaptureSpec {
                destination: -1,
                ..of_pod(&web)
            },
        ),
        ("33 labels", labels(33, 1)),
        ("a label of 2 KB", labels(1, 2048)),
        ("a name with ESC", name("10.77.0.1", "a\x1b[31m")),
        ("a name with a newline", name("10.77.0.1", "a\nb")),
        ("a name with U+202E", name("10.77.0.1", "a\u{202e}b")),
        ("a name that is a path", name("10.77.0.1", "../../etc")),
        ("an address that is none", name("10.77.0", "web")),
        (
            "257 names",
            v1::CaptureSpec {
                names: (0..257)
                    .map(|n| v1::NameHint {
                        address: format!("10.1.{}.{}", n / 256, n % 256),
                        name: "a".into(),
                    })
                    .collect(),
                ..of_pod(&web)
            },
        ),
        (
            "a rule of 2 KB",
            trigger(v1::Trigger {
                rule: "x".repeat(2048),
                ..Default::default()
            }),
        ),
        (
            "an alert of 100 KB",
            trigger(v1::Trigger {
                alert: vec![b'x'; 100_000].into(),
                ..Default::default()
            }),
        ),
    ];
    for (case, spec) in cases {
        let answer = agent.capture(spec);
        println!(
            "{case}: {}",
            assert_refused(case, answer, Code::InvalidArgument, "invalid_spec")?
        );
    }
    let long_key = v1::StartRequest {
        spec: Some(of_pod(&web)),
        idempotency_key: "k".repeat(129),
        ..Default::default()
    };
    let answer = agent.start_request(long_key);
    assert_refused("a long key", answer, Code::InvalidArgument, "invalid_spec")?;
    witness.assert_undisturbed(&agent, &node, &web, &api)
}

#[test]
fn a_known_idempotency_key_answers_the_same_capture() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let request = v1::StartRequest {
        spec: Some(of_pod(&web)),
        idempotency_key: "alert-1".into(),
        ..Default::default()
    };
    let first = agent.start_request(request.clone())?;
    let again = agent.start_request(request.clone())?;
    assert!(!first.existing && again.existing);
    let id = |response: &v1::StartResponse| response.capture.as_ref().map(|c| c.id.clone());
    assert_eq!(id(&first), id(&again));
    assert_eq!(agent.list(false)?.len(), 1);
    // Also when it has ended: a retry never starts a second one.
    agent.stop(&id(&first).context("no id")?)?;
    let ended = agent.start_request(request.clone())?;
    assert_eq!((ended.existing, id(&ended)), (true, id(&first)));
    let other = v1::StartRequest {
        idempotency_key: "alert-2".into(),
        ..request
    };
    assert_ne!(id(&agent.start_request(other)?), id(&first));
    Ok(())
}

#[test]
fn ids_that_are_none_are_not_found_and_print_harmlessly() -> Result<()> {
    let node = Node::new()?;
    let agent = TestAgent::start(&node)?;
    for id in [
        "",
        "x",
        "../../etc/passwd",
        "\x1b[31m",
        "01J9ZQ3C7M8N4R5T6V7W8X9YZA",
        "\u{202e}",
    ] {
        let mut client = agent.client()?;
        let answers = [
            agent
                .block_on(client.get(v1::GetRequest { id: id.into() }))
                .map(drop),
            agent
                .block_on(client.stop(v1::StopRequest { id: id.into() }))
                .map(drop),
            agent
                .block_on(client.stream(v1::StreamRequest { id: id.into() }))
                .map(drop),
        ];
        for answer in answers {
            let status = answer.err().with_context(|| format!("{id:?} was found"))?;
            let right = matches!(status.code(), Code::NotFound | Code::InvalidArgument);
            assert!(right, "{id:?}: {status:?}");
            assert!(
                status.metadata().contains_key("remora-reason"),
                "{id:?}: {status:?}"
            );
            assert_printable(id, status.message())?;
        }
    }
    Ok(())
}

#[test]
fn the_command_line_says_on_one_line_what_is_wrong_and_ends_with_1() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let witness = Witness::start(&agent, &web)?;
    let remora = run::remora_program("remora")?;
    let target = format!("cgroup:{}", web.cgroup().path());
    let file = node.directory().join("x.pcapng");
    let file = file.to_str().context("no UTF-8")?;
    let nowhere = node.directory().join("none/x.pcapng");
    let nowhere = nowhere.to_str().context("no UTF-8")?;
    let cases: &[(&[&str], &str)] = &[
        (
            &["capture", "cgroup:/remora-test/none", "-w", file],
            "remora-test/none",
        ),
        (&["capture", "pid:4194304", "-w", file], "4194304"),
        (
            &["capture", &target, "-w", file, "tcp", "port", "eighty"],
            "eighty",
        ),
        (
            &["capture", &target, "-w", file, "-s", "4294967296"],
            "4294967296",
        ),
        (&["capture", &target, "-w", nowhere], "none/x.pcapng"),
        (&["capture", &target, "-w", "/"], "/"),
        (
            &["capture", &target, "-w", file, "-f", "tcp\x1b[31m"],
            "is no character of the filter language",
        ),
        (
            &["capture", "cgroup:/\x1b[31m\u{202e}", "-w", file],
            "cgroup",
        ),
        (
            &["show", "01J9ZQ3C7M8N4R5T6V7W8X9YZA"],
            "01J9ZQ3C7M8N4R5T6V7W8X9YZA",
        ),
    ];
    for (arguments, word) in cases {
        let mut command = run::command(&remora);
        command.args(["--agent", &agent.address()]).args(*arguments);
        let output = wire::run_to_end(&mut command)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let case = format!("{arguments:?}");
        assert_eq!(output.status.code(), Some(1), "{case}: {stderr}");
        // The reason is on one line; a filter is shown below it, with a mark at the word.
        let (reason, rest) = stderr.split_once('\n').context("no whole line")?;
        assert!(reason.contains(word), "{case}: {stderr}");
        assert!(
            rest.is_empty() || rest.trim_end().ends_with('^'),
            "{case}: {stderr}"
        );
        assert!(output.stdout.is_empty(), "{case}");
        assert_printable(&case, &stderr)?;
        assert!(!Path::new(file).exists(), "{case}: made a file");
    }
    // What the parser of the command line itself refuses ends with 2, as clap does.
    for arguments in [
        &["capture", &target, "-a", "duration:-5", "-w", file][..],
        &["capture", &target, "-c", "-1", "-w", file],
    ] {
        let mut command = run::command(&remora);
        let output = wire::run_to_end(command.args(["--agent", &agent.address()]).args(arguments))?;
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}");
        assert_printable("clap", &String::from_utf8_lossy(&output.stderr))?;
    }
    // Nobody there.
    let mut command = run::command(&remora);
    let output =
        wire::run_to_end(command.args(["--agent", "unix:/nonexistent/agent.sock", "list"]))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("is remora-agent running?"), "{stderr}");
    witness.assert_undisturbed(&agent, &node, &web, &api)
}
