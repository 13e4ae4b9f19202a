//! Maps and links in a directory of a bpffs, where they outlive the agent (`--pin`).
//!
//! ```text
//! DIR/EVENTS, SESSIONS, …         every map but those of look-back, which begins anew, and of the
//!                                 programs' log and constants
//! DIR/tcx_ingress_7, tcx_egress_7 links of interface 7
//! DIR/cgroup_ingress_4711, …       links of the cgroup with that id
//! ```
//! While an agent is there it holds a lock of the directory (flock), which goes with it. The next one
//! loads its own programs onto these maps and puts them into these links, one after the other, while
//! packets pass: so the layouts of both must be the same ([`Pins::check`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    fmt::Display,
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use aya::{maps::MapInfo, programs::links::FdLink};
use aya_obj::Object;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{FsType, statfs},
    unistd::{AccessFlags, access},
};

use super::{
    KernelError,
    load::{CGROUP_PROGRAMS, TCX_PROGRAMS},
    program::bpf,
};

/// Where pins are if nothing else is said.
pub const PIN_DIRECTORY: &str = "/sys/fs/bpf/remora";

/// `BPF_FS_MAGIC` (linux/magic.h).
const BPFFS: FsType = FsType(0xcafe_4a11);
const DIRECTORY_MODE: u32 = 0o700;

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_UPDATE: libc::c_int = 29;

/// How the names of maps begin that go with their programs.
const NOT_PINNED: [&str; 3] = [".", "AYA_LOG", "LOOK_BACK"];

/// Without these there is nothing to go on with: an agent was killed when it had just begun.
const NEEDED: [&str; 2] = ["CHECKPOINT", "EVENTS"];

/// `union bpf_attr` of BPF_OBJ_PIN and BPF_OBJ_GET.
#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr` of BPF_LINK_UPDATE.
#[repr(C)]
#[derive(Default)]
struct UpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// A directory, locked.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    /// An agent before this one has left its maps.
    left: bool,
    _lock: Flock<File>,
}

/// What was in a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpinned {
    pub links: u64,
    pub maps: u64,
}

