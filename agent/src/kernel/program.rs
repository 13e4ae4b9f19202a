//! Programs that are made here instead of compiled: loading one, a run of it on given bytes, and where
//! others call it. By bpf(2) itself (include/uapi/linux/bpf.h, v6.18), for aya loads programs from objects only.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    time::Duration,
};

use aya::maps::Map;

use super::translate::insn::Insn;

/// Commands of bpf(2).
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_PROG_QUERY: libc::c_int = 16;

/// A kind of attachment of bpf(2).
const BPF_TCX_INGRESS: u32 = 46;
/// Programs on one hook that are looked at; the kernel allows no more (`BPF_MPROG_MAX`).
const ON_HOOK_MAX: usize = 64;

/// What the verifier may say at most; of more it keeps the end (since v6.4).
const LOG_MAX: usize = 64 * 1024;
/// How much of it is told: its last lines.
const LOG_LINES_TOLD: usize = 3;

/// Bytes of `struct __sk_buff` that a run gives back.
const CONTEXT_LEN: usize = 192;
/// Where it has `cb`, five words that a program may write.
const CONTEXT_CB: usize = 48;

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `sched_cls`, for TCX, clsact or a tail call from there.
    Classifier,
    /// `cgroup_skb`, for packets that a socket receives.
    CgroupIngress,
    /// `cgroup_skb`, for packets that a socket sends.
    CgroupEgress,
}

impl Kind {
    const fn program_type(self) -> u32 {
        match self {
            Self::Classifier => 3,
            Self::CgroupIngress | Self::CgroupEgress => 8,
        }
    }

    pub(super) const fn attach_type(self) -> u32 {
        match self {
            Self::Classifier | Self::CgroupIngress => 0,
            Self::CgroupEgress => 1,
        }
    }
}

/// Why a program was not loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("the kernel refuses the program: {source}: {log}")]
    Load { source: io::Error, log: String },
    #[error("the kernel does not run the program: {0}")]
    Run(#[source] io::Error),
}

/// `union bpf_attr` of BPF_PROG_LOAD, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `union bpf_attr` of BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

/// `union bpf_attr` of BPF_PROG_QUERY.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    reserved: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// `union bpf_attr` of BPF_MAP_*_ELEM.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const _: () = assert!(size_of::<LoadAttr>() == 72 && size_of::<RunAttr>() == 80);
const _: () = assert!(size_of::<ElementAttr>() == 32 && size_of::<QueryAttr>() == 64);

/// A loaded program; gone with its last descriptor.
#[derive(Debug)]
pub struct Program(OwnedFd);

/// What came of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub returned: u32,
    /// The first two words of `cb`, the second being the upper half.
    pub cb: u64,
    /// Of one run, on average, to the nanosecond.
    pub took: Duration,
}

impl Program {
    /// Loads one. A `name` has at most 15 bytes of letters, digits, `_` and `.`; `license` is what
    /// `gpl_only` helpers are allowed by.
    ///
    /// # Errors
    /// The rights are missing or the verifier refuses; the error has its last words.
    pub fn load(
        kind: Kind,
        name: &str,
        license: &CStr,
        instructions: &[Insn],
    ) -> Result<Self, ProgramError> {
        let attr = || {
            let mut prog_name = [0; 16];
            for (to, from) in prog_name.iter_mut().take(15).zip(name.bytes()) {
                *to = from;
            }
            LoadAttr {
                prog_type: kind.program_type(),
                insn_cnt: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
                insns: instructions.as_ptr() as u64,
                license: license.as_ptr() as u64,
                prog_name,
                expected_attach_type: kind.attach_type(),
                ..LoadAttr::default()
            }
        };
        // SAFETY: the attributes point to `instructions` (so many of them, of the kernel's layout)
        // and to a string that ends with 0; both are only read, and outlive the call.
        let source = match unsafe { bpf(BPF_PROG_LOAD, &mut attr()) } {
            // SAFETY: the call has made this descriptor, and nobody else knows of it.
            Ok(fd) => return Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
            Err(error) => error,
        };
        // Once more, to be told why.
        let mut log = vec![0_u8; LOG_MAX];
        let mut told = LoadAttr {
            log_level: 1,
            log_size: LOG_MAX as u32,
            log_buf: log.as_mut_ptr() as u64,
            ..attr()
        };
        // SAFETY: as above; besides, the kernel writes at most `log_size` bytes to `log`.
        match unsafe { bpf(BPF_PROG_LOAD, &mut told) } {
            // SAFETY: as above.
            Ok(fd) => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
            Err(_) => Err(ProgramError::Load {
                source,
                log: last_lines(&log),
            }),
        }
    }

