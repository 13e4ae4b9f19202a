//! A real Kubernetes on this machine: etcd, API server, controller-manager, scheduler, and nodes
//! with kubelet, containerd and a bridge CNI.
//!
//! ```text
//!   the test ── 127.0.0.1:PORT ── door ──┐           (root network namespace: nothing else of it)
//!                                        ▼
//!   control plane's namespace   10.99.0.1, and 10.96.0.1, the Service `kubernetes`
//!        bridge `lan`
//!          ├── node-a 10.99.0.11, pods 10.244.1.0/24 on cni0
//!          └── node-b 10.99.0.12, pods 10.244.2.0/24 on cni0
//! ```
//! - [`programs`]: where they are; `cargo xtask cluster build` makes them.
//! - [`authority`], [`access`], [`account_token`]: certificates, tokens, kubeconfigs.
//! - [`lan`], [`door`]: the network between control plane and nodes, and the way in.
//! - [`control_plane`], [`node`]: the processes.
//! - [`image`]: images of our own, as OCI archives: nothing is pulled.
//! - [`kubectl`], [`pods`]: what a user asks of the API server; pods, and what they are on the node.
//! - [`release`]: Remora, installed from its chart.
//! - [`leftovers`]: that nothing stays behind.
//!
//! No namespace has a route out of the machine. Each node has a mount, pid and host name namespace
//! of its own; so what its containers are made of ends with its first process, whatever becomes of
//! the test, and the cgroups that remain have names that the next run sweeps ([`crate::name`]).
//! Services but `kubernetes` have no address that leads anywhere: there is no kube-proxy.

pub mod access;
pub mod account_token;
pub mod authority;
pub mod control_plane;
pub mod door;
pub mod image;
pub mod kubectl;
pub mod lan;
pub mod leftovers;
pub mod node;
pub mod pods;
pub mod programs;
pub mod release;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};

use crate::{name, run, wait};

use self::{
    access::Access, control_plane::ControlPlane, kubectl::Kubectl, lan::Lan, node::ClusterNode,
};

/// How long the nodes may take to register and be ready, on a machine that does other things too.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// Names of the nodes that can be had.
const NODES: [&str; 2] = ["node-a", "node-b"];

/// A cluster; gone when dropped. Its processes also end with the thread that started it.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order.
    nodes: Vec<ClusterNode>,
    control_plane: ControlPlane,
    lan: Lan,
    kubectl: Kubectl,
    access: Access,
    directory: tempfile::TempDir,
}

impl Cluster {
    /// Starts one with two nodes, and waits until they are ready and have the images.
    ///
    /// # Errors
    /// A program is not built, or does not start; with the end of its log.
    pub fn start() -> Result<Self> {
        run::require_root()?;
        programs::directory()?;
        let directory = name::directory()?;
        let lan = Lan::new()?;
        let access = Access::new(directory.path(), &NODES)?;
        let images = image::make(directory.path())?;
        // The nodes need no API server until kubelet registers them, and it asks again.
        let mut nodes = Vec::new();
        for (number, name) in (1..).zip(NODES) {
            nodes.push(ClusterNode::begin(
                &lan,
                number,
                name,
                &access,
                directory.path(),
            )?);
        }
        let control_plane = ControlPlane::start(&lan, &access, directory.path())?;
        let kubectl = Kubectl::new(access.kubeconfig(
            access::ADMIN,
            &control_plane.url(),
            directory.path(),
        )?)?;
        for node in &mut nodes {
            node.finish(&images)?;
        }
        let cluster = Self {
            nodes,
            control_plane,
            lan,
            kubectl,
            access,
            directory,
        };
        cluster
            .wait_ready()
            .with_context(|| format!("logs are in {}", cluster.directory().display()))?;
        Ok(cluster)
    }

    fn wait_ready(&self) -> Result<()> {
        for node in &self.nodes {
            wait::until(READY_LIMIT, &format!("{} to be ready", node.name()), || {
                self.kubectl.node_is_ready(node.name())
            })
            .with_context(|| node.log_tail())?;
        }
        // Without it no pod is admitted.
        let account = ["get", "serviceaccount", "default"];
        wait::until(READY_LIMIT, "the default service account", || {
            Ok(self.kubectl.run(&account).is_ok())
        })
    }

    /// kubectl as the cluster's administrator.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// kubectl as one of [`access::PEOPLE`], who may do nothing until somebody grants it.
    ///
    /// # Errors
    /// There is no such person.
    pub fn kubectl_as(&self, person: &str) -> Result<Kubectl> {
        let url = self.control_plane.url();
        Kubectl::new(self.access.kubeconfig(person, &url, self.directory())?)
    }

    #[must_use]
    pub fn nodes(&self) -> &[ClusterNode] {
        &self.nodes
    }

    /// # Errors
    /// There is none of that name.
    pub fn node(&self, name: &str) -> Result<&ClusterNode> {
        let mut nodes = self.nodes.iter();
        nodes
            .find(|node| node.name() == name)
            .with_context(|| format!("no node {name}"))
    }

    #[must_use]
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    #[must_use]
    pub fn lan(&self) -> &Lan {
        &self.lan
    }

    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// For files and logs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Gives every node the images of an OCI archive.
    ///
    /// # Errors
    /// It is none.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.import(archive))
    }
}
