//! A cgroup, its processes, and the branch of the tree below it.
//!
//! A branch is walked breadth first and within bounds; directories that go away meanwhile are
//! passed over.

use std::{
    collections::VecDeque,
    fs, io,
    io::{BufRead as _, BufReader},
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{error::ResolveError, names};

/// Cgroups that a walk looks at.
const CGROUPS_MAX: usize = 65_536;
/// Depth of the tree that a walk looks at.
const DEPTH_MAX: u32 = 64;
/// Processes of a cgroup that are looked at.
const PIDS_MAX: usize = 32_768;

/// A cgroup, as it was when it was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// From the root of the tree: `/remora/web`. Not escaped.
    pub path: String,
    /// Inode number of the directory. The kernel uses it for no other cgroup after this one.
    pub id: u64,
    /// Depth in the tree; the root's is 0.
    pub level: u32,
    directory: PathBuf,
}

/// Processes of a cgroup and of all cgroups below it.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) pids: Vec<u32>,
    /// Processes of a pid namespace that the agent does not see.
    pub(super) hidden: usize,
    /// There were more than [`PIDS_MAX`] processes or cgroups.
    pub(super) cut: bool,
}

impl Cgroup {
    /// Looks at the directory of the cgroup at the valid `path` of the tree at `mount`.
    pub(super) fn at(mount: &Path, path: &str) -> io::Result<Self> {
        let relative = path.trim_start_matches('/');
        let directory = match relative {
            "" => mount.to_owned(),
            _ => mount.join(relative),
        };
        let meta = fs::symlink_metadata(&directory)?;
        if !meta.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let level = relative.split('/').filter(|part| !part.is_empty()).count();
        Ok(Self {
            path: format!("/{relative}"),
            id: meta.ino(),
            level: u32::try_from(level).unwrap_or(u32::MAX),
            directory,
        })
    }

    /// One that is nowhere.
    #[cfg(test)]
    pub(super) fn named(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            id: 0,
            level: 1,
            directory: PathBuf::new(),
        }
    }

    #[must_use]
    pub fn is_root(&self) -> bool {
        self.level == 0
    }

    /// The same cgroup, not just the same path, is still there.
    #[must_use]
    pub fn exists_still(&self) -> bool {
        fs::symlink_metadata(&self.directory).is_ok_and(|meta| meta.ino() == self.id)
    }

    /// Processes of the cgroup and of all below it that the agent can see, at most 32 768.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.members(Monitors::Included).pids
    }

    /// The cgroup at `path` is this one or lies below it.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.is_root()
            || path
                .strip_prefix(&self.path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    pub(super) fn members(&self, monitors: Monitors) -> Members {
        let mut members = Members::default();
        let mut walk = Walk::from(self.clone());
        for cgroup in walk.by_ref() {
            if monitors == Monitors::Skipped && names::is_monitor(cgroup.name()) {
                continue;
            }
            cgroup.add_members(&mut members);
        }
        members.cut |= walk.cut;
        members
    }

    fn add_members(&self, members: &mut Members) {
        // Unreadable means gone, or threaded: then the processes stand in the cgroup above.
        let Ok(file) = fs::File::open(self.directory.join("cgroup.procs")) else {
            return;
        };
        for line in BufReader::new(file).lines().map_while(Result::ok) {
            match line.parse() {
                Ok(0) => members.hidden += 1,
                Ok(_) if members.pids.len() == PIDS_MAX => {
                    members.cut = true;
                    return;
                }
                Ok(pid) => members.pids.push(pid),
                Err(_) => {}
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(_, name)| name)
    }
}

/// Whether processes that watch a container from outside count as its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Monitors {
    Included,
    Skipped,
}

/// Walks a branch of the tree breadth first, the branch's root included.
pub(super) struct Walk {
    queue: VecDeque<Cgroup>,
    queued: usize,
    /// A bound was reached: not all was seen.
    cut: bool,
}

impl From<Cgroup> for Walk {
    fn from(top: Cgroup) -> Self {
        Self {
            queue: VecDeque::from([top]),
            queued: 1,
            cut: false,
        }
    }
}

impl Walk {
    fn push_children(&mut self, parent: &Cgroup) {
        if parent.level >= DEPTH_MAX {
            self.cut = true;
            return;
        }
        let Ok(entries) = fs::read_dir(&parent.directory) else {
            return;
        };
        for entry in entries.map_while(Result::ok) {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            // What is not UTF-8 cannot be named by a target either.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if self.queued == CGROUPS_MAX {
                self.cut = true;
                return;
            }
            self.queued += 1;
            let parent_path = if parent.is_root() { "" } else { &parent.path };
            self.queue.push_back(Cgroup {
                path: format!("{parent_path}/{name}"),
                id: entry.ino(),
                level: parent.level + 1,
                directory: entry.path(),
            });
        }
    }

    pub(super) fn not_found(&self, what: String, next: &str) -> ResolveError {
        if self.cut {
            ResolveError::not_found(
                format!("{what} among the first {CGROUPS_MAX} cgroups"),
                "name it by its path: cgroup:/PATH",
            )
        } else {
            ResolveError::not_found(what, next)
        }
    }
}

impl Iterator for Walk {
    type Item = Cgroup;

    fn next(&mut self) -> Option<Cgroup> {
        let cgroup = self.queue.pop_front()?;
        self.push_children(&cgroup);
        Some(cgroup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The directory `/a` of a tree that stands for cgroups, with some below it.
    fn branch(below: &[&str]) -> (tempfile::TempDir, Cgroup) {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("a")).unwrap();
        for name in below {
            fs::create_dir(top.path().join("a").join(name)).unwrap();
        }
        let cgroup = Cgroup::at(top.path(), "/a").unwrap();
        (top, cgroup)
    }

    #[test]
    fn a_cgroup_made_anew_is_another_one() {
        let (_top, cgroup) = branch(&[]);
        assert!(cgroup.exists_still());
        // The old directory stays, so that its inode is not used again.
        fs::rename(&cgroup.directory, cgroup.directory.with_file_name("b")).unwrap();
        assert!(!cgroup.exists_still());
        fs::create_dir(&cgroup.directory).unwrap();
        assert!(!cgroup.exists_still());
    }

    #[test]
    fn processes_below_count_and_hidden_ones_are_told() {
        let (_top, a) = branch(&["b", "crio-conmon-1"]);
        fs::write(a.directory.join("cgroup.procs"), "7\n0\n").unwrap();
        fs::write(a.directory.join("b/cgroup.procs"), "8\n").unwrap();
        fs::write(a.directory.join("crio-conmon-1/cgroup.procs"), "9\n").unwrap();
        let mut all = a.pids();
        all.sort_unstable();
        assert_eq!(all, [7, 8, 9]);
        let members = a.members(Monitors::Skipped);
        assert_eq!(
            (members.pids, members.hidden, members.cut),
            (vec![7, 8], 1, false)
        );
    }

    #[test]
    fn a_cut_search_says_so() {
        let (_top, a) = branch(&["b"]);
        let mut walk = Walk::from(a);
        walk.queued = CGROUPS_MAX;
        assert_eq!(walk.by_ref().count(), 1);
        let error = walk
            .not_found("cgroup with id 1".to_owned(), "")
            .to_string();
        assert!(error.contains("first 65536 cgroups"), "{error}");
    }
}
