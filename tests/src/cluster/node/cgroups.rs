//! A node's cgroups: one in each hierarchy, of the same name, that kubelet takes for the root.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::cgroup::{self, Cgroup};

/// Without these no process can be put into a cgroup of the version 1 hierarchy `cpuset`.
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Removed, with the processes in them, when dropped.
#[derive(Debug)]
pub(super) struct NodeCgroups {
    // Dropped in this order: it is below the next.
    init: Cgroup,
    unified: Cgroup,
    _others: Vec<Others>,
}

/// One in a hierarchy of version 1.
#[derive(Debug)]
struct Others(PathBuf);

impl Drop for Others {
    fn drop(&mut self) {
        cgroup::remove(&self.0);
    }
}

impl NodeCgroups {
    pub(super) fn new(name: &str) -> Result<Self> {
        let unified = Cgroup::new(name)?;
        let mut others = Vec::new();
        for root in cgroup::hierarchies()? {
            if root != cgroup::root()? {
                let directory = root.join(name);
                fs::create_dir(&directory)
                    .with_context(|| format!("failed to make {}", directory.display()))?;
                inherit(&root, &directory)?;
                others.push(Others(directory));
            }
        }
        Ok(Self {
            init: unified.child("init")?,
            unified,
            _others: others,
        })
    }

    /// From the root of each hierarchy.
    pub(super) fn path(&self) -> String {
        self.unified.path()
    }

    /// In the cgroup2 tree.
    pub(super) fn directory(&self) -> &Path {
        self.unified.directory()
    }

    /// That of the node's own programs.
    pub(super) fn of_init(&self) -> &Cgroup {
        &self.init
    }
}

/// A new cpuset is empty; the other hierarchies need nothing.
fn inherit(from: &Path, to: &Path) -> Result<()> {
    for file in CPUSET {
        if let Ok(value) = fs::read_to_string(from.join(file)) {
            fs::write(to.join(file), value)
                .with_context(|| format!("failed to set {file} of {}", to.display()))?;
        }
    }
    Ok(())
}
