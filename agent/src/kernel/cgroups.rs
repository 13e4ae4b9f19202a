//! Programs on the cgroups that are captured, and on no others: a socket elsewhere does not meet them.
//!
//! They are attached to the cgroup of a tap as long as it is bound. What a program finds there is a word
//! of that cgroup (`CGROUP_TAP`): which tap it is. A cgroup in another that is a tap, too, has programs
//! of its own.
//!
//! Attached as links, which let others attach above, below and beside them. A program of the old kind
//! that may be replaced from below (`BPF_F_ALLOW_OVERRIDE`) would not run here any more: such a place
//! is refused.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::maps::Map;
use remora_agent_common::tap::{CGROUP_LOOPBACK_ONLY, CGROUP_RECEIVED};

use super::{
    KernelError, Pins,
    load::CGROUP_PROGRAMS,
    pins::link_name,
    program::{Kind, bpf, update_element},
};
use crate::session::{CgroupPlace, CgroupScope, TapId};

/// Commands and flags of bpf(2) (include/uapi/linux/bpf.h, v6.18).
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;

/// In the order of [`CGROUP_PROGRAMS`].
const KINDS: [Kind; 2] = [Kind::CgroupIngress, Kind::CgroupEgress];

/// `union bpf_attr` of BPF_LINK_CREATE, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// `union bpf_attr` of BPF_PROG_QUERY, as far as it is used: no list is asked for.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<LinkAttr>() == 16 && size_of::<QueryAttr>() == 32);

#[derive(Debug)]
enum Links {
    /// Closing them detaches.
    Held {
        _links: [OwnedFd; 2],
    },
    Pinned,
}

/// The map of words, by cgroup id. All cgroup programs must name it, made here or not.
#[derive(Debug)]
pub struct Words(OwnedFd);

impl Words {
    pub(super) fn of(map: &Map) -> Result<Self, KernelError> {
        let Map::CgroupStorage(map) = map else {
            return Err(KernelError::Missing("CGROUP_TAP"));
        };
        map.fd()
            .as_fd()
            .try_clone_to_owned()
            .map(Self)
            .map_err(duplicate)
    }

    pub(super) fn try_clone(&self) -> Result<Self, KernelError> {
        self.0.try_clone().map(Self).map_err(duplicate)
    }

    /// What a program's instructions name it by while they are loaded.
    pub(super) fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// A cgroup has none before the first attachment, and after its end: no word is 0.
    fn set(&self, id: u64, word: u64) -> Result<(), KernelError> {
        // SAFETY: keys and values of this map have eight bytes (`CGROUP_TAP`).
        match unsafe { update_element(&self.0, &raw const id as u64, &raw const word as u64) } {
            Err(error) if error.kind() == io::ErrorKind::NotFound && word == 0 => Ok(()),
            set => set.map_err(|error| KernelError::Io("say which tap a cgroup is", error)),
        }
    }
}

fn duplicate(error: io::Error) -> KernelError {
    KernelError::Io("duplicate a descriptor", error)
}

/// The programs, and the cgroups that they are on.
#[derive(Debug)]
pub struct CgroupHooks {
    /// Where the cgroup2 hierarchy is mounted.
    mount: PathBuf,
    programs: [OwnedFd; 2],
    words: Words,
    pins: Option<Arc<Pins>>,
    /// By cgroup id.
    links: HashMap<u64, Links>,
}

impl CgroupHooks {
    pub(super) fn new(
        mount: &Path,
        programs: [OwnedFd; 2],
        words: Words,
        pins: Option<Arc<Pins>>,
    ) -> Result<Self, KernelError> {
        let mut hooks = Self {
            mount: mount.to_owned(),
            programs,
            words,
            pins,
            links: HashMap::new(),
        };
        hooks.take_over()?;
        Ok(hooks)
    }

    /// Links that an agent before this one left get the programs of this one.
    fn take_over(&mut self) -> Result<(), KernelError> {
        let Some(pins) = &self.pins else {
            return Ok(());
        };
        for id in pins.cgroups()? {
            for (name, program) in CGROUP_PROGRAMS.into_iter().zip(&self.programs) {
                pins.update(&link_name(name, id), program)?;
            }
            self.links.insert(id, Links::Pinned);
        }
        Ok(())
    }

    /// Cgroups that the programs are on.
    #[must_use]
    pub fn attached(&self) -> BTreeSet<u64> {
        self.links.keys().copied().collect()
    }

