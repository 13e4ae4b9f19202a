//! What must hold on every kernel: the programs load, both ways onto an interface take every packet
//! once, and leave nothing behind. `cargo xtask kernels` runs this on others than this machine's.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use remora_proto::v1;
use remora_tests::{
    agent::{Options, TestAgent, of_pod_filtered},
    bpf,
    netns::Netns,
    node::{Node, Pod},
    numbered::Numbers,
    proof,
    run::{self, Place, Rights},
    traffic::{self, Stream},
    veth,
};

const PORT: u16 = 9000;
const FILTER: &str = "udp port 9000";
const PACKETS: u64 = 2000;
/// Committed figures; `KERNEL PROGRAM INSTRUCTIONS` a line.
const BUDGET: &str = include_str!("../fixtures/verifier-budget.txt");
/// How much more than its budget a program may cost, in percent.
const OVER_BUDGET: u64 = 10;

/// An agent whose programs come onto interfaces by filters of clsact, whatever the kernel has.
fn clsact() -> Options {
    Options {
        arguments: ["--attach", "clsact"].map(str::to_owned).into(),
        ..Default::default()
    }
}

/// What `remora-agent doctor` prints with the agent's rights, and whether it ends well.
fn doctor() -> Result<(String, bool)> {
    let place = Place {
        rights: Rights::Agent,
        ..Default::default()
    };
    let program = run::remora_program("remora-agent")?;
    let directory = remora_tests::name::directory()?;
    // A checkout below a private home directory is closed to the agent's user.
    let copy = directory.path().join("remora-agent");
    fs::copy(program, &copy)?;
    let output = run::finish(place.command(&copy).arg("doctor"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        !text.is_empty(),
        "it printed nothing: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((text, output.status.success()))
}

#[test]
fn the_doctor_finds_this_kernel_fit_with_two_capabilities() -> Result<()> {
    let (text, well) = doctor()?;
    assert!(well && !text.contains("\nmissing "), "{text}");
    for program in [
        "tcx_ingress",
        "tcx_egress",
        "cgroup_ingress",
        "cgroup_egress",
    ] {
        let loaded = format!("program {program}: loaded");
        assert!(text.contains(&loaded), "{text}");
    }
    let hooks = text.lines().filter(|line| line.contains(" hook: ")).count();
    assert_eq!(hooks, 2, "{text}");
    Ok(())
}

#[test]
#[ignore = "only a kernel before 5.17 lacks something: cargo xtask kernels 5.10"]
fn doctor_tells_an_old_kernel_what_it_lacks() -> Result<()> {
    let (text, well) = doctor()?;
    assert!(!well, "{text}");
    let missing: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("missing "))
        .collect();
    assert!(
        missing
            .iter()
            .any(|line| line.contains("bpf_loop") && line.contains("Linux 5.17")),
        "{text}"
    );
    // Not a lack of rights, which is what such a kernel says of the maps.
    assert!(!text.contains("not permitted"), "{text}");
    // What it has is told, too.
    assert!(text.contains("ok       capture: ring buffer map"), "{text}");
    Ok(())
}

/// "6.1" of "6.1.0-56-cloud-amd64".
fn series() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let major = numbers.next().context("no version")?;
    let minor = numbers.next().context("no version")?;
    Ok(format!("{major}.{minor}"))
}

#[test]
fn no_program_costs_the_verifier_a_tenth_more_than_its_budget() -> Result<()> {
    let series = series()?;
    let budgets: Vec<(&str, &str, u64)> = BUDGET
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split(' ');
            let mut word = || {
                words
                    .next()
                    .with_context(|| format!("`{line}` is no budget"))
            };
            Ok((word()?, word()?, word()?.parse()?))
        })
        .collect::<Result<_>>()?;
    // A kernel that is not in the file may cost what the dearest does.
    let known = budgets.iter().any(|(kernel, ..)| *kernel == series);
    let (text, _) = doctor()?;
    let mut programs = 0;
    for line in text.lines() {
        let Some((program, rest)) = line
            .strip_prefix("ok       program ")
            .and_then(|rest| rest.split_once(": loaded, "))
        else {
            continue;
        };
        let (cost, _) = rest.split_once(' ').context("no figure")?;
        let cost: u64 = cost.parse()?;
        let budget = budgets
            .iter()
            .filter(|(kernel, of, _)| *of == program && (!known || *kernel == series))
            .map(|(.., budget)| *budget)
            .max();
        println!("Linux {series}, {program}: {cost} instructions verified, budget {budget:?}");
        let advice = "look why; if it must be: `cargo xtask kernels host --update-budget`";
        let budget = budget.with_context(|| format!("{program} has no budget: {advice}"))?;
        ensure!(
            cost * 100 <= budget * (100 + OVER_BUDGET),
            "{program} costs the verifier {cost} instructions, more than {OVER_BUDGET} % over its \
             budget of {budget}: {advice}"
        );
        programs += 1;
    }
    ensure!(programs >= 4, "{programs} programs were loaded: {text}");
    Ok(())
}

