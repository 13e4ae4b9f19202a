//! The mount of the cgroup2 tree: finding a cgroup by path, id, process, unit or container.
//!
//! Only the unified hierarchy counts (in hybrid mode `/sys/fs/cgroup/unified`): its directories'
//! inode numbers are the ids of cgroups in the kernel.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use remora_capture::session::Target;

use super::{
    cgroup::{Cgroup, Walk},
    error::{ResolveError, shown},
    names,
    pod::is_cgroup_of,
    pods::{candidates, is_pods_root},
    procfs,
    procfs::is_gone,
};

/// Directories of kubelets' pods that are remembered: a node has one.
const PODS_ROOTS_MAX: usize = 4;
/// Candidates that an error lists.
const CANDIDATES_MAX: usize = 8;

/// Where the whole cgroup2 tree is mounted.
#[derive(Debug)]
pub struct CgroupRoot {
    mount: PathBuf,
    /// Path of the agent's cgroup namespace in the tree, looked up when first needed.
    namespace: OnceLock<String>,
    /// Paths of directories with the pods of a kubelet, as they were found.
    pods_roots: Mutex<Vec<String>>,
}

impl CgroupRoot {
    /// Finds the mount that shows the whole tree.
    ///
    /// # Errors
    /// [`ResolveError::Unsupported`] when there is none.
    pub fn find() -> Result<Self, ResolveError> {
        let mounts = procfs::cgroup2_mounts().map_err(ResolveError::io("read mountinfo"))?;
        let highest = mounts
            .into_iter()
            .filter(|mount| mount.height().is_some())
            .max_by_key(procfs::Cgroup2Mount::height);
        match highest {
            Some(mount) => Self::at(mount.mountpoint),
            None => Err(ResolveError::unsupported(
                "no cgroup2 file system is mounted here",
                "mount one with `mount -t cgroup2 none /sys/fs/cgroup`, or show the host's to the \
                 agent and name its path",
            )),
        }
    }

