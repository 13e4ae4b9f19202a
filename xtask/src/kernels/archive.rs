//! Debian packages that are unpacked, never installed: kernels, QEMU where the machine's own is too old, libraries
//! for another processor.
//!
//! apt works on lists and a cache of its own below `~/.cache/remora/kernels/apt`, with more suites
//! than the machine has; the machine's own lists and packages stay as they are.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};

use crate::process::{find, output, run, step};
use crate::workspace;

/// Suites with kernels: archive, suite.
const SUITES: [(&str, &str); 6] = [
    ("debian", "bullseye"),
    ("debian", "bookworm"),
    ("debian", "bookworm-backports"),
    ("debian-security", "bookworm-security"),
    ("debian", "trixie"),
    ("debian", "trixie-backports"),
];
/// What programs are taken from, unless somebody asks for another suite.
const RELEASE: &str = "bookworm";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where the machine's own sources name no mirror.
const MIRROR: &str = "http://deb.debian.org";
/// Lists are asked for anew after that.
const LISTS_AGE: Duration = Duration::from_secs(24 * 3600);

/// Debian's archive as this task sees it.
#[derive(Debug)]
pub(crate) struct Archive {
    cache: PathBuf,
}

impl Archive {
    /// With the suites that have kernels.
    pub(crate) fn open() -> anyhow::Result<Self> {
        Self::of("kernels", &SUITES, "")
    }

    /// Its packages for another processor.
    pub(crate) fn foreign(architecture: &str) -> anyhow::Result<Self> {
        let suites: Vec<_> = SUITES
            .into_iter()
            .filter(|(_, suite)| suite.starts_with(RELEASE) && !suite.ends_with("backports"))
            .collect();
        let more = format!(
            "APT::Architecture \"{architecture}\";\n\
             APT::Architectures {{ \"{architecture}\"; }};\n"
        );
        Self::of(&format!("cross-{architecture}"), &suites, &more)
    }

    /// Makes its directories and fetches the lists, unless they are fresh.
    fn of(name: &str, suites: &[(&str, &str)], more: &str) -> anyhow::Result<Self> {
        ensure!(
            find("apt-get").is_some() && Path::new(KEYRING).exists(),
            "packages come from Debian's archive, and here is no apt-get with Debian's keys: run \
             this on a Debian machine or in a container of one"
        );
        let cache = workspace::cache_dir()?.join(name);
        let archive = Self { cache };
        for directory in ["sources", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(archive.apt().join(directory))?;
        }
        let mirror = mirror();
        let sources: String = suites
            .iter()
            .map(|(archive, suite)| {
                format!("deb [signed-by={KEYRING}] {mirror}/{archive} {suite} main\n")
            })
            .collect();
        fs::write(archive.apt().join("sources.list"), sources)?;
        let apt = archive.apt();
        let apt = apt.display();
        fs::write(
            archive.apt().join("apt.conf"),
            format!(
                "Dir::Etc::sourcelist \"{apt}/sources.list\";\n\
                 Dir::Etc::sourceparts \"{apt}/sources\";\n\
                 Dir::State::lists \"{apt}/lists\";\n\
                 Dir::Cache \"{apt}/cache\";\n\
                 Acquire::Languages \"none\";\n\
                 Acquire::Retries \"3\";\n\
                 Acquire::http::Timeout \"30\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
                 APT::Sandbox::User \"root\";\n\
                 APT::Default-Release \"{RELEASE}\";\n\
                 Debug::NoLocking \"true\";\n\
                 {more}"
            ),
        )?;
        archive.update()?;
        Ok(archive)
    }

