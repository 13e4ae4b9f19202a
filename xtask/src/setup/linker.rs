//! bpf-linker: found, or built into the cache.
//!
//! rustc hands LLVM bitcode to it, so it must be made of the LLVM that the rustc has. One is
//! believed when it is of our version and links an empty program of that rustc.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use super::packages::{self, Installing};
use super::toolchain::{TARGET, Toolchain};
use crate::process::{find_all, line, output, run, step};
use crate::workspace::cache_dir;

const NAME: &str = "bpf-linker";
const VERSION: &str = "0.13.0";

/// `REMORA_BPF_LINKER` (nothing else then), the cache's, the first on PATH that will do.
///
/// # Errors
/// `REMORA_BPF_LINKER` is set to what won't do.
pub(super) fn find(toolchain: &Toolchain) -> anyhow::Result<Option<PathBuf>> {
    if let Some(linker) = env::var_os("REMORA_BPF_LINKER").map(PathBuf::from) {
        examine(&linker, toolchain)
            .with_context(|| format!("REMORA_BPF_LINKER={}", linker.display()))?;
        return Ok(Some(linker));
    }
    let cached = root(toolchain)?.join("bin").join(NAME);
    let mut candidates = std::iter::once(cached).chain(find_all(NAME));
    Ok(candidates.find(|linker| examine(linker, toolchain).is_ok()))
}

/// Builds it into the cache, about a minute and a half of two processors' time.
///
/// # Errors
/// Packages are missing or installing is refused, or cargo failed; each says what to do.
pub(super) fn build(toolchain: &Toolchain, installing: Installing) -> anyhow::Result<PathBuf> {
    let llvm = toolchain.llvm;
    let prefix = match env::var_os("LLVM_PREFIX") {
        Some(prefix) => PathBuf::from(prefix),
        None => {
            let missing = packages::missing(&packages::linker(llvm));
            packages::install(&missing, installing).with_context(|| {
                format!(
                    "{toolchain} needs {NAME} {VERSION} with LLVM {llvm}: \
                     set REMORA_BPF_LINKER to one, or LLVM_PREFIX to an LLVM {llvm} with headers"
                )
            })?;
            format!("/usr/lib/llvm-{llvm}").into()
        }
    };
    let root = root(toolchain)?;
    let mut command = toolchain.cargo_command();
    let (version, features) = (format!("={VERSION}"), format!("llvm-{llvm}"));
    command.args(["install", NAME, "--version", &version, "--locked"]);
    command.args(["--no-default-features", "--features", &features, "--root"]);
    command
        .arg(&root)
        .env("LLVM_PREFIX", &prefix)
        .env_remove("RUSTC_BOOTSTRAP");
    // Its own debug information is half of the time it takes to build, and nothing to us.
    command.env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    if installing == Installing::Refused {
        let by_hand = format!("LLVM_PREFIX={} {}", prefix.display(), line(&command));
        bail!("--no-install, and {NAME} is missing: run `{by_hand}`, then this again");
    }
    fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
    // Away from this workspace's own cargo settings.
    command.current_dir(&root);
    step(
        &format!("building {NAME} {VERSION} with LLVM {llvm} (about 90 s)"),
        || run(&mut command),
    )?;

    let linker = root.join("bin").join(NAME);
    examine(&linker, toolchain).context("the bpf-linker just built does not work")?;
    Ok(linker)
}

fn root(toolchain: &Toolchain) -> anyhow::Result<PathBuf> {
    Ok(cache_dir()?.join(format!("{NAME}-{VERSION}-llvm-{}", toolchain.llvm)))
}

/// Is it of our version, and does it link what this rustc compiles?
fn examine(linker: &Path, toolchain: &Toolchain) -> anyhow::Result<()> {
    let version = output(Command::new(linker).arg("--version"))?;
    ensure!(
        version.split_whitespace().last() == Some(VERSION),
        "is `{}`, and {VERSION} is wanted",
        version.trim()
    );
    let scratch = tempfile::tempdir()?;
    let source = scratch.path().join("empty.rs");
    fs::write(&source, "#![feature(no_core)]\n#![no_core]\n")?;
    let mut rustc = Command::new(&toolchain.rustc);
    rustc
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("LD_LIBRARY_PATH");
    rustc.args([
        "--edition",
        "2024",
        "--crate-type",
        "cdylib",
        "--target",
        TARGET,
    ]);
    rustc.arg("-C").arg(format!("linker={}", linker.display()));
    rustc
        .arg("-o")
        .arg(scratch.path().join("empty.o"))
        .arg(&source);
    output(&mut rustc).map(drop)
}
