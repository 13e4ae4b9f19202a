//! Each rule of where a target's packets pass.

use std::{thread, time::Duration};

use anyhow::{Result, bail, ensure};
use remora_agent::target::{
    CgroupRoot, CgroupScope, InterfaceKind, ResolveError, Resolved, Resolver, Revisit,
};
use remora_capture::session::Target;

use crate::support::{Sleeper, TestCgroup, enter_own_node, ip, unique};

const ID: &str = "6e858ea516b6826b46d8405beb4c9717649f578660b11d8cfa2b5206cf147dfe";
const POD: &str = "poda65ca62e-5639-44ba-b2a1-a3cf1580c82c";

fn resolver() -> Result<Resolver> {
    Ok(Resolver::new(CgroupRoot::find()?))
}

fn resolve(target: &str) -> Result<Resolved> {
    Ok(resolver()?.resolve(&target.parse::<Target>()?)?)
}

fn refusal(target: &Target) -> Result<ResolveError> {
    match resolver()?.resolve(target) {
        Ok(resolved) => bail!("{target} is {resolved:?}"),
        Err(error) => Ok(error),
    }
}

fn names(resolved: &Resolved) -> Vec<&str> {
    let mut names: Vec<_> = resolved
        .interfaces
        .iter()
        .map(|i| i.name.as_str())
        .collect();
    names.sort_unstable();
    names
}

/// Everything by the cgroup programs, no interface, and a note that says why.
fn assert_sockets_only(resolved: &Resolved, why: &str) {
    assert_eq!(resolved.cgroup_scope, CgroupScope::All, "{resolved:?}");
    assert_eq!(names(resolved), [""; 0], "{resolved:?}");
    let told = resolved
        .notes
        .iter()
        .any(|note| note.contains(why) && note.contains("no pings"));
    assert!(told, "no {why:?} in {:?}", resolved.notes);
}

fn assert_behind(resolved: &Resolved, veths: &[&str]) {
    assert_eq!(
        resolved.cgroup_scope,
        CgroupScope::LoopbackOnly,
        "{resolved:?}"
    );
    assert_eq!(names(resolved), veths, "{resolved:?}");
    assert!(
        resolved
            .interfaces
            .iter()
            .all(|i| i.kind == InterfaceKind::Veth),
        "{resolved:?}"
    );
}

#[test]
fn a_pod_is_its_veth_and_its_loopback_however_it_is_named() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    let neighbour = Sleeper::in_own_netns()?;
    neighbour.add_veth("vneighbour")?;
    let pod = Sleeper::in_own_netns()?;
    pod.add_veth("vpod")?;
    cgroup.make("web")?;
    cgroup.put(&pod, "web")?;

    let by_path = resolve(&format!("cgroup:{}/web", cgroup.path))?;
    assert_behind(&by_path, &["vpod"]);
    assert_eq!(by_path.notes, [""; 0]);
    let found = by_path.cgroup.clone().unwrap();
    assert_eq!(
        (&found.path, found.level),
        (&format!("{}/web", cgroup.path), 2)
    );
    assert_eq!(found.pids(), [pod.pid()]);
    let description = format!("cgroup {}/web (id {}) behind vpod", cgroup.path, found.id);
    assert_eq!(by_path.description, description);
    assert_eq!(resolve(&format!("cgroup:{}", found.id))?, by_path);
    assert_eq!(resolve(&format!("pid:{}", pod.pid()))?, by_path);
    // The cgroup above holds no other process.
    assert_behind(&resolve(&format!("cgroup:{}", cgroup.path))?, &["vpod"]);
    Ok(())
}

#[test]
fn a_pod_with_several_veths_has_them_all() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    let pod = Sleeper::in_own_netns()?;
    pod.add_veth("vb")?;
    pod.add_veth("va")?;
    cgroup.put(&pod, "")?;
    assert_behind(&resolve(&format!("cgroup:{}", cgroup.path))?, &["va", "vb"]);
    Ok(())
}

