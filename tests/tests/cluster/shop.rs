//! A namespace of a test, and the pods in it.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::Result;

use remora_tests::{
    cluster::{Cluster, image::BUSYBOX, kubectl::Kubectl, pods::KubePod},
    wait,
};

/// How long a pod may take to be ready, or to be gone.
pub(crate) const POD_LIMIT: Duration = Duration::from_secs(60);
/// Where the pods' web servers listen.
const PORT: u16 = 8080;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace; deleted when dropped.
pub(crate) struct Shop<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) namespace: String,
}

impl<'a> Shop<'a> {
    pub(crate) fn open(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let namespace = format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let kubectl = cluster.kubectl();
        kubectl.run(&["create", "namespace", &namespace])?;
        let shop = Self { cluster, namespace };
        // Pods are refused until it is there.
        let account = ["get", "serviceaccount", "default", "-n", &shop.namespace];
        wait::until(POD_LIMIT, "the namespace's service account", || {
            Ok(kubectl.run(&account).is_ok())
        })?;
        Ok(shop)
    }

    pub(crate) fn kubectl(&self) -> &Kubectl {
        self.cluster.kubectl()
    }

    /// `kubectl -n <namespace> …`
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["-n", &self.namespace];
        all.extend(arguments);
        self.kubectl().run(&all)
    }

    /// Applies manifests that have no namespace of their own.
    pub(crate) fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl()
            .apply_in(&self.namespace, manifests)
            .map(drop)
    }

    /// Pods that serve HTTP, by name and node; ready.
    pub(crate) fn web(&self, pods: &[(&str, &str)]) -> Result<Vec<KubePod>> {
        let manifests: Vec<String> = pods
            .iter()
            .map(|(name, node)| manifest(name, node))
            .collect();
        self.apply(&manifests.join("---\n"))?;
        let names: Vec<String> = pods.iter().map(|(name, _)| format!("pod/{name}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.kubectl()
            .wait_pods(&self.namespace, &names, POD_LIMIT)?;
        pods.iter().map(|(name, _)| self.pod(name)).collect()
    }

    pub(crate) fn pod(&self, name: &str) -> Result<KubePod> {
        self.kubectl().pod(&self.namespace, name)
    }

    /// What a pod gets by HTTP from another's web server.
    pub(crate) fn fetch(&self, from: &KubePod, to: &KubePod) -> Result<String> {
        let url = format!("http://{}:{PORT}/", to.address()?);
        self.run(&["exec", &from.name, "--", "wget", "-q", "-O", "-", &url])
    }
}

impl Drop for Shop<'_> {
    fn drop(&mut self) {
        // Its pods go in the background; the cluster's end waits for none of it.
        let _ = self
            .kubectl()
            .run(&["delete", "namespace", &self.namespace, "--wait=false"]);
    }
}

/// A pod whose page is its own name.
fn manifest(name: &str, node: &str) -> String {
    pod(name, &spec(node, &[container("web", name, PORT)]))
}

fn pod(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n{spec}"
    )
}

fn spec(node: &str, containers: &[String]) -> String {
    let containers = containers.concat();
    format!("  nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  containers:\n{containers}")
}

/// It is probed until it serves, and no more: what it is sent later, the test sends.
fn container(name: &str, page: &str, port: u16) -> String {
    format!(
        r#"  - name: {name}
    image: {BUSYBOX}
    imagePullPolicy: Never
    command: [/bin/sh, -c, "echo {page} > /www/index.html; exec httpd -f -p {port} -h /www"]
    ports: [{{containerPort: {port}}}]
    startupProbe: {{tcpSocket: {{port: {port}}}, periodSeconds: 1}}
"#
    )
}
