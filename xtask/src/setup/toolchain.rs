//! Finding a Rust toolchain that can build `core` for `bpfel-unknown-none`.
//!
//! The target has no prebuilt `core`, so the toolchain needs the sources of it, and unstable
//! options of cargo, which `RUSTC_BOOTSTRAP` gives to a stable one. Looked for in this order:
//! `REMORA_BPF_RUSTC` (nothing else then), rustup's toolchains (nightly first), every rustc on
//! PATH, the distribution's.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use super::packages::{Installing, Package, candidate, program, update};
use crate::process::{find_all, output};

pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Majors of LLVM that our version of bpf-linker can be built with.
pub(super) const LLVM_SUPPORTED: std::ops::RangeInclusive<u32> = 21..=23;

/// The oldest Rust that the workspace builds with.
const RUST_MIN: &str = env!("CARGO_PKG_RUST_VERSION");

/// Debian names Rust twice: the current one that browsers are built with, and the release's own.
static DISTRIBUTION: [[Package; 3]; 2] = [
    [
        program(
            "rustc-web",
            "rustc",
            "compiles the eBPF programs: Rust with sources of core",
        ),
        program("cargo-web", "cargo", "builds core for the eBPF target"),
        program(
            "rust-web-src",
            "rustc",
            "sources of core, which has no ready-made eBPF build",
        ),
    ],
    [
        program(
            "rustc",
            "rustc",
            "compiles the eBPF programs: Rust with sources of core",
        ),
        program("cargo", "cargo", "builds core for the eBPF target"),
        program(
            "rust-src",
            "rustc",
            "sources of core, which has no ready-made eBPF build",
        ),
    ],
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    version: String,
    pub(super) llvm: u32,
}

/// What was found, best first, and why the others won't do.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) usable: Vec<Toolchain>,
    rejected: Vec<String>,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rustc {} (LLVM {}) {}",
            self.version,
            self.llvm,
            self.rustc.display()
        )
    }
}

impl Toolchain {
    /// This toolchain's cargo, free of what the cargo and rustup that started us have set.
    pub(crate) fn cargo_command(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        for (name, _) in env::vars_os() {
            if steers_another_toolchain(&name.to_string_lossy()) {
                command.env_remove(name);
            }
        }
        command
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1");
        command
    }
}

/// Does this variable, meant for the toolchain that runs us, mislead another?
fn steers_another_toolchain(name: &str) -> bool {
    const KEPT: [&str; 2] = ["CARGO_HOME", "CARGO_TERM_COLOR"];
    let network = name.starts_with("CARGO_HTTP") || name.starts_with("CARGO_NET");
    let registry = name.starts_with("CARGO_REGISTR");
    let cargo = name == "CARGO" || name.starts_with("CARGO_");
    let steers = [
        "RUSTUP_TOOLCHAIN",
        "LD_LIBRARY_PATH",
        "RUST_RECURSION_COUNT",
    ]
    .contains(&name)
        || name.starts_with("RUSTC")
        || name.starts_with("RUSTDOC")
        || name.starts_with("RUSTFLAGS");
    steers || cargo && !network && !registry && !KEPT.contains(&name)
}

/// # Errors
/// `REMORA_BPF_RUSTC` is set to what won't do.
pub(super) fn find() -> anyhow::Result<Found> {
    if let Some(rustc) = env::var_os("REMORA_BPF_RUSTC") {
        let cargo = env::var_os("REMORA_BPF_CARGO").map(PathBuf::from);
        let toolchain = examine(Path::new(&rustc), cargo)
            .with_context(|| format!("REMORA_BPF_RUSTC={}", rustc.to_string_lossy()))?;
        return Ok(Found {
            usable: vec![toolchain],
            rejected: Vec::new(),
        });
    }
    let mut found = Found::default();
    let mut candidates = rustup_toolchains();
    candidates.extend(
        find_all("rustc")
            .into_iter()
            .filter(|path| !is_rustup(path)),
    );
    candidates.push("/usr/bin/rustc".into());
    let mut known = Vec::new();
    for rustc in candidates {
        let Ok(real) = rustc.canonicalize() else {
            continue;
        };
        if known.contains(&real) {
            continue;
        }
        known.push(real);
        match examine(&rustc, None) {
            Ok(toolchain) => found.usable.push(toolchain),
            Err(error) => found
                .rejected
                .push(format!("{}: {error:#}", rustc.display())),
        }
    }
    Ok(found)
}

/// The compilers under rustup's directory, nightly before the others. Asked from the file system,
/// because rustup installs what it is asked to run.
fn rustup_toolchains() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".rustup")));
    let Some(entries) = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok()) else {
        return Vec::new();
    };
    let mut toolchains: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    toolchains.sort_by_key(|path| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        (!name.starts_with("nightly"), name)
    });
    toolchains
        .into_iter()
        .map(|path| path.join("bin/rustc"))
        .collect()
}

/// rustup's proxy: it stands for one of its toolchains, which were asked already.
fn is_rustup(rustc: &Path) -> bool {
    rustc
        .canonicalize()
        .is_ok_and(|real| real.file_name().is_some_and(|name| name == "rustup"))
        || rustc.with_file_name("rustup").exists()
}

