//! `remora` as a user types it.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_tests::{
    agent::TestAgent,
    node::{Node, Pod},
    numbered::Numbers,
    packets::Capture,
    run::{self, Proc},
    traffic::{self, Sink, Stream},
    wait, wire,
};

const LIMIT: Duration = Duration::from_secs(20);

fn remora(agent: &TestAgent<'_>) -> Result<Command> {
    let mut command = run::command(run::remora_program("remora")?);
    command.args(["--agent", &agent.address()]);
    Ok(command)
}

fn target(pod: &Pod) -> String {
    format!("cgroup:{}", pod.cgroup().path())
}

/// Starts `remora capture` and waits until it says that it captures.
fn capturing(agent: &TestAgent<'_>, node: &Node, arguments: &[&str]) -> Result<Proc> {
    let mut process = node.spawn(remora(agent)?.arg("capture").args(arguments), "remora")?;
    process.wait_for("capturing on", LIMIT)?;
    Ok(process)
}

/// The number before `label` in the closing lines: "100 packets captured".
fn closing(log: &str, label: &str) -> Result<u64> {
    log.lines()
        .find_map(|line| line.trim().strip_suffix(label)?.trim().parse().ok())
        .with_context(|| format!("no `{label}` in {log}"))
}

fn sink(node: &Node, api: &Pod) -> Result<Sink> {
    traffic::sink(9000, node.directory(), |tool| api.command(tool))
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().context("no UTF-8")
}

#[test]
fn a_count_ends_the_capture_and_the_closing_lines_account_for_it() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = sink(&node, &api)?;
    let file = node.directory().join("web.pcapng");
    let mut process = capturing(
        &agent,
        &node,
        &[
            &target(&web),
            "-f",
            "udp port 9000",
            "-w",
            path_text(&file)?,
            "-c",
            "100",
        ],
    )?;
    Stream {
        rate: 10_000,
        ..Stream::new(api.ipv4(), 9000, 500)
    }
    .send(|tool| web.command(tool))?;
    let log = process.wait_success(LIMIT)?;
    assert_eq!(closing(&log, "packets captured")?, 100);
    assert!(closing(&log, "matched").or(closing(&log, "packets matched"))? >= 100);
    assert_eq!(
        closing(&log, "lost in kernel").or(closing(&log, "packets lost in kernel"))?,
        0
    );
    assert_eq!(
        closing(&log, "dropped by writer").or(closing(&log, "packets dropped by writer"))?,
        0
    );
    wire::assert_readable(&file)?;
    assert_eq!(wire::capinfos_count(&file)?, 100);
    let numbers = Numbers::collect(1, Capture::read(&file)?.frames());
    assert_eq!(numbers.missing(100), []);
    Ok(())
}

#[test]
fn sigint_ends_a_capture_in_order_with_exit_0_and_every_packet() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = sink(&node, &api)?;
    let file = node.directory().join("web.pcapng");
    // The filter as trailing words, as tcpdump takes it.
    let mut process = capturing(
        &agent,
        &node,
        &[
            &target(&web),
            "-w",
            path_text(&file)?,
            "udp",
            "port",
            "9000",
        ],
    )?;
    let sent = Stream {
        rate: 10_000,
        ..Stream::new(api.ipv4(), 9000, 500)
    }
    .send(|tool| web.command(tool))?;
    let status = process.end_by(Signal::SIGINT, LIMIT)?;
    let log = process.log();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(closing(&log, "packets captured")?, sent);
    wire::assert_readable(&file)?;
    let numbers = Numbers::collect(1, Capture::read(&file)?.frames());
    assert_eq!((numbers.missing(sent), numbers.foreign), (vec![], 0));
    // Not a terminal: no live count, no escape sequence.
    assert!(!log.contains('\x1b') && !log.contains('\r'), "{log:?}");
    Ok(())
}

#[test]
fn a_pipe_into_tshark_shows_packets_while_they_come() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = sink(&node, &api)?;
    let pid = format!("pid:{}", web.pid());
    let mut capture = remora(&agent)?
        .args(["capture", &pid, "-w", "-", "udp port 9000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let packets = capture.stdout.take().context("no pipe")?;
    let mut tshark = node.spawn(
        run::command("tshark")
            .args(["-l", "-n", "-r", "-", "-T", "fields", "-e", "udp.dstport"])
            .stdin(packets),
        "tshark",
    )?;
    // Not what the agent lists: until it has answered, it may still find that it must look elsewhere,
    // as it does when a sender is in the pod's cgroup already and in its network not yet.
    let mut said = BufReader::new(capture.stderr.take().context("no stderr")?);
    let mut line = String::new();
    said.read_line(&mut line)?;
    ensure!(line.contains("capturing on"), "{line}");
    Stream {
        rate: 1000,
        ..Stream::new(api.ipv4(), 9000, 20)
    }
    .send(|tool| web.command(tool))?;
    // Both still run.
    wait::until(LIMIT, "packets in tshark", || {
        Ok(tshark.log().lines().filter(|line| *line == "9000").count() == 20)
    })
    .with_context(|| tshark.tail())?;
    assert!(capture.try_wait()?.is_none() && tshark.ended()?.is_none());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(capture.id())?);
    nix::sys::signal::kill(pid, Signal::SIGINT)?;
    assert!(capture.wait()?.success());
    tshark.wait_success(LIMIT)?;
    Ok(())
}

