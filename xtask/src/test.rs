//! Every layer of tests, one after the other, and what came of them.
//!
//! | layer | what | rights |
//! |---|---|---|
//! | lint | `cargo xtask lint`, a check counts as a test | - |
//! | unit | unit, property and doc tests of every crate but `tests`; what fuzzing has found; Talon's actionner, if there is Go | - |
//! | kernel | test programs `kernel*` of `tests`, and its support library's own | root |
//! | end to end | the other test programs of `tests` | root |
//! | cluster | test program `cluster` on a real Kubernetes, if it is asked for ([`Also`]) | root |
//! | other kernels | `cargo xtask kernels 6.1 6.12`, if it is asked for | - |
//!
//! A layer that ran no test has failed: nothing is skipped in silence.

use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use serde_json::Value;

use crate::build::{Profile, build};
use crate::process::{as_root, line, run};
use crate::run::{BIN_DIR, bin_dir};
use crate::setup::{self, Installing, Purpose, setup};
use crate::{actionner, cluster, kernels, lint, manifests, room, versitygw, workspace};

/// A test program that is still running then hangs, and is ended.
const PROGRAM_TIMEOUT: &str = "900";
/// The one whose tests are the whole of a layer, on one cluster, one after the other.
const CLUSTER_TIMEOUT: &str = "2700";

/// Outcomes of the tests of a layer, or of all.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

#[derive(Debug)]
struct Layer {
    name: &'static str,
    tally: Tally,
    took: Duration,
}

/// Layers beyond what this machine's own kernel runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Also {
    /// The tests on a real Kubernetes; the first time its programs are built, 10 to 15 minutes
    Cluster,
    /// The kernel tests on other kernels, as `cargo xtask kernels 6.1 6.12` does
    Kernels,
}

impl Also {
    pub(crate) const ALL: [Self; 2] = [Self::Cluster, Self::Kernels];

    fn title(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Kernels => "other kernels",
        }
    }
}

/// What is run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// The tests with this in their name.
    Named(&'a str),
    /// All of this machine's kernel, the lint, and these.
    All(&'a [Also]),
}

impl Scope<'_> {
    fn asks_for(self, layer: Also) -> bool {
        matches!(self, Self::All(also) if also.contains(&layer))
    }

    /// Layers that are not run, as a person is told; none where tests are asked for by name.
    fn left_out(self) -> Vec<String> {
        let Self::All(_) = self else {
            return Vec::new();
        };
        let missing = Also::ALL.into_iter().filter(|also| !self.asks_for(*also));
        missing
            .map(|also| {
                let value = also.to_possible_value();
                let name = value.as_ref().map_or("", |value| value.get_name());
                format!(
                    "left out: {} (`cargo xtask test --also {name}`)",
                    also.title()
                )
            })
            .collect()
    }
}

/// Sets up, builds, and runs the tests.
///
/// # Errors
/// Set-up or build failed, a test failed, or a layer ran none.
pub(crate) fn test(scope: Scope<'_>, installing: Installing) -> anyhow::Result<()> {
    let filter = match scope {
        Scope::Named(filter) => Some(filter),
        Scope::All(_) => None,
    };
    let started = Instant::now();
    if let Some(warning) = room::warning(&workspace::target_dir()) {
        say!("{warning}");
    }
    let tools = setup(Purpose::BuildAndTest, installing)?;
    build(&tools, Profile::Release)?;
    let prepared = started.elapsed();

    let mut layers = Vec::new();
    if filter.is_none() {
        layers.push(layer("lint", || Ok(lint::check().tally()))?);
    }
    layers.push(layer("unit", || unit(filter))?);
    let suites = suites()?;
    let objects = objects(filter, installing)?;
    let there: Vec<_> = objects
        .iter()
        .map(|program| (versitygw::VARIABLE, program.as_path()))
        .collect();
    layers.push(layer("kernel", || run_suites(&suites.kernel, filter, &[]))?);
    layers.push(layer("end to end", || {
        run_suites(&suites.end_to_end, filter, &there)
    })?);
    let cluster_built = match scope {
        Scope::Named(_) => cluster::built()?,
        Scope::All(also) if also.contains(&Also::Cluster) => Some(cluster::programs(installing)?),
        Scope::All(_) => None,
    };
    if let Some(directory) = &cluster_built {
        let there = [(cluster::CLUSTER_DIR, directory.as_path())];
        layers.push(layer(Also::Cluster.title(), || {
            run_suites(&suites.cluster, filter, &there)
        })?);
    }
    if scope.asks_for(Also::Kernels) {
        let programs = [suites.kernel, suites.end_to_end].concat();
        layers.push(layer(Also::Kernels.title(), || {
            Ok(other_kernels(&programs))
        })?);
    }

    say!("\nset-up and build {:.1} s", prepared.as_secs_f64());
    let (table, total) = summary(&layers);
    say!("{table}");
    say!("total {:.1} s", started.elapsed().as_secs_f64());
    for left_out in scope.left_out() {
        say!("{left_out}");
    }
    if filter.is_some() && cluster_built.is_none() {
        say!("left out: cluster (`cargo xtask cluster build` makes its programs)");
    }
    say!("{total}");
    verdict(&layers, total, filter)
}

