//! Remora in the tests' cluster: installed from the chart once, by the first test that needs it.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result};

use remora_tests::cluster::{
    Cluster,
    access::PEOPLE,
    pods::KubePod,
    release::{self, AGENTS, CONTROLLERS, NAMESPACE, Release},
};

/// Who may reach the controllers.
pub(crate) const USER: &str = PEOPLE[0];

static INSTALLED: Mutex<Option<Release>> = Mutex::new(None);
/// The nodes have the image.
static IMPORTED: AtomicBool = AtomicBool::new(false);

/// Installs it if it is not.
pub(crate) fn remora(cluster: &Cluster) -> Result<()> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if installed.is_none() {
        if !IMPORTED.load(Ordering::Relaxed) {
            cluster.import(&release::image(cluster.directory())?)?;
            IMPORTED.store(true, Ordering::Relaxed);
        }
        let subjects = release::subjects(&[USER]);
        *installed = Some(Release::install(cluster.kubectl(), &[&subjects])?);
    }
    Ok(())
}

/// Takes the release; who needs it after that installs it anew.
pub(crate) fn taken(cluster: &Cluster) -> Result<Release> {
    remora(cluster)?;
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    installed.take().context("it was not installed")
}

/// Upgrades it to more of Helm's settings, and gives it back to the tests that follow.
pub(crate) fn upgrade(cluster: &Cluster, settings: &[&str]) -> Result<()> {
    let release = taken(cluster)?;
    let subjects = release::subjects(&[USER]);
    let upgraded = release.upgrade(&[&[subjects.as_str()], settings].concat());
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    *installed = Some(release);
    upgraded
}

/// A controller.
pub(crate) fn first_controller(cluster: &Cluster) -> Result<KubePod> {
    let controllers = cluster.kubectl().pods(NAMESPACE, CONTROLLERS)?;
    controllers.into_iter().next().context("no controller")
}

/// The certificate that theirs is signed by, as PEM.
pub(crate) fn authority(cluster: &Cluster) -> Result<String> {
    let map = ["get", "configmap", "remora-ca", "-n", NAMESPACE];
    let path = ["-o", r"jsonpath={.data.ca\.crt}"];
    cluster.kubectl().run(&[&map[..], &path].concat())
}

/// The agent's pod on a node.
pub(crate) fn agent_on(cluster: &Cluster, node: &str) -> Result<KubePod> {
    let agents = cluster.kubectl().pods(NAMESPACE, AGENTS)?;
    let agent = agents.into_iter().find(|agent| agent.node == node);
    agent.with_context(|| format!("no agent on {node}"))
}
