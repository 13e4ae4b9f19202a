//! Remora in a cluster, installed from its chart as a user does it.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::kubectl::Kubectl;
use crate::{cgroup, run, wait};

/// The namespace that it is installed in.
pub const NAMESPACE: &str = "remora";
/// What selects the agents' pods, and the controllers'.
pub const AGENTS: &str = "app.kubernetes.io/name=remora-agent";
pub const CONTROLLERS: &str = "app.kubernetes.io/name=remora-controller";
/// What the chart leaves on purpose: with it go the accounts of captures.
const CRD: &str = "captures.remora.dev";
/// How long all pods may take to be ready, or to be gone.
const LIMIT: Duration = Duration::from_secs(120);
/// How long kubectl waits for it at once.
const STEP: &str = "--timeout=5s";

/// The chart, installed; uninstalled when dropped.
#[derive(Debug)]
pub struct Release {
    kubectl: Kubectl,
    is_installed: bool,
}

impl Release {
    /// Installs it with more of Helm's arguments (`--set=log=debug`), and waits until all of its
    /// pods are ready. The nodes have the [`image`].
    ///
    /// # Errors
    /// They are not, in time; with what they and the API server say.
    pub fn install(kubectl: &Kubectl, settings: &[&str]) -> Result<Self> {
        Self::ensure_absent(kubectl)?;
        let release = Self {
            kubectl: kubectl.clone(),
            is_installed: true,
        };
        release.helm("install", &[&["--create-namespace"], settings].concat())?;
        release.wait_ready()?;
        Ok(release)
    }

    /// For who removes at its end what it has installed.
    ///
    /// # Errors
    /// It is installed already, and somebody may want to keep it.
    pub fn ensure_absent(kubectl: &Kubectl) -> Result<()> {
        let mut list = kubectl.command("helm");
        let releases = run::output(list.args(["list", "-n", NAMESPACE, "--short"]))?;
        ensure!(
            releases.trim().is_empty(),
            "Remora is installed already (helm list -n {NAMESPACE}); uninstall it first"
        );
        Ok(())
    }

    /// Upgrades it to other settings, and waits until all pods are the new ones, and ready.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub fn upgrade(&self, settings: &[&str]) -> Result<()> {
        self.helm("upgrade", settings)?;
        self.wait_ready()
    }

    /// Uninstalls it, and waits until its pods are gone. The resource definition stays, as the chart
    /// says, and the namespace, which is not the chart's.
    ///
    /// # Errors
    /// Helm fails, or a pod stays.
    pub fn uninstall(mut self) -> Result<()> {
        self.is_installed = false;
        self.helm("uninstall", &[])?;
        wait::until(LIMIT, "the end of Remora's pods", || {
            let pods = self.kubectl.get(&["pods", "-n", NAMESPACE])?;
            Ok(pods["items"].as_array().is_none_or(Vec::is_empty))
        })
    }

    /// Removes what an uninstall leaves: resource definition and namespace.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn remove_rest(kubectl: &Kubectl) -> Result<()> {
        kubectl.run(&["delete", "crd", CRD, "--ignore-not-found"])?;
        kubectl.run(&["delete", "namespace", NAMESPACE, "--ignore-not-found"])?;
        Ok(())
    }

    /// Waits until every pod of the release is as it shall be.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub fn wait_ready(&self) -> Result<()> {
        for what in ["daemonset/remora-agent", "deployment/remora-controller"] {
            wait::until(LIMIT, &format!("{what} to be ready"), || {
                let status = ["rollout", "status", what, "-n", NAMESPACE, STEP];
                Ok(self.kubectl.finish(&status)?.status.success())
            })
            .with_context(|| self.told())?;
        }
        Ok(())
    }

    /// What the pods, their events and their logs say, for an error.
    #[must_use]
    pub fn told(&self) -> String {
        let mut text = String::new();
        let mut add = |arguments: &[&str]| {
            let said = self.kubectl.run(arguments);
            text += &said.unwrap_or_else(|error| format!("{error:#}\n"));
        };
        add(&["get", "pods,events", "-n", NAMESPACE, "-o", "wide"]);
        for which in [AGENTS, CONTROLLERS] {
            let logs = ["logs", "-n", NAMESPACE, "-l", which, "--prefix"];
            add(&[&logs[..], &["--all-containers", "--tail=20"]].concat());
        }
        text
    }

    fn helm(&self, verb: &str, more: &[&str]) -> Result<()> {
        let mut command = self.kubectl.command("helm");
        command.args([verb, "remora", "--namespace", NAMESPACE]);
        if verb != "uninstall" {
            command.arg(chart());
            // A user's setting as well, where cgroup v1 is in use beside cgroup2.
            let root = cgroup::root()?.display();
            command.arg(format!("--set=agent.cgroupRoot={root}"));
        }
        run::output(command.args(more)).map(drop)
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        if self.is_installed {
            let _ = self.helm("uninstall", &[]);
        }
    }
}

/// The chart's directory.
#[must_use]
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/remora")
}

/// The argument of Helm's that lets a user reach the controllers.
#[must_use]
pub fn subjects(users: &[&str]) -> String {
    let subject = |user: &&str| {
        format!(r#"{{"kind":"User","apiGroup":"rbac.authorization.k8s.io","name":"{user}"}}"#)
    };
    let subjects: Vec<String> = users.iter().map(subject).collect();
    format!("--set-json=access.subjects=[{}]", subjects.join(","))
}

/// The image of the programs under test, as an archive in a directory.
///
/// # Errors
/// `REMORA_XTASK` or `REMORA_BIN_DIR` is not set, or it cannot be made.
pub fn image(directory: &Path) -> Result<PathBuf> {
    let xtask: OsString = env::var_os("REMORA_XTASK")
        .context("REMORA_XTASK is not set: use `cargo xtask test` or `cargo xtask cluster`")?;
    let program = run::remora_program("remora")?;
    let mut command = run::command(xtask);
    command.args(["image", "--programs"]);
    command.arg(program.parent().context("no directory")?);
    let said = run::output(command.arg("--output").arg(directory))?;
    // The last line: digest and archive.
    let last = said.lines().last().and_then(|line| line.split_once(' '));
    let (_digest, archive) = last.with_context(|| said.clone())?;
    Ok(archive.into())
}
