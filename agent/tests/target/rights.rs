//! All of it works with the agent's rights, and from inside a container's namespaces.

use std::{env, process::Command};

use anyhow::Result;
use remora_agent::target::{CgroupRoot, CgroupScope, LinkEvent, LinkWatcher, Resolver};
use remora_capture::session::Target;

use crate::support::{
    Sleeper, TestCgroup, assert_the_agent_s_rights, enter_own_node, public_copy_of_this_program,
    run, with_the_agent_s_rights,
};

/// Set in the process that plays the agent: the targets to look up, one a line.
const TARGETS: &str = "REMORA_TEST_TARGETS";

/// Looks up the targets that the test gave and prints what they are.
fn play_the_agent(targets: &str) -> Result<()> {
    assert_the_agent_s_rights()?;
    let resolver = Resolver::new(CgroupRoot::find()?);
    for target in targets.lines() {
        let resolved = resolver.resolve(&target.parse::<Target>()?)?;
        let veths: Vec<_> = resolved
            .interfaces
            .iter()
            .map(|i| i.name.as_str())
            .collect();
        let path = resolved
            .cgroup
            .map(|cgroup| cgroup.path)
            .unwrap_or_default();
        println!(
            "resolved {target} {path} {:?} {}",
            resolved.cgroup_scope,
            veths.join("+")
        );
    }
    let mut watcher = LinkWatcher::new()?;
    while let Some(event) = watcher.next(std::time::Duration::ZERO)? {
        if let LinkEvent::Up(interface) = event {
            println!("link {} {:?}", interface.name, interface.kind);
        }
    }
    Ok(())
}

#[test]
fn uid_65532_with_two_capabilities_finds_the_same() -> Result<()> {
    if let Ok(targets) = env::var(TARGETS) {
        return play_the_agent(&targets);
    }
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    for below in ["pod", "service", "shared", "guest", "lonely"] {
        cgroup.make(below)?;
    }
    let pod = Sleeper::in_own_netns()?;
    pod.add_veth("vpod")?;
    let shared = Sleeper::in_own_netns()?;
    shared.add_veth("vshared")?;
    let guest = Sleeper::beside(&shared)?;
    let service = Sleeper::here()?;
    let lonely = Sleeper::in_own_netns()?;
    for (below, sleeper) in [
        ("pod", &pod),
        ("service", &service),
        ("shared", &shared),
        ("guest", &guest),
        ("lonely", &lonely),
    ] {
        cgroup.put(sleeper, below)?;
    }

    let (_directory, program) = public_copy_of_this_program()?;
    let top = &cgroup.path;
    let pid = pod.pid();
    let targets = format!(
        "cgroup:{top}/pod\npid:{pid}\ncgroup:{top}/service\ncgroup:{top}/shared\n\
         cgroup:{top}/lonely\ninterface:vpod"
    );
    let said = run(with_the_agent_s_rights()
        .arg(&program)
        .args([
            "--exact",
            "rights::uid_65532_with_two_capabilities_finds_the_same",
            "--nocapture",
        ])
        .env(TARGETS, targets))?;
    for line in [
        format!(
            "resolved cgroup:{top}/pod {top}/pod {:?} vpod",
            CgroupScope::LoopbackOnly
        ),
        format!(
            "resolved pid:{pid} {top}/pod {:?} vpod",
            CgroupScope::LoopbackOnly
        ),
        format!(
            "resolved cgroup:{top}/service {top}/service {:?} ",
            CgroupScope::All
        ),
        format!(
            "resolved cgroup:{top}/shared {top}/shared {:?} ",
            CgroupScope::All
        ),
        format!(
            "resolved cgroup:{top}/lonely {top}/lonely {:?} ",
            CgroupScope::All
        ),
        format!("resolved interface:vpod  {:?} vpod", CgroupScope::None),
        "link lo Loopback".to_owned(),
        "link vpod Veth".to_owned(),
        "link vshared Veth".to_owned(),
    ] {
        assert!(
            said.lines().any(|said| said == line),
            "no {line:?} in:\n{said}"
        );
    }
    Ok(())
}

/// As containerd runs an unprivileged container on pure cgroup v2: a cgroup namespace of its own,
/// which has its own mount beside the host's.
#[test]
fn processes_are_found_from_inside_a_cgroup_namespace() -> Result<()> {
    if let Ok(targets) = env::var(TARGETS) {
        return play_the_agent(&targets);
    }
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    for below in ["agent/ctr", "pod/ctr"] {
        cgroup.make(below)?;
    }
    let pod = Sleeper::in_own_netns()?;
    pod.add_veth("vpod")?;
    cgroup.put(&pod, "pod/ctr")?;

    let (directory, program) = public_copy_of_this_program()?;
    let own_mount = directory.path().join("cgroup");
    std::fs::create_dir(&own_mount)?;
    let mount = CgroupRoot::find()?.mount().to_owned();
    let agent_cgroup = mount.join(&cgroup.path[1..]).join("agent/ctr/cgroup.procs");
    let setpriv = with_the_agent_s_rights();
    let setpriv: Vec<_> = setpriv.get_args().filter_map(|arg| arg.to_str()).collect();
    let script = format!(
        "echo $$ > {} && exec unshare --cgroup --mount sh -c \
         'mount -t cgroup2 none {} && exec setpriv {} {} --exact \
         rights::processes_are_found_from_inside_a_cgroup_namespace --nocapture'",
        agent_cgroup.display(),
        own_mount.display(),
        setpriv.join(" "),
        program.display(),
    );
    let pid = pod.pid();
    let said = run(Command::new("sh")
        .args(["-c", &script])
        .env(TARGETS, format!("pid:{pid}")))?;
    let line = format!(
        "resolved pid:{pid} {}/pod/ctr {:?} vpod",
        cgroup.path,
        CgroupScope::LoopbackOnly
    );
    assert!(
        said.lines().any(|said| said == line),
        "no {line:?} in:\n{said}"
    );
    Ok(())
}