fn layer(name: &'static str, run: impl FnOnce() -> anyhow::Result<Tally>) -> anyhow::Result<Layer> {
    say!("\n══ {name}");
    let started = Instant::now();
    let tally = run()?;
    let took = started.elapsed();
    let room = room::told(&workspace::target_dir());
    say!("══ {name}: {tally} ({:.1} s; {room})", took.as_secs_f64());
    Ok(Layer { name, tally, took })
}

/// versitygw for the tests of sinks. Who asks for other tests by name does not wait for it to be built.
fn objects(filter: Option<&str>, installing: Installing) -> anyhow::Result<Option<PathBuf>> {
    let is_wanted = filter.is_none_or(|filter| filter.contains("sink"));
    let installing = if is_wanted {
        installing
    } else {
        Installing::Refused
    };
    match versitygw::program(installing) {
        Err(_) if !is_wanted => Ok(None),
        program => program.map(Some),
    }
}

/// No network to have kernels from is a failure as well; the other layers' table is
/// still shown.
fn other_kernels(programs: &[PathBuf]) -> Tally {
    match kernels::run(programs, &kernels::STABLE) {
        Ok(outcomes) => {
            say!("\n{}", kernels::table(&outcomes));
            kernels::total(&outcomes)
        }
        Err(error) => {
            say!("{error:#}");
            Tally {
                failed: 1,
                ..Tally::default()
            }
        }
    }
}

fn unit(filter: Option<&str>) -> anyhow::Result<Tally> {
    let test = |args: &[&str]| {
        let mut cargo = workspace::cargo();
        cargo.arg("test").args(args);
        cargo
    };
    let corpus = ["--package", "remora-fuzz", "--lib"];
    // Built in sight, run in dots.
    run(&mut test(&["--no-run"]))?;
    run(test(&["--no-run"]).args(corpus))?;
    let quiet = ["--quiet", "--no-fail-fast"];
    let units = run_tests(test(&quiet).args(filter))?;
    let units = units.plus(run_tests(test(&quiet).args(corpus).args(filter))?);
    Ok(units.plus(actionner::test(filter)?))
}

/// The test programs of the `tests` crate, by layer.
#[derive(Debug, Default)]
pub(crate) struct Suites {
    pub(crate) kernel: Vec<PathBuf>,
    pub(crate) end_to_end: Vec<PathBuf>,
    cluster: Vec<PathBuf>,
}

/// Builds the test programs of the `tests` crate.
pub(crate) fn suites() -> anyhow::Result<Suites> {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "-p", "remora-tests", "--lib", "--tests", "--no-run"]);
    cargo
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit());
    let messages = cargo
        .output()
        .with_context(|| format!("cannot run `{}`", line(&cargo)))?;
    ensure!(messages.status.success(), "`{}` failed", line(&cargo));
    let mut programs: Vec<(String, PathBuf)> = String::from_utf8_lossy(&messages.stdout)
        .lines()
        .filter_map(|message| suite(&serde_json::from_str(message).ok()?))
        .collect();
    programs.sort();
    let mut suites = Suites::default();
    for (name, path) in programs {
        match name.as_str() {
            "cluster" => suites.cluster.push(path),
            name if name.starts_with("kernel") || name == "remora_tests" => {
                suites.kernel.push(path);
            }
            _ => suites.end_to_end.push(path),
        }
    }
    Ok(suites)
}

