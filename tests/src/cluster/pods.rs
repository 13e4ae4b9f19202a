//! Pods, and what they are on their node: cgroups, processes, veths.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{kubectl::Kubectl, node::ClusterNode};
use crate::{cgroup, run};

/// A pod as the API server tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubePod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Name of its node; empty while it has none.
    pub node: String,
    pub ip: Option<Ipv4Addr>,
    /// "Guaranteed", "Burstable", "BestEffort".
    pub qos: String,
    /// Ids of the containers that run or ran, 64 hex digits, by their name; init and ephemeral ones
    /// too.
    pub containers: BTreeMap<String, String>,
}

impl KubePod {
    /// # Errors
    /// It is none.
    pub fn from_json(value: &Value) -> Result<Self> {
        let text = |path: &str| value.pointer(path).and_then(Value::as_str);
        let must = |path: &str| {
            let text = text(path).map(str::to_owned);
            text.with_context(|| format!("a pod without {path}"))
        };
        let mut containers = BTreeMap::new();
        for kind in [
            "initContainerStatuses",
            "containerStatuses",
            "ephemeralContainerStatuses",
        ] {
            for status in value["status"][kind].as_array().into_iter().flatten() {
                let id = status["containerID"].as_str().unwrap_or_default();
                if let (Some(name), Some(id)) =
                    (status["name"].as_str(), id.strip_prefix("containerd://"))
                {
                    containers.insert(name.to_owned(), id.to_owned());
                }
            }
        }
        Ok(Self {
            namespace: must("/metadata/namespace")?,
            name: must("/metadata/name")?,
            uid: must("/metadata/uid")?,
            node: text("/spec/nodeName").unwrap_or_default().to_owned(),
            ip: text("/status/podIP").and_then(|ip| ip.parse().ok()),
            qos: text("/status/qosClass").unwrap_or_default().to_owned(),
            containers,
        })
    }

    /// # Errors
    /// It has none yet.
    pub fn address(&self) -> Result<Ipv4Addr> {
        self.ip
            .with_context(|| format!("{}/{} has no address", self.namespace, self.name))
    }

    /// # Errors
    /// It has none of that name.
    pub fn container(&self, name: &str) -> Result<&str> {
        let id = self.containers.get(name).map(String::as_str);
        id.with_context(|| format!("{}/{} has no container {name}", self.namespace, self.name))
    }
}

impl Kubectl {
    /// A pod.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<KubePod> {
        KubePod::from_json(&self.get(&["pod", "-n", namespace, name])?)
    }

    /// The pods that a label selector takes.
    ///
    /// # Errors
    /// It is none.
    pub fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<KubePod>> {
        let list = self.get(&["pods", "-n", namespace, "-l", selector])?;
        let items = list["items"].as_array().context("no list of pods")?;
        items.iter().map(KubePod::from_json).collect()
    }
}

impl ClusterNode {
    /// The pod's directory in the cgroup2 tree; its sandbox's and containers' are in it.
    #[must_use]
    pub fn cgroup_of(&self, pod: &KubePod) -> PathBuf {
        let class = match pod.qos.as_str() {
            "Guaranteed" => "",
            "Burstable" => "burstable",
            _ => "besteffort",
        };
        self.kubepods().join(class).join(format!("pod{}", pod.uid))
    }

    /// Pids of a container's processes, in the test's own pid namespace.
    ///
    /// # Errors
    /// It has no such container.
    pub fn processes_of(&self, pod: &KubePod, container: &str) -> Result<Vec<u32>> {
        cgroup::processes(&self.cgroup_of(pod).join(pod.container(container)?))
    }

    /// A process of the pod, its sandbox's perhaps.
    ///
    /// # Errors
    /// It has none.
    pub fn any_process_of(&self, pod: &KubePod) -> Result<u32> {
        let directory = self.cgroup_of(pod);
        let mut pids = Vec::new();
        for entry in fs::read_dir(&directory)
            .with_context(|| format!("no {}", directory.display()))?
            .flatten()
        {
            pids.extend(cgroup::processes(&entry.path()).unwrap_or_default());
        }
        pids.first()
            .copied()
            .with_context(|| format!("{}/{} has no process", pod.namespace, pod.name))
    }

    /// A command of this machine in the pod's network namespace, and in nothing else of it.
    ///
    /// # Errors
    /// It has no process.
    pub fn beside(&self, pod: &KubePod, program: impl AsRef<OsStr>) -> Result<Command> {
        Ok(in_network(&self.network_of(pod)?, program))
    }

    /// The file of the pod's network namespace, while the process lives that it was found by.
    ///
    /// # Errors
    /// It has no process.
    pub fn network_of(&self, pod: &KubePod) -> Result<PathBuf> {
        Ok(Path::new("/proc")
            .join(self.any_process_of(pod)?.to_string())
            .join("ns/net"))
    }

    /// Name of the host end of the pod's veth, in the node's network namespace.
    ///
    /// # Errors
    /// It has none.
    pub fn veth_of(&self, pod: &KubePod) -> Result<String> {
        let mut inside = self.beside(pod, "ip")?;
        let inside = run::output(inside.args(["-j", "link", "show", "eth0"]))?;
        let inside: Value = serde_json::from_str(&inside)?;
        let index = inside[0]["link_index"].as_u64();
        let outside: Value = serde_json::from_str(&self.netns().ip("-j link show type veth")?)?;
        let mut links = outside.as_array().context("no list of links")?.iter();
        let link = links.find(|link| index.is_some() && link["ifindex"].as_u64() == index);
        let name = link.and_then(|link| link["ifname"].as_str());
        ensure!(
            name != Some("eth0"),
            "{}/{} is on the node's network",
            pod.namespace,
            pod.name
        );
        Ok(name.context("the pod has no veth on its node")?.to_owned())
    }
}

/// A command of this machine in a network namespace, given by its file.
#[must_use]
pub fn in_network(network: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut nsenter = run::command("nsenter");
    nsenter
        .arg(format!("--net={}", network.display()))
        .arg("--")
        .arg(program);
    nsenter
}
