//! The demo, the benchmark and the simulation: programs of the `tests` crate, with the built programs at hand.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::build::{Profile, build};
use crate::process::{as_root, line, run as run_command, step};
use crate::setup::{Installing, Purpose, setup};
use crate::workspace;

/// Tells the programs of the `tests` crate where those under test are.
pub(crate) const BIN_DIR: &str = "REMORA_BIN_DIR";

pub(crate) fn bin_dir() -> PathBuf {
    workspace::target_dir().join("release")
}

/// Sets up, builds, and becomes the program `name` of the `tests` crate, as root.
///
/// Becoming it, rather than waiting for it, lets Ctrl-C and its exit code pass through untouched.
pub(crate) fn run(name: &str, args: &[String], installing: Installing) -> anyhow::Result<()> {
    run_with(name, args, installing, &[])
}

/// [`run`], with more for it to find in its environment.
pub(crate) fn run_with(
    name: &str,
    args: &[String],
    installing: Installing,
    environment: &[(&str, PathBuf)],
) -> anyhow::Result<()> {
    let tools = setup(Purpose::BuildAndTest, installing)?;
    build(&tools, Profile::Release)?;
    step(&format!("building {name}"), || {
        let mut cargo = workspace::cargo();
        // All of them: the demo and the benchmark run tools of the same package.
        cargo.args(["build", "--release", "-p", "remora-tests", "--bins"]);
        run_command(&mut cargo)
    })?;
    let mut program = as_root(bin_dir().join(name));
    program.args(args).env(BIN_DIR, bin_dir());
    program.envs(environment.iter().map(|(name, path)| (name, path)));
    Err(program.exec()).with_context(|| format!("cannot run `{}`", line(&program)))
}
