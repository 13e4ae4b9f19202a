//! Pods laid out as kubelet and containerd do: the cgroup of the pod by its uid, a sandbox in it, and a cgroup for
//! each container, in the layouts of both cgroup drivers.

use std::{
    ffi::OsStr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    cgroup::Cgroup,
    node::{Node, Pod},
    run::{Place, Proc, Rights},
};

/// Who makes the cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `kubepods/besteffort/pod<uid>/<id>`.
    Cgroupfs,
    /// `kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<uid_>.slice/cri-containerd-<id>.scope`.
    Systemd,
}

/// Of what quality the service is: one of the directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Driver {
    /// Path of a pod's cgroup below that of the node.
    #[must_use]
    pub fn path(self, class: Class, uid: &str) -> String {
        let class = match class {
            Class::Guaranteed => None,
            Class::Burstable => Some("burstable"),
            Class::BestEffort => Some("besteffort"),
        };
        let uid_ = uid.replace('-', "_");
        match (self, class) {
            (Self::Cgroupfs, None) => format!("kubepods/pod{uid}"),
            (Self::Cgroupfs, Some(class)) => format!("kubepods/{class}/pod{uid}"),
            (Self::Systemd, None) => format!("kubepods.slice/kubepods-pod{uid_}.slice"),
            (Self::Systemd, Some(class)) => {
                format!("kubepods.slice/kubepods-{class}.slice/kubepods-{class}-pod{uid_}.slice")
            }
        }
    }

    fn container(self, id: &str) -> String {
        match self {
            Self::Cgroupfs => id.to_owned(),
            Self::Systemd => format!("cri-containerd-{id}.scope"),
        }
    }
}

/// A pod with its containers. Its object says it as the API server would.
#[derive(Debug)]
pub struct KubePod {
    // Dropped in this order.
    containers: Vec<Container>,
    pod: Pod,
    driver: Driver,
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

#[derive(Debug)]
struct Container {
    name: String,
    id: String,
    cgroup: Cgroup,
}

/// A uid as the API server gives them.
#[must_use]
pub fn uid() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    format!("{process:08x}-0000-4000-8000-{count:012x}")
}

/// 64 hex digits.
fn container_id(cgroup: &Cgroup, name: &str) -> Result<String> {
    let mut id = format!("{:016x}", cgroup.id()?.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    id.push_str(&format!("{:08x}{count:08x}", std::process::id()));
    for byte in name.bytes() {
        id.push_str(&format!("{byte:02x}"));
    }
    id.truncate(64);
    Ok(format!("{id:0<64}"))
}

impl KubePod {
    /// On a node, with containers that only wait. The name has at most 10 characters.
    ///
    /// # Errors
    /// The name is taken.
    pub fn new(
        node: &Node,
        (driver, class): (Driver, Class),
        (namespace, name): (&str, &str),
        containers: &[&str],
    ) -> Result<Self> {
        Self::with_uid(node, (driver, class), (namespace, name), &uid(), containers)
    }

    /// The same with a uid of the caller's.
    ///
    /// # Errors
    /// The name is taken.
    pub fn with_uid(
        node: &Node,
        (driver, class): (Driver, Class),
        (namespace, name): (&str, &str),
        uid: &str,
        containers: &[&str],
    ) -> Result<Self> {
        let path = format!("{}/{}", node.cgroup().path(), driver.path(class, uid));
        let cgroup = Cgroup::new(&path)?;
        let pod = node.pod_in(name, cgroup, |id| driver.container(id))?;
        let mut pod = Self {
            containers: Vec::new(),
            pod,
            driver,
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        for name in containers {
            pod.run(name)?;
        }
        Ok(pod)
    }

    /// Gives a container a new cgroup, as each start of it does.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn run(&mut self, name: &str) -> Result<()> {
        let id = container_id(self.pod.cgroup(), name)?;
        let cgroup = self.pod.cgroup().child(&self.driver.container(&id))?;
        // The one before ends first.
        self.containers.retain(|container| container.name != name);
        self.containers.push(Container {
            name: name.to_owned(),
            id,
            cgroup,
        });
        Ok(())
    }

    /// Its sandbox, network and addresses.
    #[must_use]
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// A command in one of its containers.
    ///
    /// # Panics
    /// It has no such container.
    #[must_use]
    pub fn command(&self, container: &str, program: impl AsRef<OsStr>) -> Command {
        Place {
            netns: Some(self.pod.netns()),
            cgroup: Some(self.cgroup(container)),
            rights: Rights::Root,
        }
        .command(program)
    }

    /// The cgroup of a container.
    ///
    /// # Panics
    /// It has no such container.
    #[must_use]
    pub fn cgroup(&self, container: &str) -> &Cgroup {
        &self.container(container).cgroup
    }

    /// # Panics
    /// It has no such container.
    #[must_use]
    pub fn container_id(&self, container: &str) -> &str {
        &self.container(container).id
    }

    fn container(&self, name: &str) -> &Container {
        let container = self.containers.iter().find(|one| one.name == name);
        container.unwrap_or_else(|| panic!("no container {name}"))
    }

    /// As the API server would tell of it, while it runs on `node-a`.
    #[must_use]
    pub fn object(&self) -> Value {
        let specs: Vec<_> = self
            .containers
            .iter()
            .map(|one| json!({"name": one.name, "image": format!("example/{}:1", one.name)}))
            .collect();
        let statuses: Vec<_> = self
            .containers
            .iter()
            .map(|one| {
                json!({
                    "name": one.name, "image": format!("example/{}:1", one.name),
                    "imageID": format!("example/{}@sha256:{:064x}", one.name, 7),
                    "containerID": format!("containerd://{}", one.id),
                    "ready": true, "restartCount": 0,
                })
            })
            .collect();
        json!({
            "metadata": {
                "namespace": self.namespace, "name": self.name, "uid": self.uid,
                "labels": {"app": self.name},
            },
            "spec": {"nodeName": "node-a", "containers": specs},
            "status": {
                "phase": "Running", "podIP": self.pod.ipv4().to_string(),
                "podIPs": [{"ip": self.pod.ipv4().to_string()}, {"ip": self.pod.ipv6().to_string()}],
                "containerStatuses": statuses,
            },
        })
    }
}

/// A pod in the node's network: a cgroup and nothing else.
#[derive(Debug)]
pub struct HostPod {
    // Dropped in this order.
    process: Proc,
    cgroup: Cgroup,
    pub uid: String,
}

impl HostPod {
    /// # Errors
    /// The cgroup cannot be made.
    pub fn new(node: &Node, driver: Driver, uid: &str) -> Result<Self> {
        let path = driver.path(Class::BestEffort, uid);
        let cgroup = Cgroup::new(&format!("{}/{path}", node.cgroup().path()))?;
        let place = Place {
            netns: Some(node.netns()),
            cgroup: Some(&cgroup),
            rights: Rights::Root,
        };
        let process = node
            .spawn(
                place.command("sleep").arg("infinity"),
                &format!("host-{uid}"),
            )
            .context("failed to start a host pod")?;
        Ok(Self {
            process,
            cgroup,
            uid: uid.to_owned(),
        })
    }

    /// A command in it.
    #[must_use]
    pub fn command(&self, node: &Node, program: impl AsRef<OsStr>) -> Command {
        Place {
            netns: Some(node.netns()),
            cgroup: Some(&self.cgroup),
            rights: Rights::Root,
        }
        .command(program)
    }

    /// Its process that only waits.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}
