//! Where the cluster's programs are.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The variable that `cargo xtask cluster` and `cargo xtask test` set.
pub const CLUSTER_DIR: &str = "REMORA_CLUSTER_DIR";
/// Where Debian puts the CNI plugins.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// The directory of the programs that were built.
///
/// # Errors
/// They were not.
pub fn directory() -> Result<PathBuf> {
    let directory = std::env::var_os(CLUSTER_DIR).map(PathBuf::from);
    let directory = directory.with_context(|| {
        format!(
            "{CLUSTER_DIR} is not set: run this by `cargo xtask test --also cluster` or `cargo xtask \
             cluster`, or set it to what `cargo xtask cluster build` says"
        )
    })?;
    ensure!(
        directory.join("kubernetes").exists(),
        "{} has no cluster's programs: `cargo xtask cluster build` makes them",
        directory.display()
    );
    Ok(directory)
}

/// One of them.
///
/// # Errors
/// It was not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = directory()?.join(name);
    ensure!(path.exists(), "no program {}", path.display());
    Ok(path)
}

/// The PATH in which nodes find their programs, the built ones first.
#[must_use]
pub fn search_path(built: &Path) -> String {
    format!(
        "{}:/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin:/sbin:/bin",
        built.display()
    )
}
