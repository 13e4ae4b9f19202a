//! The eBPF object: checked, its maps made and its programs loaded.

use std::{error::Error as StdError, os::fd::AsFd as _, path::PathBuf};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapError, RingBuf},
    programs::{CgroupSkb, ProgramError, SchedClassifier},
    util::nr_cpus,
};
use aya_log::EbpfLogger;
use remora_agent_common::{ABI_VERSION, share};
use remora_capture::{evidence::Digest, text::with_causes};

use super::{
    Pins, Programs, Ring, Tables,
    cgroups::Words,
    look_back::LookBackMaps,
    program::Program,
    progress::Progress,
    ring::{GiveBack, WAKE_PARTS},
    stages::{CGROUP_STAGES, Stages, TC_STAGES},
    tables::typed,
    upgrade::FilterTables,
};

/// The object that `cargo xtask build` made; empty if this build had none.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("REMORA_EBPF_OBJECT"));

/// SHA-256 of the object, to be named in evidence.
#[must_use]
pub fn object_digest() -> Digest {
    Digest::of(OBJECT)
}

/// Smallest ring, in bytes: it must hold a few of the largest records.
pub const RING_BYTES_MIN: u32 = 256 << 10;
/// Largest ring, in bytes.
pub const RING_BYTES_MAX: u32 = 1 << 30;

pub(super) const TCX_PROGRAMS: [&str; 2] = ["tcx_ingress", "tcx_egress"];
pub(super) const CGROUP_PROGRAMS: [&str; 2] = ["cgroup_ingress", "cgroup_egress"];
/// The kernel side could not be set up, or did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(
        "this build of remora-agent has no eBPF object; build it by `cargo xtask build` (plain \
         `cargo build` leaves it out)"
    )]
    NoObject,
    #[error(
        "the eBPF object has ABI version {found}, this agent {ABI_VERSION}; build both by \
         `cargo xtask build`"
    )]
    Abi { found: u32 },
    #[error("the ring has {0} bytes; use a power of two from 256 KiB to 1 GiB")]
    RingBytes(u32),
    #[error(
        "not permitted: the agent needs CAP_BPF and CAP_NET_ADMIN ({}); `remora-agent doctor` \
         tells what is missing", chain(&**.0)
    )]
    NotPermitted(#[source] Box<dyn StdError + Send + Sync>),
    #[error("failed to load the eBPF object: {}", chain(.0))]
    Object(#[source] Box<aya::EbpfError>),
    #[error("failed to load program `{name}`: {}", chain(.source))]
    Program {
        name: &'static str,
        source: Box<ProgramError>,
    },
    #[error("the eBPF object has no {0}")]
    Missing(&'static str),
    #[error("failed to use map `{name}`: {}", chain(.source))]
    Map {
        name: &'static str,
        source: Box<MapError>,
    },
    #[error("failed to {action} {}: {source}", path.display())]
    Pins {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{} is not on a bpffs, where maps can be pinned; `mount -t bpf bpf /sys/fs/bpf`, or name a \
         directory of one", .0.display()
    )]
    NoBpffs(PathBuf),
    #[error("another agent uses the pins in {}; choose another --pin", .0.display())]
    PinsInUse(PathBuf),
    #[error("--pin needs TCX links (Linux 6.6), and here filters of clsact are used; leave it out")]
    PinWithoutTcx,
    #[error(
        "the agent before this one left {what} in {}, and its captures go on there: start that agent \
         again and stop them (`remora stop`), or give them up by `remora-agent cleanup --pin {}`",
        directory.display(), directory.display()
    )]
    Layout { directory: PathBuf, what: String },
    #[error("failed to attach to {place}: {}", chain(.source))]
    Attach {
        place: String,
        source: Box<ProgramError>,
    },
    #[error("failed to attach to cgroup {path}: {source}")]
    Cgroup {
        path: String,
        source: std::io::Error,
    },
    #[error("failed to attach to interface `{interface}` by clsact: {source}")]
    Clsact {
        interface: String,
        source: std::io::Error,
    },
    #[error("all {0} taps are in use")]
    TapsFull(u32),
    #[error("{0}")]
    Scope(String),
    #[error("the filter `{0}` was not compiled")]
    Uncompiled(String),
    #[error(
        "the filter has {wanted} instructions, and beside the filters of the captures that run there \
         is room for {room}; stop one of them, or use a shorter filter"
    )]
    PoolFull { wanted: u32, room: u32 },
    #[error("failed to {0}: {1}")]
    Io(&'static str, #[source] std::io::Error),
}

