//! Who else is in a network namespace.
//!
//! ```text
//! /proc ─▶ every pid ─RTM_GETNSID─▶ its namespace ─ a claimed one? ─▶ /proc/PID/cgroup ─ outside of
//!                                                                   the claim's cgroup? ─▶ sharer
//! ```
//! Nothing is remembered from one look to the next, so a pid that was another process's before
//! is nobody's but its owner's. Sockets can be in a namespace without their process being there,
//! and a namespace can forward for others: neither is to be seen from here.

use std::{fmt, io};

use super::{
    cgroup::Cgroup,
    error::{ResolveError, shown},
    message::Nsid,
    procfs::{self, is_gone},
    root::CgroupRoot,
    rtnl::RouteSocket,
};

/// Processes of the node that are looked at.
const NODE_PIDS_MAX: usize = 65_536;

/// Somebody else in the network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sharer {
    Process {
        pid: u32,
        /// Not escaped.
        cgroup: String,
    },
    /// There are too many processes on the node to look at all.
    TooMany,
}

impl fmt::Display for Sharer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, cgroup } => write!(
                f,
                "process {pid} of cgroup {} is behind it, too",
                shown(cgroup)
            ),
            Self::TooMany => f.write_str("the node has too many processes to look at all"),
        }
    }
}

/// A network namespace that is taken for a cgroup's alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim<'a> {
    pub(super) nsid: Nsid,
    pub(super) cgroup: &'a Cgroup,
}

/// The node's processes.
pub(super) trait Processes {
    /// Those that are to be seen, up to `max`.
    fn pids(&mut self, max: usize) -> io::Result<Vec<u32>>;

    /// Their network namespaces, in their order.
    fn nsids(&mut self, pids: &[u32]) -> io::Result<Vec<Option<Nsid>>>;

    /// Counted from the tree's root; `None` when it is gone.
    fn cgroup_path(&mut self, pid: u32) -> Result<Option<String>, ResolveError>;
}

/// The running kernel's.
pub(super) struct LiveProcesses<'a> {
    root: &'a CgroupRoot,
    socket: RouteSocket,
}

impl<'a> LiveProcesses<'a> {
    pub(super) fn new(root: &'a CgroupRoot) -> io::Result<Self> {
        let socket = RouteSocket::open(0)?;
        Ok(Self { root, socket })
    }
}

impl Processes for LiveProcesses<'_> {
    fn pids(&mut self, max: usize) -> io::Result<Vec<u32>> {
        procfs::pids(max)
    }

    fn nsids(&mut self, pids: &[u32]) -> io::Result<Vec<Option<Nsid>>> {
        self.socket.nsids(pids)
    }

    fn cgroup_path(&mut self, pid: u32) -> Result<Option<String>, ResolveError> {
        match procfs::cgroup_path_of(pid) {
            Ok(path) => self.root.absolute(path.as_deref().unwrap_or("/")).map(Some),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(ResolveError::io(format!("read /proc/{pid}/cgroup"))(error)),
        }
    }
}

