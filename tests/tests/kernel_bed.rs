//! The test bed itself: what the other suites stand on.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use remora_tests::{
    bpf::{ForeignTcx, Objects},
    cgroup,
    node::Node,
    numbered::Numbers,
    run::{self, Place, Rights},
    traffic::{self, Stream},
    veth, wait,
    wire::Tcpdump,
};

#[test]
fn pods_reach_each_other_and_what_lies_beyond_the_node() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let c2 = node.outside("c2", "198.51.100.23".parse()?)?;
    traffic::ping(web.netns(), api.ipv4().into(), 1)?;
    traffic::ping(web.netns(), api.ipv6().into(), 1)?;
    traffic::ping(web.netns(), "198.51.100.23".parse()?, 1)?;
    traffic::ping(&c2, web.ipv4().into(), 1)?;
    traffic::tcp_exchange(web.netns(), api.netns(), (api.ipv4(), 80).into(), 300_000)
}

#[test]
fn a_pods_process_is_in_its_namespace_and_in_its_containers_cgroup() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("web")?;
    let cgroups = run::output(pod.command("cat").arg("/proc/self/cgroup"))?;
    let expected = format!("0::{}/{}", pod.cgroup().path(), pod.container_id());
    assert!(
        cgroups.lines().any(|line| line == expected),
        "{expected} not in {cgroups}"
    );
    let interfaces = run::output(pod.command("ls").arg("/proc/self/net/dev_snmp6"))?;
    assert_eq!(interfaces, "eth0\nlo\n");
    Ok(())
}

#[test]
fn the_agents_rights_are_two_capabilities_and_no_new_privileges() -> Result<()> {
    let place = Place {
        rights: Rights::Agent,
        ..Default::default()
    };
    let status = run::output(place.command("cat").arg("/proc/self/status"))?;
    for line in [
        "CapEff:\t0000008000001000",
        "NoNewPrivs:\t1",
        "Uid:\t65532\t65532\t65532\t65532",
    ] {
        assert!(
            status.lines().any(|found| found == line),
            "{line} not in {status}"
        );
    }
    Ok(())
}

#[test]
fn everything_is_gone_when_the_node_is_dropped() -> Result<()> {
    let node = Node::new()?;
    let pod = node.pod("web")?;
    let namespaces = [
        node.netns().path().to_owned(),
        pod.netns().path().to_owned(),
    ];
    let directories = [
        node.cgroup().directory().to_owned(),
        node.directory().to_owned(),
        pod.cgroup().directory().to_owned(),
    ];
    // A process that the test forgot is ended with its cgroup.
    let mut stray = pod.command("sleep").arg("1000").spawn()?;
    let cgroup = format!("/proc/{}/cgroup", stray.id());
    wait::until(Duration::from_secs(5), "the stray in its cgroup", || {
        Ok(fs::read_to_string(&cgroup)?.contains(pod.container_id()))
    })?;
    drop(pod);
    drop(node);
    for path in namespaces.iter().chain(&directories) {
        assert!(!path.exists(), "{} is left", path.display());
    }
    assert_eq!(run::killed_by(stray.wait()?), Some(Signal::SIGKILL));
    Ok(())
}

#[test]
fn every_number_that_the_generator_says_it_sent_reaches_tcpdump() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let _sink = traffic::sink(9000, node.directory(), |tool| api.command(tool))?;
    let tcpdump = Tcpdump::start(
        |tool| node.command(tool),
        web.interface(),
        "udp port 9000",
        node.directory(),
    )?;
    let stream = Stream {
        rate: 20_000,
        size: 200,
        run: 3,
        ..Stream::new(api.ipv4(), 9000, 5000)
    };
    let sent = stream.send(|tool| web.command(tool))?;
    assert_eq!(sent, 5000);
    tcpdump.wait_for_frame("the last packet", |frame| {
        remora_tests::numbered::Number::of_frame(frame)
            .is_some_and(|number| number.sequence == sent - 1)
    })?;
    let capture = tcpdump.stop()?;
    let numbers = Numbers::collect(3, capture.frames());
    assert_eq!(numbers.missing(sent), []);
    assert_eq!((numbers.duplicates(), numbers.foreign), (0, 0));
    assert!(capture.frames().all(|frame| frame.len() == 200));
    assert_eq!(veth::receive_dropped(node.netns(), web.interface())?, 0);
    Ok(())
}

#[test]
fn a_generator_without_count_sends_until_it_is_stopped() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let stream = Stream {
        rate: 1000,
        ..Stream::new("127.0.0.1".parse()?, 9000, 0)
    };
    let sender = stream.send_until_stopped(node.directory(), |tool| web.command(tool))?;
    assert!(sender.stop()? < 1000);
    Ok(())
}

#[test]
fn a_megabyte_compares_at_the_other_end_of_tcpbulk() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let at = format!("{}:5001", api.ipv4());
    let bulk = run::tool("tcpbulk")?;
    let mut receiver = node.spawn(
        api.command(&bulk)
            .args(["receive", &at, "--bytes", "1000001"]),
        "receive",
    )?;
    receiver.wait_for("ready", Duration::from_secs(5))?;
    run::output(web.command(&bulk).args(["send", &at, "--bytes", "1000001"]))?;
    receiver.wait_success(Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn the_foreign_program_drops_its_port_and_nothing_else() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let mut foreign = ForeignTcx::attach(node.netns(), web.interface(), 9009)?;
    let objects = Objects::of_process(std::process::id())?;
    assert!(objects.programs.contains(&foreign.program_id()?));
    let sent = |port: u16| traffic::arrives(&node, &web, port, 9008);
    assert!(sent(9008)?);
    assert!(!sent(9009)?);
    let id = foreign.program_id()?;
    foreign.detach()?;
    assert!(sent(9009)?);
    Objects {
        programs: [id].into(),
        ..Objects::default()
    }
    .gone()
}

#[test]
fn a_process_that_ignores_sigterm_is_killed_when_dropped() -> Result<()> {
    let node = Node::new()?;
    let mut stubborn = node.spawn(
        run::command("sh").args(["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]),
        "stubborn",
    )?;
    stubborn.wait_for("ready", Duration::from_secs(5))?;
    stubborn.signal(Signal::SIGTERM)?;
    let pid = stubborn.pid();
    drop(stubborn);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    Ok(())
}

#[test]
fn the_cgroup2_root_is_found_also_beside_cgroup_v1() -> Result<()> {
    let root = cgroup::root()?;
    assert!(root.join("cgroup.procs").is_file(), "{}", root.display());
    let mount = cgroup::mounts()?
        .into_iter()
        .find(|mount| mount.point == root);
    assert_eq!(mount.context("not mounted")?.kind, "cgroup2");
    Ok(())
}
