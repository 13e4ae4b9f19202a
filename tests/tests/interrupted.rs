//! `cargo xtask demo`, interrupted. It becomes the program `demo`, so what Ctrl-C does to this is what it
//! does to that.

use std::{fs, os::unix::process::CommandExt as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use remora_tests::{
    bpf::Objects,
    name,
    run::{self, Proc},
    wait,
};

const LIMIT: Duration = Duration::from_secs(120);

/// Pid and name of each process of a group that has not ended.
fn group(of: u32) -> Result<Vec<(u32, String)>> {
    let mut members = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // "pid (name) state parent group …"; a name may have blanks and parentheses.
        let Some((head, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let mut fields = rest.split(' ');
        let (state, group) = (fields.next(), fields.nth(1));
        let Some((pid, name)) = head.split_once(" (") else {
            continue;
        };
        if group == Some(&of.to_string()) && state != Some("Z") {
            members.push((pid.parse()?, name.to_owned()));
        }
    }
    Ok(members)
}

/// Interrupts the demo when it has said `when`; answers what the agent had in the kernel by then.
fn interrupted(when: &str) -> Result<Option<Objects>> {
    let directory = name::directory()?;
    let mut command = run::command(run::tool("demo")?);
    // As a shell starts it: Ctrl-C goes to all of its group.
    command.process_group(0);
    let mut demo = Proc::spawn(&mut command, directory.path(), "demo")?;
    let pid = demo.pid();
    demo.wait_for(when, LIMIT)?;
    ensure!(!name::left_of(pid).is_empty(), "it has made nothing yet");
    let members = group(pid)?;
    let agent = members.iter().find(|(_, name)| name == "remora-agent");
    let objects = agent
        .map(|&(agent, _)| Objects::of_process(agent))
        .transpose()?;

    killpg(Pid::from_raw(i32::try_from(pid)?), Signal::SIGINT)?;
    let status = demo.wait(LIMIT)?;
    ensure!(status.code() == Some(130), "{status}: {}", demo.tail());
    wait::until(LIMIT, "the end of all that it had started", || {
        Ok(group(pid)?.is_empty())
    })
    .with_context(|| format!("{members:?} were there, and are: {:?}", group(pid)))?;
    let left = name::left_of(pid);
    ensure!(left.is_empty(), "left behind: {left:?}; {}", demo.tail());
    Ok(objects)
}

#[test]
fn ctrl_c_leaves_no_namespace_cgroup_program_or_process() -> Result<()> {
    // While it makes its pods; while it captures.
    ensure!(interrupted("  pod shop ")?.is_none());
    let objects = interrupted("  armed ")?.context("no agent was there")?;
    ensure!(!objects.programs.is_empty() && !objects.links.is_empty());
    objects.gone()
}
