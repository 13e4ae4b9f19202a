//! versitygw, the store of objects that checks signatures: a Go module, built into the cache once a version.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::cluster::Go;
use crate::process::{run, step};
use crate::setup::Installing;
use crate::workspace;

/// Tells the tests where it is.
pub(crate) const VARIABLE: &str = "REMORA_VERSITYGW";
/// The module whose tool it is.
const MODULE: &str = "tests/objects/go";
const PACKAGE: &str = "github.com/versity/versitygw/cmd/versitygw";
/// The file that says what it was built from.
const STAMP: &str = "recipe";

/// The program, built if it is not there: a minute and a half on two idle processors.
///
/// # Errors
/// Building is refused, there is no Go, or it failed.
pub(crate) fn program(installing: Installing) -> Result<PathBuf> {
    let module = workspace::root().join(MODULE);
    let read = |name: &str| {
        let path = module.join(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let recipe = read("go.mod")? + &read("go.sum")?;
    let directory = workspace::cache_dir()?.join("versitygw");
    let program = directory.join("versitygw");
    let is_same = fs::read_to_string(directory.join(STAMP)).is_ok_and(|stamp| stamp == recipe);
    if is_same && program.exists() {
        return Ok(program);
    }
    if installing == Installing::Refused {
        bail!("--no-install, and versitygw is not built: run `cargo xtask test sink` without it");
    }
    fs::create_dir_all(&directory)?;
    // The program that is there may be running; it is replaced, not written into.
    let partial = directory.join("versitygw.partial");
    let caches = directory.join("go");
    step("building versitygw", || {
        let go = Go::find(&caches)?;
        let mut build = go.command(&module);
        build.args(["build", "-trimpath", "-ldflags", "-s -w", "-o"]);
        run(build.arg(&partial).arg(PACKAGE))
    })
    .context("cannot build versitygw")?;
    fs::rename(&partial, &program)?;
    fs::write(directory.join(STAMP), recipe)?;
    remove(&caches)?;
    Ok(program)
}

fn remove(caches: &Path) -> Result<()> {
    fs::remove_dir_all(caches).with_context(|| caches.display().to_string())
}