impl Pins {
    /// Locks a directory, which is made if need be.
    ///
    /// # Errors
    /// It is not on a bpffs, cannot be made or written to, or another agent uses it.
    pub fn open(directory: &Path) -> Result<Self, KernelError> {
        let made = DirBuilder::new().mode(DIRECTORY_MODE).create(directory);
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", directory, error));
            }
            _ => {}
        }
        let pins = Self::lock(directory)?;
        access(directory, AccessFlags::W_OK)
            .map_err(|errno| failed("write to", directory, errno.into()))?;
        Ok(pins)
    }

    /// Locks a directory that is there.
    ///
    /// # Errors
    /// It is not there, not on a bpffs, or an agent uses it.
    pub fn lock(directory: &Path) -> Result<Self, KernelError> {
        let file = File::open(directory).map_err(|error| failed("open", directory, error))?;
        let kind = statfs(directory)
            .map_err(|errno| failed("look at", directory, errno.into()))?
            .filesystem_type();
        if kind != BPFFS {
            return Err(KernelError::NoBpffs(directory.to_owned()));
        }
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(KernelError::PinsInUse(directory.to_owned()));
            }
            Err((_, errno)) => return Err(failed("lock", directory, errno.into())),
        };
        let mut pins = Self {
            directory: directory.to_owned(),
            left: false,
            _lock: lock,
        };
        let names = pins.names()?;
        pins.left = NEEDED.iter().all(|needed| names.contains(*needed));
        Ok(pins)
    }

    /// An agent before this one has left its maps here.
    #[must_use]
    pub fn are_left(&self) -> bool {
        self.left
    }

    /// Removes all that is in the directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove_all(&mut self) -> Result<Unpinned, KernelError> {
        let mut unpinned = Unpinned::default();
        // Links first: what they have attached uses the maps.
        let names = self.names()?;
        let (links, maps): (Vec<_>, Vec<_>) = names.iter().partition(|name| is_link(name));
        for (names, count) in [(links, &mut unpinned.links), (maps, &mut unpinned.maps)] {
            for name in names {
                let path = self.path(name);
                fs::remove_file(&path).map_err(|error| failed("remove", &path, error))?;
                *count += 1;
            }
        }
        self.left = false;
        Ok(unpinned)
    }

    /// Removes the directory, too, which must be empty.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove_directory(self) -> io::Result<()> {
        fs::remove_dir(&self.directory)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Without what the kernel puts into a bpffs by itself: `maps.debug`, `progs.debug`.
    fn names(&self) -> Result<BTreeSet<String>, KernelError> {
        let read = || -> io::Result<_> {
            let names = fs::read_dir(&self.directory)?
                .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
                .collect::<io::Result<BTreeSet<_>>>()?;
            Ok(names
                .into_iter()
                .filter(|name| !name.contains('.'))
                .collect())
        };
        read().map_err(|error| failed("read", &self.directory, error))
    }

    /// Names of the object's maps that are pinned. Those that are pinned already must be as this object
    /// would make them.
    ///
    /// # Errors
    /// [`KernelError::Layout`].
    pub(super) fn check(&self, object: &[u8], ring_bytes: u32) -> Result<Vec<String>, KernelError> {
        let object = Object::parse(object)
            .map_err(|error| KernelError::Object(Box::new(aya::EbpfError::ParseError(error))))?;
        let maps: BTreeMap<_, _> = object
            .maps
            .iter()
            .filter(|(name, _)| !NOT_PINNED.iter().any(|start| name.starts_with(start)))
            .collect();
        let there = self.names()?;
        for (name, map) in &maps {
            if !there.contains(*name) {
                continue;
            }
            let found = MapInfo::from_pin(self.path(name)).map_err(|source| KernelError::Map {
                name: "of the pins",
                source: Box::new(source),
            })?;
            let found = (found.key_size(), found.value_size(), found.max_entries());
            let entries = match name.as_str() {
                "EVENTS" => ring_bytes,
                _ => map.max_entries(),
            };
            let wanted = (map.key_size(), map.value_size(), entries);
            if found == wanted {
                continue;
            }
            let what = match name.as_str() {
                "EVENTS" => format!("a ring of {} bytes, not {ring_bytes}", found.2),
                "ABI" => format!("ABI version {}, not {entries}", found.2),
                _ => format!(
                    "`{name}` with {} values of {} bytes, not {entries} of {}",
                    found.2, found.1, wanted.1
                ),
            };
            return Err(KernelError::Layout {
                directory: self.directory.clone(),
                what,
            });
        }
        Ok(maps.into_keys().cloned().collect())
    }

    /// A link of aya's is kept by the file from now on.
    pub(super) fn pin(&self, link: FdLink, name: &str) -> Result<(), KernelError> {
        link.pin(self.path(name))
            .map(drop)
            .map_err(|error| failed("pin a link to", &self.path(name), io::Error::other(error)))
    }

    /// A link is kept by the file as well.
    pub(super) fn pin_fd(&self, link: &OwnedFd, name: &str) -> Result<(), KernelError> {
        let path = self.path(name);
        let failed = |error| failed("pin a link to", &path, error);
        let pathname = CString::new(path.as_os_str().as_bytes()).map_err(|e| failed(e.into()))?;
        let mut attr = ObjectAttr {
            pathname: pathname.as_ptr() as u64,
            bpf_fd: link.as_raw_fd().cast_unsigned(),
            ..ObjectAttr::default()
        };
        // SAFETY: the attributes point to a string that ends with 0, which is only read and outlives
        // the call.
        unsafe { bpf(BPF_OBJ_PIN, &mut attr) }
            .map(drop)
            .map_err(failed)
    }

    /// Puts a program into a pinned link; false if there is none of that name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn update(&self, name: &str, program: impl AsFd) -> Result<bool, KernelError> {
        let path = self.path(name);
        let link = match open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            link => link.map_err(|error| failed("open", &path, error))?,
        };
        let mut attr = UpdateAttr {
            link_fd: link.as_raw_fd().cast_unsigned(),
            new_prog_fd: program.as_fd().as_raw_fd().cast_unsigned(),
            ..UpdateAttr::default()
        };
        // SAFETY: these are the command's attributes, and point to nothing.
        unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }
            .map_err(|error| failed("put the program into", &path, error))?;
        Ok(true)
    }

    /// Interfaces with links in both directions that are attached. Links of those that are gone are
    /// removed.
    pub(super) fn interfaces(&self) -> Result<BTreeSet<u32>, KernelError> {
        let (whole, gone) = self.attached(TCX_PROGRAMS, "ifindex:")?;
        gone.into_iter()
            .for_each(|ifindex| self.forget_interface(ifindex));
        Ok(whole)
    }

    /// The same of cgroups, by their ids.
    pub(super) fn cgroups(&self) -> Result<BTreeSet<u64>, KernelError> {
        let (whole, gone) = self.attached(CGROUP_PROGRAMS, "cgroup_id:")?;
        gone.into_iter().for_each(|id| self.forget_cgroup(id));
        Ok(whole)
    }

    /// What links of both programs are attached to still, and what is left of others. `field`: where
    /// a link's fdinfo says what it is attached to, and 0 once that is gone.
    fn attached<T>(
        &self,
        programs: [&str; 2],
        field: &str,
    ) -> Result<(BTreeSet<T>, Vec<T>), KernelError>
    where
        T: Ord + Copy + FromStr,
    {
        let mut found: BTreeMap<T, usize> = BTreeMap::new();
        for name in self.names()? {
            let to = programs
                .into_iter()
                .find_map(|program| name.strip_prefix(program)?.strip_prefix('_')?.parse().ok());
            if let Some(to) = to {
                let attached =
                    open(&self.path(&name)).and_then(|link| attached_to::<T>(&link, field));
                *found.entry(to).or_default() += usize::from(attached.is_ok_and(|now| now == to));
            }
        }
        let (whole, gone): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, links)| *links == 2);
        let whole = whole.into_iter().map(|(to, _)| to).collect();
        Ok((whole, gone.into_iter().map(|(to, _)| to).collect()))
    }

    pub(super) fn forget_interface(&self, ifindex: u32) {
        self.forget(TCX_PROGRAMS.map(|program| link_name(program, ifindex)));
    }

    pub(super) fn forget_cgroup(&self, id: u64) {
        self.forget(CGROUP_PROGRAMS.map(|program| link_name(program, id)));
    }

    fn forget(&self, names: [String; 2]) {
        for name in names {
            let path = self.path(&name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::error!(%error, path = %path.display(), "failed to remove");
                }
                _ => {}
            }
        }
    }
}