#[test]
fn a_pod_s_interface_that_leads_past_the_node_is_told() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    let pod = Sleeper::in_own_netns()?;
    let elsewhere = Sleeper::in_own_netns()?;
    pod.add_veth("vpod")?;
    cgroup.put(&pod, "")?;
    let target = format!("cgroup:{}", cgroup.path);
    assert_eq!(resolve(&target)?.notes, [""; 0]);
    ip(&[
        "link", "add", "net1", "type", "veth", "peer", "name", "net2",
    ])?;
    ip(&["link", "set", "net1", "netns", &pod.pid().to_string()])?;
    ip(&["link", "set", "net2", "netns", &elsewhere.pid().to_string()])?;
    let resolved = resolve(&target)?;
    assert_behind(&resolved, &["vpod"]);
    assert!(
        resolved.notes[0].contains("1 more interfaces"),
        "{:?}",
        resolved.notes
    );
    Ok(())
}

#[test]
fn a_host_service_is_its_sockets() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    let unit = format!("{}.service", unique("remora-"));
    cgroup.make(&unit)?;
    let service = Sleeper::here()?;
    cgroup.put(&service, &unit)?;
    let resolved = resolve(&format!("unit:{unit}"))?;
    assert_sockets_only(&resolved, "sockets");
    assert!(
        resolved.description.ends_with("in the node's network"),
        "{}",
        resolved.description
    );
    Ok(())
}

#[test]
fn an_empty_cgroup_is_taken_with_a_note() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    assert_sockets_only(
        &resolve(&format!("cgroup:{}", cgroup.path))?,
        "no process is in it",
    );
    Ok(())
}

#[test]
fn processes_in_several_networks_are_their_sockets() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    let pod = Sleeper::in_own_netns()?;
    pod.add_veth("vpod")?;
    let service = Sleeper::here()?;
    cgroup.put(&pod, "")?;
    cgroup.put(&service, "")?;
    assert_sockets_only(
        &resolve(&format!("cgroup:{}", cgroup.path))?,
        "2 network namespaces",
    );
    Ok(())
}

#[test]
fn a_process_that_is_on_its_way_into_a_pod_does_not_hide_its_veth() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    let pod = Sleeper::in_own_netns()?;
    let veth = unique("v");
    pod.add_veth(&veth)?;
    cgroup.put(&pod, "")?;
    let starting = Sleeper::here()?;
    // It leaves again, which looks the same; on a busy machine perhaps too late for one look.
    let mut tries = 0;
    let resolved = loop {
        tries += 1;
        cgroup.put(&starting, "")?;
        let resolved = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(10));
                cgroup.put_into_root(&starting)
            });
            resolve(&format!("cgroup:{}", cgroup.path))
        })?;
        if !resolved.interfaces.is_empty() || tries == 20 {
            break resolved;
        }
    };
    assert_behind(&resolved, &[&veth]);
    Ok(())
}

#[test]
fn a_network_that_no_veth_leads_to_is_its_sockets() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    // One with nothing, and one that is reached through another pod only.
    let lonely = Sleeper::in_own_netns()?;
    let pod = Sleeper::in_own_netns()?;
    pod.add_veth("vpod")?;
    let nested = Sleeper::nested_in(&pod)?;
    for (name, sleeper) in [("lonely", &lonely), ("nested", &nested)] {
        cgroup.make(name)?;
        cgroup.put(sleeper, name)?;
        assert_sockets_only(
            &resolve(&format!("cgroup:{}/{name}", cgroup.path))?,
            "no veth",
        );
    }
    Ok(())
}

#[test]
fn a_veth_shared_with_a_process_outside_is_left_out_until_that_ends() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    cgroup.make("web")?;
    cgroup.make("other")?;
    let pod = Sleeper::in_own_netns()?;
    pod.add_veth("vpod")?;
    cgroup.put(&pod, "web")?;
    let guest = Sleeper::beside(&pod)?;
    cgroup.put(&guest, "other")?;

    let shared = resolve(&format!("cgroup:{}/web", cgroup.path))?;
    assert_sockets_only(
        &shared,
        &format!("process {} of cgroup {}/other", guest.pid(), cgroup.path),
    );
    // Together they are alone.
    assert_behind(&resolve(&format!("cgroup:{}", cgroup.path))?, &["vpod"]);

    let resolver = resolver()?;
    assert_eq!(resolver.revisit(&shared)?, Revisit::Same);
    drop(guest);
    match resolver.revisit(&shared)? {
        Revisit::Changed(now) => assert_behind(&now, &["vpod"]),
        other => bail!("{other:?}"),
    }
    Ok(())
}