    fn apt(&self) -> PathBuf {
        self.cache.join("apt")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.apt().join("apt.conf"))
            .env("LC_ALL", "C");
        command
    }

    fn update(&self) -> anyhow::Result<()> {
        let stamp = self.apt().join("updated");
        let fresh = fs::metadata(&stamp)
            .and_then(|stamp| stamp.modified())
            .is_ok_and(|at| {
                SystemTime::now()
                    .duration_since(at)
                    .is_ok_and(|age| age < LISTS_AGE)
            });
        if fresh {
            return Ok(());
        }
        let updated = step("fetching the archive's lists", || {
            run(self.command("apt-get").args(["--quiet=2", "update"]))
        });
        // A suite that is not served any more takes no kernel from the others.
        match updated {
            Ok(()) => fs::write(stamp, "")?,
            Err(error) => say!("{error:#}; going on with the lists that are there"),
        }
        Ok(())
    }

    /// The newest cloud kernel of a series ("6.1"), or of all ("newest"), as Debian names it:
    /// `6.1.0-56-cloud-amd64`.
    pub(crate) fn newest(&self, series: &str) -> anyhow::Result<String> {
        let names = output(self.command("apt-cache").args(["pkgnames", "linux-image-"]))?;
        newest(names.lines(), series).with_context(|| {
            format!("the archive has no cloud kernel {series}; `newest` takes what it has")
        })
    }

    /// Unpacks a kernel's packages; the directory.
    pub(crate) fn kernel(&self, name: &str) -> anyhow::Result<PathBuf> {
        // Since 7.2 the image and its modules are packages of their own.
        let parts = ["image", "binary", "modules"].map(|part| format!("linux-{part}-{name}"));
        let known = output(self.command("apt-cache").args(["pkgnames", "linux-"]))?;
        let known: BTreeSet<&str> = known.lines().collect();
        let packages = parts.iter().filter(|part| known.contains(part.as_str()));
        self.unpacked(name, |debs| self.download(packages, debs))
    }

    /// Unpacks a package that needs no other; the directory.
    pub(crate) fn package(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.unpacked(name, |debs| self.download([name], debs))
    }

    /// Unpacks these, and none that they need; the directory.
    pub(crate) fn group(&self, name: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
        self.unpacked(name, |debs| self.download(packages, debs))
    }

    fn download(
        &self,
        packages: impl IntoIterator<Item = impl AsRef<OsStr>>,
        debs: &Path,
    ) -> anyhow::Result<()> {
        run(self
            .command("apt-get")
            .args(["--quiet=2", "download"])
            .args(packages)
            .current_dir(debs))
    }

    /// Unpacks packages of a suite with all that they need and the machine lacks; the directory.
    pub(crate) fn packages(&self, packages: &[&str], suite: &str) -> anyhow::Result<PathBuf> {
        let first = packages.first().context("no package")?;
        self.unpacked(first, |debs| {
            fs::create_dir_all(debs.join("partial"))?;
            let archives = format!("Dir::Cache::archives={}", debs.display());
            let mut command = self.command("apt-get");
            command
                .args(["--quiet=2", "--yes", "--no-install-recommends"])
                .args(["--download-only", "--option", &archives, "install"])
                .args(packages.iter().map(|package| format!("{package}/{suite}")));
            run(&mut command)
        })
    }

    /// A directory with what `download` fetched, unpacked; made once.
    fn unpacked(
        &self,
        name: &str,
        download: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<PathBuf> {
        let directory = self.cache.join(name);
        if directory.is_dir() {
            return Ok(directory);
        }
        step(&format!("fetching {name}"), || {
            let debs = tempfile::tempdir_in(&self.cache)?;
            let tree = tempfile::tempdir_in(&self.cache)?;
            download(debs.path())?;
            for entry in fs::read_dir(debs.path())? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "deb") {
                    run(Command::new("dpkg-deb")
                        .arg("-x")
                        .arg(&path)
                        .arg(tree.path()))?;
                }
            }
            // Whole, or not there.
            fs::rename(tree.keep(), &directory)?;
            Ok(())
        })?;
        Ok(directory)
    }
}

/// The Debian mirror that the machine's own sources name.
fn mirror() -> String {
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]);
    output(&mut command)
        .ok()
        .and_then(|uris| {
            uris.lines().find_map(|uri| {
                uri.trim_end_matches('/')
                    .strip_suffix("/debian")
                    .map(str::to_owned)
            })
        })
        .unwrap_or_else(|| MIRROR.to_owned())
}

/// The newest of Debian's `linux-image-…-cloud-amd64` of a series, without `linux-image-`.
fn newest<'a>(names: impl Iterator<Item = &'a str>, series: &str) -> Option<String> {
    names
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|name| {
            name.ends_with("-cloud-amd64") && name.starts_with(|c: char| c.is_ascii_digit())
        })
        // "6.12-cloud-amd64" only names another package.
        .filter(|name| numbers(name).len() > 3)
        .filter(|name| {
            series == "newest"
                || name
                    .strip_prefix(series)
                    .is_some_and(|rest| rest.starts_with(['.', '+', '-']))
        })
        .max_by_key(|name| numbers(name))
        .map(str::to_owned)
}

/// The numbers in a version, in their order: what makes 6.12 newer than 6.9.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_of_a_series_is_found_by_number() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.95+deb12-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-image-cloud-amd64",
        ];
        let newest = |series| newest(names.into_iter(), series);
        assert_eq!(newest("6.1").as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(
            newest("6.12").as_deref(),
            Some("6.12.117+deb12-cloud-amd64")
        );
        assert_eq!(newest("newest").as_deref(), Some("7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest("6"), Some("6.12.117+deb12-cloud-amd64".into()));
        assert_eq!(newest("5.15"), None);
    }
}
