//! What a reviewer should not have to look for.
//!
//! - [`crates`]: which crate may depend on which.
//! - [`modules`]: inside the agent, which module may use which, and what is kept in one place.
//! - [`licences`]: of everything we link.
//! - [`source`]: the paths that a Rust source names; the others stand on it.
//!
//! Besides: rustfmt, clippy, and that generated code is what its source says.

mod crates;
mod licences;
mod modules;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::process::{output, run, step};
use crate::setup::Toolchain;
use crate::test::Tally;
use crate::{build, manifests, setup, workspace};

/// Built for another target by another toolchain, where clippy is seldom to be had.
const EBPF_PACKAGE: &str = "remora-agent-ebpf";

/// With typed filters alone.
const WITHOUT_FEATURES: [&str; 5] = [
    "remora-capture",
    "remora-rules",
    "remora-agent",
    "remora-controller",
    "remora-cli",
];

/// A file that is longer is named: it may have more than one job.
const LINES_WORTH_NAMING: usize = 500;

/// Which checks passed.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    passed: u64,
    failed: Vec<&'static str>,
}

impl Outcome {
    pub(crate) fn tally(&self) -> Tally {
        Tally {
            passed: self.passed,
            failed: self.failed.len() as u64,
            skipped: 0,
        }
    }

    /// # Errors
    /// A check failed; names all that did.
    pub(crate) fn into_result(self) -> anyhow::Result<()> {
        ensure!(
            self.failed.is_empty(),
            "lint failed: {}",
            self.failed.join(", ")
        );
        Ok(())
    }

    fn check(&mut self, name: &'static str, work: impl FnOnce() -> anyhow::Result<()>) {
        match step(name, work) {
            Ok(()) => self.passed += 1,
            Err(error) => {
                say!("   {name} FAILED: {error:#}");
                self.failed.push(name);
            }
        }
    }
}

/// Runs every check, also after one has failed.
pub(crate) fn check() -> Outcome {
    let mut outcome = Outcome::default();
    outcome.check("rustfmt", || {
        run(workspace::cargo().args(["fmt", "--all", "--check"]))
    });
    outcome.check("arrows between crates", || {
        report(crates::violations(&metadata(&["--no-deps"])?)?)
    });
    outcome.check("arrows inside the agent", || {
        report(modules::violations(&agent_sources()?))
    });
    outcome.check("licences", || report(licences::violations(&metadata(&[])?)));
    outcome.check("generated code", || run(&mut codegen(true)));
    if manifests::helm().is_some() {
        outcome.check("manifests", || manifests::manifests(true));
    }
    outcome.check("clippy", || run(&mut clippy(&[])));
    outcome.check("clippy without features", || {
        run(&mut clippy_without_features())
    });
    if let Some(toolchain) = setup::bpf_toolchain() {
        outcome.check("eBPF programs", || run(&mut ebpf_check(&toolchain)));
    }
    name_long_files();
    outcome
}

/// Repairs what can be, then checks.
///
/// # Errors
/// Something is left that needs a person.
pub(crate) fn fix() -> anyhow::Result<()> {
    run(&mut codegen(false))?;
    run(&mut clippy(&["--fix", "--allow-dirty", "--allow-staged"]))?;
    run(workspace::cargo().args(["fmt", "--all"]))?;
    check().into_result()
}

/// The program that generates what is committed.
///
/// A crate of its own, built only when it is asked for: the protobuf compiler takes about a minute
/// to build, and would delay the first `cargo xtask` of everyone by that.
pub(crate) fn codegen(check: bool) -> Command {
    let mut cargo = workspace::cargo();
    cargo.args(["run", "-p", "xtask-codegen", "--"]);
    cargo.args(check.then_some("--check"));
    cargo
}

fn clippy(fix: &[&str]) -> Command {
    let mut cargo = workspace::cargo();
    cargo.args(["clippy", "--workspace", "--exclude", EBPF_PACKAGE]);
    cargo
        .args(["--all-targets", "--all-features"])
        .args(fix)
        .args(["--", "-D", "warnings"]);
    cargo
}

/// Of the crates that others than we may build without libpcap or Kubernetes.
fn clippy_without_features() -> Command {
    let mut cargo = workspace::cargo();
    cargo.arg("clippy");
    for package in WITHOUT_FEATURES {
        cargo.args(["--package", package]);
    }
    cargo.args(["--no-default-features", "--", "-D", "warnings"]);
    cargo
}

fn ebpf_check(toolchain: &Toolchain) -> Command {
    let mut cargo = build::ebpf_cargo(toolchain, "check");
    // By cargo rather than by the compiler's flags, which would hold for core too.
    cargo
        .args(["-Z", "warnings"])
        .env("CARGO_BUILD_WARNINGS", "deny");
    cargo
}

fn metadata(args: &[&str]) -> anyhow::Result<Value> {
    let mut cargo = workspace::cargo();
    let text = output(cargo.args(["metadata", "--format-version", "1"]).args(args))?;
    serde_json::from_str(&text).context("output of `cargo metadata`")
}

fn report(violations: Vec<String>) -> anyhow::Result<()> {
    for violation in &violations {
        say!("   {violation}");
    }
    match violations.len() {
        0 => Ok(()),
        count => bail!("{count} violations"),
    }
}

/// The agent's sources, by path from its `src`.
fn agent_sources() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let src = workspace::root().join("agent/src");
    let mut sources = Vec::new();
    for path in rust_files(&src)? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        sources.push((path.strip_prefix(&src)?.to_owned(), text));
    }
    Ok(sources)
}

fn name_long_files() {
    let root = workspace::root();
    let Ok(packages) = fs::read_dir(root) else {
        return;
    };
    for package in packages
        .flatten()
        .filter(|entry| entry.path().join("Cargo.toml").exists())
    {
        for path in rust_files(&package.path()).unwrap_or_default() {
            let generated = path.components().any(|part| part.as_os_str() == "gen");
            let lines = fs::read_to_string(&path).map_or(0, |text| text.lines().count());
            if lines > LINES_WORTH_NAMING && !generated {
                say!(
                    "   long: {} ({lines} lines)",
                    path.strip_prefix(root).unwrap_or(&path).display()
                );
            }
        }
    }
}

fn rust_files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