    /// The tree as mounted at `mount`.
    ///
    /// # Errors
    /// [`ResolveError::Unsupported`] when that is not cgroup2 or only a branch of it: levels
    /// would be counted from the wrong place.
    pub fn at(mount: impl Into<PathBuf>) -> Result<Self, ResolveError> {
        let mount = mount.into();
        let name = shown(&mount.to_string_lossy());
        let kind = statfs(&mount)
            .map_err(io::Error::from)
            .map_err(ResolveError::io(format!(
                "look at the cgroup2 mount `{name}`"
            )))?;
        if kind.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(ResolveError::unsupported(
                format!("`{name}` is not a cgroup2 file system"),
                "name the mount point of one, for example /sys/fs/cgroup or \
                 /sys/fs/cgroup/unified",
            ));
        }
        // Every cgroup but the root has this file (Documentation/admin-guide/cgroup-v2.rst).
        if mount.join("cgroup.type").exists() {
            return Err(ResolveError::unsupported(
                format!("`{name}` shows only a branch of the cgroup tree"),
                "mount the host's cgroup2 root into the agent's container and name its path",
            ));
        }
        Ok(Self::unchecked(mount))
    }

    fn unchecked(mount: PathBuf) -> Self {
        Self {
            mount,
            namespace: OnceLock::new(),
            pods_roots: Mutex::default(),
        }
    }

    /// Where the tree is mounted.
    #[must_use]
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// # Errors
    /// [`ResolveError::Invalid`] for a path that leaves the tree, [`ResolveError::NotFound`].
    pub fn by_path(&self, path: &str) -> Result<Cgroup, ResolveError> {
        Target::CgroupPath(path.to_owned()).validate()?;
        match Cgroup::at(&self.mount, path) {
            Ok(cgroup) => Ok(cgroup),
            Err(error) if is_gone(&error) => Err(self.no_such_path(path)),
            Err(error) => Err(ResolveError::io(format!(
                "look at cgroup `{}`",
                shown(path)
            ))(error)),
        }
    }

    fn no_such_path(&self, path: &str) -> ResolveError {
        let mount = self.mount.to_string_lossy();
        let next = match path.strip_prefix(&*mount) {
            Some(rest) if rest.starts_with('/') && Cgroup::at(&self.mount, rest).is_ok() => {
                format!(
                    "paths start at the cgroup2 root: use cgroup:{}",
                    shown(rest)
                )
            }
            _ => format!("`find {} -type d` lists all", shown(&mount)),
        };
        ResolveError::not_found(format!("cgroup `{}`", shown(path)), next)
    }

    /// Finds a cgroup by its id, by walking the tree.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`].
    pub fn by_id(&self, id: u64) -> Result<Cgroup, ResolveError> {
        let mut walk = Walk::from(self.root()?);
        if let Some(found) = walk.by_ref().find(|cgroup| cgroup.id == id) {
            return Ok(found);
        }
        Err(walk.not_found(
            format!("cgroup with id {id}"),
            "name it by its path: cgroup:/PATH",
        ))
    }

    /// The cgroup of a process.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`] when the process is dead or in no cgroup2 cgroup.
    pub fn of_pid(&self, pid: u32) -> Result<Cgroup, ResolveError> {
        let gone = || {
            ResolveError::not_found(
                format!("process {pid}"),
                "if it has ended, capture its container (container:ID), unit (unit:NAME) or \
                 cgroup (cgroup:/PATH)",
            )
        };
        let path = match procfs::cgroup_path_of(pid) {
            Ok(Some(path)) => path,
            Ok(None) => {
                return Err(ResolveError::unsupported(
                    format!("process {pid} is in no cgroup of the unified hierarchy"),
                    "mount cgroup2, or capture an interface",
                ));
            }
            Err(error) if is_gone(&error) => return Err(gone()),
            Err(error) => {
                return Err(ResolveError::io(format!("read /proc/{pid}/cgroup"))(error));
            }
        };
        let path = self.absolute(&path)?;
        match Cgroup::at(&self.mount, &path) {
            Ok(cgroup) => Ok(cgroup),
            // The kernel marks the path of a removed cgroup: only a zombie can be left in one.
            Err(error) if is_gone(&error) => Err(gone()),
            Err(error) => Err(ResolveError::io(format!(
                "look at cgroup `{}`",
                shown(&path)
            ))(error)),
        }
    }

    /// `path` as `/proc` tells it, counted from the tree's root: in a cgroup namespace paths are
    /// told from its root, and `/..` leads out of it.
    pub(super) fn absolute(&self, path: &str) -> Result<String, ResolveError> {
        let namespace = match self.namespace.get() {
            Some(namespace) => namespace,
            None => {
                let found = self.find_namespace()?;
                self.namespace.get_or_init(|| found)
            }
        };
        join_namespace(namespace, path).ok_or_else(|| {
            ResolveError::unsupported(
                format!(
                    "cgroup `{}` lies outside of the tree that the agent sees",
                    shown(path)
                ),
                "run the agent in the host's cgroup namespace",
            )
        })
    }

    /// The root of the agent's own cgroup namespace, which every container mounts for itself.
    fn find_namespace(&self) -> Result<String, ResolveError> {
        let mounts = procfs::cgroup2_mounts().map_err(ResolveError::io("read mountinfo"))?;
        let own = mounts
            .iter()
            .filter(|mount| mount.height() == Some(0))
            .find_map(|mount| fs::metadata(&mount.mountpoint).ok());
        match own {
            Some(meta) => Ok(self.by_id(meta.ino())?.path),
            None => Err(ResolveError::unsupported(
                "the agent runs in a cgroup namespace that is mounted nowhere",
                "mount cgroup2 at /sys/fs/cgroup in the agent's container, beside the host's",
            )),
        }
    }

    /// The cgroup of a systemd unit; the host's own goes before one of a container or a user.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`], [`ResolveError::Ambiguous`].
    pub fn by_unit(&self, unit: &str) -> Result<Cgroup, ResolveError> {
        Target::Unit(unit.to_owned()).validate()?;
        self.by_name(
            format!("running unit `{unit}`"),
            "`systemctl status` shows the units that run and their cgroups",
            |name| names::is_unit(name, unit),
        )
    }

    /// The cgroup of a container, by its id or the first 12 or more digits of it; the host's own
    /// containers go before those inside of containers.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`], [`ResolveError::Ambiguous`].
    pub fn by_container(&self, id: &str) -> Result<Cgroup, ResolveError> {
        Target::Container(id.to_owned()).validate()?;
        self.by_name(
            format!("container `{id}`"),
            "it may have ended, run on another node, or its runtime names cgroups in a way of its \
             own: then use cgroup:/PATH",
            |name| names::container_id(name).is_some_and(|found| found.starts_with(id)),
        )
    }

    /// The cgroup of a pod, by the uid in its name: by three looks once another pod was found beside it.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`], [`ResolveError::Ambiguous`].
    pub fn by_pod(&self, cgroup_uid: &str) -> Result<Cgroup, ResolveError> {
        let pods_roots = || {
            self.pods_roots
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let known = pods_roots().clone();
        let likely = known
            .iter()
            .flat_map(|pods_root| candidates(pods_root, cgroup_uid));
        for path in likely {
            if let Ok(cgroup) = Cgroup::at(&self.mount, &path) {
                return Ok(cgroup);
            }
        }
        let found = self.by_name(
            format!("pod with uid {}", shown(cgroup_uid)),
            "it has ended, or is on another node",
            |name| is_cgroup_of(&format!("/{name}"), cgroup_uid),
        )?;
        let pods_root = found.path.match_indices('/').find_map(|(at, _)| {
            let path = found.path.get(..at)?;
            let (_, name) = path.rsplit_once('/')?;
            is_pods_root(name).then(|| path.to_owned())
        });
        // A pod in a container of another lies beside no others of this node's.
        if let Some(pods_root) = pods_root
            && names::nesting(&found.path) == names::nesting(&pods_root)
            && !known.contains(&pods_root)
            && known.len() < PODS_ROOTS_MAX
        {
            pods_roots().push(pods_root);
        }
        Ok(found)
    }

    fn by_name(
        &self,
        what: String,
        next: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Cgroup, ResolveError> {
        let mut walk = Walk::from(self.root()?);
        let mut nesting = usize::MAX;
        let mut found: Vec<Cgroup> = Vec::new();
        for cgroup in walk.by_ref().filter(|cgroup| wanted(cgroup.name())) {
            let depth = names::nesting(&cgroup.path);
            if depth < nesting {
                nesting = depth;
                found.clear();
            }
            // A runtime may make cgroups of the same name below: the upper one holds them all.
            let inside = |outer: &Cgroup| outer.contains(&cgroup.path);
            if depth == nesting && found.len() < CANDIDATES_MAX && !found.iter().any(inside) {
                found.push(cgroup);
            }
        }
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(walk.not_found(what, next)),
            (Some(only), true) => Ok(only),
            (Some(last), false) => {
                found.push(last);
                let candidates = found
                    .iter()
                    .map(|cgroup| format!("cgroup:{}", shown(&cgroup.path)))
                    .collect();
                Err(ResolveError::Ambiguous { what, candidates })
            }
        }
    }

    /// The innermost pod that the cgroup is or lies in.
    pub(super) fn pod_of(&self, cgroup: &Cgroup) -> Option<Cgroup> {
        let mut path = cgroup.path.as_str();
        while let Some((parent, name)) = path.rsplit_once('/') {
            if names::is_pod(name) {
                return Cgroup::at(&self.mount, path).ok();
            }
            path = parent;
        }
        None
    }

    fn root(&self) -> Result<Cgroup, ResolveError> {
        Cgroup::at(&self.mount, "/").map_err(ResolveError::io("look at the cgroup2 root"))
    }
}

