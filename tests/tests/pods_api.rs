//! The API server away, slow, forgetful and broken: what is known stays so, and what is not is known soon after.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use remora_proto::v1::{self, target::Target};
use remora_tests::{
    agent::{Options, TestAgent, spec},
    apiserver::{ApiServer, Fault, Kind},
    kubelet::{Class, Driver, KubePod},
    node::Node,
    proof,
    traffic::{self, Stream},
    wait,
};
use serde_json::json;
use tonic::Code;

const LIMIT: Duration = Duration::from_secs(60);
/// A watch on which nothing comes is given up after 35 seconds.
const STALL_LIMIT: Duration = Duration::from_secs(120);
const PACKETS: u64 = 20;

fn options(server: &ApiServer, node: &Node, more: &[&str]) -> Result<Options> {
    let kubeconfig = server.kubeconfig(node.directory())?;
    let mut arguments = vec!["--kubeconfig".to_owned(), kubeconfig.display().to_string()];
    arguments.extend(more.iter().map(ToString::to_string));
    Ok(Options {
        arguments,
        ..Options::default()
    })
}

fn namespace(server: &ApiServer, name: &str) {
    server.put(Kind::Namespace, json!({"metadata": {"name": name}}));
}

fn pod(node: &Node, name: &str) -> Result<KubePod> {
    KubePod::new(
        node,
        (Driver::Systemd, Class::BestEffort),
        ("shop", name),
        &["main"],
    )
}

fn named(name: &str) -> Target {
    Target::Pod(v1::Pod {
        namespace: "shop".into(),
        name: name.into(),
        ..v1::Pod::default()
    })
}

/// A capture by this name starts and ends, sooner or later.
fn captured(agent: &TestAgent<'_>, target: &Target, limit: Duration) -> Result<()> {
    let mut refusal = None;
    let state = wait::until_some(limit, "a capture", || {
        match agent.capture(spec(target.clone())) {
            Ok(state) => Ok(Some(state)),
            Err(error) => {
                refusal = Some(error);
                Ok(None)
            }
        }
    })
    .with_context(|| format!("{target:?}: {refusal:?}\n{}", agent.tail()))?;
    agent.stop(&state.id)?;
    Ok(())
}

#[test]
fn with_the_api_server_away_the_agent_starts_and_fills_names_in_later() -> Result<()> {
    let node = Node::new()?;
    let mut server = ApiServer::start(node.netns())?;
    server.stop();
    let options = options(&server, &node, &[])?;
    let mut agent = TestAgent::start_with(&node, options)?;
    let (web, api) = (pod(&node, "web")?, pod(&node, "api")?);
    let container = Target::ContainerId(web.pod().container_id().to_owned());
    // Nobody has ever told whether its namespace is private.
    let error = agent
        .capture(spec(container.clone()))
        .err()
        .context("it started")?;
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    assert!(error.message().contains("not known yet"), "{error}");
    let tools = node.cgroup().child("tools")?;
    captured(&agent, &Target::CgroupPath(tools.path()), LIMIT)?;

    server.resume(node.netns())?;
    namespace(&server, "shop");
    server.put(Kind::Pod, web.object());
    captured(&agent, &named("web"), LIMIT)?;

    // Known from before, though the next agent meets no API server either.
    server.stop();
    captured(&agent, &named("web"), LIMIT)?;
    agent.end_by(nix::sys::signal::Signal::SIGTERM)?;
    agent.start_again()?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command("main", tool))?;
    for target in [
        container,
        Target::CgroupPath(web.pod().cgroup().path()),
        Target::Pid(web.pod().pid()),
        Target::Pod(v1::Pod {
            namespace: "shop".into(),
            name: "web".into(),
            uid: web.uid.clone(),
            ..v1::Pod::default()
        }),
    ] {
        captured(&agent, &target, LIMIT)?;
    }
    let error = agent
        .capture(spec(named("web")))
        .err()
        .context("it started")?;
    assert!(error.message().contains("has told of none yet"), "{error}");

    let spec = v1::CaptureSpec {
        filter: "udp port 9000".into(),
        ..spec(Target::Pid(web.pod().pid()))
    };
    let state = agent.capture(spec)?;
    Stream::new(api.pod().ipv4(), 9000, PACKETS).send(|tool| web.command("main", tool))?;
    server.resume(node.netns())?;
    captured(&agent, &named("web"), LIMIT)?;
    let state = agent.stop(&state.id)?;
    assert_eq!(proof::prove(&agent, &state)?.counts.written, PACKETS);
    let told = agent.sidecar(&state.id)?.capture.pod;
    assert_eq!(
        told.context("no pod in the sidecar")?.full_name(),
        "shop/web"
    );
    Ok(())
}