    /// Attaches to a cgroup if that is not done yet, and says which tap it is. Takes 0.1 to 0.2 ms where it
    /// attaches (`--log debug` tells it as `bound`).
    ///
    /// # Errors
    /// The cgroup is gone, a program of another's would be replaced there, or the kernel refuses.
    /// Nothing is attached then.
    pub fn attach(&mut self, place: &CgroupPlace, tap: TapId) -> Result<(), KernelError> {
        let word = u64::from(tap.index)
            | match place.scope {
                CgroupScope::LoopbackOnly => CGROUP_LOOPBACK_ONLY,
                CgroupScope::Received => CGROUP_RECEIVED,
                CgroupScope::All => 0,
            };
        if !self.links.contains_key(&place.id) {
            let directory = self.open(place)?;
            self.refuse_to_replace(place)?;
            // Of an agent before this one, or of a tap before this one.
            self.words.set(place.id, 0)?;
            let links = self.link(&directory, &place.path, place.id)?;
            self.links.insert(place.id, links);
        }
        let set = self.words.set(place.id, word);
        if set.is_err() {
            self.detach(place.id);
        }
        set
    }

    /// Takes the programs off a cgroup. If it is gone, the kernel has done so already.
    pub fn detach(&mut self, id: u64) {
        // The word stays when the links go.
        if let Err(error) = self.words.set(id, 0) {
            tracing::error!(%error, "failed to take a cgroup's tap back");
        }
        if let (Some(Links::Pinned), Some(pins)) = (self.links.remove(&id), &self.pins) {
            pins.forget_cgroup(id);
        }
    }

    /// Tries whether the programs can be attached to the hierarchy's root.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn try_root(&self) -> Result<(), KernelError> {
        let root = File::open(&self.mount);
        let root = root.map_err(|error| KernelError::Io("open the cgroup2 root", error))?;
        for (program, kind) in self.programs.iter().zip(KINDS) {
            create_link(program, &root, kind).map_err(|source| refused("/", source))?;
        }
        Ok(())
    }

    fn open(&self, place: &CgroupPlace) -> Result<File, KernelError> {
        let gone = || KernelError::Scope(format!("cgroup {} went away; try again", place.path));
        let failed = |error| KernelError::Io("open a cgroup's directory", error);
        let directory = match File::open(self.directory(&place.path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone()),
            directory => directory.map_err(failed)?,
        };
        // The name may have come again.
        if directory.metadata().map_err(failed)?.ino() != place.id {
            return Err(gone());
        }
        Ok(directory)
    }

    fn directory(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    /// Only the nearest ones around it run beside ours; those further out that may be replaced are
    /// replaced by them already (kernel/bpf/cgroup.c, `compute_effective_progs`, v6.18).
    fn refuse_to_replace(&self, place: &CgroupPlace) -> Result<(), KernelError> {
        for kind in KINDS {
            let mut around = place.path.as_str();
            while let Some((outer, _)) = around.rsplit_once('/') {
                around = outer;
                let directory = File::open(self.directory(around))
                    .map_err(|error| KernelError::Io("open a cgroup's directory", error))?;
                let mut attr = QueryAttr {
                    target_fd: directory.as_raw_fd().cast_unsigned(),
                    attach_type: kind.attach_type(),
                    ..QueryAttr::default()
                };
                // SAFETY: these are the command's attributes, and point to nothing.
                unsafe { bpf(BPF_PROG_QUERY, &mut attr) }
                    .map_err(|error| KernelError::Io("ask for a cgroup's programs", error))?;
                if attr.prog_cnt == 0 {
                    continue;
                }
                if attr.attach_flags & BPF_F_ALLOW_MULTI == 0 {
                    let outer = if around.is_empty() { "/" } else { around };
                    return Err(KernelError::Scope(format!(
                        "cgroup {outer} has a program that allows no other beside it, which would \
                         no longer run for {}; capture an interface instead (-i NAME)",
                        place.path
                    )));
                }
                break;
            }
        }
        Ok(())
    }

    fn link(&self, directory: &File, path: &str, id: u64) -> Result<Links, KernelError> {
        let create = |number: usize| {
            create_link(&self.programs[number], directory, KINDS[number])
                .map_err(|source| refused(path, source))
        };
        let links = [create(0)?, create(1)?];
        let Some(pins) = &self.pins else {
            return Ok(Links::Held { _links: links });
        };
        pins.forget_cgroup(id);
        for (name, link) in CGROUP_PROGRAMS.into_iter().zip(&links) {
            if let Err(error) = pins.pin_fd(link, &link_name(name, id)) {
                pins.forget_cgroup(id);
                return Err(error);
            }
        }
        Ok(Links::Pinned)
    }
}

fn create_link(program: &OwnedFd, directory: &File, kind: Kind) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_fd: directory.as_raw_fd().cast_unsigned(),
        attach_type: kind.attach_type(),
        ..LinkAttr::default()
    };
    // SAFETY: these are the command's attributes, and point to nothing.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?;
    // SAFETY: the call has made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn refused(path: &str, source: io::Error) -> KernelError {
    KernelError::Cgroup {
        path: path.to_owned(),
        source,
    }
}
