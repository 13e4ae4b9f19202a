//! Our programs, as they go into the image.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::build::Profile;
use crate::process::{run, step};
use crate::setup::BpfTools;
use crate::{build, workspace};

pub(super) const AGENT: &str = "remora-agent";
const NAMES: [&str; 3] = [AGENT, "remora-controller", "remora"];

/// A program without what only a debugger reads.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    /// Where it was built.
    pub(super) path: PathBuf,
    pub(super) content: Vec<u8>,
}

/// What is done about paths of this machine inside of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paths {
    Refused,
    Told,
}

/// Builds the programs in a target directory of their own, with each path of this machine replaced;
/// the directory that has them.
///
/// # Errors
/// A build failed.
pub(super) fn build(tools: &BpfTools) -> anyhow::Result<PathBuf> {
    let target = workspace::target_dir().join("image");
    let flags: Vec<String> = workspace::remapped("--remap-path-prefix").collect();
    // What C compilers write into objects, of the crates that bring C along.
    let c_flags: Vec<String> = workspace::remapped("-ffile-prefix-map").collect();
    build::ebpf_for(tools, &target)?;
    step("building the image's programs", || {
        let mut cargo = build::programs_cargo(Profile::Release);
        cargo.arg("--locked").arg("--target-dir").arg(&target);
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        cargo.env("CFLAGS", c_flags.join(" "));
        run(&mut cargo)
    })?;
    Ok(target.join("release"))
}

/// The programs in `directory`, stripped.
///
/// # Errors
/// One is missing, or has a path of this machine in it, and that is refused.
pub(super) fn of(directory: &Path, paths: Paths) -> anyhow::Result<Vec<Program>> {
    NAMES
        .iter()
        .map(|&name| {
            let path = directory.join(name);
            let content = stripped(&path)?;
            match (named_in(&content), paths) {
                (None, _) => {}
                (Some(found), Paths::Refused) => {
                    bail!("`{name}` has `{found}` in it, which is a path of this machine")
                }
                (Some(_), Paths::Told) => {
                    say!("   {name}: has paths of this machine in it");
                }
            }
            Ok(Program {
                name,
                path,
                content,
            })
        })
        .collect()
}

fn stripped(program: &Path) -> anyhow::Result<Vec<u8>> {
    let to = tempfile::NamedTempFile::new()?;
    run(Command::new("strip")
        .args(["--strip-all", "-o"])
        .arg(to.path())
        .arg(program))
    .with_context(|| format!("cannot strip `{}`", program.display()))?;
    fs::read(to.path()).with_context(|| to.path().display().to_string())
}

/// The first path of this machine that `content` has.
fn named_in(content: &[u8]) -> Option<String> {
    let home = env::home_dir().filter(|home| home.components().count() > 1);
    let paths = workspace::machine_paths().into_iter().map(|(path, _)| path);
    let text = String::from_utf8_lossy(content);
    paths
        .chain(home)
        .map(|path| format!("{}/", path.display()))
        .find(|path| text.contains(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_this_machine_is_found_in_a_program() {
        let root = workspace::root().to_string_lossy();
        let mut program = b"\x7fELF and so on".to_vec();
        assert_eq!(named_in(&program), None);
        program.extend(format!("{root}/agent/src/main.rs").bytes());
        assert!(named_in(&program).is_some());
    }
}
