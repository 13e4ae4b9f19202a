//! What look-back kept of pods that have died, and whose it is.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use remora_proto::v1::{self, target::Target};
use remora_tests::{
    agent::{Options, TestAgent, looking_back, spec},
    node::{Node, Pod},
    numbered::Number,
    packets::{Capture, Packet},
    proof,
    traffic::{self, Stream},
    wait,
};

const LIMIT: Duration = Duration::from_secs(20);
const PACKETS: u64 = 50;

fn back(target: Target) -> v1::CaptureSpec {
    let spec = v1::CaptureSpec {
        filter: "udp port 9000".into(),
        ..spec(target)
    };
    looking_back(spec, 60)
}

fn numbers(packets: &[Packet]) -> Vec<(u16, u64)> {
    packets
        .iter()
        .filter_map(|packet| Number::of_frame(&packet.data))
        .map(|number| (number.run, number.sequence))
        .collect()
}

fn of_run(run: u16) -> Vec<(u16, u64)> {
    (0..PACKETS).map(|sequence| (run, sequence)).collect()
}

/// Waits until the pod is recorded, and known by its names.
fn known(agent: &TestAgent<'_>, pod: &Pod) -> Result<()> {
    let known = wait::until(LIMIT, "the pod's names", || {
        let taps = agent.status()?.taps;
        Ok(taps.iter().any(|tap| {
            tap.interface == pod.interface()
                && tap.look_back.is_some()
                && tap.description.contains(pod.container_id())
        }))
    });
    known.with_context(|| format!("{:?}\n{}", agent.status(), agent.tail()))
}

/// Waits until the pod's veth is gone, and the agent knows.
fn gone(agent: &TestAgent<'_>, interface: &str) -> Result<()> {
    wait::until(LIMIT, "the end of the veth", || {
        let taps = agent.status()?.taps;
        Ok(!taps.iter().any(|tap| tap.interface == interface))
    })
}

fn send(pod: &Pod, to: &Pod, run: u16) -> Result<()> {
    let stream = Stream {
        run,
        ..Stream::new(to.ipv4(), 9000, PACKETS)
    };
    stream.send(|tool| pod.command(tool))?;
    Ok(())
}

/// A capture that ends by itself; its packets.
fn past(agent: &TestAgent<'_>, target: Target) -> Result<(v1::CaptureState, Capture)> {
    let state = agent.capture(back(target))?;
    let state = agent.wait_final(&state.id, LIMIT)?;
    ensure!(
        state.stop_reason() == v1::StopReason::TargetGone,
        "{:?}: {}",
        state.stop_reason(),
        state.message
    );
    let capture = proof::prove(agent, &state)?.capture;
    let is_past = |packet: &Packet| packet.comments.iter().any(|c| c.starts_with("look-back"));
    ensure!(capture.packets.iter().all(is_past), "an unmarked packet");
    Ok((state, capture))
}

#[test]
fn the_last_packets_of_a_dead_pod_are_found_by_each_of_its_names() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    known(&agent, &web)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    send(&web, &api, 1)?;
    let names = [
        Target::ContainerId(web.container_id()[..12].to_owned()),
        Target::ContainerId(web.container_id().to_owned()),
        Target::CgroupPath(web.cgroup().path()),
        Target::CgroupId(web.cgroup().id()?),
        Target::Pid(web.pid()),
        Target::Interface(web.interface().to_owned()),
    ];
    let interface = web.interface().to_owned();
    drop(web);
    gone(&agent, &interface)?;
    for target in names {
        let (state, capture) = past(&agent, target.clone())?;
        assert_eq!(numbers(&capture.packets), of_run(1), "{target:?}");
        assert!(
            state.resolved_target.contains("behind veth-web, "),
            "{state:?}"
        );
        let counts = state.counts.context("no counts")?;
        assert_eq!((counts.written, counts.seen >= PACKETS), (PACKETS, true));
    }

    // Without look-back it is told, not captured.
    let refused = agent.capture(spec(Target::Interface(interface)));
    let error = refused.err().context("it started")?;
    assert!(error.message().contains("--look-back 30s"), "{error}");
    Ok(())
}

