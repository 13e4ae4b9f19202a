//! What is installed: the image, the chart, the units.
//!
//! Without Helm (`cargo xtask cluster build` makes it) the tests of the chart say so and pass: what it
//! renders by default is committed in `deploy/manifests`, and is looked at in any case.

mod chart;
mod image;
mod rights;
mod units;

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The repository's root.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Compares with a committed list, line by line; `REMORA_BLESS` set writes it anew.
fn golden(name: &str, lines: &[String]) -> Result<()> {
    let path = root().join("tests/fixtures/deploy").join(name);
    let text = lines.join("\n") + "\n";
    if env::var_os("REMORA_BLESS").is_some() {
        fs::write(&path, &text)?;
        return Ok(());
    }
    let expected = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let added: Vec<_> = text
        .lines()
        .filter(|line| !expected.lines().any(|e| e == *line))
        .collect();
    let gone: Vec<_> = expected
        .lines()
        .filter(|line| !text.lines().any(|e| e == *line))
        .collect();
    ensure!(
        text == expected,
        "not as tests/fixtures/deploy/{name} says; added: {added:#?}; gone: {gone:#?}; if it is meant, \
         run the test with REMORA_BLESS=1 and commit"
    );
    Ok(())
}