/// An error with its causes on one line: aya keeps the reason at the end of the chain.
fn chain(error: &(dyn StdError + 'static)) -> String {
    verdict(&with_causes(error))
}

/// A verifier's log is long; what it did not like stands at its end, before three lines of figures.
fn verdict(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    let figures = ["verification time", "stack depth", "processed ", ": "];
    let last = text
        .lines()
        .skip(1)
        .filter(|line| !figures.iter().any(|figure| line.starts_with(figure)))
        .last();
    match last {
        Some(last) => format!("{first} … {}", last.trim()),
        None => first.to_owned(),
    }
}

fn is_permission(error: &(dyn StdError + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            // The verifier's refusal is EACCES; a missing capability is EPERM.
            && io.raw_os_error() == Some(libc::EPERM)
        {
            return true;
        }
        source = cause.source();
    }
    false
}

impl KernelError {
    /// Tells a lack of rights from every other failure.
    fn from_load(error: aya::EbpfError) -> Self {
        if is_permission(&error) {
            Self::NotPermitted(Box::new(error))
        } else {
            Self::Object(Box::new(error))
        }
    }

    pub(super) fn from_program(name: &'static str, error: ProgramError) -> Self {
        // All that the verifier said; the error keeps one line of it.
        tracing::debug!(name, ?error, "failed to load");
        if is_permission(&error) {
            Self::NotPermitted(Box::new(error))
        } else {
            Self::Program {
                name,
                source: Box::new(error),
            }
        }
    }
}

/// How to load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions<'a> {
    /// A power of two, [`RING_BYTES_MIN`] to [`RING_BYTES_MAX`].
    pub ring_bytes: u32,
    /// What the programs may log (rare diagnostics, never per packet).
    pub log: log::LevelFilter,
    /// Where maps are that outlive the agent, and are to be.
    pub pins: Option<&'a Pins>,
}

