//! Manual pages and shell completions, as the programs write them.

use std::fs;

use anyhow::Context as _;

use crate::process::{run, step};
use crate::workspace;

/// Writes `target/manual/man` and `target/manual/completions`.
pub(crate) fn manual() -> anyhow::Result<()> {
    let folder = workspace::target_dir().join("manual");
    if folder.exists() {
        // A command that is no more has no page.
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    step("writing manual pages and completions", || {
        let mut cargo = workspace::cargo();
        cargo.args(["run", "-q", "-p", "remora-cli", "--", "manual"]);
        run(cargo.arg(&folder))
    })?;
    say!("in {}", folder.display());
    Ok(())
}
