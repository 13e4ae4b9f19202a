//! A pod whose network others use, too: before a capture begins, and while it runs.

use std::time::Duration;

use anyhow::Result;
use remora_proto::v1;
use remora_tests::{
    agent::{TestAgent, of_pod, of_pod_filtered},
    cgroup::Cgroup,
    name,
    node::{Node, Pod},
    numbered::Numbers,
    proof,
    run::{Place, Proc},
    traffic::{self, Stream},
};

const FILTER: &str = "udp port 9000";
const LIMIT: Duration = Duration::from_secs(20);

/// A process in the pod's network, but not of its cgroup.
fn guest(node: &Node, pod: &Pod, cgroup: &Cgroup) -> Result<Proc> {
    let place = Place {
        netns: Some(pod.netns()),
        cgroup: Some(cgroup),
        ..Place::default()
    };
    let mut guest = Proc::spawn(
        place
            .command("sh")
            .args(["-c", "echo here; exec sleep 1000"]),
        node.directory(),
        &name::unique(),
    )?;
    guest.wait_for("here", LIMIT)?;
    Ok(guest)
}

#[test]
fn a_pod_that_was_not_alone_from_the_start_is_captured_at_its_sockets_only() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let other = Cgroup::new(&format!("/{}", name::unique()))?;
    let _guest = guest(&node, &web, &other)?;
    // The second time it is known that the first look was wrong.
    for _ in 0..2 {
        let state = agent.capture(of_pod_filtered(&web, FILTER))?;
        let hooks: Vec<_> = state.taps.iter().map(|tap| tap.hook.as_str()).collect();
        assert_eq!(hooks, ["cgroup"], "{state:?}");
        let place = Place {
            netns: Some(web.netns()),
            cgroup: Some(&other),
            ..Place::default()
        };
        let run = |number| Stream {
            run: number,
            ..Stream::new(api.ipv4(), 9000, 500)
        };
        run(1).send(|tool| place.command(tool))?;
        run(2).send(|tool| web.command(tool))?;
        let state = agent.stop(&state.id)?;
        let proven = proof::prove(&agent, &state)?;
        let of = |number| Numbers::collect(number, proven.capture.frames()).distinct();
        assert_eq!((of(1), of(2)), (0, 500));
    }
    assert_eq!(agent.list(true)?.len(), 2, "what was begun wrongly is gone");
    Ok(())
}

#[test]
fn who_joins_a_pods_network_while_it_is_captured_is_named_in_its_account() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start(&node)?;
    let state = agent.capture(of_pod(&web))?;
    assert!(state.taps.iter().any(|tap| tap.hook == "tcx"), "{state:?}");
    let other = Cgroup::new(&format!("/{}", name::unique()))?;
    let guest = guest(&node, &web, &other)?;
    // It may be met on its way into its cgroup.
    let who = format!("process {} of cgroup /", guest.pid());
    agent.wait_state(&state.id, "a word on the guest", |state| {
        state.message.contains(&who)
    })?;
    let state = agent.stop(&state.id)?;
    assert_eq!(state.phase(), v1::Phase::Finished);
    assert!(state.message.contains(&who), "{}", state.message);
    let sidecar = agent.sidecar(&state.id)?;
    assert!(
        sidecar.capture.message.contains(&who),
        "{}",
        sidecar.capture.message
    );
    proof::prove(&agent, &state)?;
    Ok(())
}
