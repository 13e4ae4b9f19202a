//! What kernel and user space share, interpreted by Miri: what its tests read out of bounds or unaligned, or make
//! of values that are none, fails the test that does it.

use std::process::Command;

use anyhow::Context as _;

use crate::process::{line, output, run, step};
use crate::workspace;

const TOOLCHAIN: &str = "nightly";
/// The layouts and verdicts that kernel and user space share, and the agent's reader of records.
const PACKAGE: &str = "remora-agent-common";
/// Of each property: an interpreter is some hundred times slower.
const CASES: &str = "16";

/// Tests that fill rings of a MiB again and again, for an hour.
const TOO_LONG: &str = "record::look_back";

/// Interprets the tests.
///
/// # Errors
/// There is no Miri, or it found a fault.
pub(crate) fn miri() -> anyhow::Result<()> {
    output(cargo().args(["miri", "--version"])).with_context(|| {
        format!("no Miri; `rustup +{TOOLCHAIN} component add miri rust-src` adds it")
    })?;
    let mut cargo = cargo();
    cargo.args(["miri", "test", "--package", PACKAGE]);
    cargo.args(["--", "--skip", TOO_LONG]);
    // Properties keep what failed in a file, and are drawn at random.
    cargo
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .env("PROPTEST_CASES", CASES)
        .current_dir(workspace::root());
    step(&line(&cargo), || run(&mut cargo))
}

/// That of the toolchain, whichever one runs this.
fn cargo() -> Command {
    let mut cargo = Command::new("rustup");
    cargo.args(["run", TOOLCHAIN, "cargo"]);
    for variable in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
        cargo.env_remove(variable);
    }
    cargo
}