/// Everything that came out of the object.
#[derive(Debug)]
pub struct Loaded {
    pub tables: Tables,
    pub programs: Programs,
    pub ring: Ring,
    pub look_back: LookBackMaps,
    pub filters: FilterTables,
    /// The program that meets packets where they enter an interface, for test runs.
    pub entry: Program,
    /// Of pinned maps.
    pub progress: Option<Progress>,
    /// Programs with the number of instructions that the verifier processed.
    pub verified: Vec<(&'static str, u32)>,
}

/// Loads all programs. Nothing is attached yet.
///
/// # Errors
/// [`KernelError`], which says what to do next.
pub fn load(options: LoadOptions<'_>) -> Result<Loaded, KernelError> {
    if OBJECT.is_empty() {
        return Err(KernelError::NoObject);
    }
    let ring_bytes = options.ring_bytes;
    if !ring_bytes.is_power_of_two() || !(RING_BYTES_MIN..=RING_BYTES_MAX).contains(&ring_bytes) {
        return Err(KernelError::RingBytes(ring_bytes));
    }
    let wake_bytes = u64::from(ring_bytes / WAKE_PARTS);
    let cpus =
        nr_cpus().map_err(|(_, error)| KernelError::Io("count the machine's CPUs", error))?;
    let ask_bytes = wake_bytes / 2 / cpus as u64;
    let tight_from = share::tight_from(ring_bytes.into());
    let tight_room = share::tight_room(ring_bytes.into());
    let log_level = options.log as u8;
    let pinned;
    let mut loader = EbpfLoader::new();
    if let Some(pins) = options.pins {
        pinned = pins.check(OBJECT, ring_bytes)?;
        for name in &pinned {
            loader.map_pin_path(name, pins.path(name));
        }
    }
    let mut ebpf = loader
        .map_max_entries("EVENTS", ring_bytes)
        .override_global("REMORA_WAKE_BYTES", &wake_bytes, true)
        .override_global("REMORA_ASK_BYTES", &ask_bytes, true)
        .override_global("REMORA_TIGHT_FROM", &tight_from, true)
        .override_global("REMORA_TIGHT_ROOM", &tight_room, true)
        .override_global("AYA_LOG_LEVEL", &log_level, false)
        .load(OBJECT)
        .map_err(KernelError::from_load)?;
    check_abi(&mut ebpf)?;

    let mut verified = Vec::new();
    for name in TCX_PROGRAMS.into_iter().chain(TC_STAGES) {
        let program = classifier(&mut ebpf, name)?;
        program
            .load()
            .map_err(|error| KernelError::from_program(name, error))?;
        verified.push((name, instructions(program.info())));
    }
    for name in CGROUP_PROGRAMS.into_iter().chain(CGROUP_STAGES) {
        let program = cgroup_skb(&mut ebpf, name)?;
        program
            .load()
            .map_err(|error| KernelError::from_program(name, error))?;
        verified.push((name, instructions(program.info())));
    }
    let logger = match EbpfLogger::init(&mut ebpf) {
        Ok(logger) => Some(logger),
        Err(error) => {
            tracing::debug!(%error, "the programs' log is not read");
            None
        }
    };
    let stages = Stages::set(&mut ebpf)?;
    let words = Words::of(&take_map(&mut ebpf, "CGROUP_TAP")?)?;
    let filters = FilterTables::take(&mut ebpf, &stages, &words)?;
    let tables = Tables::take(&mut ebpf)?;
    let look_back = LookBackMaps::take(&mut ebpf)?;
    let ring =
        RingBuf::try_from(take_map(&mut ebpf, "EVENTS")?).map_err(|source| KernelError::Map {
            name: "EVENTS",
            source: Box::new(source),
        })?;
    let give_back = match options.pins {
        Some(_) => GiveBack::Told,
        None => GiveBack::Read,
    };
    let mut ring = Ring::new(ring, ring_bytes, give_back, logger)?;
    let progress = match options.pins {
        Some(_) => Some(Progress::of(typed(&mut ebpf, "CHECKPOINT")?)?),
        None => None,
    };
    if let Some(progress) = &progress {
        ring.skip_to(progress.last.position);
    }
    let [entry, _] = TCX_PROGRAMS;
    let entry = classifier(&mut ebpf, entry)?
        .fd()
        .map_err(|error| KernelError::from_program(entry, error))
        .and_then(|fd| {
            Program::of(fd.as_fd()).map_err(|error| KernelError::Io("keep a program", error))
        })?;
    Ok(Loaded {
        entry,
        tables,
        programs: Programs::new(ebpf, stages, words),
        ring,
        progress,
        look_back,
        filters,
        verified,
    })
}

fn instructions(info: Result<aya::programs::ProgramInfo, ProgramError>) -> u32 {
    info.ok()
        .and_then(|info| info.verified_instruction_count())
        .unwrap_or(0)
}

fn check_abi(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    let abi: Array<_, u32> =
        Array::try_from(take_map(ebpf, "ABI")?).map_err(|source| KernelError::Map {
            name: "ABI",
            source: Box::new(source),
        })?;
    if abi.len() == u32::from(ABI_VERSION) {
        Ok(())
    } else {
        Err(KernelError::Abi { found: abi.len() })
    }
}

pub(super) fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    ebpf.take_map(name).ok_or(KernelError::Missing(name))
}

pub(super) fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, KernelError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(KernelError::Missing(name))
}

pub(super) fn cgroup_skb<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut CgroupSkb, KernelError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(KernelError::Missing(name))
}
