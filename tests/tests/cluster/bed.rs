//! The bed itself: that it is the cluster that it says it is, and keeps to itself.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use remora_tests::{
    cluster::{Cluster, access::PEOPLE, lan},
    run,
};

use crate::{
    Test,
    shop::{POD_LIMIT, Shop},
};

pub(crate) const TESTS: [Test; 6] = [
    ("bed::two_nodes_are_ready_and_of_one_version", two_nodes),
    (
        "bed::pods_reach_each_other_within_and_across_nodes",
        pods_talk,
    ),
    (
        "bed::a_pod_is_its_cgroups_and_its_veth_on_its_node",
        pods_are_found,
    ),
    (
        "bed::a_pod_reaches_the_api_server_and_nothing_beyond",
        pods_stay_inside,
    ),
    ("bed::people_have_the_rights_that_they_were_granted", rights),
    (
        "bed::an_api_server_comes_back_with_what_it_knew",
        api_comes_back,
    ),
];

fn two_nodes(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.kubectl().get(&["nodes"])?;
    let nodes = nodes["items"].as_array().context("no list")?;
    let mut names = Vec::new();
    for node in nodes {
        names.push(node["metadata"]["name"].as_str().context("no name")?);
        let info = &node["status"]["nodeInfo"];
        let (kubelet, runtime) = (&info["kubeletVersion"], &info["containerRuntimeVersion"]);
        ensure!(
            kubelet
                .as_str()
                .is_some_and(|version| version.starts_with("v1.37.")),
            "kubelet {kubelet}"
        );
        ensure!(
            runtime
                .as_str()
                .is_some_and(|version| version.starts_with("containerd://2.")),
            "runtime {runtime}"
        );
    }
    ensure!(names == ["node-a", "node-b"], "{names:?}");
    let version = cluster.kubectl().run(&["get", "--raw", "/version"])?;
    ensure!(version.contains("\"v1.37."), "{version}");
    let helm = run::output(cluster.kubectl().command("helm").args(["list", "-A"]))?;
    ensure!(helm.contains("NAMESPACE"), "{helm}");
    Ok(())
}

fn pods_talk(cluster: &Cluster) -> Result<()> {
    let shop = Shop::open(cluster, "talk")?;
    let pods = shop.web(&[("one", "node-a"), ("two", "node-a"), ("three", "node-b")])?;
    for from in &pods {
        for to in &pods {
            let page = shop.fetch(from, to)?;
            ensure!(page.trim() == to.name, "{} got {page}", from.name);
        }
    }
    let log = shop.run(&["logs", "one"])?;
    ensure!(log.is_empty(), "{log}");
    Ok(())
}

fn pods_are_found(cluster: &Cluster) -> Result<()> {
    let shop = Shop::open(cluster, "found")?;
    let pods = shop.web(&[("here", "node-a"), ("there", "node-b")])?;
    for pod in &pods {
        let node = cluster.node(&pod.node)?;
        let directory = node.cgroup_of(pod);
        let leaves = fs::read_dir(&directory)?.flatten().filter(|entry| {
            let kind = entry.file_type();
            kind.is_ok_and(|kind| kind.is_dir())
        });
        // The sandbox's and the container's.
        ensure!(leaves.count() == 2, "{}", directory.display());
        let pids = node.processes_of(pod, "web")?;
        ensure!(!pids.is_empty(), "no process in {}", directory.display());
        let line = fs::read_to_string(format!("/proc/{}/cgroup", pids[0]))?;
        ensure!(
            line.contains(&pod.uid) && line.contains(&node.cgroup_root()),
            "{line}"
        );

        let inside = run::output(
            node.beside(pod, "ip")?
                .args(["-o", "-4", "addr", "show", "eth0"]),
        )?;
        ensure!(inside.contains(&pod.address()?.to_string()), "{inside}");
        let veth = node.veth_of(pod)?;
        let bridge = node.netns().ip(&format!("-o link show {veth}"))?;
        ensure!(bridge.contains("master cni0"), "{bridge}");
        // From the node itself, as an agent there sees it.
        let seen = run::output(node.command("cat").arg("/proc/1/comm"))?;
        ensure!(
            seen.trim() == "cluster",
            "the node's first process is {seen}"
        );
        let host = run::output(&mut node.command("hostname"))?;
        ensure!(host.trim() == node.name(), "{host}");
    }
    Ok(())
}

fn pods_stay_inside(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let routes = node.netns().ip("route show default")?;
        ensure!(routes.is_empty(), "{} has a way out: {routes}", node.name());
    }
    let routes = cluster.lan().netns().ip("route show default")?;
    ensure!(
        routes.is_empty(),
        "the control plane has a way out: {routes}"
    );

    let shop = Shop::open(cluster, "inside")?;
    shop.web(&[("inside", "node-a")])?;
    let connect = |to: &str| shop.run(&["exec", "inside", "--", "nc", "-w", "5", to, "443"]);
    connect(&lan::KUBERNETES.to_string())?;
    // An address for documentation, which nobody has (RFC 5737).
    ensure!(
        connect("192.0.2.1").is_err(),
        "a pod reaches what is not there"
    );
    Ok(())
}

fn rights(cluster: &Cluster) -> Result<()> {
    let shop = Shop::open(cluster, "rights")?;
    let person = PEOPLE[0];
    let theirs = cluster.kubectl_as(person)?;
    let list = ["get", "pods", "-n", &shop.namespace];
    let refused = theirs.finish(&list)?;
    ensure!(
        String::from_utf8_lossy(&refused.stderr).contains("Forbidden"),
        "{refused:?}"
    );
    shop.run(&["create", "role", "reader", "--verb=list", "--resource=pods"])?;
    let user = format!("--user={person}");
    shop.run(&["create", "rolebinding", "reader", "--role=reader", &user])?;
    remora_tests::wait::until(POD_LIMIT, "the right to take hold", || {
        Ok(theirs.finish(&list)?.status.success())
    })
}

fn api_comes_back(cluster: &Cluster) -> Result<()> {
    let shop = Shop::open(cluster, "back")?;
    let before = shop.web(&[("kept", "node-b")])?;
    cluster.control_plane().stop_api()?;
    ensure!(
        cluster.kubectl().run(&["get", "nodes"]).is_err(),
        "it is stopped"
    );
    cluster.control_plane().start_api()?;
    ensure!(shop.pod("kept")? == before[0], "the pod is another");
    // Kubelet, scheduler and controller-manager found it again.
    shop.web(&[("new", "node-b")])?;
    Ok(())
}
