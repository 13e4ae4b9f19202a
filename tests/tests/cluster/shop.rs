//! A namespace of a test, and the pods in it.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Result, ensure};

use remora_tests::{
    cluster::{Cluster, image::BUSYBOX, kubectl::Kubectl, pods::KubePod},
    wait,
};

/// How long a pod may take to be ready, or to be gone.
pub(crate) const POD_LIMIT: Duration = Duration::from_secs(60);
/// Where the pods' web servers listen.
pub(crate) const PORT: u16 = 8080;

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

    /// A pod that is not waited for.
    pub(crate) fn bare_pod(&self, name: &str, node: &str) -> Result<()> {
        self.apply(&manifest(name, node))
    }

    pub(crate) fn pod(&self, name: &str) -> Result<KubePod> {
        self.kubectl().pod(&self.namespace, name)
    }

    /// A pod of two containers: `web`, and `sidecar`, which serves at the port after it.
    pub(crate) fn two_containers(&self, name: &str, node: &str) -> Result<KubePod> {
        let containers = [
            container("web", name, PORT),
            container("sidecar", name, PORT + 1),
        ];
        self.ready(name, &pod(name, &spec(node, &containers)))
    }

    /// A pod on its node's network.
    pub(crate) fn host_network(&self, name: &str, node: &str, port: u16) -> Result<KubePod> {
        let spec = spec(node, &[container("web", name, port)]);
        self.ready(name, &pod(name, &format!("{spec}  hostNetwork: true\n")))
    }

    fn ready(&self, name: &str, manifest: &str) -> Result<KubePod> {
        self.apply(manifest)?;
        let which = format!("pod/{name}");
        self.kubectl()
            .wait_pods(&self.namespace, &[&which], POD_LIMIT)?;
        self.pod(name)
    }

    /// A deployment whose pods serve HTTP; all of them, ready.
    pub(crate) fn deployment(&self, name: &str, replicas: usize) -> Result<Vec<KubePod>> {
        self.apply(&deployment(name, replicas))?;
        self.replicas(name, replicas)
    }

    /// The pods of a deployment that are not about to end, once so many of them are ready.
    pub(crate) fn replicas(&self, name: &str, replicas: usize) -> Result<Vec<KubePod>> {
        let label = format!("app={name}");
        let list = ["pods", "-n", &self.namespace, "-l", &label];
        let what = format!("{replicas} ready pods of {name}");
        wait::until_some(POD_LIMIT, &what, || {
            let list = self.kubectl().get(&list)?;
            let pods = list["items"].as_array().into_iter().flatten();
            let mut ready = Vec::new();
            for pod in pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()) {
                let conditions = pod["status"]["conditions"].as_array();
                let is_ready = conditions
                    .into_iter()
                    .flatten()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
                if is_ready {
                    ready.push(KubePod::from_json(pod)?);
                }
            }
            Ok((ready.len() == replicas).then_some(ready))
        })
    }

    /// A service before the pods that have the label `app`; it has endpoints.
    pub(crate) fn service(&self, name: &str, app: &str, endpoints: usize) -> Result<()> {
        self.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  \
             selector: {{app: {app}}}\n  ports: [{{port: 80, targetPort: {PORT}}}]\n"
        ))?;
        let label = format!("kubernetes.io/service-name={name}");
        let slices = ["endpointslices", "-n", &self.namespace, "-l", &label];
        wait::until(POD_LIMIT, "the service's endpoints", || {
            let slices = self.kubectl().get(&slices)?;
            let there = slices["items"].as_array().into_iter().flatten();
            let count: usize = there
                .map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len))
                .sum();
            Ok(count == endpoints)
        })
    }

    /// A user who may capture in this namespace.
    pub(crate) fn capturer(&self, person: &str) -> Result<Kubectl> {
        let user = format!("--user={person}");
        let role = "--clusterrole=remora-capturer";
        self.run(&["create", "rolebinding", "capturers", role, &user])?;
        let theirs = self.cluster.kubectl_as(person)?;
        let asked = ["auth", "can-i", "create", "captures.remora.dev", "-n"];
        let asked = [&asked[..], &[&self.namespace]].concat();
        wait::until(POD_LIMIT, "the right to capture", || {
            Ok(theirs.finish(&asked)?.status.success())
        })?;
        Ok(theirs)
    }

    /// What a pod gets by HTTP from another's web server.
    pub(crate) fn fetch(&self, from: &KubePod, to: &KubePod) -> Result<String> {
        let url = format!("http://{}:{PORT}/", to.address()?);
        self.run(&["exec", &from.name, "--", "wget", "-q", "-O", "-", &url])
    }

    /// A pod's first container asks a web server for a page that is not there: its name is in a packet.
    pub(crate) fn ask(&self, from: &KubePod, to: Ipv4Addr, port: u16, page: &str) -> Result<()> {
        let url = format!("http://{to}:{port}/{page}");
        let wget = ["exec", &from.name, "-n", &self.namespace, "--", "wget"];
        let asked = [&wget[..], &["-q", "-O", "-", &url]].concat();
        let said = self.kubectl().finish(&asked)?;
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(said.contains("404"), "{url} from {}: {said}", from.name);
        Ok(())
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

fn deployment(name: &str, replicas: usize) -> String {
    let container = container("web", name, PORT).replace('\n', "\n    ");
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
    {container}
"
    )
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