    /// One that is loaded already, by a descriptor of its own.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub(super) fn of(program: BorrowedFd<'_>) -> io::Result<Self> {
        program.try_clone_to_owned().map(Self)
    }

    /// Runs it `repeat` times (0 is once) on a packet of `data`, which begins with an Ethernet
    /// header and has no less than that. The kernel takes the header off for a cgroup program.
    ///
    /// # Errors
    /// The packet is too short or too long (a page, roughly), or the kernel refuses.
    pub fn run(&self, data: &[u8], repeat: u32) -> Result<Run, ProgramError> {
        let mut context = [0_u8; CONTEXT_LEN];
        let mut attr = RunAttr {
            prog_fd: self.0.as_raw_fd().cast_unsigned(),
            data_size_in: u32::try_from(data.len()).unwrap_or(u32::MAX),
            data_in: data.as_ptr() as u64,
            repeat,
            ctx_size_out: CONTEXT_LEN as u32,
            ctx_out: context.as_mut_ptr() as u64,
            ..RunAttr::default()
        };
        // SAFETY: `data` is so long and only read; the kernel writes at most `ctx_size_out` bytes
        // to `context`. Both outlive the call.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }.map_err(ProgramError::Run)?;
        let cb = context[CONTEXT_CB..].first_chunk::<8>().expect("in it");
        Ok(Run {
            returned: attr.retval,
            cb: u64::from_ne_bytes(*cb),
            took: Duration::from_nanos(attr.duration.into()),
        })
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A map of programs (BPF_MAP_TYPE_PROG_ARRAY), which others call by their index. To be kept: the kernel
/// empties one whose last descriptor in user space is closed.
#[derive(Debug)]
pub(super) struct CallTable(OwnedFd);

impl CallTable {
    /// A descriptor of its own for a map of programs; none for one of another type.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub(super) fn of(map: &Map) -> io::Result<Option<Self>> {
        let Map::ProgramArray(map) = map else {
            return Ok(None);
        };
        let fd = map.fd().as_fd().try_clone_to_owned()?;
        Ok(Some(Self(fd)))
    }

    /// # Errors
    /// The process has no descriptors left.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// What a program's instructions name it by while they are loaded.
    pub(super) fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Whoever calls `index` from now on calls `program`, which the map keeps.
    ///
    /// # Errors
    /// There is no such index, or the program is not of the type of the others.
    pub(super) fn set(&self, index: u32, program: &Program) -> io::Result<()> {
        let fd = program.0.as_raw_fd();
        self.element(BPF_MAP_UPDATE_ELEM, index, &raw const fd as u64)
    }

    /// Whoever calls `index` from now on goes on without. It may be so already.
    ///
    /// # Errors
    /// There is no such index.
    pub(super) fn clear(&self, index: u32) -> io::Result<()> {
        match self.element(BPF_MAP_DELETE_ELEM, index, 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// `value`: the address of a descriptor, or 0.
    fn element(&self, command: libc::c_int, index: u32, value: u64) -> io::Result<()> {
        // SAFETY: key and value of such a map have four bytes, which the two point to; both are only
        // read, and outlive the call. A deletion looks at no value.
        unsafe { element(&self.0, command, &raw const index as u64, value) }
    }
}

/// Ids of the programs that see by TCX what comes in at the device that has this index now. Takes the kernel's
/// lock over all links.
///
/// # Errors
/// The kernel's; ENODEV if there is no such device.
pub(super) fn on_tcx_ingress(ifindex: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; ON_HOOK_MAX];
    let mut attr = QueryAttr {
        target_ifindex: ifindex,
        attach_type: BPF_TCX_INGRESS,
        prog_ids: ids.as_mut_ptr() as u64,
        count: ON_HOOK_MAX as u32,
        ..QueryAttr::default()
    };
    // SAFETY: the kernel writes at most `count` ids to `ids`, which outlives the call.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    let count = (attr.count as usize).min(ON_HOOK_MAX);
    Ok(ids[..count].to_vec())
}

/// Replaces the value of a key, both given by their addresses.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::NotFound`] if there must be such a key, and is none.
///
/// # Safety
/// At both are as many bytes as the map's keys and values have.
pub(super) unsafe fn update_element(map: &OwnedFd, key: u64, value: u64) -> io::Result<()> {
    // SAFETY: as the caller promises; both are only read, and outlive the call.
    unsafe { element(map, BPF_MAP_UPDATE_ELEM, key, value) }
}

/// # Safety
/// As [`update_element`].
unsafe fn element(map: &OwnedFd, command: libc::c_int, key: u64, value: u64) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key,
        value,
        flags: 0,
    };
    // SAFETY: as the caller promises.
    unsafe { bpf(command, &mut attr) }.map(drop)
}

/// bpf(2).
///
/// # Safety
/// `T` is the layout of the command's attributes, and what they point to is there, as long as they
/// say, and writable where the command writes.
pub(super) unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads and writes `attr` for its size at most; the rest is the caller's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as libc::c_int)
}

fn last_lines(log: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(log)
        .map(CStr::to_string_lossy)
        .unwrap_or_default();
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_LINES_TOLD)..].join("; ")
}