/// Name and path of the test program that a message of cargo tells of.
fn suite(message: &Value) -> Option<(String, PathBuf)> {
    let is_test = message["profile"]["test"].as_bool()?;
    let name = message["target"]["name"].as_str()?;
    let path = message["executable"].as_str()?;
    is_test.then(|| (name.to_owned(), path.into()))
}

/// `deps/kernel_hooks-0123456789abcdef` is `kernel_hooks`.
pub(crate) fn program_name(path: &Path) -> &str {
    let file = path.file_name().and_then(|file| file.to_str());
    let file = file.unwrap_or_default();
    file.rsplit_once('-').map_or(file, |(stem, _)| stem)
}

fn run_suites(
    programs: &[PathBuf],
    filter: Option<&str>,
    environment: &[(&str, &Path)],
) -> anyhow::Result<Tally> {
    let mut sum = Tally::default();
    for program in programs {
        // In the foreground, so that Ctrl-C reaches the tests and they clean up.
        let limit = match program_name(program) {
            "cluster" => CLUSTER_TIMEOUT,
            _ => PROGRAM_TIMEOUT,
        };
        let mut command = as_root("timeout");
        command
            .args(["--foreground", "--kill-after=10", limit])
            .arg(program)
            .args(filter);
        command
            .env(BIN_DIR, bin_dir())
            .envs(environment.iter().copied())
            .envs(peers_by_variable())
            .current_dir(workspace::root().join("tests"));
        sum = sum.plus(run_tests(&mut command)?);
    }
    Ok(sum)
}

/// Where tests find programs that are neither installed nor theirs.
fn peers_by_variable() -> impl Iterator<Item = (&'static str, PathBuf)> {
    [
        (cluster::XTASK, env::current_exe().ok()),
        ("REMORA_HELM", manifests::helm()),
        ("REMORA_PROMTOOL", setup::promtool()),
    ]
    .into_iter()
    .filter_map(|(name, path)| Some((name, path?)))
}

