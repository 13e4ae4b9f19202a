//! cgroup2 directories.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::wait;

/// How long killed processes may take to leave a cgroup.
const EMPTY_LIMIT: Duration = Duration::from_secs(5);

/// One line of `/proc/self/mountinfo`.
#[derive(Debug)]
pub struct Mount {
    pub point: PathBuf,
    pub kind: String,
}

/// What is mounted.
///
/// # Errors
/// `/proc` cannot be read.
pub fn mounts() -> Result<Vec<Mount>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("no mountinfo")?;
    // proc(5): "36 35 98:0 /root /point options optional… - type source options"
    Ok(text
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            Some(Mount {
                point: left.split(' ').nth(4)?.into(),
                kind: right.split(' ').next()?.to_owned(),
            })
        })
        .collect())
}

/// The cgroup2 root: `/sys/fs/cgroup`, or `…/unified` beside cgroup v1.
///
/// # Errors
/// There is none.
pub fn root() -> Result<&'static Path> {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(root) = ROOT.get() {
        return Ok(root);
    }
    let mount = mounts()?
        .into_iter()
        .find(|mount| mount.kind == "cgroup2")
        .context("no cgroup2 mount; `mount -t cgroup2 none /sys/fs/cgroup/unified` makes one")?;
    Ok(ROOT.get_or_init(|| mount.point))
}

/// The root of each hierarchy: cgroup2's, and those of version 1 beside it if there are any.
///
/// # Errors
/// `/proc` cannot be read.
pub fn hierarchies() -> Result<Vec<PathBuf>> {
    let mut roots: Vec<PathBuf> = mounts()?
        .into_iter()
        .filter(|mount| ["cgroup", "cgroup2"].contains(&mount.kind.as_str()))
        .map(|mount| mount.point)
        .collect();
    // cgroup2's first: it alone can end the processes of all.
    let first = root()?;
    roots.sort_by_key(|root| root != first);
    Ok(roots)
}

/// A cgroup of the test's own; its processes end, and it goes, when it is dropped.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// Makes `/name` (and what is missing above it) in the cgroup2 tree.
    ///
    /// # Errors
    /// No cgroup2, or no right to make it.
    pub fn new(name: &str) -> Result<Self> {
        let directory = root()?.join(name.trim_start_matches('/'));
        fs::create_dir_all(&directory)
            .with_context(|| format!("failed to make {}", directory.display()))?;
        Ok(Self { directory })
    }

    /// A cgroup below this one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn child(&self, name: &str) -> Result<Self> {
        let directory = self.directory.join(name);
        fs::create_dir(&directory)
            .with_context(|| format!("failed to make {}", directory.display()))?;
        Ok(Self { directory })
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Path from the cgroup2 root: "/remora-test-1-0/web".
    #[must_use]
    pub fn path(&self) -> String {
        let below = root()
            .ok()
            .and_then(|root| self.directory.strip_prefix(root).ok());
        format!("/{}", below.unwrap_or(&self.directory).display())
    }

    /// Pids in it, not below it.
    ///
    /// # Errors
    /// The directory is gone.
    pub fn processes(&self) -> Result<Vec<u32>> {
        processes(&self.directory)
    }

    /// The kernel's id: the directory's inode number.
    ///
    /// # Errors
    /// The directory is gone.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.directory)?.ino())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// Pids in a cgroup, not below it.
///
/// # Errors
/// The directory is gone.
pub fn processes(directory: &Path) -> Result<Vec<u32>> {
    let file = directory.join("cgroup.procs");
    let text = fs::read_to_string(&file).with_context(|| format!("no {}", file.display()))?;
    Ok(text.lines().filter_map(|pid| pid.parse().ok()).collect())
}

/// Ends the processes of a cgroup tree and removes it, as far as it can be.
pub(crate) fn remove(directory: &Path) {
    if !directory.exists() {
        return;
    }
    let _ = fs::write(directory.join("cgroup.kill"), "1");
    wait::settled(EMPTY_LIMIT, || {
        let events = fs::read_to_string(directory.join("cgroup.events")).unwrap_or_default();
        (!events.contains("populated 1")).then_some(())
    });
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // In a hierarchy of version 1 the last processes may be on their way out.
    wait::settled(EMPTY_LIMIT, || {
        (fs::remove_dir(directory).is_ok() || !directory.exists()).then_some(())
    });
}