#[test]
fn a_name_that_came_again_is_its_new_owners() -> Result<()> {
    let node = Node::new()?;
    let api = node.pod("api")?;
    let agent = TestAgent::start(&node)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let mut ids = Vec::new();
    let mut path = String::new();
    for run in 1..=3 {
        let web = node.pod("web")?;
        known(&agent, &web)?;
        send(&web, &api, run)?;
        // While it lives, the name is its own.
        let living = agent.capture(back(Target::CgroupPath(web.cgroup().path())))?;
        let living = agent.stop(&living.id)?;
        let capture = proof::prove(&agent, &living)?.capture;
        assert_eq!(numbers(&capture.packets), of_run(run));
        ids.push(web.cgroup().id()?);
        path = web.cgroup().path();
        let interface = web.interface().to_owned();
        drop(web);
        gone(&agent, &interface)?;
    }
    let (state, capture) = past(&agent, Target::CgroupPath(path))?;
    assert_eq!(numbers(&capture.packets), of_run(3));
    assert!(state.resolved_target.contains(&format!("id {}", ids[2])));
    for (run, id) in (1..).zip(ids) {
        let (_, capture) = past(&agent, Target::CgroupId(id))?;
        assert_eq!(numbers(&capture.packets), of_run(run));
    }
    Ok(())
}

#[test]
fn a_cgroup_made_again_has_nothing_of_the_one_before() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    known(&agent, &web)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    send(&web, &api, 1)?;
    let interface = web.interface().to_owned();
    let path = web.cgroup().path();
    drop(web);
    gone(&agent, &interface)?;
    let _again = node.cgroup().child("web")?;
    let state = agent.capture(back(Target::CgroupPath(path)))?;
    let state = agent.stop(&state.id)?;
    assert!(Capture::read(&agent.file(&state))?.packets.is_empty());
    assert!(state.message.contains("nothing was recorded"), "{state:?}");
    Ok(())
}

#[test]
fn the_dead_are_forgotten_in_time() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let options = Options {
        arguments: vec!["--look-back-keep".into(), "1s".into()],
        ..Options::default()
    };
    let agent = TestAgent::start_with(&node, options)?;
    known(&agent, &web)?;
    send(&web, &api, 1)?;
    let interface = web.interface().to_owned();
    drop(web);
    gone(&agent, &interface)?;
    wait::until(LIMIT, "the end of what was kept", || {
        match agent.capture(back(Target::Interface(interface.clone()))) {
            Ok(state) => {
                agent.wait_final(&state.id, LIMIT)?;
                Ok(false)
            }
            Err(error) => Ok(error.message().contains("there is no interface")),
        }
    })
}

#[test]
fn a_living_pod_takes_the_memory_of_the_dead_the_oldest_first() -> Result<()> {
    let node = Node::new()?;
    let api = node.pod("api")?;
    // Room for some ten pages; each ring takes one.
    let options = Options {
        arguments: "--look-back-memory 1500KiB --look-back-pod 150KiB --flow-cutoff 0"
            .split(' ')
            .map(String::from)
            .collect(),
        ..Options::default()
    };
    let agent = TestAgent::start_with(&node, options)?;
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let mut died = Vec::new();
    for run in 1..=6 {
        let pod = node.pod(&format!("p{run}"))?;
        known(&agent, &pod)?;
        // More than its ring holds, so that its copy takes all of it.
        let stream = Stream {
            run,
            size: 1000,
            ..Stream::new(api.ipv4(), 9000 + run, 300)
        };
        stream.send(|tool| pod.command(tool))?;
        died.push((run, pod.cgroup().id()?));
        let interface = pod.interface().to_owned();
        drop(pod);
        gone(&agent, &interface)?;
    }
    let is_kept = |id: u64| -> Result<bool> {
        match agent.capture(back(Target::CgroupId(id))) {
            Ok(state) => {
                agent.wait_final(&state.id, LIMIT)?;
                Ok(true)
            }
            Err(_gone) => Ok(false),
        }
    };
    for (run, id) in &died {
        ensure!(is_kept(*id)?, "{run} is not kept though there is room");
    }
    let mut living = Vec::new();
    for number in 0..3 {
        let pod = node.pod(&format!("q{number}"))?;
        known(&agent, &pod)?;
        living.push(pod);
    }
    let kept: Vec<bool> = died
        .iter()
        .map(|(_, id)| is_kept(*id))
        .collect::<Result<_>>()?;
    println!("kept of six that died, oldest first: {kept:?}");
    ensure!(!kept[0] && kept[5] && kept.is_sorted(), "{kept:?}");
    Ok(())
}
