//! Pods by their names, in every layout of their cgroups.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use remora_agent::target::{
    CgroupRoot, KnownVeths, ResolveError, Resolver,
    pods::{Container, KnownPods, Pod, PodPhase},
};
use remora_capture::session::{LookBackMode, PodRef, Target};

use crate::support::{Sleeper, TestCgroup, enter_own_node, unique};

const ID: &str = "6e858ea516b6826b46d8405beb4c9717649f578660b11d8cfa2b5206cf147dfe";

/// A uid that no other test, and no pod of this machine, has.
fn uid(number: u16) -> String {
    format!(
        "{:08x}-{number:04x}-4000-8000-0123456789ab",
        std::process::id()
    )
}

fn pod(uid: &str, name: &str) -> Pod {
    Pod {
        uid: uid.to_owned(),
        cgroup_uid: uid.to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        phase: PodPhase::Running,
        containers: vec![Container {
            name: "main".to_owned(),
            id: Some(ID.to_owned()),
            ..Container::default()
        }],
        ..Pod::default()
    }
}

fn known() -> KnownPods {
    KnownPods::of_kubernetes(Duration::from_secs(60), LookBackMode::Payload)
}

fn tell(pods: &KnownPods, pod: Pod) {
    pods.change(|told| {
        told.namespaces.apply("shop".to_owned(), None);
        told.pods.apply(pod, Instant::now());
    });
}

fn resolver(pods: &KnownPods) -> Result<Resolver> {
    let veths = KnownVeths::default();
    Ok(Resolver::with_known(
        CgroupRoot::find()?,
        veths,
        pods.clone(),
    ))
}

fn target(name: &str, container: Option<&str>) -> Target {
    Target::Pod(PodRef {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: None,
        container: container.map(str::to_owned),
    })
}

#[test]
fn a_pod_is_found_in_every_layout_and_its_container_in_it() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let top = TestCgroup::new()?;
    let pods = known();
    let resolver = resolver(&pods)?;
    /// A pod's and a container's directory, by the pod's uid.
    type Layout = fn(&str) -> (String, String);
    let layouts: [(&str, Layout); 7] = [
        ("cgroupfs, guaranteed", |uid| {
            (format!("kubepods/pod{uid}"), ID.to_owned())
        }),
        ("cgroupfs, burstable", |uid| {
            (format!("kubepods/burstable/pod{uid}"), ID.to_owned())
        }),
        ("cgroupfs, best effort, in kind", |uid| {
            (
                format!("{ID}/kubelet/kubepods/besteffort/pod{uid}"),
                ID.to_owned(),
            )
        }),
        ("systemd, guaranteed", |uid| {
            let uid = uid.replace('-', "_");
            let pod = format!("kubepods.slice/kubepods-pod{uid}.slice");
            (pod, format!("cri-containerd-{ID}.scope"))
        }),
        ("systemd, burstable, CRI-O", |uid| {
            let uid = uid.replace('-', "_");
            let class = "kubepods.slice/kubepods-burstable.slice";
            let pod = format!("{class}/kubepods-burstable-pod{uid}.slice");
            (pod, format!("crio-{ID}.scope"))
        }),
        ("systemd, best effort, in kind", |uid| {
            let uid = uid.replace('-', "_");
            let root = format!("docker-{ID}.scope/kubelet.slice/kubelet-kubepods.slice");
            let class = format!("{root}/kubelet-kubepods-besteffort.slice");
            let pod = format!("{class}/kubelet-kubepods-besteffort-pod{uid}.slice");
            (pod, format!("cri-containerd-{ID}.scope"))
        }),
        ("of a manifest file", |uid| {
            (format!("kubepods/burstable/pod{uid}"), ID.to_owned())
        }),
    ];
    for (number, (layout, paths)) in (0..).zip(layouts) {
        let mut uid = uid(number);
        if layout.contains("manifest") {
            uid = uid.replace('-', "");
        }
        let (directory, container) = paths(&uid);
        let name = unique("web");
        tell(&pods, pod(&uid, &name));
        let error = resolver.resolve(&target(&name, None)).err();
        assert!(
            matches!(error, Some(ResolveError::NotFound { .. })),
            "{layout}: {error:?}"
        );
        let sleeper = Sleeper::in_own_netns()?;
        let veth = format!("v{number}");
        sleeper.add_veth(&veth)?;
        top.make(&format!("{directory}/{container}"))?;
        top.put(&sleeper, &format!("{directory}/{container}"))?;

        let found = resolver.resolve(&target(&name, None))?;
        let path = format!("{}/{directory}", top.path);
        assert_eq!(found.cgroup.context("no cgroup")?.path, path, "{layout}");
        assert_eq!(found.interfaces[0].name, veth, "{layout}");
        let found = resolver.resolve(&target(&name, Some("main")))?;
        let path = format!("{path}/{container}");
        assert_eq!(found.cgroup.context("no cgroup")?.path, path, "{layout}");
    }
    Ok(())
}

#[test]
fn a_cgroup_that_a_workload_makes_is_not_taken_for_another_s_pod() -> Result<()> {
    if !enter_own_node()? {
        return Ok(());
    }
    let top = TestCgroup::new()?;
    let (pods, uid) = (known(), uid(100));
    let resolver = resolver(&pods)?;
    tell(&pods, pod(&uid, "web"));
    // In a container of its own, before the pod is there.
    let forged = top.make(&format!("kubepods/{ID}/kubepods/pod{uid}"))?;
    let real = top.make(&format!("kubepods/besteffort/pod{uid}"))?;
    let found = resolver.resolve(&target("web", None))?;
    let path = found.cgroup.context("no cgroup")?.path;
    assert_eq!(path, real);
    assert_ne!(path, forged);
    Ok(())
}
