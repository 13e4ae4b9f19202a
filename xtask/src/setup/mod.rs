//! What a machine needs to build and test Remora: found, or installed.
//!
//! - [`toolchain`]: a rustc and cargo that can build for `bpfel-unknown-none`.
//! - [`linker`]: bpf-linker, of the LLVM that this rustc has.
//! - [`packages`]: the Debian packages, each with its reason, in one table.
//!
//! Everything is looked for before anything is installed; what is there is never replaced, so a
//! second run does nothing.

mod linker;
mod packages;
mod toolchain;

use std::fmt;
use std::path::PathBuf;

use anyhow::Context as _;

pub(crate) use packages::{Installing, promtool};
pub(crate) use toolchain::{TARGET, Toolchain};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Build,
    BuildAndTest,
}

/// What builds eBPF programs.
#[derive(Debug)]
pub(crate) struct BpfTools {
    pub(crate) toolchain: Toolchain,
    pub(crate) linker: PathBuf,
}

impl fmt::Display for BpfTools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.toolchain, self.linker.display())
    }
}

/// Finds what `purpose` needs and installs what is missing.
///
/// # Errors
/// Something is missing and may not, or cannot, be installed; says what to do.
pub(crate) fn setup(purpose: Purpose, installing: Installing) -> anyhow::Result<BpfTools> {
    let mut missing = packages::missing(&packages::libraries());
    match purpose {
        Purpose::Build => {}
        Purpose::BuildAndTest => missing.extend(packages::missing(packages::PEERS)),
    }
    let mut found = toolchain::find()?;
    if found.usable.is_empty() {
        missing.splice(0..0, toolchain::packages(&found, installing)?);
    }
    packages::install(&missing, installing)?;
    if found.usable.is_empty() {
        found = toolchain::find()?;
    }

    let ready = found.usable.iter().find_map(|toolchain| {
        linker::find(toolchain)
            .transpose()
            .map(|linker| (toolchain, linker))
    });
    let (toolchain, linker) = match ready {
        Some((toolchain, linker)) => (toolchain, linker?),
        None => {
            let toolchain = found
                .usable
                .first()
                .with_context(|| toolchain::none_usable(&found))?;
            (toolchain, linker::build(toolchain, installing)?)
        }
    };
    Ok(BpfTools {
        toolchain: toolchain.clone(),
        linker,
    })
}

/// Installs what a cluster's nodes need of Debian, if it is missing.
///
/// # Errors
/// As [`setup`].
pub(crate) fn cluster_packages(installing: Installing) -> anyhow::Result<()> {
    packages::install(&packages::missing(packages::CLUSTER), installing)
}

/// Installs what building for another processor needs of Debian, if it is missing.
///
/// # Errors
/// As [`setup`].
pub(crate) fn cross_packages(installing: Installing) -> anyhow::Result<()> {
    packages::install(&packages::missing(packages::CROSS), installing)
}

/// The toolchain for eBPF programs that is here, if there is one.
pub(crate) fn bpf_toolchain() -> Option<Toolchain> {
    toolchain::find().ok()?.usable.into_iter().next()
}