#[test]
fn a_reader_that_goes_ends_the_capture() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = sink(&node, &api)?;
    let mut capture = remora(&agent)?
        .args(["capture", &target(&web), "-w", "-", "udp port 9000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let reader = capture.stdout.take();
    wait::until(LIMIT, "a running capture", || {
        Ok(agent.list(false)?.len() == 1)
    })?;
    drop(reader);
    wait::until(LIMIT, "the end of the capture", || {
        Stream {
            rate: 1000,
            ..Stream::new(api.ipv4(), 9000, 5)
        }
        .send(|tool| web.command(tool))?;
        Ok(agent.list(false)?.is_empty())
    })?;
    wait::until(LIMIT, "the end of remora", || {
        Ok(capture.try_wait()?.is_some())
    })?;
    assert_eq!(agent.status()?.sessions_running, 0);
    Ok(())
}

#[test]
fn a_client_that_is_killed_leaves_no_session() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = sink(&node, &api)?;
    let file = node.directory().join("web.pcapng");
    let mut process = capturing(
        &agent,
        &node,
        &[&target(&web), "-w", path_text(&file)?, "udp port 9000"],
    )?;
    process.end_by(Signal::SIGKILL, LIMIT)?;
    wait::until(LIMIT, "the session to end", || {
        Ok(agent.status()?.sessions_running == 0)
    })
}

/// Also one that was about to ask for its stream, which nobody takes then, or somebody who is gone.
#[test]
fn clients_that_are_killed_at_any_moment_leave_no_session() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let file = node.directory().join("web.pcapng");
    for delay in 0..60 {
        let mut command = remora(&agent)?;
        command.args(["capture", &target(&web), "-w", path_text(&file)?]);
        let mut process = node.spawn(&mut command, "remora")?;
        thread::sleep(Duration::from_millis(delay / 2));
        process.end_by(Signal::SIGKILL, LIMIT)?;
    }
    wait::until(LIMIT, "the sessions to end", || {
        Ok(agent.status()?.sessions_running == 0)
    })
}

#[test]
fn every_autostop_condition_ends_the_capture() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = sink(&node, &api)?;
    for (condition, sends) in [("duration:1", 10), ("packets:7", 50), ("filesize:8", 500)] {
        let file = node
            .directory()
            .join(format!("{}.pcapng", condition.replace(':', "-")));
        let mut process = capturing(
            &agent,
            &node,
            &[
                &target(&web),
                "-a",
                condition,
                "-w",
                path_text(&file)?,
                "udp port 9000",
            ],
        )?;
        Stream {
            rate: 5000,
            ..Stream::new(api.ipv4(), 9000, sends)
        }
        .send(|tool| web.command(tool))?;
        process
            .wait_success(LIMIT)
            .with_context(|| condition.to_owned())?;
        wire::assert_readable(&file)?;
        let count = wire::capinfos_count(&file)?;
        match condition {
            "duration:1" => assert_eq!(count, sends),
            "packets:7" => assert_eq!(count, 7),
            _ => {
                let len = std::fs::metadata(&file)?.len();
                assert!(
                    len <= 8 * 1024 && count > 10,
                    "{len} bytes, {count} packets"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn an_interface_and_a_snaplen_are_taken_as_tcpdump_takes_them() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = sink(&node, &api)?;
    let file = node.directory().join("x.pcapng");
    let mut process = capturing(
        &agent,
        &node,
        &[
            "-i",
            web.interface(),
            "-s",
            "96",
            "-c",
            "10",
            "-w",
            path_text(&file)?,
            "udp",
        ],
    )?;
    let stream = Stream {
        size: 500,
        rate: 1000,
        ..Stream::new(api.ipv4(), 9000, 10)
    };
    stream.send(|tool| web.command(tool))?;
    process.wait_success(LIMIT)?;
    let capture = Capture::read(&file)?;
    assert!(
        capture
            .packets
            .iter()
            .all(|packet| (packet.data.len(), packet.original_len) == (96, 500))
    );
    Ok(())
}

#[test]
fn list_show_get_stop_and_status_tell_one_story() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = sink(&node, &api)?;
    let call =
        |arguments: &[&str]| -> Result<String> { run::output(remora(&agent)?.args(arguments)) };
    let json = |arguments: &[&str]| -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&call(arguments)?)?)
    };
    let started = call(&[
        "capture",
        &target(&web),
        "--store",
        "--label",
        "case=42",
        "udp port 9000",
    ])?;
    let id = started.trim();
    assert_eq!(id.len(), 26, "{started:?}");
    let sent = Stream {
        rate: 5000,
        ..Stream::new(api.ipv4(), 9000, 300)
    }
    .send(|tool| web.command(tool))?;
    assert!(call(&["list"])?.contains(id));
    assert!(call(&["status"])?.contains("node-a"));
    call(&["stop", id])?;
    assert!(!call(&["list"])?.contains(id));
    assert!(call(&["list", "--all"])?.contains(id));
    assert!(call(&["show", id])?.contains("case"));

    let shown = json(&["show", id, "-o", "json"])?;
    let state = agent.get(id)?;
    let counts = state.counts.context("no counts")?;
    let number = |name: &str| shown["counts"][name].as_u64();
    assert_eq!(number("matched"), Some(sent));
    assert_eq!(number("written"), Some(counts.written));
    assert_eq!(number("written_bytes"), Some(counts.written_bytes));

    let copy: PathBuf = node.directory().join("copy.pcapng");
    call(&["get", id, "-w", path_text(&copy)?])?;
    assert_eq!(std::fs::read(&copy)?, std::fs::read(agent.file(&state))?);
    Ok(())
}