#[test]
fn what_may_be_taken_before_the_first_list_can_be_said() -> Result<()> {
    let node = Node::new()?;
    let mut server = ApiServer::start(node.netns())?;
    server.stop();
    let options = options(&server, &node, &["--privacy-unlisted", "payload"])?;
    let agent = TestAgent::start_with(&node, options)?;
    let web = pod(&node, "web")?;
    captured(
        &agent,
        &Target::ContainerId(web.pod().container_id().to_owned()),
        LIMIT,
    )
}

#[test]
fn a_watch_that_breaks_in_any_way_goes_on() -> Result<()> {
    let node = Node::new()?;
    let mut server = ApiServer::start(node.netns())?;
    namespace(&server, "shop");
    let options = options(&server, &node, &[])?;
    let agent = TestAgent::start_with(&node, options)?;
    let web = pod(&node, "web")?;
    server.put(Kind::Pod, web.object());
    captured(&agent, &named("web"), LIMIT)?;
    for fault in [
        Fault::TooOldEvent(Kind::Pod),
        Fault::TooOldStatus(Kind::Pod),
        Fault::Close(Kind::Pod),
        Fault::End(Kind::Pod),
        Fault::TooMany(Kind::Pod, 1),
        Fault::Broken(Kind::Pod),
    ] {
        server.fault(fault);
        // What is only for the beginning of a watch is met when the one that is open breaks.
        if matches!(
            fault,
            Fault::TooOldStatus(_) | Fault::End(_) | Fault::TooMany(..) | Fault::Broken(_)
        ) {
            server.fault(Fault::Close(Kind::Pod));
        }
        wait::until(LIMIT, "the fault", || Ok(server.faults_left() == 0))
            .with_context(|| format!("{fault:?}: {}", agent.tail()))?;
        let web = pod(&node, &format!("w{}", server.requests().len()))?;
        server.put(Kind::Pod, web.object());
        captured(&agent, &named(&web.name), LIMIT).with_context(|| format!("{fault:?}"))?;
        server.delete(Kind::Pod, "shop", &web.name);
    }
    // What happened while nobody watched is in the next list.
    let kept = pod(&node, "kept")?;
    server.stop();
    server.put(Kind::Pod, kept.object());
    server.forget_history();
    server.resume(node.netns())?;
    captured(&agent, &named("kept"), LIMIT)?;
    // Twelve faults and a stop cost no more than a few requests each.
    let requests = server.requests();
    ensure!(
        requests.len() < 60,
        "{} requests: {requests:?}",
        requests.len()
    );
    Ok(())
}

#[test]
fn a_watch_that_stalls_is_given_up() -> Result<()> {
    let node = Node::new()?;
    let server = ApiServer::start(node.netns())?;
    namespace(&server, "shop");
    let options = options(&server, &node, &[])?;
    let agent = TestAgent::start_with(&node, options)?;
    let (web, api) = (pod(&node, "web")?, pod(&node, "api")?);
    server.put(Kind::Pod, web.object());
    captured(&agent, &named("web"), LIMIT)?;
    server.fault(Fault::Stall(Kind::Pod));
    wait::until(LIMIT, "the stall", || Ok(server.faults_left() == 0))?;
    server.put(Kind::Pod, api.object());
    captured(&agent, &named("web"), LIMIT)?;
    captured(&agent, &named("api"), STALL_LIMIT)
}

#[test]
fn a_kubeconfig_that_is_none_is_refused_at_the_start() -> Result<()> {
    let node = Node::new()?;
    let server = ApiServer::start(node.netns())?;
    let mut agent = TestAgent::start_with(&node, options(&server, &node, &[])?)?;
    agent.end_by(nix::sys::signal::Signal::SIGTERM)?;
    for (arguments, told) in [
        (
            ["--kubeconfig", "/nonexistent"],
            "failed to read the kubeconfig",
        ),
        (["--kubeconfig", "in-cluster"], "in no pod of a cluster"),
        (
            ["--privacy-unlisted", "some"],
            "use payload, headers or none",
        ),
    ] {
        agent.options().arguments = arguments.map(String::from).to_vec();
        let said = agent.refuses()?;
        ensure!(said.contains(told), "{arguments:?}: {said}");
    }
    Ok(())
}
