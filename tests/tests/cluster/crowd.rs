//! Pods that all start at one moment, by real kubelets: triggers by container id go before the rest, and all are
//! recorded. Times are those of a shared machine: they are shown, not asserted.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use remora_tests::{
    cluster::{Cluster, image::BUSYBOX, pods::KubePod},
    run, wait,
};

use crate::{Test, capture::Bed, node_agent::NodeAgent, shop::PORT};

pub(crate) const TESTS: [Test; 1] = [(
    "crowd::of_many_pods_at_once_each_is_captured_by_its_container_and_recorded",
    crowd,
)];

/// On two nodes together. More than one capture may have.
const PODS: usize = 120;
const LIMIT: Duration = Duration::from_secs(240);
/// Triggers while they come.
const TRIGGERS: usize = 20;

fn crowd(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "crowd")?;
    let agent = NodeAgent::on(cluster, "node-a")?;
    let port = PORT.to_string();
    let command = ["/bin/httpd", "-f", "-p", &port, "-h", "/www"];
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "crowd"},
        "spec": {
            "replicas": PODS,
            "selector": {"matchLabels": {"app": "crowd"}},
            "template": {
                "metadata": {"labels": {"app": "crowd"}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "web", "image": BUSYBOX, "imagePullPolicy": "Never", "command": command,
                    }],
                },
            },
        },
    });
    let begun = Instant::now();
    bed.shop.apply(&deployment.to_string())?;
    let mut tried = BTreeSet::new();
    let mut took = Vec::new();
    let pods = wait::until_some(LIMIT, "all pods to run", || {
        let pods = bed.shop.kubectl().pods(&bed.shop.namespace, "app=crowd")?;
        let has_container = |pod: &&KubePod| pod.containers.contains_key("web");
        let there: Vec<&KubePod> = pods.iter().filter(has_container).collect();
        if took.len() < TRIGGERS {
            let mut new = there.iter().filter(|pod| pod.node == "node-a");
            let fresh = new.find(|pod| !tried.contains(&pod.uid));
            if let Some(pod) = fresh {
                tried.insert(pod.uid.clone());
                took.push(trigger(&agent, pod)?);
            }
        }
        let are_all = there.len() == PODS;
        Ok(are_all.then(|| pods.clone()))
    })?;
    let running = begun.elapsed();
    let of_node = pods.iter().filter(|pod| pod.node == "node-a").count();
    wait::until(LIMIT, "each of them to be recorded", || {
        Ok(recorded(&agent, &bed.shop.namespace)? == of_node)
    })?;
    ensure!(!took.is_empty(), "nobody was captured meanwhile");
    took.sort();
    println!(
        "{PODS} pods at once, {of_node} on the node: running after {running:?}, recorded {:?} later; {} triggers by \
         container id meanwhile, `remora` started and ended: p50 {:?}, longest {:?}",
        begun.elapsed() - running,
        took.len(),
        took[took.len() / 2],
        took[took.len() - 1],
    );

    // Too many for one capture: nothing begins.
    let file = cluster.directory().join("crowd.pcapng");
    let mut command = bed.user.remora()?;
    command.args(["capture", "deploy/crowd", "-n", &bed.shop.namespace, "-w"]);
    let refused = run::finish(command.arg(&file))?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(1) && said.contains("at most 100 are captured at once"),
        "{said}"
    );
    ensure!(!file.exists());
    Ok(())
}

/// A capture by a container's id, begun and ended.
fn trigger(agent: &NodeAgent, pod: &KubePod) -> Result<Duration> {
    let container = format!("container:{}", pod.container("web")?);
    let asked = Instant::now();
    let id = agent.run(&["capture", "--store", &container])?;
    let took = asked.elapsed();
    agent.run(&["stop", id.trim()])?;
    Ok(took)
}

/// Pods of the namespace with look-back.
fn recorded(agent: &NodeAgent, namespace: &str) -> Result<usize> {
    let status: Value = serde_json::from_str(&agent.run(&["status", "-o", "json"])?)?;
    let taps = status["taps"].as_array().context("no taps")?;
    let prefix = format!("pod {namespace}/");
    let is_recorded = |tap: &&Value| {
        let description = tap["description"].as_str().unwrap_or_default();
        description.starts_with(&prefix) && !tap["look_back"].is_null()
    };
    Ok(taps.iter().filter(is_recorded).count())
}