/// Whether an agent with these rights can pin in a directory, which need not be there.
///
/// # Errors
/// Why not, and what to do, for a person.
pub fn usable(directory: &Path) -> Result<(), String> {
    let place = match directory.parent() {
        Some(parent) if !directory.exists() => parent,
        _ => directory,
    };
    match statfs(place) {
        Ok(statfs) if statfs.filesystem_type() == BPFFS => {}
        Ok(_) => return Err(KernelError::NoBpffs(place.to_owned()).to_string()),
        Err(errno) => return Err(format!("{}: {errno}", place.display())),
    }
    access(place, AccessFlags::W_OK).map_err(|errno| {
        format!(
            "{} is not writable ({errno}): make {} as root and give it to the agent's user",
            place.display(),
            directory.display()
        )
    })
}

/// Name of the link by which a program is on an interface or a cgroup.
pub(super) fn link_name(program: &str, on: impl Display) -> String {
    format!("{program}_{on}")
}

/// Maps are in capitals.
fn is_link(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr {
        pathname: name.as_ptr() as u64,
        ..ObjectAttr::default()
    };
    // SAFETY: the attributes point to a string that ends with 0, which is only read and outlives the
    // call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: the call has made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attached_to<T: FromStr>(link: &OwnedFd, field: &str) -> io::Result<T> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("it is another kind of link"))
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> KernelError {
    KernelError::Pins {
        action,
        path: path.to_owned(),
        source,
    }
}

const _: () = assert!(size_of::<ObjectAttr>() == 16 && size_of::<UpdateAttr>() == 16);