#[test]
fn a_container_or_its_process_means_the_pod_and_a_path_the_container_alone() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    // Unique: tests on the same machine have the same tree.
    let id = format!("{:08x}{}", std::process::id(), &ID[8..]);
    let sandbox_id = format!("{:08x}{}", std::process::id(), "0".repeat(56));
    let container = format!("{POD}/{id}");
    let sandbox = format!("{POD}/{sandbox_id}");
    let monitor = format!("{POD}/crio-conmon-{id}.scope");
    for below in [&container, &sandbox, &monitor] {
        cgroup.make(below)?;
    }
    let pause = Sleeper::in_own_netns()?;
    pause.add_veth("vpod")?;
    let app = Sleeper::beside(&pause)?;
    let conmon = Sleeper::here()?;
    cgroup.put(&pause, &sandbox)?;
    cgroup.put(&app, &container)?;
    cgroup.put(&conmon, &monitor)?;

    let pod_path = format!("{}/{POD}", cgroup.path);
    for target in [
        format!("container:{}", &id[..12]),
        format!("container:containerd://{id}"),
        format!("pid:{}", app.pid()),
    ] {
        let resolved = resolve(&target)?;
        assert_behind(&resolved, &["vpod"]);
        assert_eq!(resolved.cgroup.as_ref().unwrap().path, pod_path, "{target}");
        assert!(
            resolved.description.starts_with("pod of "),
            "{}",
            resolved.description
        );
        assert!(
            resolved.notes[0].contains("all of the pod"),
            "{:?}",
            resolved.notes
        );
    }
    assert_behind(&resolve(&format!("cgroup:{pod_path}"))?, &["vpod"]);
    let alone = resolve(&format!("cgroup:{}/{container}", cgroup.path))?;
    assert_sockets_only(&alone, &sandbox_id);
    Ok(())
}

#[test]
fn a_process_in_the_root_cgroup_is_its_veth_or_refused() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    let pod = Sleeper::in_own_netns()?;
    pod.add_veth("vpod")?;
    let service = Sleeper::here()?;
    let lonely = Sleeper::in_own_netns()?;
    for sleeper in [&pod, &service, &lonely] {
        cgroup.put_into_root(sleeper)?;
    }
    let resolved = resolve(&format!("pid:{}", pod.pid()))?;
    assert_eq!(
        (resolved.cgroup.as_ref(), resolved.cgroup_scope),
        (None, CgroupScope::None)
    );
    assert_eq!(names(&resolved), ["vpod"]);
    assert!(
        resolved.notes[0].contains("nothing of its loopback"),
        "{:?}",
        resolved.notes
    );
    for sleeper in [&service, &lonely] {
        let error = refusal(&Target::Pid(sleeper.pid()))?;
        assert!(
            matches!(error, ResolveError::Unsupported { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("systemd-run --scope"), "{error}");
    }

    let resolver = resolver()?;
    assert_eq!(resolver.revisit(&resolved)?, Revisit::Same);
    ip(&["link", "del", "vpod"])?;
    assert_eq!(resolver.revisit(&resolved)?, Revisit::Gone);
    Ok(())
}

#[test]
fn the_root_cgroup_is_the_node_by_its_own_interfaces() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let pod = Sleeper::in_own_netns()?;
    pod.add_veth("vpod")?;
    let root = Target::CgroupPath("/".to_owned());
    let error = refusal(&root)?;
    assert!(matches!(error, ResolveError::NotFound { .. }), "{error:?}");

    // The way out of a node that is a container itself; and a way to one pod alone.
    let outside = Sleeper::in_own_netns()?;
    outside.add_veth("uplink")?;
    ip(&["address", "add", "10.9.0.1/24", "dev", "uplink"])?;
    ip(&["address", "add", "10.9.1.1/32", "dev", "vpod"])?;
    let node = resolve("cgroup:/")?;
    assert_eq!(names(&node), ["uplink"]);
    assert_eq!((node.cgroup, node.cgroup_scope), (None, CgroupScope::None));
    assert!(
        node.notes[0].contains("node's own interfaces"),
        "{:?}",
        node.notes
    );
    Ok(())
}

