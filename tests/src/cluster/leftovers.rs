//! What the machine has before a cluster, and must have after it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::{cgroup, name, run, wait};

/// Settings that kubelet would change if it were let.
const SYSCTLS: [&str; 4] = [
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/ip_forward",
];
/// Places that containerd, kubelet and the CNI write to when nobody hides them.
const PLACES: [&str; 10] = [
    "/etc/cni/net.d",
    "/opt/cni",
    "/opt/containerd",
    "/run/containerd",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
    "/usr/libexec/kubernetes",
];
/// How long what is on its way out may take.
const LIMIT: Duration = Duration::from_secs(30);

/// All that a cluster could leave on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    sysctls: BTreeMap<&'static str, String>,
    places: BTreeSet<&'static str>,
    links: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    programs: BTreeMap<u32, String>,
}

impl Machine {
    /// # Errors
    /// The machine cannot be looked at.
    pub fn look() -> Result<Self> {
        Ok(Self {
            sysctls: SYSCTLS
                .into_iter()
                .map(|name| {
                    let path = Path::new("/proc/sys").join(name);
                    (name, fs::read_to_string(path).unwrap_or_default())
                })
                .collect(),
            places: PLACES
                .into_iter()
                .filter(|place| Path::new(place).exists())
                .collect(),
            links: links()?,
            cgroups: cgroups()?,
            programs: programs()?,
        })
    }

    /// Nothing is there that was not there before, and nothing has this run's name.
    ///
    /// # Errors
    /// Something is; with what.
    pub fn is_as_before(before: &Self) -> Result<()> {
        let mut now = Self::look()?;
        let mut named = name::left();
        let came = wait::settled(LIMIT, || {
            now = Self::look().ok()?;
            named = name::left();
            (now == *before && named.is_empty()).then_some(())
        });
        ensure!(
            came.is_some(),
            "left behind: {named:?}; before {before:?}, now {now:?}"
        );
        Ok(())
    }
}

/// In the root network namespace.
fn links() -> Result<BTreeSet<String>> {
    let text = run::output(run::command("ip").args(["-o", "link", "show"]))?;
    let names = text.lines().filter_map(|line| line.split(": ").nth(1));
    Ok(names.map(str::to_owned).collect())
}

/// At the roots of the hierarchies, those that other tests make left out.
fn cgroups() -> Result<BTreeSet<String>> {
    let mut cgroups = BTreeSet::new();
    for root in cgroup::hierarchies()? {
        for entry in fs::read_dir(&root)?.flatten() {
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_directory && !name::is_ours(&name) {
                cgroups.insert(root.join(name).display().to_string());
            }
        }
    }
    Ok(cgroups)
}

/// Whose command line has a name of this run: all of the control plane and the nodes do. What runs in
/// containers is in the cgroups.
fn programs() -> Result<BTreeMap<u32, String>> {
    let mut programs = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&name::of_this_run()) {
            programs.insert(pid, line);
        }
    }
    Ok(programs)
}