/// For each claim a process that is in its namespace but not in its cgroup. One pass over the
/// node's processes for all of them.
pub(super) fn sharers(
    processes: &mut impl Processes,
    claims: &[Claim<'_>],
) -> Result<Vec<Option<Sharer>>, ResolveError> {
    let pids = processes
        .pids(NODE_PIDS_MAX + 1)
        .map_err(ResolveError::io("list the processes in /proc"))?;
    if pids.len() > NODE_PIDS_MAX {
        return Ok(vec![Some(Sharer::TooMany); claims.len()]);
    }
    let nsids = processes.nsids(&pids).map_err(ResolveError::io(
        "ask rtnetlink for the network namespaces of processes",
    ))?;
    let mut sharers = vec![None; claims.len()];
    for (pid, nsid) in pids.into_iter().zip(nsids) {
        let Some(nsid) = nsid else { continue };
        let mut path = None;
        for (claim, sharer) in claims.iter().zip(&mut sharers) {
            if claim.nsid != nsid || sharer.is_some() {
                continue;
            }
            let path = match &path {
                Some(path) => path,
                None => path.insert(processes.cgroup_path(pid)?),
            };
            if let Some(path) = path
                && !claim.cgroup.contains(path)
            {
                *sharer = Some(Sharer::Process {
                    pid,
                    cgroup: path.clone(),
                });
            }
        }
    }
    Ok(sharers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pid, namespace, cgroup; without a cgroup it ends before it is asked for it.
    type Process = (u32, Option<i32>, Option<&'static str>);

    struct Fake(Vec<Process>);

    impl Processes for Fake {
        fn pids(&mut self, max: usize) -> io::Result<Vec<u32>> {
            Ok(self.0.iter().map(|process| process.0).take(max).collect())
        }

        fn nsids(&mut self, pids: &[u32]) -> io::Result<Vec<Option<Nsid>>> {
            assert_eq!(pids.len(), self.0.len());
            Ok(self
                .0
                .iter()
                .map(|(_, id, _)| id.and_then(Nsid::new))
                .collect())
        }

        fn cgroup_path(&mut self, pid: u32) -> Result<Option<String>, ResolveError> {
            let process = self.0.iter().find(|process| process.0 == pid);
            Ok(process.and_then(|(_, _, path)| path.map(str::to_owned)))
        }
    }

    fn claim<'a>(nsid: i32, cgroup: &'a Cgroup) -> Claim<'a> {
        Claim {
            nsid: Nsid::new(nsid).unwrap(),
            cgroup,
        }
    }

    #[test]
    fn a_pid_that_became_another_process_s_is_that_one_s() {
        let web = Cgroup::named("/pod/web");
        let mut node = Fake(vec![(7, Some(1), Some("/pod/web/container"))]);
        assert_eq!(sharers(&mut node, &[claim(1, &web)]).unwrap(), [None]);
        node.0[0].2 = Some("/pod/webserver");
        let found = sharers(&mut node, &[claim(1, &web)]).unwrap();
        let expected = Sharer::Process {
            pid: 7,
            cgroup: "/pod/webserver".to_owned(),
        };
        assert_eq!(found, [Some(expected)]);
    }

    #[test]
    fn a_process_of_one_claim_in_the_namespace_of_another_is_a_sharer_there() {
        let (a, b) = (Cgroup::named("/a"), Cgroup::named("/b"));
        let mut node = Fake(vec![
            (1, Some(1), Some("/a")),
            (2, Some(2), Some("/b")),
            (3, Some(2), Some("/a")),
        ]);
        let found = sharers(&mut node, &[claim(1, &a), claim(2, &b)]).unwrap();
        assert_eq!(found[0], None);
        assert!(matches!(found[1], Some(Sharer::Process { pid: 3, .. })));
    }

    #[test]
    fn a_node_with_more_processes_than_are_looked_at_is_not_taken_for_empty() {
        let web = Cgroup::named("/web");
        let many = (0..).map(|pid| (pid, None, None)).take(NODE_PIDS_MAX + 1);
        let mut node = Fake(many.collect());
        let found = sharers(&mut node, &[claim(1, &web)]).unwrap();
        assert_eq!(found, [Some(Sharer::TooMany)]);
    }

    proptest! {
        #[test]
        fn a_sharer_is_found_exactly_where_one_is(
            processes in proptest::collection::vec(
                (
                    proptest::option::of(0i32..3),
                    proptest::option::weighted(
                        0.9,
                        proptest::sample::select(vec!["/", "/a", "/a/x", "/ab", "/b"]),
                    ),
                ),
                0..12,
            ),
            claims in proptest::collection::vec(
                (0i32..3, proptest::sample::select(vec!["/a", "/a/x", "/b"])),
                0..4,
            ),
        ) {
            let processes: Vec<Process> =
                (1..).zip(processes).map(|(pid, (nsid, path))| (pid, nsid, path)).collect();
            let cgroups: Vec<_> =
                claims.iter().map(|(nsid, path)| (*nsid, Cgroup::named(path))).collect();
            let claims: Vec<_> =
                cgroups.iter().map(|(nsid, cgroup)| claim(*nsid, cgroup)).collect();
            let found = sharers(&mut Fake(processes.clone()), &claims).unwrap();
            for ((nsid, cgroup), found) in cgroups.iter().zip(found) {
                let first = processes.iter().find(|(_, id, path)| {
                    *id == Some(*nsid) && path.is_some_and(|path| !cgroup.contains(path))
                });
                let expected = first.map(|(pid, _, path)| Sharer::Process {
                    pid: *pid,
                    cgroup: path.unwrap_or_default().to_owned(),
                });
                prop_assert_eq!(found, expected);
            }
        }
    }
}
