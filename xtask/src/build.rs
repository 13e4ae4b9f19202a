//! The eBPF object, then the programs: the agent embeds the object.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::process::{run, step};
use crate::setup::{BpfTools, TARGET, Toolchain};
use crate::{spills, workspace};

const EBPF_PACKAGE: &str = "remora-agent-ebpf";
/// The root Cargo.toml's profile for it: optimised, with the debug information BTF is made of.
const EBPF_PROFILE: &str = "ebpf";

/// How the programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// Builds everything that is shipped.
pub(crate) fn build(tools: &BpfTools, profile: Profile) -> anyhow::Result<()> {
    step("building the eBPF object", || build_ebpf(tools))?;
    step("building remora, remora-agent, remora-controller", || {
        run(&mut programs_cargo(profile))
    })
}

/// `cargo build` of the programs.
pub(crate) fn programs_cargo(profile: Profile) -> Command {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--bins"]);
    cargo.args([
        "-p",
        "remora-cli",
        "-p",
        "remora-agent",
        "-p",
        "remora-controller",
    ]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    cargo
}

/// Builds the object and puts it where the agent's build script looks for it in `target`.
///
/// # Errors
/// It cannot be built.
pub(crate) fn ebpf_for(tools: &BpfTools, target: &Path) -> anyhow::Result<()> {
    step("building the eBPF object", || build_ebpf(tools))?;
    let built = workspace::ebpf_object();
    let object = fs::read(&built).with_context(|| built.display().to_string())?;
    write_if_changed(&object, &workspace::ebpf_object_in(target))
}

fn build_ebpf(tools: &BpfTools) -> anyhow::Result<()> {
    let mut cargo = ebpf_cargo(&tools.toolchain, "build");
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &tools.linker);
    run(&mut cargo)?;
    let built = ebpf_target_dir()
        .join(TARGET)
        .join(EBPF_PROFILE)
        .join(EBPF_PACKAGE);
    let mut object =
        fs::read(&built).with_context(|| format!("cannot read `{}`", built.display()))?;
    spills::widen(&mut object).with_context(|| format!("in `{}`", built.display()))?;
    write_if_changed(&object, &workspace::ebpf_object())
}

/// `cargo build` or `cargo check` of the eBPF programs by a toolchain that can.
pub(crate) fn ebpf_cargo(toolchain: &Toolchain, verb: &str) -> Command {
    let arch = format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH);
    // v3: atomics with a result and 32-bit jumps, in every kernel from 5.12 on.
    let mut flags = vec![
        arch,
        "-Ctarget-cpu=v3".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    // BTF names the source of each line, and the object is the same on every machine.
    flags.extend(workspace::remapped("--remap-path-prefix"));
    let mut cargo = toolchain.cargo_command();
    cargo.current_dir(workspace::root());
    cargo.args([verb, "--package", EBPF_PACKAGE, "--target", TARGET]);
    cargo.args([
        "-Z",
        "build-std=core",
        "--profile",
        EBPF_PROFILE,
        "--target-dir",
    ]);
    // Of its own: two toolchains in one directory would rebuild each other's work.
    cargo.arg(ebpf_target_dir());
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    cargo
}

fn ebpf_target_dir() -> PathBuf {
    workspace::target_dir().join("ebpf-build")
}

/// An untouched file keeps its time, and the agent is not built again.
fn write_if_changed(fresh: &[u8], to: &Path) -> anyhow::Result<()> {
    if fs::read(to).is_ok_and(|present| present == fresh) {
        return Ok(());
    }
    let dir = to.parent().expect("a file in the target directory");
    fs::create_dir_all(dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
    // Renamed into place, since another build may be reading it.
    let half = tempfile::TempDir::new_in(dir)?;
    let file = half.path().join("object");
    fs::write(&file, fresh)?;
    fs::rename(&file, to).with_context(|| format!("cannot write `{}`", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_the_same_leaves_the_files_time() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("new/to");
        write_if_changed(b"one", &to).unwrap();
        let first = fs::metadata(&to).unwrap().modified().unwrap();
        write_if_changed(b"one", &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().modified().unwrap(), first);
        write_if_changed(b"two", &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"two");
    }
}
