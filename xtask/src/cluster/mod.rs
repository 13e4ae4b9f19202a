//! `cargo xtask cluster`: a real Kubernetes on this machine.
//!
//! ```text
//! tests/cluster/go ─▶ recipe ─▶ build ─▶ cache: etcd, kube-*, kubelet, kubectl, containerd, helm
//!                                          │
//!                     cluster (a program of the `tests` crate) ◀┘ up, down, demo
//! ```
//! Its programs are Go modules, built into the cache once for each set of versions; nothing is
//! installed but Debian's `runc`, its CNI plugins and a static busybox.

mod build;
mod go;
mod recipe;

pub(crate) use go::Go;

use std::env;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;

use crate::run::run_with;
use crate::setup::{Installing, cluster_packages};
use crate::{InstallArgs, ProgramArgs};

use recipe::Recipe;

/// Tells the `tests` crate where the cluster's programs are.
pub(crate) const CLUSTER_DIR: &str = "REMORA_CLUSTER_DIR";
/// Tells it where this program is.
pub(crate) const XTASK: &str = "REMORA_XTASK";

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Build the cluster's programs into the cache
    Build {
        #[command(flatten)]
        install: InstallArgs,
    },
    /// Start a cluster of two nodes that stays until `down`, and say how to use it
    Up(ProgramArgs),
    /// Show Remora on it: install the chart, capture from a shop of a few pods, remove it all
    ///
    /// On the cluster that is up, else on one that starts and ends with the demo.
    Demo(ProgramArgs),
    /// End the cluster that `up` started, and remove what killed ones have left
    Down(ProgramArgs),
}

pub(crate) fn perform(task: Task) -> anyhow::Result<()> {
    let (verb, program) = match task {
        Task::Build { install } => {
            let directory = programs(install.policy())?;
            say!("ready: {}", directory.display());
            return Ok(());
        }
        Task::Up(program) => ("up", program),
        Task::Demo(program) => ("demo", program),
        Task::Down(program) => ("down", program),
    };
    let installing = program.install.policy();
    let directory = programs(installing)?;
    let args: Vec<String> = std::iter::once(verb.to_owned())
        .chain(program.args)
        .collect();
    // The demo makes the image by it.
    let xtask = env::current_exe().context("cannot tell which program this is")?;
    let environment = [(CLUSTER_DIR, directory), (XTASK, xtask)];
    run_with("cluster", &args, installing, &environment)
}

/// The cluster's programs, built if they are not.
///
/// # Errors
/// Something is missing and may not, or cannot, be had.
pub(crate) fn programs(installing: Installing) -> anyhow::Result<PathBuf> {
    cluster_packages(installing)?;
    let recipe = Recipe::read()?;
    match recipe.built()? {
        Some(directory) => Ok(directory),
        None => build::build(&recipe, installing),
    }
}

/// The cluster's programs, if they were built.
///
/// # Errors
/// The recipe cannot be read.
pub(crate) fn built() -> anyhow::Result<Option<PathBuf>> {
    Recipe::read()?.built()
}
