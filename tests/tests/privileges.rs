//! What the agent may do, and who may ask it.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use remora_tests::{
    agent::{TestAgent, of_pod},
    node::Node,
    proof,
    run::{self, AGENT_UID, Place, Rights},
    traffic,
};

/// CAP_BPF (39) and CAP_NET_ADMIN (12).
const CAPABILITIES: &str = "0000008000001000";

#[test]
fn it_captures_with_two_capabilities_and_no_way_to_more() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let state = agent.capture(of_pod(&web))?;
    traffic::ping(web.netns(), api.ipv4().into(), 5)?;

    let tasks = format!("/proc/{}/task", agent.pid()?);
    let mut threads = 0;
    for task in fs::read_dir(&tasks)?.flatten() {
        let status = fs::read_to_string(task.path().join("status"))?;
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.map(|value| value.trim_start_matches(':').trim().to_owned())
        };
        for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb"] {
            assert_eq!(value(set).as_deref(), Some(CAPABILITIES), "{set}");
        }
        assert_eq!(value("NoNewPrivs").as_deref(), Some("1"));
        assert_eq!(value("Uid").as_deref(), Some("65532\t65532\t65532\t65532"));
        threads += 1;
    }
    assert!(threads > 1, "the agent has threads");

    let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
    assert!(proven.counts.written >= 10, "{:?}", proven.counts);
    Ok(())
}

#[test]
fn files_are_the_agents_alone_and_the_socket_its_groups() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let mode = |path: &Path| -> Result<u32> {
        let metadata = fs::metadata(path).with_context(|| format!("no {}", path.display()))?;
        assert_eq!(metadata.uid(), AGENT_UID, "{}", path.display());
        Ok(metadata.permissions().mode() & 0o7777)
    };
    assert_eq!(mode(&agent.socket())?, 0o660);
    let state = agent.capture(of_pod(&web))?;
    // While it is being written, too.
    for entry in fs::read_dir(agent.data_dir())?.flatten() {
        let expected = if entry.file_type()?.is_dir() {
            0o700
        } else {
            0o600
        };
        assert_eq!(mode(&entry.path())?, expected, "{}", entry.path().display());
    }
    let state = agent.stop(&state.id)?;
    assert_eq!(mode(&agent.file(&state))?, 0o600);
    assert_eq!(
        mode(&agent.data_dir().join(format!("{}.json", state.id)))?,
        0o600
    );
    Ok(())
}

#[test]
fn a_caller_that_is_neither_root_nor_the_agent_is_refused_even_on_an_open_socket() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    // The file's mode is not what keeps them out.
    fs::set_permissions(agent.socket(), fs::Permissions::from_mode(0o666))?;
    let remora = run::remora_program("remora")?;
    let copy = node.directory().join("remora");
    fs::copy(&remora, &copy)?;
    let other_user = |arguments: &[&str]| {
        let mut command = run::command("setpriv");
        command
            .args(["--reuid=65531", "--regid=65531", "--clear-groups", "--"])
            .arg(&copy)
            .args(["--agent", &agent.address()])
            .args(arguments);
        command
    };
    let target = format!("cgroup:{}", web.cgroup().path());
    for arguments in [&["status"][..], &["list"], &["capture", &target, "--store"]] {
        let output = run::finish(&mut other_user(arguments))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(
            stderr.contains("uid 65531 may not use this agent"),
            "{arguments:?}: {stderr}"
        );
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    }
    assert_eq!(agent.list(true)?.len(), 0);
    // The agent's own uid may, without any right.
    let own = Place {
        rights: Rights::None,
        ..Default::default()
    };
    run::output(
        own.command(&copy)
            .args(["--agent", &agent.address(), "status"]),
    )?;
    Ok(())
}

#[test]
fn without_a_capability_it_says_which_one_is_missing_and_ends() -> Result<()> {
    let node = Node::new()?;
    let directory = node.directory().join("powerless");
    fs::create_dir(&directory)?;
    std::os::unix::fs::chown(&directory, Some(AGENT_UID), Some(AGENT_UID))?;
    let copy = node.directory().join("remora-agent");
    fs::copy(run::remora_program("remora-agent")?, &copy)?;
    let place = Place {
        netns: Some(node.netns()),
        cgroup: None,
        rights: Rights::None,
    };
    let mut process = node.spawn(
        place
            .command(&copy)
            .arg("run")
            .arg("--socket")
            .arg(directory.join("agent.sock"))
            .arg("--data-dir")
            .arg(&directory),
        "powerless",
    )?;
    let status = process.wait(std::time::Duration::from_secs(10))?;
    assert_eq!(status.code(), Some(1), "{}", process.tail());
    let log = process.log();
    assert!(
        log.contains("CAP_BPF") || log.contains("CAP_NET_ADMIN"),
        "{log}"
    );
    assert!(run::killed_by(status) != Some(Signal::SIGKILL));
    Ok(())
}