/// Runs a program of the test harness, or cargo with several, showing and counting its output.
fn run_tests(command: &mut Command) -> anyhow::Result<Tally> {
    let shown = line(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{shown}`"))?;
    let mut tally = Tally::default();
    for said in BufReader::new(child.stdout.take().expect("piped")).split(b'\n') {
        let said = said?;
        let said = String::from_utf8_lossy(&said);
        say!("{said}");
        tally = tally.plus(parse_result(&said).unwrap_or_default());
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        // It crashed, was ended, or did not compile: no line says so.
        say!("`{shown}` failed ({status})");
        tally.failed += 1;
    }
    Ok(tally)
}

/// The counts in the harness's closing line:
/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s`
pub(crate) fn parse_result(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| {
        counts
            .split("; ")
            .find_map(|count| count.strip_suffix(what)?.trim().parse().ok())
    };
    Some(Tally {
        passed: count("passed")?,
        failed: count("failed")?,
        skipped: count("ignored")?,
    })
}

impl Tally {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

fn summary(layers: &[Layer]) -> (String, Tally) {
    let mut table = format!(
        "{:<14}{:>8}{:>8}{:>8}{:>10}",
        "layer", "passed", "failed", "skipped", "seconds"
    );
    let mut total = Tally::default();
    for Layer { name, tally, took } in layers {
        let Tally {
            passed,
            failed,
            skipped,
        } = tally;
        table += &format!(
            "\n{name:<14}{passed:>8}{failed:>8}{skipped:>8}{:>10.1}",
            took.as_secs_f64()
        );
        total = total.plus(*tally);
    }
    (table, total)
}

fn verdict(layers: &[Layer], total: Tally, filter: Option<&str>) -> anyhow::Result<()> {
    let failed: Vec<&str> = layers
        .iter()
        .filter(|layer| layer.tally.failed > 0)
        .map(|layer| layer.name)
        .collect();
    ensure!(failed.is_empty(), "tests failed in: {}", failed.join(", "));
    if let Some(filter) = filter {
        ensure!(total.passed > 0, "no test has `{filter}` in its name");
        return Ok(());
    }
    let empty: Vec<&str> = layers
        .iter()
        .filter(|layer| layer.tally.passed == 0)
        .map(|layer| layer.name)
        .collect();
    ensure!(empty.is_empty(), "no test ran in: {}", empty.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &'static str, passed: u64, failed: u64, skipped: u64) -> Layer {
        Layer {
            name,
            tally: Tally {
                passed,
                failed,
                skipped,
            },
            took: Duration::from_secs(2),
        }
    }

    #[test]
    fn the_harness_closing_line_is_counted_and_no_other() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 3 filtered \
                    out; finished in 0.51s";
        assert_eq!(
            parse_result(line),
            Some(Tally {
                passed: 12,
                failed: 2,
                skipped: 1
            })
        );
        assert_eq!(parse_result("test writes_5_passed ... ok"), None);
        assert_eq!(parse_result("test result: unheard of"), None);
    }

    #[test]
    fn a_program_that_fails_without_a_result_counts_as_a_failure() {
        let crash = run_tests(Command::new("sh").args(["-c", "kill -9 $$"])).unwrap();
        assert_eq!(
            crash,
            Tally {
                failed: 1,
                ..Tally::default()
            }
        );
        let script =
            "echo 'test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured'; exit 101";
        let failing = run_tests(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!(
            failing,
            Tally {
                passed: 1,
                failed: 3,
                skipped: 0
            }
        );
    }

    #[test]
    fn only_test_programs_are_suites() {
        let message = |test: bool| {
            serde_json::json!({
                "reason": "compiler-artifact", "profile": {"test": test}, "executable": "/x/e2e-1",
                "target": {"kind": ["test"], "name": "e2e"},
            })
        };
        assert_eq!(
            suite(&message(true)),
            Some(("e2e".into(), "/x/e2e-1".into()))
        );
        assert_eq!(suite(&message(false)), None);
        assert_eq!(
            suite(&serde_json::json!({"reason": "build-finished"})),
            None
        );
    }

    #[test]
    fn a_run_names_the_layers_that_it_left_out() {
        let left_out = |scope: Scope<'_>| scope.left_out().join("\n");
        let cluster = "left out: cluster (`cargo xtask test --also cluster`)";
        let kernels = "left out: other kernels (`cargo xtask test --also kernels`)";
        assert_eq!(left_out(Scope::All(&[])), format!("{cluster}\n{kernels}"));
        assert_eq!(left_out(Scope::All(&[Also::Kernels])), cluster);
        assert_eq!(left_out(Scope::All(&Also::ALL)), "");
    }

    #[test]
    fn a_test_program_is_known_by_its_name_before_the_hash() {
        assert_eq!(
            program_name(Path::new("deps/kernel_hooks-01ab")),
            "kernel_hooks"
        );
        assert_eq!(program_name(Path::new("deps/kernel_hooks")), "kernel_hooks");
    }

    #[test]
    fn a_failed_or_empty_layer_fails_the_run() {
        let good = [of("unit", 3, 0, 0), of("kernel", 2, 0, 1)];
        let (table, total) = summary(&good);
        assert_eq!(total.to_string(), "5 passed, 0 failed, 1 skipped");
        assert!(
            table.contains("kernel") && table.lines().count() == 3,
            "{table}"
        );
        verdict(&good, total, None).unwrap();

        let verdict_of = |layers: &[Layer], filter| verdict(layers, summary(layers).1, filter);
        let empty = [of("unit", 3, 0, 0), of("kernel", 0, 0, 4)];
        assert!(
            verdict_of(&empty, None)
                .unwrap_err()
                .to_string()
                .contains("kernel")
        );
        verdict_of(&empty, Some("name")).unwrap();
        assert!(verdict_of(&[of("unit", 0, 0, 0)], Some("name")).is_err());
        assert!(verdict_of(&[of("unit", 3, 1, 0)], None).is_err());
    }
}
