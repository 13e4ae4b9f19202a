//! Where the cluster that stays is known: its pid, its kubeconfig, its log.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// One cluster of this kind a machine.
const DIRECTORY: &str = "/run/remora-cluster";

pub(crate) fn kubeconfig() -> PathBuf {
    Path::new(DIRECTORY).join("kubeconfig")
}

/// Sockets of the nodes' containerd, a line each.
pub(crate) fn sockets() -> PathBuf {
    Path::new(DIRECTORY).join("containerd")
}

pub(crate) fn log() -> PathBuf {
    Path::new(DIRECTORY).join("log")
}

fn pid_file() -> PathBuf {
    Path::new(DIRECTORY).join("pid")
}

/// Held by the process that keeps the cluster, as long as it lives.
pub(crate) struct Held {
    _lock: File,
}

impl Held {
    /// Takes the place; `None` if somebody has it.
    pub(crate) fn take() -> Result<Option<Self>> {
        fs::create_dir_all(DIRECTORY).with_context(|| DIRECTORY.to_owned())?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(pid_file())?;
        if lock.try_lock().is_err() {
            return Ok(None);
        }
        fs::write(pid_file(), std::process::id().to_string())?;
        Ok(Some(Self { _lock: lock }))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(DIRECTORY);
    }
}

/// Pid of the process that keeps a cluster, if one does.
pub(crate) fn keeper() -> Result<Option<i32>> {
    let Ok(file) = File::open(pid_file()) else {
        return Ok(None);
    };
    if file.try_lock().is_ok() {
        // It was killed.
        return Ok(None);
    }
    let pid = fs::read_to_string(pid_file())?;
    Ok(Some(pid.trim().parse().context("the keeper's pid")?))
}

/// Removes what a keeper that was killed has left here.
pub(crate) fn clear() {
    let _ = fs::remove_dir_all(DIRECTORY);
}
