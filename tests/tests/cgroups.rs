//! Where the cgroup programs are, and that cgroups within each other do not disturb each other.

use std::{
    fs,
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use remora_agent::kernel::{
    program::{Kind, Program},
    translate::insn::{Alu, Reg, alu64, exit},
};
use remora_proto::v1::{CaptureSpec, target::Target};
use remora_tests::{
    agent::{TestAgent, of_pod, spec},
    bpf::Objects,
    cgroup::{self, Cgroup},
    name,
    node::Node,
    numbered::Numbers,
    proof,
    run::{self, Place},
    traffic::{self, Sink, Stream},
};

const PACKETS: u64 = 1000;
/// Deeper than any container.
const DEPTH: usize = 20;

fn of_cgroup(cgroup: &Cgroup) -> CaptureSpec {
    spec(Target::CgroupPath(cgroup.path()))
}

/// The agent's programs that are attached to a cgroup itself.
fn programs(agent: &TestAgent<'_>, directory: &Path) -> Result<usize> {
    let text = run::output(
        run::command("bpftool")
            .args(["-j", "cgroup", "show"])
            .arg(directory),
    )?;
    if text.trim().is_empty() {
        return Ok(0);
    }
    let listed: serde_json::Value = serde_json::from_str(text.trim())?;
    let own = Objects::of_process(agent.pid()?)?.programs;
    let ids = listed.as_array().into_iter().flatten();
    Ok(ids
        .filter_map(|program| u32::try_from(program["id"].as_u64()?).ok())
        .filter(|id| own.contains(id))
        .count())
}

/// Cgroups in each other, the innermost first: so they go.
fn below(outer: &Cgroup, depth: usize) -> Result<Vec<Cgroup>> {
    let mut all = vec![outer.child("d")?];
    while let Some(last) = all.last().filter(|_more| all.len() < depth) {
        all.push(last.child("d")?);
    }
    all.reverse();
    Ok(all)
}

fn place<'a>(node: &'a Node, cgroup: &'a Cgroup) -> Place<'a> {
    Place {
        netns: Some(node.netns()),
        cgroup: Some(cgroup),
        ..Default::default()
    }
}

/// Something that receives datagrams in a cgroup of the node.
fn service(node: &Node, cgroup: &Cgroup, port: u16) -> Result<Sink> {
    traffic::sink(port, node.directory(), |tool| {
        place(node, cgroup).command(tool)
    })
}

fn send(node: &Node, from: &Cgroup, run: u16, port: u16) -> Result<u64> {
    let stream = Stream {
        run,
        rate: 20_000,
        ..Stream::new(Ipv4Addr::LOCALHOST, port, PACKETS)
    };
    stream.send(|tool| place(node, from).command(tool))
}

#[test]
fn cgroups_in_each_other_have_their_packets_once_and_others_never_meet_the_programs() -> Result<()>
{
    let node = Node::new()?;
    let outer = Cgroup::new(&name::unique())?;
    let deep = below(&outer, DEPTH)?;
    let inner = &deep[0];
    let beside = Cgroup::new(&name::unique())?;
    let _services = [
        service(&node, inner, 9000)?,
        service(&node, &outer, 9001)?,
        service(&node, &beside, 9002)?,
    ];
    let root = cgroup::root()?;
    let agent = TestAgent::start(&node)?;
    let places = [
        root,
        outer.directory(),
        inner.directory(),
        beside.directory(),
    ];
    let attached = || -> Result<Vec<usize>> {
        let counts = places
            .into_iter()
            .map(|directory| programs(&agent, directory));
        counts.collect()
    };
    assert_eq!(attached()?, [0; 4]);
    // The inner one first: nothing of it is lost when one around it comes.
    let of_inner = agent.capture(of_cgroup(inner))?;
    let before = send(&node, &beside, 1, 9000)?;
    let of_outer = agent.capture(of_cgroup(&outer))?;
    let again = agent.capture(of_cgroup(&outer))?;
    assert_eq!(attached()?, [0, 2, 2, 0]);
    // Into the inner one, within the outer one from there, and past both.
    let into = send(&node, &beside, 2, 9000)?;
    let within = send(&node, inner, 3, 9001)?;
    send(&node, &beside, 4, 9002)?;
    let inner_state = agent.stop(&of_inner.id)?;
    assert_eq!(attached()?, [0, 2, 0, 0]);
    let after = send(&node, inner, 5, 9001)?;
    for (state, expected) in [
        (inner_state, [before, into, within, 0, 0]),
        (agent.stop(&of_outer.id)?, [0, into, within, 0, after]),
        (agent.stop(&again.id)?, [0, into, within, 0, after]),
    ] {
        let proven = proof::prove(&agent, &state)?;
        proof::complete(&proven.counts)?;
        for (run, expected) in (1..).zip(expected) {
            let numbers = Numbers::collect(run, proven.capture.frames());
            assert_eq!(
                (numbers.distinct(), numbers.duplicates()),
                (expected, 0),
                "run {run} in {}",
                state.id
            );
        }
    }
    assert_eq!(attached()?, [0; 4]);
    Ok(())
}

/// A program of the old kind on a cgroup, which those below may replace.
struct Replaceable<'a> {
    cgroup: &'a Cgroup,
    _program: Program,
    id: String,
}