/// Barriers that the verifier adds to the programs that most packets meet, at most: those on the way of few
/// packets (an interface with a large index, a second session, a notice, a ring that is nearly full). See `agent-ebpf/src/table.rs`.
const BARRIERS: [(&str, usize); 6] = [
    ("tcx_ingress", 1),
    ("tcx_egress", 1),
    ("tc_look_back", 1),
    ("tc_capture", 6),
    ("cgroup_ingress", 0),
    ("cgroup_capture", 6),
];

#[test]
fn the_verifier_puts_no_barriers_on_the_common_way() -> Result<()> {
    let node = Node::new()?;
    let agent = TestAgent::start(&node)?;
    let objects = bpf::Objects::of_process(agent.pid()?)?;
    let mut found = 0;
    for program in objects.programs {
        let (name, barriers) = bpf::barriers(program)?;
        println!("{name}: {barriers} barriers");
        let Some((_, most)) = BARRIERS.iter().find(|(of, _)| *of == name) else {
            continue;
        };
        ensure!(
            barriers <= *most,
            "the verifier has put {barriers} barriers into {name}, not {most}: \
             something is on the stack; `bpftool prog dump xlated` shows where"
        );
        found += 1;
    }
    ensure!(found == BARRIERS.len(), "only {found} programs were found");
    Ok(())
}

/// Numbered packets from a pod to another, both captured: each is in either file once.
fn every_packet_once(options: Options) -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start_with(&node, options)?;
    let _sink = traffic::sink(PORT, node.directory(), |tool| api.command(tool))?;
    let captures = [
        agent.capture(of_pod_filtered(&web, FILTER))?,
        agent.capture(of_pod_filtered(&api, FILTER))?,
    ];
    let stream = Stream {
        rate: 5000,
        size: 200,
        ..Stream::new(api.ipv4(), PORT, PACKETS)
    };
    let sent = stream.send(|tool| web.command(tool))?;
    // The reply direction: nobody listens at web, so an ICMP error and not this filter's business.
    let dropped = [&web, &api]
        .map(|pod| veth::receive_dropped(node.netns(), pod.interface()))
        .into_iter()
        .sum::<Result<u64>>()?;
    assert_eq!(dropped, 0, "the veth lost packets before the hook");
    for capture in captures {
        let proven = proof::prove(&agent, &agent.stop(&capture.id)?)?;
        proof::complete(&proven.counts)?;
        let numbers = Numbers::collect(1, proven.capture.frames());
        assert_eq!(numbers.missing(sent), []);
        assert_eq!((numbers.duplicates(), numbers.foreign), (0, 0));
        assert_eq!(proven.counts.matched, sent);
    }
    Ok(())
}

#[test]
fn on_this_kernels_best_hook_every_packet_is_taken_once() -> Result<()> {
    every_packet_once(Options::default())
}

#[test]
fn on_clsact_every_packet_is_taken_once() -> Result<()> {
    every_packet_once(clsact())
}

#[test]
fn a_capture_names_the_hook_that_took_its_packets() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    let agent = TestAgent::start_with(&node, clsact())?;
    let state = agent.capture(of_pod_filtered(&web, FILTER))?;
    let hooks: Vec<_> = state.taps.iter().map(|tap| tap.hook.as_str()).collect();
    assert_eq!(hooks, ["clsact", "cgroup"]);
    Ok(())
}

/// Names of the BPF filters on one side of an interface, in the order in which they run.
fn filters(netns: &Netns, interface: &str, direction: &str) -> Result<Vec<String>> {
    let text = run::output(
        netns
            .command("tc")
            .args(["-j", "filter", "show", "dev", interface, direction]),
    )?;
    let value: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("tc printed {text}"))?;
    Ok(value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|filter| Some(filter["options"]["bpf_name"].as_str()?.to_owned()))
        .collect())
}

/// Remora's filters on both sides of a pod's veth; fails if there is a foreign one.
fn own_filters(node: &Node, pod: &Pod) -> Result<Vec<String>> {
    let mut all = filters(node.netns(), pod.interface(), "ingress")?;
    all.extend(filters(node.netns(), pod.interface(), "egress")?);
    let foreign = all.iter().find(|name| !name.starts_with("remora-agent/"));
    ensure!(foreign.is_none(), "{all:?}");
    Ok(all)
}

fn has_clsact(node: &Node, pod: &Pod) -> Result<bool> {
    let text = run::output(
        node.command("tc")
            .args(["qdisc", "show", "dev", pod.interface()]),
    )?;
    Ok(text.contains("clsact"))
}

