//! `deploy/manifests`: the chart as plain manifests, rendered by Helm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::process::{find, output};
use crate::workspace;

const CHART: &str = "deploy/helm/remora";
const MANIFEST: &str = "deploy/manifests/remora.yaml";
/// What Helm makes itself when it is asked to (`--create-namespace`).
const NAMESPACE: &str = "\
# The chart deploy/helm/remora with Secrets of yours, by `cargo xtask manifests`.
#
# Make them first, in namespace remora: remora-agent-tls, remora-controller-tls and remora-alerts.
# deploy/helm/remora/README.md has what is in them, under `tls` and `alerts`. For `kubectl remora` make the
# ConfigMap remora-ca with the CA's certificate as ca.crt, too.
---
apiVersion: v1
kind: Namespace
metadata:
  name: remora
  labels:
    pod-security.kubernetes.io/enforce: privileged
";

/// Helm on PATH, or as `cargo xtask cluster build` made it.
pub(crate) fn helm() -> Option<PathBuf> {
    find("helm").or_else(|| {
        let built = fs::read_dir(workspace::cache_dir().ok()?.join("cluster")).ok()?;
        let mut found: Vec<PathBuf> = built
            .flatten()
            .map(|entry| entry.path().join("helm"))
            .filter(|helm| helm.is_file())
            .collect();
        found.sort();
        found.pop()
    })
}

/// Renders the chart and writes the manifest, or fails when it is another.
///
/// # Errors
/// Helm is not here or fails; with `check`: the manifest is not what the chart renders.
pub(crate) fn manifests(check: bool) -> anyhow::Result<()> {
    let helm = helm().context(
        "no Helm here: `cargo xtask cluster build` makes it, or install version 3 or 4 on PATH",
    )?;
    let rendered = NAMESPACE.to_owned() + &rendered(&helm)?;
    let path = workspace::root().join(MANIFEST);
    let is_same = fs::read_to_string(&path).is_ok_and(|present| present == rendered);
    if check {
        ensure!(
            is_same,
            "{MANIFEST} is not what the chart renders: run `cargo xtask manifests` and commit"
        );
    } else if !is_same {
        fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
        fs::write(&path, rendered).with_context(|| MANIFEST.to_owned())?;
        say!("{MANIFEST} written");
    }
    Ok(())
}

fn rendered(helm: &Path) -> anyhow::Result<String> {
    output(
        Command::new(helm)
            .args(["template", "remora", CHART])
            .args(["--namespace=remora", "--set=tls.mode=existingSecret"])
            .arg("--set=alerts.existingSecret=remora-alerts")
            .current_dir(workspace::root()),
    )
}