/// `path`, told from the root of the namespace at `namespace`, told from the tree's root.
fn join_namespace(namespace: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = namespace
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if part == ".." {
            parts.pop()?;
        } else {
            parts.push(part);
        }
    }
    Some(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "6e858ea516b6826b46d8405beb4c9717649f578660b11d8cfa2b5206cf147dfe";
    const OTHER: &str = "6e858ea516b6000000000000000000000000000000000000000000000000000f";
    const UID: &str = "a65ca62e-5639-44ba-b2a1-a3cf1580c82c";

    /// A directory tree that stands for a cgroup tree.
    fn tree(paths: &[&str]) -> (tempfile::TempDir, CgroupRoot) {
        let top = tempfile::tempdir().unwrap();
        for path in paths {
            fs::create_dir_all(top.path().join(path.trim_start_matches('/'))).unwrap();
        }
        let root = CgroupRoot::unchecked(top.path().to_owned());
        (top, root)
    }

    #[test]
    fn path_id_and_level_of_a_cgroup_agree() {
        let (_top, root) = tree(&["/remora/web"]);
        let web = root.by_path("/remora/web").unwrap();
        assert_eq!((web.path.as_str(), web.level), ("/remora/web", 2));
        assert_eq!(root.by_id(web.id).unwrap(), web);
        let top = root.by_path("/").unwrap();
        assert!(top.is_root() && top.contains("/remora/web"));
        assert!(!web.contains("/remora/web2") && !web.contains("/remora"));
    }

    #[test]
    fn a_path_cannot_leave_the_tree() {
        let (_top, root) = tree(&["/a"]);
        for path in ["", "a", "/a/../..", "/a/", "//a", "/./a", "/a\0"] {
            assert!(
                matches!(root.by_path(path), Err(ResolveError::Invalid(_))),
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_symlink_or_file_is_no_cgroup() {
        let (top, root) = tree(&["/a"]);
        std::os::unix::fs::symlink("/", top.path().join("link")).unwrap();
        fs::write(top.path().join("a/cgroup.procs"), "").unwrap();
        for path in ["/link", "/a/cgroup.procs", "/a/cgroup.procs/b"] {
            assert!(
                matches!(root.by_path(path), Err(ResolveError::NotFound { .. })),
                "{path}"
            );
        }
    }

    #[test]
    fn a_path_with_the_mount_in_front_is_told_the_right_one() {
        let (top, root) = tree(&["/remora/web"]);
        let error = root
            .by_path(&format!("{}/remora/web", top.path().display()))
            .unwrap_err();
        assert!(
            error.to_string().ends_with("use cgroup:/remora/web"),
            "{error}"
        );
    }

    #[test]
    fn a_container_is_found_by_12_digits_in_every_layout() {
        for path in [
            format!("/kubepods/besteffort/pod{UID}/{ID}"),
            format!(
                "/kubepods.slice/kubepods-pod{}.slice/cri-containerd-{ID}.scope",
                UID.replace('-', "_")
            ),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/docker/{ID}"),
            format!("/machine.slice/libpod-{ID}.scope"),
        ] {
            let (_top, root) = tree(&[&path, "/system.slice/nginx.service"]);
            assert_eq!(root.by_container(&ID[..12]).unwrap().path, path);
            assert_eq!(root.by_container(ID).unwrap().path, path);
        }
    }

    #[test]
    fn an_ambiguous_prefix_lists_its_containers() {
        let (_top, root) = tree(&[&format!("/docker/{ID}"), &format!("/docker/{OTHER}")]);
        match root.by_container(&ID[..12]) {
            Err(ResolveError::Ambiguous { mut candidates, .. }) => {
                candidates.sort();
                let both = [
                    format!("cgroup:/docker/{OTHER}"),
                    format!("cgroup:/docker/{ID}"),
                ];
                assert_eq!(candidates, both);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(
            root.by_container(&ID[..16]).unwrap().path,
            format!("/docker/{ID}")
        );
    }

    #[test]
    fn a_container_cannot_pass_for_another_or_for_a_unit() {
        let real = format!("/kubepods/besteffort/pod{UID}/{ID}");
        let fake = format!("/docker/{OTHER}/{ID}");
        let (_top, root) = tree(&[
            &real,
            &fake,
            &format!("/docker/{OTHER}/sshd.service"),
            "/system.slice/sshd.service",
        ]);
        assert_eq!(root.by_container(ID).unwrap().path, real);
        assert_eq!(
            root.by_unit("sshd.service").unwrap().path,
            "/system.slice/sshd.service"
        );
    }

    #[test]
    fn a_container_inside_a_container_is_found() {
        let inner = format!("/docker/{OTHER}/kubelet/kubepods/pod{UID}/{ID}");
        let (_top, root) = tree(&[&inner]);
        let found = root.by_container(ID).unwrap();
        assert_eq!(found.path, inner);
        let pod = root.pod_of(&found).unwrap();
        assert_eq!(
            pod.path,
            format!("/docker/{OTHER}/kubelet/kubepods/pod{UID}")
        );
    }

    #[test]
    fn a_monitor_s_cgroup_is_not_the_container() {
        let real = format!("/machine.slice/libpod-{ID}.scope");
        let (_top, root) = tree(&[&format!("/machine.slice/libpod-conmon-{ID}.scope"), &real]);
        assert_eq!(root.by_container(ID).unwrap().path, real);
    }

    #[test]
    fn an_ordinary_directory_is_no_cgroup2_mount() {
        let top = tempfile::tempdir().unwrap();
        let error = CgroupRoot::at(top.path()).unwrap_err();
        assert!(matches!(error, ResolveError::Unsupported { .. }), "{error}");
        let none = CgroupRoot::at(top.path().join("none")).unwrap_err();
        assert!(matches!(none, ResolveError::Io { .. }), "{none}");
    }

    #[test]
    fn paths_of_a_cgroup_namespace_are_counted_from_the_root() {
        let join = |path| join_namespace("/kubepods/podA/ctr", path);
        assert_eq!(join("/").unwrap(), "/kubepods/podA/ctr");
        assert_eq!(join("/sub").unwrap(), "/kubepods/podA/ctr/sub");
        assert_eq!(join("/../../podB/ctr").unwrap(), "/kubepods/podB/ctr");
        assert_eq!(join("/../../..").unwrap(), "/");
        assert_eq!(join("/../../../../x"), None);
    }

    proptest! {
        #[test]
        fn outside_of_a_namespace_paths_stay_as_they_are(path in "(/[a-z.]{1,3}x){1,5}") {
            prop_assert_eq!(join_namespace("/", &path), Some(path));
        }
    }
}