/// Captures one datagram, so that the agent is attached and counts right.
fn captures_one(agent: &TestAgent<'_>, web: &Pod, api: &Pod) -> Result<()> {
    let state = agent.capture(of_pod_filtered(web, FILTER))?;
    traffic::datagram(web.netns(), (api.ipv4(), PORT).into(), b"one")?;
    let proven = proof::prove(agent, &agent.stop(&state.id)?)?;
    // Not two: leftovers of another agent share nothing with this one's maps.
    assert_eq!(proven.counts.written, 1);
    Ok(())
}

#[test]
fn an_orderly_end_leaves_neither_filter_nor_qdisc() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let mut agent = TestAgent::start_with(&node, clsact())?;
    captures_one(&agent, &web, &api)?;
    assert_eq!(own_filters(&node, &web)?.len(), 2);
    agent.end_by(Signal::SIGTERM)?;
    assert_eq!(own_filters(&node, &web)?, [""; 0]);
    assert!(!has_clsact(&node, &web)? && !has_clsact(&node, &api)?);
    Ok(())
}

#[test]
fn what_a_killed_agent_leaves_on_interfaces_is_gone_after_the_next_start() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let mut agent = TestAgent::start_with(&node, clsact())?;
    captures_one(&agent, &web, &api)?;
    agent.end_by(Signal::SIGKILL)?;
    let left = own_filters(&node, &web)?;
    assert_eq!(left.len(), 2, "a filter is no link: {left:?}");

    agent.start_again()?;
    captures_one(&agent, &web, &api)?;
    let now = own_filters(&node, &web)?;
    assert_eq!(now.len(), 2, "{now:?}");
    assert!(
        now.iter().all(|name| !left.contains(name)),
        "{left:?}, {now:?}"
    );
    assert!(
        agent
            .tail()
            .contains("removed the filters that an agent left"),
        "{}",
        agent.tail()
    );
    agent.end_by(Signal::SIGTERM)?;
    assert!(!has_clsact(&node, &web)?);
    Ok(())
}

#[test]
fn an_agent_that_starts_leaves_a_living_ones_filters_alone() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let mut first = TestAgent::start_with(&node, clsact())?;
    captures_one(&first, &web, &api)?;
    let mut second = TestAgent::start_with(&node, clsact())?;
    captures_one(&second, &web, &api)?;
    assert_eq!(own_filters(&node, &web)?.len(), 4);
    captures_one(&first, &web, &api)?;
    // The qdisc is the first's, and stays for the second's filters.
    first.end_by(Signal::SIGTERM)?;
    captures_one(&second, &web, &api)?;
    assert_eq!(own_filters(&node, &web)?.len(), 2);
    second.end_by(Signal::SIGTERM)?;
    assert_eq!(own_filters(&node, &web)?, [""; 0]);
    Ok(())
}

/// A datagram from `web` to a port of the node arrives, which the foreign filter drops at 9009.
fn arrives(node: &Node, web: &Pod, port: u16) -> Result<bool> {
    traffic::arrives(node, web, port, 9008)
}

#[test]
fn a_foreign_filter_that_was_there_first_runs_after_ours_and_outlives_the_agent() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    bpf::add_foreign_filter(node.netns(), web.interface(), 9009)?;
    let mut agent = TestAgent::start_with(&node, clsact())?;
    let state = agent.capture(v1::CaptureSpec {
        filter: "udp".into(),
        ..of_pod_filtered(&web, "")
    })?;
    let names = filters(node.netns(), web.interface(), "ingress")?;
    assert!(
        names[0].starts_with("remora-agent/") && names[1] == "foreign",
        "{names:?}"
    );
    assert!(arrives(&node, &web, 9008)?);
    assert!(
        !arrives(&node, &web, 9009)?,
        "the foreign filter does not run"
    );
    let counts = agent.stop(&state.id)?.counts.context("no counts")?;
    assert_eq!(counts.written, 3, "the capture sees what the filter drops");
    agent.end_by(Signal::SIGTERM)?;
    assert_eq!(
        filters(node.netns(), web.interface(), "ingress")?,
        ["foreign"]
    );
    assert!(!arrives(&node, &web, 9009)?, "the agent took it away");
    Ok(())
}

#[test]
fn an_interface_that_has_the_qdisc_ingress_is_refused_and_says_why() -> Result<()> {
    let node = Node::new()?;
    let web = node.pod("web")?;
    run::output(
        node.command("tc")
            .args(["qdisc", "add", "dev", web.interface(), "ingress"]),
    )?;
    let agent = TestAgent::start_with(&node, clsact())?;
    let refused = agent
        .capture(of_pod_filtered(&web, FILTER))
        .expect_err("egress would be taken for ingress");
    assert!(refused.message().contains("qdisc `ingress`"), "{refused}");
    Ok(())
}
