//! Unique names for kernel objects, and the sweep of what a killed run left behind.
//!
//! Every object of this run is called `remora-test-<pid>-<n>…`. `Drop` removes it, also when a test
//! panics; a run that was killed leaves its objects, and the next run removes those whose process
//! is gone. (Processes die with their parent, see [`crate::run`].)

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::mount::{MntFlags, umount2};

use crate::{cgroup, run};

const PREFIX: &str = "remora-test-";

static NEXT: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// A name that nothing else has. The first call sweeps.
#[must_use]
pub fn unique() -> String {
    SWEEP.call_once(sweep);
    format!(
        "{PREFIX}{}-{}",
        process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// A directory of this run, readable for all, gone with its owner.
///
/// # Errors
/// It cannot be made.
pub fn directory() -> anyhow::Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(tempfile::Builder::new()
        .prefix(&format!("{}-", unique()))
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()?)
}

/// Namespaces, cgroups and directories of this run that are still there.
#[must_use]
pub fn left() -> Vec<String> {
    left_of(process::id())
}

/// The same of another run, by its process.
#[must_use]
pub fn left_of(pid: u32) -> Vec<String> {
    let mine = format!("{PREFIX}{pid}-");
    let mut places = cgroup::hierarchies().unwrap_or_default();
    places.extend([PathBuf::from("/run/netns"), std::env::temp_dir()]);
    places
        .iter()
        .flat_map(|directory| names(directory))
        .filter(|name| name.starts_with(&mine))
        .collect()
}

/// How all names of this run begin.
#[must_use]
pub fn of_this_run() -> String {
    format!("{PREFIX}{}-", process::id())
}

/// The name was given by a run, whichever.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The name was given by a run whose process is gone.
fn is_orphan(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next())
        .is_some_and(|pid| !pid.is_empty() && !Path::new("/proc").join(pid).exists())
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn orphans(directory: &Path) -> Vec<String> {
    let mut names = names(directory);
    names.retain(|name| is_orphan(name));
    names
}

/// Removes what runs have left whose process is gone. Best effort: what cannot be removed is somebody
/// else's already.
pub fn sweep() {
    for name in orphans(Path::new("/run/netns")) {
        let _ = run::output(run::command("ip").args(["netns", "del", &name]));
    }
    for root in cgroup::hierarchies().unwrap_or_default() {
        for name in orphans(&root) {
            cgroup::remove(&root.join(name));
        }
    }
    let tmp = std::env::temp_dir();
    for name in orphans(&tmp) {
        let directory = tmp.join(name);
        for mount in cgroup::mounts().unwrap_or_default() {
            if mount.point.starts_with(&directory) {
                let _ = umount2(&mount.point, MntFlags::MNT_DETACH);
            }
        }
        let _ = fs::remove_dir_all(directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_runs_are_orphans() {
        assert!(!is_orphan(&unique()));
        assert!(is_orphan("remora-test-4294967295-0-node"));
        assert!(!is_orphan("remora-test-"));
        assert!(!is_orphan("cni-4294967295"));
    }
}
