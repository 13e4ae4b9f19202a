//! The fuzz targets (`tests/fuzz/`), built with libFuzzer and run.
//!
//! By any Rust, also a stable one: what cargo-fuzz passes to the compiler without a sanitizer is
//! stable. A sanitizer would find little, since no reader has unsafe code of ours.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::process::{line, output, step};
use crate::workspace;

const PACKAGE: &str = "remora-fuzz";
/// Counters and comparisons for libFuzzer (LLVM's SanitizerCoverage), and every check of debug
/// builds in optimised code.
const FLAGS: [&str; 9] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "-Ccodegen-units=1",
];
/// Longest input, in bytes: room for a record of two segments, a file of some blocks.
const INPUT_MAX: u32 = 4096;
/// An input that takes longer is a hang, in seconds.
const HANG: u32 = 10;
/// Memory of a target, in MiB; more is a leak, or a reader without bounds.
const MEMORY_MAX: u32 = 2048;

/// Inputs of a target that are committed: a tenth of the places that all of them reach is left to the next run.
const KEPT_MAX: usize = 150;

/// What becomes of inputs that reach new code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finds {
    /// They stay in the target directory, for the next run.
    Local,
    /// The fewest that reach most of what is reached replace those of `tests/fuzz/corpus`.
    Kept,
}

/// Runs these targets, or all, each for so many seconds.
///
/// # Errors
/// No such target, no C++ compiler, or a target found a fault; each of the others ran.
pub(crate) fn fuzz(names: &[String], seconds: u32, finds: Finds) -> anyhow::Result<()> {
    let targets = chosen(names)?;
    step("building the fuzz targets", || build(&targets))?;
    let mut faults = Vec::new();
    for target in &targets {
        let Err(fault) = step(&format!("fuzzing {target}"), || run(target, seconds)) else {
            if finds == Finds::Kept {
                step(&format!("keeping what {target} found"), || keep(target))?;
            }
            continue;
        };
        say!("   {fault:#}");
        faults.push(target.as_str());
    }
    if !faults.is_empty() {
        bail!("faults in: {}", faults.join(", "));
    }
    Ok(())
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(sources())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            all.extend(
                path.file_stem()
                    .map(|name| name.to_string_lossy().into_owned()),
            );
        }
    }
    all.sort();
    if let Some(unknown) = names.iter().find(|name| !all.contains(name)) {
        bail!("no target `{unknown}`; there are: {}", all.join(", "));
    }
    Ok(if names.is_empty() {
        all
    } else {
        names.to_vec()
    })
}

fn build(targets: &[String]) -> anyhow::Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--release", "--package", PACKAGE]);
    // Named, so that build scripts and procedural macros are built without the flags.
    cargo
        .args(["--target", &host()?, "--target-dir"])
        .arg(directory());
    for target in targets {
        cargo.args(["--bin", target]);
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    crate::process::run(&mut cargo)
}

/// This machine's target triple.
fn host() -> anyhow::Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = output(Command::new(rustc).arg("-vV"))?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("`rustc -vV` says no host")
}

fn run(target: &str, seconds: u32) -> anyhow::Result<()> {
    let (finds, kept) = (finds(target), corpus(target));
    for directory in [&finds, &kept] {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    let mut fuzzer = fuzzer(target)?;
    fuzzer
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={HANG}"))
        .arg(format!("-rss_limit_mb={MEMORY_MAX}"))
        .arg("-print_final_stats=1")
        .arg("-verbosity=1")
        .arg(format!(
            "-artifact_prefix={}/{target}-",
            directory().display()
        ))
        .args([finds, kept]);
    crate::process::run(&mut fuzzer)
        .with_context(|| format!("the input is in {}", directory().display()))
}

/// Replaces the target's part of `tests/fuzz/corpus`.
fn keep(target: &str) -> anyhow::Result<()> {
    let kept = corpus(target);
    let fresh = directory().join("kept").join(target);
    // Left by a run that was ended.
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh)?;
    let mut merger = fuzzer(target)?;
    // By places alone: that one is reached 2, 3 or 4 times tells a fuzzer something, and costs thousands of files.
    merger
        .args(["-set_cover_merge=1", "-use_counters=0"])
        .args([&fresh, &finds(target), &kept]);
    output(&mut merger)?;
    fs::remove_dir_all(&kept)?;
    fs::create_dir_all(&kept)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(&fresh)? {
        let entry = entry?;
        found.push((entry.metadata()?.modified()?, entry.path()));
    }
    // Written in the order of what each adds.
    found.sort();
    let (all, mut bytes) = (found.len(), 0);
    found.truncate(KEPT_MAX);
    for (_, path) in &found {
        let name = path.file_name().context("a file has a name")?;
        bytes += fs::copy(path, kept.join(name))?;
    }
    say!("   {} inputs of {all}, {bytes} bytes", found.len());
    Ok(())
}

fn fuzzer(target: &str) -> anyhow::Result<Command> {
    let program = directory().join(host()?).join("release").join(target);
    let mut fuzzer = Command::new(&program);
    fuzzer.arg(format!("-max_len={INPUT_MAX}"));
    anyhow::ensure!(program.exists(), "`{}` was not built", line(&fuzzer));
    Ok(fuzzer)
}

fn sources() -> PathBuf {
    workspace::root().join("tests/fuzz/fuzz_targets")
}

fn corpus(target: &str) -> PathBuf {
    workspace::root().join("tests/fuzz/corpus").join(target)
}

/// What the runs of this checkout have found.
fn finds(target: &str) -> PathBuf {
    directory().join("corpus").join(target)
}

/// Of its own, for the flags.
fn directory() -> PathBuf {
    workspace::target_dir().join("fuzz")
}
