//! The tests of Falco Talon's actionner, which is Go: `go vet` and `go test`, against the built controller.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::cluster::Go;
use crate::process::line;
use crate::run::bin_dir;
use crate::test::Tally;
use crate::workspace;

/// Tells the tests where the controller is.
const CONTROLLER: &str = "REMORA_CONTROLLER";

/// Runs those with `filter` in their name. Without Go all are skipped, and said to be.
///
/// # Errors
/// The sources cannot be read, or Go cannot be run.
pub(crate) fn test(filter: Option<&str>) -> Result<Tally> {
    let wanted = names()?;
    let wanted: Vec<_> = wanted
        .iter()
        .filter(|name| filter.is_none_or(|filter| name.contains(filter)))
        .collect();
    if wanted.is_empty() {
        return Ok(Tally::default());
    }
    let go = match Go::find(&workspace::target_dir().join("go")) {
        Ok(go) => go,
        Err(error) => {
            let skipped = wanted.len() as u64;
            say!("── {skipped} tests of Talon's actionner are skipped: {error:#}");
            return Ok(Tally {
                skipped,
                ..Tally::default()
            });
        }
    };
    let vetted = vet(go.command(&folder()).args(["vet", "./..."]))?;
    let mut tests = go.command(&folder());
    tests.args(["test", "-count=1", "-v", "./..."]);
    if filter.is_some() {
        let only: Vec<_> = wanted.iter().map(|name| format!("^{name}$")).collect();
        tests.arg(format!("-run={}", only.join("|")));
    }
    tests.env(CONTROLLER, bin_dir().join("remora-controller"));
    Ok(vetted.plus(counted(&mut tests)?))
}

fn folder() -> PathBuf {
    workspace::root().join("deploy/talon/actionner")
}

/// The tests, by their sources.
fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder()).context("no deploy/talon/actionner")? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with("_test.go") {
            names.extend(named(&fs::read_to_string(path)?).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

fn named(source: &str) -> impl Iterator<Item = &str> {
    source.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("func ")?.split_once("(t *testing.T)")?;
        name.starts_with("Test").then_some(name)
    })
}

/// A check counts as a test.
fn vet(command: &mut Command) -> Result<Tally> {
    let status = command
        .status()
        .with_context(|| format!("cannot run `{}`", line(command)))?;
    Ok(Tally {
        passed: u64::from(status.success()),
        failed: u64::from(!status.success()),
        skipped: 0,
    })
}

fn counted(command: &mut Command) -> Result<Tally> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run `{}`", line(command)))?;
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    let mut tally = results(&said);
    if !output.status.success() && tally.failed == 0 {
        // It crashed, or did not compile.
        tally.failed = 1;
    }
    Ok(tally)
}

/// The counts of `go test -v`'s lines: `--- PASS: TestName (0.00s)`.
fn results(said: &str) -> Tally {
    let count = |mark: &str| said.lines().filter(|line| line.starts_with(mark)).count() as u64;
    Tally {
        passed: count("--- PASS: "),
        failed: count("--- FAIL: "),
        skipped: count("--- SKIP: "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_of_the_actionner_is_known_by_its_source() {
        let names = names().unwrap();
        assert!(names.len() >= 14, "{names:?}");
        assert!(names.iter().all(|name| name.starts_with("Test")));
    }

    #[test]
    fn gos_lines_are_counted_and_no_others() {
        let said = "=== RUN   TestA\n--- PASS: TestA (0.00s)\n    --- PASS: TestA/part (0.00s)\n\
                    --- FAIL: TestB (1.00s)\n--- SKIP: TestC (0.00s)\nFAIL\n";
        let expected = Tally {
            passed: 1,
            failed: 1,
            skipped: 1,
        };
        assert_eq!(results(said), expected);
    }
}