#[test]
fn what_is_not_there_is_not_found_and_the_error_says_what_to_do() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let ended = Sleeper::here()?;
    let pid = ended.pid();
    drop(ended);
    for (target, next) in [
        (Target::Pid(pid), "container:ID"),
        (Target::CgroupPath("/remora/no/such".to_owned()), "find /"),
        (Target::CgroupId(u64::MAX), "cgroup:/PATH"),
        (Target::Unit("remora-none.service".to_owned()), "systemctl"),
        (
            Target::Container("0123456789abcdef".to_owned()),
            "cgroup:/PATH",
        ),
        (Target::Interface("remora-none".to_owned()), "ip link"),
    ] {
        let error = refusal(&target)?;
        assert!(
            matches!(error, ResolveError::NotFound { .. }),
            "{target}: {error:?}"
        );
        assert!(error.to_string().contains(next), "{target}: {error}");
    }
    let hostile = refusal(&Target::CgroupPath("/\x1b[31m\u{202e}".to_owned()))?.to_string();
    assert!(!hostile.contains(['\x1b', '\u{202e}']), "{hostile:?}");
    let invalid = refusal(&Target::CgroupPath("/../etc".to_owned()))?;
    assert!(matches!(invalid, ResolveError::Invalid(_)), "{invalid:?}");
    Ok(())
}

#[test]
fn an_interface_is_a_host_end_or_another() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let pod = Sleeper::in_own_netns()?;
    pod.add_veth("vpod")?;
    ip(&[
        "link", "add", "both0", "type", "veth", "peer", "name", "both1",
    ])?;
    for (name, kind) in [
        ("vpod", InterfaceKind::Veth),
        ("both0", InterfaceKind::Other),
        ("lo", InterfaceKind::Loopback),
    ] {
        let resolved = resolve(&format!("interface:{name}"))?;
        assert_eq!(
            (resolved.cgroup.as_ref(), resolved.cgroup_scope),
            (None, CgroupScope::None)
        );
        assert_eq!(names(&resolved), [name]);
        assert_eq!(resolved.interfaces[0].kind, kind, "{name}");
    }
    Ok(())
}

/// The kernel gives the lowest free id, so the id of a dead pod is the next one's.
#[test]
fn a_network_namespace_id_used_again_leads_to_no_other_pod() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let cgroup = TestCgroup::new()?;
    let stayer = Sleeper::in_own_netns()?;
    stayer.add_veth("vstay")?;
    for round in 0..20 {
        let name = format!("v{round}");
        let pod = Sleeper::in_own_netns()?;
        cgroup.put(&pod, "")?;
        assert_sockets_only(&resolve(&format!("cgroup:{}", cgroup.path))?, "no veth");
        pod.add_veth(&name)?;
        assert_behind(&resolve(&format!("cgroup:{}", cgroup.path))?, &[&name]);
    }
    Ok(())
}

#[test]
fn a_removed_cgroup_is_gone_also_when_its_path_is_used_again() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let resolver = resolver()?;
    let cgroup = TestCgroup::new()?;
    let path = cgroup.path.clone();
    let resolved = resolve(&format!("cgroup:{path}"))?;
    let found = resolved.cgroup.clone().unwrap();
    ensure!(found.exists_still());
    let directory = resolver.cgroup_root().mount().join(&path[1..]);
    std::fs::remove_dir(&directory)?;
    assert_eq!(resolver.revisit(&resolved)?, Revisit::Gone);
    std::fs::create_dir(&directory)?;
    ensure!(!found.exists_still());
    assert_eq!(resolver.revisit(&resolved)?, Revisit::Gone);
    Ok(())
}