/// Will this compiler do?
fn examine(rustc: &Path, cargo: Option<PathBuf>) -> anyhow::Result<Toolchain> {
    let ask = |args: &[&str]| {
        output(
            Command::new(rustc)
                .args(args)
                .env_remove("RUSTUP_TOOLCHAIN")
                .env_remove("LD_LIBRARY_PATH"),
        )
    };
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim());
    ensure!(
        sysroot.join("lib/rustlib/src/rust/library/core").exists(),
        "no sources of core (rust-src)"
    );
    let verbose = ask(&["-vV"])?;
    let (version, llvm) = parse_version(&verbose)?;
    ensure!(
        numbers(&version) >= numbers(RUST_MIN),
        "is {version}, and {RUST_MIN} is the oldest that builds this workspace"
    );
    ensure!(
        LLVM_SUPPORTED.contains(&llvm),
        "has LLVM {llvm}, and bpf-linker takes {} to {}",
        LLVM_SUPPORTED.start(),
        LLVM_SUPPORTED.end()
    );
    let cargo = cargo.unwrap_or_else(|| sysroot.join("bin/cargo"));
    ensure!(
        cargo.exists(),
        "its cargo `{}` is not there (REMORA_BPF_CARGO names one)",
        cargo.display()
    );
    Ok(Toolchain {
        rustc: rustc.to_owned(),
        cargo,
        version,
        llvm,
    })
}

/// Release, and major of LLVM, from what `rustc -vV` says.
fn parse_version(verbose: &str) -> anyhow::Result<(String, u32)> {
    let field = |name: &str| {
        verbose
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .with_context(|| format!("`rustc -vV` says no `{name}`"))
    };
    let llvm = field("LLVM version")?;
    let major = numbers(llvm)
        .first()
        .copied()
        .with_context(|| format!("LLVM version `{llvm}`"))?;
    Ok((field("release")?.to_owned(), major))
}

/// The numbers of a version, up to the first word that is none ("1.97.0-nightly" is 1, 97, 0).
fn numbers(version: &str) -> Vec<u32> {
    version
        .split(['.', '-', '+', '~'])
        .map_while(|word| word.parse().ok())
        .collect()
}

/// The distribution's packages to install when no usable toolchain was found.
///
/// # Errors
/// The distribution has none that is new enough.
pub(super) fn packages(found: &Found, installing: Installing) -> anyhow::Result<Vec<Package>> {
    let choose = || {
        DISTRIBUTION.iter().find(|packages| {
            candidate(&packages[0].name)
                .is_some_and(|version| numbers(&version) >= numbers(RUST_MIN))
        })
    };
    if find_all("apt-get").is_empty() {
        bail!(none_usable(found));
    }
    if let Some(packages) = choose() {
        return Ok(packages.to_vec());
    }
    match installing {
        Installing::Allowed => update()?,
        // Nothing known at all: the first is the likelier, and it is only said.
        Installing::Refused if candidate("rustc").is_none() => return Ok(DISTRIBUTION[0].to_vec()),
        Installing::Refused => {}
    }
    choose()
        .map(|packages| packages.to_vec())
        .with_context(|| none_usable(found))
}

pub(super) fn none_usable(found: &Found) -> String {
    let rejected: String = found
        .rejected
        .iter()
        .map(|why| format!("\n  {why}"))
        .collect();
    format!(
        "no Rust toolchain here can build eBPF programs.{rejected}\n\
         Install one (`rustup toolchain install nightly --component rust-src`, or, on a Debian \
         whose lists are old, `apt-get update` and this again), or name one by REMORA_BPF_RUSTC \
         and REMORA_BPF_CARGO"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared_by_number() {
        let verbose = "rustc 1.97.0-nightly (abc 2026-05-25)\nbinary: rustc\n\
                       release: 1.97.0-nightly\nLLVM version: 22.1.8\n";
        assert_eq!(
            parse_version(verbose).unwrap(),
            ("1.97.0-nightly".into(), 22)
        );
        assert!(
            parse_version("rustc 1.97.0")
                .unwrap_err()
                .to_string()
                .contains("LLVM")
        );
        assert_eq!(numbers("1.96.0+dfsg1-1~deb12u2"), [1, 96, 0]);
        assert!(numbers("1.100.0") > numbers("1.93") && numbers("1.93.0") >= numbers("1.93"));
        assert!(numbers("1.63.0+dfsg1-2") < numbers("1.93"));
    }

    #[test]
    fn what_steers_our_own_toolchain_does_not_reach_the_other() {
        for name in [
            "CARGO",
            "CARGO_MANIFEST_DIR",
            "CARGO_TARGET_DIR",
            "RUSTUP_TOOLCHAIN",
            "RUSTC_WRAPPER",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "LD_LIBRARY_PATH",
        ] {
            assert!(steers_another_toolchain(name), "{name}");
        }
        for name in [
            "PATH",
            "HOME",
            "CARGO_HOME",
            "CARGO_HTTP_PROXY",
            "CARGO_NET_OFFLINE",
        ] {
            assert!(!steers_another_toolchain(name), "{name}");
        }
    }

    #[test]
    fn a_compiler_without_sources_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let rustc = dir.path().join("rustc");
        fs::write(&rustc, "#!/bin/sh\necho /remora-no-such-sysroot\n").unwrap();
        output(Command::new("chmod").arg("755").arg(&rustc)).unwrap();
        let error = examine(&rustc, None).unwrap_err().to_string();
        assert!(error.contains("rust-src"), "{error}");
    }
}
