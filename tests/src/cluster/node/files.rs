//! What a node's programs are told, and where they keep what is theirs.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::cluster::{image, programs};

/// What the node's files tell.
pub(super) struct NodeFacts {
    pub(super) address: Ipv4Addr,
    /// Addresses of its pods.
    pub(super) pods: String,
    /// What kubelet takes for the root of the cgroups.
    pub(super) cgroup: String,
    pub(super) kubeconfig: PathBuf,
    /// File of the certificate that clients of kubelet must be signed by.
    pub(super) authority: PathBuf,
}

/// A node's directory.
#[derive(Debug, Clone)]
pub(super) struct Files {
    directory: PathBuf,
}

impl Files {
    pub(super) fn at(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Writes the configurations.
    pub(super) fn write(directory: &Path, facts: &NodeFacts) -> Result<Self> {
        let files = Self::at(directory);
        for name in [
            "containerd",
            "kubelet",
            "cni",
            "pod-logs",
            "sysctl",
            "var",
            "var-work",
        ] {
            fs::create_dir_all(directory.join(name))?;
        }
        fs::write(files.containerd_config(), files.containerd_toml())?;
        fs::write(files.cni().join("10-bridge.conflist"), cni(facts))?;
        fs::write(files.kubelet_config(), files.kubelet_yaml(facts))?;
        fs::copy(&facts.kubeconfig, files.kubeconfig())?;
        Ok(files)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn containerd_config(&self) -> PathBuf {
        self.directory.join("containerd.toml")
    }

    pub(super) fn containerd_socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    pub(super) fn containerd_log(&self) -> PathBuf {
        self.directory.join("containerd.log")
    }

    pub(super) fn kubelet_config(&self) -> PathBuf {
        self.directory.join("kubelet.yaml")
    }

    pub(super) fn kubelet_root(&self) -> PathBuf {
        self.directory.join("kubelet")
    }

    pub(super) fn kubelet_log(&self) -> PathBuf {
        self.directory.join("kubelet.log")
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// What is written to `/var` on the node, and what the kernel needs beside it.
    pub(super) fn var(&self) -> (PathBuf, PathBuf) {
        (self.directory.join("var"), self.directory.join("var-work"))
    }

    /// Files that stand for settings of the kernel.
    pub(super) fn sysctl(&self) -> PathBuf {
        self.directory.join("sysctl")
    }

    fn cni(&self) -> PathBuf {
        self.directory.join("cni")
    }

    fn containerd_toml(&self) -> String {
        let (directory, socket) = (self.directory.display(), self.containerd_socket());
        let (socket, cni) = (socket.display(), self.cni());
        let (cni, plugins, pause) = (cni.display(), programs::CNI_PLUGINS, image::PAUSE);
        format!(
            r#"version = 3
root = "{directory}/containerd/root"
state = "{directory}/containerd/state"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = "{socket}"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{pause}"

[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "{cni}"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      SystemdCgroup = false
"#
        )
    }

    fn kubelet_yaml(&self, facts: &NodeFacts) -> String {
        let (directory, socket) = (self.directory.display(), self.containerd_socket());
        let (socket, authority) = (socket.display(), facts.authority.display());
        let (address, cgroup) = (facts.address, &facts.cgroup);
        // The hierarchies of version 1 that this machine may have; no resolver, for there are no
        // names; no thresholds of a disk that is not the test's.
        format!(
            r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {address}
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: "{authority}"}}
authorization: {{mode: Webhook}}
cgroupDriver: cgroupfs
cgroupRoot: "{cgroup}"
containerRuntimeEndpoint: "unix://{socket}"
enforceNodeAllocatable: []
evictionHard: {{}}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
maxPods: 250
podLogsDir: "{directory}/pod-logs"
protectKernelDefaults: true
readOnlyPort: 0
resolvConf: ""
serializeImagePulls: false
volumePluginDir: "{directory}/kubelet-plugins"
"#
        )
    }
}

/// The bridge, and a loopback that is up.
fn cni(facts: &NodeFacts) -> String {
    let pods = &facts.pods;
    format!(
        r#"{{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {{
      "type": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "hairpinMode": true,
      "ipam": {{
        "type": "host-local",
        "ranges": [[{{"subnet": "{pods}"}}]],
        "routes": [{{"dst": "0.0.0.0/0"}}]
      }}
    }},
    {{"type": "loopback"}}
  ]
}}
"#
    )
}
