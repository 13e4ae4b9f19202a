//! Pods that all start at one moment, by real kubelets: triggers by container id go before the rest, and all are
//! recorded. Times are those of a shared machine: they are shown, not asserted.

use std::{
    collections::BTreeSet,
    env,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use remora_proto::v1::{self, target::Target};
use serde_json::json;

use remora_tests::{
    cluster::{Cluster, image::BUSYBOX, pods::KubePod},
    run, wait,
};

use crate::{
    Test,
    capture::Bed,
    node_agent::{Calls, NodeAgent},
    shop::PORT,
};

pub(crate) const TESTS: [Test; 1] = [(
    "crowd::of_many_pods_at_once_each_is_captured_by_its_container_and_recorded",
    crowd,
)];

/// On two nodes together, more than one capture may have; or as many as the variable says.
const PODS: usize = 120;
const PODS_VARIABLE: &str = "REMORA_CROWD";
const LIMIT: Duration = Duration::from_secs(300);
/// Triggers while they come.
const TRIGGERS: usize = 20;

fn crowd(cluster: &Cluster) -> Result<()> {
    let bed = Bed::open(cluster, "crowd")?;
    let calls = Calls::to(&NodeAgent::on(cluster, "node-a")?)?;
    let count = match env::var(PODS_VARIABLE) {
        Ok(count) => count.parse().context(PODS_VARIABLE)?,
        Err(_) => PODS,
    };
    let port = PORT.to_string();
    let command = ["/bin/httpd", "-f", "-p", &port, "-h", "/www"];
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "crowd"},
        "spec": {
            "replicas": count,
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
    let before: BTreeSet<String> = recorded(&calls)?
        .into_iter()
        .map(|tap| tap.interface)
        .collect();
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
                took.push(trigger(&calls, pod)?);
            }
        }
        let are_all = there.len() == count;
        Ok(are_all.then(|| pods.clone()))
    })?;
    let running = begun.elapsed();
    let of_node = pods.iter().filter(|pod| pod.node == "node-a").count();
    wait::until(LIMIT, "each of them to be recorded", || {
        let taps = recorded(&calls)?.into_iter();
        let new = taps.filter(|tap| !before.contains(&tap.interface));
        Ok(new.count() >= of_node)
    })?;
    let all_recorded = begun.elapsed();
    let named = format!("pod {}/", bed.shop.namespace);
    wait::until(LIMIT, "the names of all", || {
        let taps = recorded(&calls)?.into_iter();
        let theirs = taps.filter(|tap| tap.description.starts_with(&named));
        Ok(theirs.count() == of_node)
    })?;
    ensure!(!took.is_empty(), "nobody was captured meanwhile");
    took.sort();
    println!(
        "{count} pods at once, {of_node} on the node: running after {running:?}, recorded {:?} later, with their \
         names {:?} later; {} triggers by container id meanwhile, armed: p50 {:?}, longest {:?}",
        all_recorded - running,
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

/// A capture by a container's id, until it is armed; then it is ended.
fn trigger(calls: &Calls, pod: &KubePod) -> Result<Duration> {
    let target = Target::ContainerId(pod.container("web")?.to_owned());
    let asked = Instant::now();
    let capture = calls.start(target)?;
    let took = asked.elapsed();
    calls.stop(&capture.id)?;
    Ok(took)
}

/// Taps that have look-back.
fn recorded(calls: &Calls) -> Result<Vec<v1::Tap>> {
    let mut taps = calls.taps()?;
    taps.retain(|tap| tap.look_back.is_some());
    Ok(taps)
}
