//! Where things are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// Cargo's target directory: `CARGO_TARGET_DIR`, else `target` in the root.
pub(crate) fn target_dir() -> PathBuf {
    // A relative CARGO_TARGET_DIR is relative to where cargo was called, which is here.
    env::var_os("CARGO_TARGET_DIR").map_or_else(
        || root().join("target"),
        |dir| env::current_dir().unwrap_or_default().join(dir),
    )
}

/// Where the eBPF object is put, and where the agent's build script looks for it.
pub(crate) fn ebpf_object() -> PathBuf {
    ebpf_object_in(&target_dir())
}

/// Likewise, in another target directory.
pub(crate) fn ebpf_object_in(target: &Path) -> PathBuf {
    target.join("ebpf/remora.o")
}

/// Paths of this machine that compilers write into programs, and names that are the same on every
/// machine. Those that hold others come first: of a compiler's arguments the last one counts.
pub(crate) fn machine_paths() -> Vec<(PathBuf, &'static str)> {
    let home = |variable: &str, otherwise: &str| {
        let named = env::var_os(variable).map(PathBuf::from);
        named.or_else(|| Some(env::home_dir()?.join(otherwise)))
    };
    let mut paths = vec![(target_dir(), "/target"), (root().to_owned(), "/remora")];
    paths.extend(home("CARGO_HOME", ".cargo").map(|path| (path, "/cargo")));
    paths.extend(home("RUSTUP_HOME", ".rustup").map(|path| (path, "/rustup")));
    paths.sort_by_key(|(path, _)| path.as_os_str().len());
    paths
}

/// Arguments that make a compiler write those names, by its word for that.
pub(crate) fn remapped(option: &str) -> impl Iterator<Item = String> {
    machine_paths()
        .into_iter()
        .map(move |(path, name)| format!("{option}={}={name}", path.display()))
}

/// What is kept between checkouts: `$XDG_CACHE_HOME/remora`, else `~/.cache/remora`.
pub(crate) fn cache_dir() -> anyhow::Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) if Path::new(&dir).is_absolute() => PathBuf::from(dir),
        _ => env::home_dir()
            .context("no home directory: set HOME or XDG_CACHE_HOME")?
            .join(".cache"),
    };
    Ok(base.join("remora"))
}

/// The cargo that runs this, in the repository's root.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    // A relative target directory would mean another place from there.
    if env::var_os("CARGO_TARGET_DIR").is_some() {
        cargo.env("CARGO_TARGET_DIR", target_dir());
    }
    cargo
}
