//! `remora up`: the two programs in the foreground, as a person tries them.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_tests::{
    cgroup::Cgroup,
    controller,
    http::{self, Request},
    manifests, name,
    node::Node,
    packets::Capture,
    run::{self, Place, Proc, Rights},
    traffic::{self, Stream},
    wait,
};
use serde_json::json;

const ALERTS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 2803);
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const PACKETS: u64 = 50;

fn up(node: &Node, directory: &Path, words: &[&str]) -> Result<Proc> {
    let mut command = node.command(run::remora_program("remora")?);
    command.arg("up").args(words);
    Proc::spawn(&mut command, directory, "up")
}

fn post(node: &Node, alert: &serde_json::Value) -> Result<String> {
    let body = serde_json::to_vec(alert)?;
    let answer = http::over_tcp(node.netns(), ALERTS, Request::post_json("/", &body))?;
    ensure!(answer.status == 202, "{}: {}", answer.status, answer.body);
    controller::capture_id(&answer)
}

/// Falco's alert about a process of the host.
fn of_process(pid: u32) -> serde_json::Value {
    json!({
        "rule": "Launch Suspicious Network Tool on Host",
        "priority": "Notice",
        "source": "syscall",
        "time": jiff::Timestamp::now().to_string(),
        "output": "Network tool launched on host",
        "hostname": "edge",
        "tags": ["host", "network", "process"],
        "output_fields": {"container.id": "host", "proc.pid": pid, "evt.type": "execve"},
    })
}

/// Processes that it has started.
fn children(of: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if parent.is_some_and(|parent| parent.trim() == of.to_string()) {
            let name = entry.file_name();
            children.push(name.to_str().context("a pid")?.parse()?);
        }
    }
    Ok(children)
}

/// An ended process that nobody waits for counts as gone.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[test]
fn an_alert_about_a_process_of_the_host_becomes_a_capture_and_ctrl_c_leaves_that_alone()
-> Result<()> {
    let node = Node::new()?;
    let tools = Cgroup::new(&name::unique())?;
    let place = Place {
        netns: Some(node.netns()),
        cgroup: Some(&tools),
        rights: Rights::Root,
    };
    let directory = name::directory()?;
    let data = directory.path().join("try");
    let words = ["--data-dir", data.to_str().context("UTF-8")?];
    let mut up = up(&node, directory.path(), &words)?;
    up.wait_for("Ctrl-C ends it.", START_LIMIT)?;
    let programs = children(up.pid())?;
    assert_eq!(programs.len(), 2, "{}", up.tail());

    let _sink = traffic::sink(9000, directory.path(), |tool| place.command(tool))?;
    let pids = fs::read_to_string(tools.directory().join("cgroup.procs"))?;
    let pid = pids.lines().next().context("a process")?.parse()?;
    let id = post(&node, &of_process(pid))?;
    let stream = Stream::new(Ipv4Addr::LOCALHOST, 9000, PACKETS);
    let sent = stream.send(|tool| place.command(tool))?;

    up.signal(Signal::SIGINT)?;
    let status = up.wait(STOP_LIMIT)?;
    ensure!(status.success(), "{status}: {}", up.tail());
    let log = up.log();
    for said in [
        "agent: ",
        "controller: ",
        "alerts    http://127.0.0.1:2803/",
        &format!("ended; 1 capture in {}", data.join("captures").display()),
    ] {
        ensure!(log.contains(said), "no `{said}` in {log}");
    }
    // Nothing is left but the directory.
    for pid in programs {
        ensure!(!runs(pid), "{pid} still runs: {log}");
    }
    let captures = data.join("captures");
    let sidecar = fs::read_to_string(captures.join(format!("{id}.json")))?;
    ensure!(sidecar.contains("shutdown"), "{sidecar}");
    let capture = Capture::read(&captures.join(format!("{id}.pcapng")))?;
    assert_eq!(capture.packets.len() as u64, sent, "{log}");
    manifests::prove(&captures)?;
    let remora = run::remora_program("remora")?;
    let key = fs::read_dir(captures.join("keys"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "pub"))
        .context("no public key")?;
    let verified = run::finish(
        run::command(remora)
            .arg("verify")
            .arg(&captures)
            .arg("--key")
            .arg(key),
    )?;
    // Without a published head not all can be proved.
    assert_eq!(verified.status.code(), Some(3), "{verified:?}");
    Ok(())
}

#[test]
fn whoever_kills_it_leaves_neither_program_and_no_open_capture() -> Result<()> {
    let node = Node::new()?;
    let directory = name::directory()?;
    let data = directory.path().join("try");
    let words = ["--data-dir", data.to_str().context("UTF-8")?];
    let mut up = up(&node, directory.path(), &words)?;
    up.wait_for("Ctrl-C ends it.", START_LIMIT)?;
    let programs = children(up.pid())?;
    let pod = node.pod("web")?;
    post(&node, &of_process(pod.pid()))?;
    let status = up.end_by(Signal::SIGKILL, STOP_LIMIT)?;
    ensure!(run::killed_by(status) == Some(Signal::SIGKILL), "{status}");
    wait::until(STOP_LIMIT, "the end of what it started", || {
        Ok(!programs.iter().any(|pid| runs(*pid)))
    })?;
    let names = fs::read_dir(data.join("captures"))?.flatten();
    let names: Vec<_> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    ensure!(
        names.iter().any(|name| name.ends_with(".pcapng")),
        "{names:?}"
    );
    ensure!(
        !names.iter().any(|name| name.ends_with(".open.json")),
        "{names:?}"
    );
    manifests::prove(&data.join("captures"))?;
    Ok(())
}

#[test]
fn what_hinders_is_told_with_what_to_do_and_leaves_nothing() -> Result<()> {
    let node = Node::new()?;
    let directory = name::directory()?;
    let data = directory.path().join("try");
    let words = ["--data-dir", data.to_str().context("UTF-8")?];
    let remora = run::remora_program("remora")?;

    let place = Place {
        netns: Some(node.netns()),
        cgroup: None,
        rights: Rights::None,
    };
    // A checkout below a private home directory is closed to others.
    let copy = directory.path().join("remora");
    // A link takes no room.
    if fs::hard_link(&remora, &copy).is_err() {
        fs::copy(&remora, &copy)?;
    }
    let refused = run::finish(place.command(&copy).arg("up").args(words))?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(said.contains("sudo remora up"), "{said}");
    assert_eq!(refused.status.code(), Some(1));

    let refused = run::finish(node.command(&copy).arg("up").args(words))?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(said.contains("remora-agent: `cargo xtask build`"), "{said}");

    // Rules that are none: the controller ends, and with it the agent.
    let rules = directory.path().join("none.yaml");
    fs::write(&rules, "- rule: [")?;
    let mut failing = up(
        &node,
        directory.path(),
        &[
            words[0],
            words[1],
            "--rules",
            rules.to_str().context("UTF-8")?,
        ],
    )?;
    let status = failing.wait(STOP_LIMIT)?;
    ensure!(status.code() == Some(1), "{status}: {}", failing.tail());
    ensure!(
        failing.log().contains("the controller ended"),
        "{}",
        failing.tail()
    );
    ensure!(failing.log().contains("none.yaml"), "{}", failing.tail());
    ensure!(
        !data.join("agent.sock").exists(),
        "the agent was not ended in order"
    );

    let taken = node
        .netns()
        .enter(|| Ok(std::net::TcpListener::bind(ALERTS)?))?;
    let refused = run::finish(node.command(&remora).arg("up").args(words))?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(said.contains("does another controller run?"), "{said}");
    drop(taken);
    Ok(())
}