impl<'a> Replaceable<'a> {
    fn attach(cgroup: &'a Cgroup) -> Result<Self> {
        let pass = [alu64(Alu::Mov, Reg::R0, 1), exit()];
        let program = Program::load(Kind::CgroupIngress, "replaceable", c"GPL", &pass)?;
        let fd = program.as_fd().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
        let id = info.lines().find_map(|line| line.strip_prefix("prog_id:"));
        let attached = Self {
            cgroup,
            id: id.context("no program id")?.trim().to_owned(),
            _program: program,
        };
        attached.bpftool("attach", &["override"])?;
        Ok(attached)
    }

    fn bpftool(&self, action: &str, flags: &[&str]) -> Result<String> {
        run::output(
            run::command("bpftool")
                .args(["cgroup", action])
                .arg(self.cgroup.directory())
                .args(["cgroup_inet_ingress", "id", &self.id])
                .args(flags),
        )
    }
}

impl Drop for Replaceable<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.bpftool("detach", &[]) {
            eprintln!("failed to detach: {error:#}");
        }
    }
}

#[test]
fn a_program_that_would_be_replaced_is_left_alone_and_the_capture_refused() -> Result<()> {
    let node = Node::new()?;
    let outer = Cgroup::new(&name::unique())?;
    let inner = outer.child("inner")?;
    let _service = service(&node, &inner, 9000)?;
    let agent = TestAgent::start(&node)?;
    let replaceable = Replaceable::attach(&outer)?;
    for cgroup in [&inner, &outer] {
        let refusal = agent.capture(of_cgroup(cgroup)).expect_err("it is there");
        ensure!(!refusal.message().is_empty(), "{refusal}");
        assert_eq!(programs(&agent, cgroup.directory())?, 0);
    }
    let refusal = agent.capture(of_cgroup(&inner)).expect_err("it is there");
    ensure!(refusal.message().contains("allows no other"), "{refusal}");
    assert!(agent.list(true)?.is_empty());
    // Elsewhere all is well, and here once it is gone.
    let web = node.pod("web")?;
    let of_web = agent.capture(of_pod(&web))?;
    agent.stop(&of_web.id)?;
    drop(replaceable);
    let state = agent.capture(of_cgroup(&inner))?;
    let sent = send(&node, &outer, 1, 9000)?;
    let proven = proof::prove(&agent, &agent.stop(&state.id)?)?;
    assert_eq!(
        Numbers::collect(1, proven.capture.frames()).missing(sent),
        []
    );
    Ok(())
}
