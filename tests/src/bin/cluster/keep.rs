//! The process that keeps a cluster.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use remora_tests::{
    cluster::{Cluster, access, leftovers::Machine, node::ClusterNode},
    signals, wait,
};

use crate::place::{self, Held};

/// What it prints when others can use the cluster.
pub(crate) const READY: &str = "ready after";
/// How often it looks whether it shall end.
const LOOK: Duration = Duration::from_millis(100);

/// Keeps a cluster until SIGTERM or SIGINT.
pub(crate) fn keep() -> Result<()> {
    signals::interrupt_waits()?;
    let held = Held::take()?.context("another process keeps a cluster")?;
    let before = Machine::look()?;
    let started = Instant::now();
    let cluster = Cluster::start()?;
    cluster.access().kubeconfig_at(
        access::ADMIN,
        &cluster.control_plane().url(),
        &place::kubeconfig(),
    )?;
    let sockets = cluster.nodes().iter().map(ClusterNode::containerd);
    let sockets: String = sockets
        .map(|path| format!("{}\n", path.display()))
        .collect();
    fs::write(place::sockets(), sockets)?;
    println!("{READY} {:.1} s", started.elapsed().as_secs_f64());
    while !wait::is_interrupted() {
        std::thread::sleep(LOOK);
    }
    drop(cluster);
    Machine::is_as_before(&before)?;
    println!("nothing is left of it");
    drop(held);
    Ok(())
}
