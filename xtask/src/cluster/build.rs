//! Building the cluster's programs, told while it goes on: the first time takes minutes.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::go::Go;
use super::recipe::{KUBERNETES_NAMES, PROGRAMS, Program, Recipe, kept, module};
use crate::process::{line, step};
use crate::setup::Installing;

/// Between two lines that say how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(15);

/// Builds all programs into the cache; answers their directory. What was downloaded and compiled
/// on the way (some 6 GB) is removed at the end; a build that failed goes on from it.
///
/// # Errors
/// Building is refused, there is no Go, or it failed.
pub(super) fn build(recipe: &Recipe, installing: Installing) -> Result<PathBuf> {
    let directory = recipe.directory()?;
    if installing == Installing::Refused {
        bail!(
            "--no-install, and the cluster's programs are not built: run `cargo xtask cluster build`"
        );
    }
    fs::create_dir_all(kept()?)?;
    let _lock = lock(&kept()?.join("lock"))?;
    // Somebody else may have built them while we waited.
    if let Some(directory) = recipe.built()? {
        return Ok(directory);
    }
    say!(
        "── the cluster's programs are built from Go modules: once, 10 to 15 minutes on two \
         processors,\n   6 GB of disk on the way and 0.4 GB in the end"
    );
    let caches = kept()?.join("go");
    let go = Go::find(&caches)?;
    let partial = directory.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    let flags = recipe.linker_flags()?;
    for program in PROGRAMS {
        let name = program.name;
        step(&format!("building {name}"), || {
            compile(&go, &program, &flags, &partial.join(name))
        })
        .with_context(|| format!("cannot build {name}"))?;
    }
    for name in KUBERNETES_NAMES {
        symlink("kubernetes", partial.join(name))?;
    }
    recipe.stamp(&partial)?;
    let _ = fs::remove_dir_all(&directory);
    fs::rename(&partial, &directory).with_context(|| directory.display().to_string())?;
    fs::remove_dir_all(&caches).with_context(|| caches.display().to_string())?;
    Ok(directory)
}

fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    if file.try_lock().is_err() {
        say!("   waiting for another build of them");
        file.lock()?;
    }
    Ok(file)
}

/// Compiles one program, its modules downloaded first.
fn compile(go: &Go, program: &Program, flags: &str, to: &Path) -> Result<()> {
    let mut progress = Progress::default();
    let listed = tempfile::NamedTempFile::new()?;
    let mut list = go.command(&module());
    list.args(["list", "-deps", program.package]);
    progress.follow(list.stdout(listed.reopen()?))?;
    progress.packages = fs::read_to_string(listed.path())?.lines().count();
    let mut build = go.command(&module());
    build
        .args(["build", "-v", "-trimpath", "-ldflags", flags, "-o"])
        .arg(to)
        .arg(program.package);
    progress.follow(&mut build)
}

/// Runs a command and hands on each line of its standard error. Did it end well?
fn heard(command: &mut Command, mut hear: impl FnMut(&str)) -> Result<bool> {
    let shown = line(command);
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{shown}`"))?;
    for said in BufReader::new(child.stderr.take().expect("piped")).lines() {
        hear(&said?);
    }
    Ok(child.wait()?.success())
}

/// How far `go` is, from what it says.
struct Progress {
    /// How many there are, once that is known.
    packages: usize,
    compiled: usize,
    downloaded: usize,
    told: Instant,
    errors: Vec<String>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            packages: 0,
            compiled: 0,
            downloaded: 0,
            told: Instant::now(),
            errors: Vec::new(),
        }
    }
}

impl Progress {
    fn follow(&mut self, command: &mut Command) -> Result<()> {
        let ended = heard(command, |said| self.hear(said))?;
        let errors = self.errors.join("\n");
        ensure!(ended, "`{}` failed:\n{errors}", line(command));
        Ok(())
    }

    /// A line is a download, the path of a package that is compiled now, or an error.
    fn hear(&mut self, said: &str) {
        if said.starts_with("go: downloading ") {
            self.downloaded += 1;
        } else if said.contains([' ', '\t']) {
            self.errors.push(said.to_owned());
        } else {
            self.compiled += 1;
        }
        if self.told.elapsed() >= TOLD_EVERY {
            self.told = Instant::now();
            say!("   {self}");
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.packages, self.compiled, self.downloaded) {
            (0, _, modules) => write!(f, "{modules} modules downloaded"),
            (all, compiled, _) => write!(f, "{compiled} of at most {all} packages compiled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_counted_and_errors_kept() {
        let mut progress = Progress::default();
        for said in [
            "go: downloading k8s.io/api v0.37.2",
            "k8s.io/api/core/v1",
            "# remora/tests/cluster/kubernetes",
            "kubernetes/main.go:1:2: undefined: x",
            "unicode",
        ] {
            progress.hear(said);
        }
        assert_eq!(progress.to_string(), "1 modules downloaded");
        progress.packages = 3;
        assert_eq!(progress.to_string(), "2 of at most 3 packages compiled");
        assert_eq!(progress.errors.len(), 2);
    }

    #[test]
    fn what_a_failing_command_says_is_heard() {
        let mut said = Vec::new();
        let mut sh = Command::new("sh");
        sh.args(["-c", "echo one >&2; echo two >&2; exit 3"]);
        assert!(!heard(&mut sh, |line| said.push(line.to_owned())).unwrap());
        assert_eq!(said, ["one", "two"]);
    }
}
