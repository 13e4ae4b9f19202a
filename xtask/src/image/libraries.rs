//! The shared libraries that programs load, and the Debian packages that they are of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::programs::Program;
use crate::process::output;

/// A library, or the loader.
#[derive(Debug)]
pub(super) struct Library {
    /// Where programs look for it on this machine.
    pub(super) path: PathBuf,
    /// Where it is in the image, without the leading slash: below `usr`, as Debian has it.
    pub(super) inside: String,
    pub(super) content: Vec<u8>,
}

/// A Debian package that libraries are of.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) architecture: String,
    /// Its licences, as Debian states them.
    pub(super) copyright: Vec<u8>,
}

/// What the loader would load for `programs`, each once.
///
/// # Errors
/// A library is missing or cannot be read.
pub(super) fn of(programs: &[Program]) -> anyhow::Result<Vec<Library>> {
    let mut paths = BTreeSet::new();
    for program in programs {
        let listed = output(Command::new("ldd").arg(&program.path))?;
        ensure!(
            !listed.contains("not found"),
            "`{}` lacks a library on this machine: {listed}",
            program.path.display()
        );
        paths.extend(listed_paths(&listed));
    }
    let read = |path: PathBuf| -> anyhow::Result<Library> {
        let content = fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(Library {
            inside: below_usr(&path),
            path,
            content,
        })
    };
    paths.into_iter().map(read).collect()
}

/// The paths in what `ldd` says: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` or
/// `/lib64/ld-linux-x86-64.so.2 (0x…)`; the kernel's own (`linux-vdso.so.1`) is no file.
fn listed_paths(listed: &str) -> impl Iterator<Item = PathBuf> + '_ {
    listed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
}

/// `/lib` and `/lib64` are links into `/usr`.
fn below_usr(path: &Path) -> String {
    let path = path.to_string_lossy();
    let path = path.trim_start_matches('/');
    if path.starts_with("usr/") {
        path.to_owned()
    } else {
        format!("usr/{path}")
    }
}

/// The packages of `libraries`, by name.
///
/// # Errors
/// A library is of no package, or its package states no licence.
pub(super) fn packages(libraries: &[Library]) -> anyhow::Result<Vec<Package>> {
    let mut packages = BTreeMap::new();
    for library in libraries {
        let name = package_of(&library.path)?;
        if !packages.contains_key(&name) {
            packages.insert(name.clone(), package(&name)?);
        }
    }
    Ok(packages.into_values().collect())
}

fn package_of(path: &Path) -> anyhow::Result<String> {
    // On a merged /usr dpkg knows a file by one of two names.
    let merged = Path::new("/").join(below_usr(path));
    let found = [path, &merged].into_iter().find_map(|path| {
        let said = output(Command::new("dpkg-query").arg("--search").arg(path)).ok()?;
        owner(&said).map(str::to_owned)
    });
    found.with_context(|| {
        format!(
            "`{}` is of no Debian package: an image needs libraries whose licences are known",
            path.display()
        )
    })
}

/// The package in `libc6:amd64: /lib/x86_64-linux-gnu/libc.so.6`.
fn owner(said: &str) -> Option<&str> {
    let (packages, _path) = said
        .lines()
        .find(|line| !line.starts_with("diversion "))?
        .split_once(": ")?;
    packages.split([',', ':']).next()
}

fn package(name: &str) -> anyhow::Result<Package> {
    let format = "${Version} ${Architecture}\n";
    let said = output(Command::new("dpkg-query").args(["--show", "--showformat", format, name]))?;
    let (version, architecture) = said
        .lines()
        .next()
        .and_then(|line| line.split_once(' '))
        .with_context(|| format!("dpkg-query says nothing of `{name}`"))?;
    let path = format!("/usr/share/doc/{name}/copyright");
    Ok(Package {
        name: name.to_owned(),
        version: version.to_owned(),
        architecture: architecture.to_owned(),
        copyright: fs::read(&path).with_context(|| path.clone())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_s_lines_name_files_but_for_the_kernel_s_own() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths: Vec<_> = listed_paths(said).collect();
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(paths, expected.map(PathBuf::from));
        assert_eq!(below_usr(&paths[1]), "usr/lib64/ld-linux-x86-64.so.2");
        assert_eq!(below_usr(Path::new("/usr/lib/x.so")), "usr/lib/x.so");
    }

    #[test]
    fn a_file_s_package_is_the_first_that_dpkg_names() {
        assert_eq!(owner("libc6:amd64: /lib/x/libc.so.6\n"), Some("libc6"));
        assert_eq!(owner("a, b:amd64: /x\n"), Some("a"));
        let diverted = "diversion by d from: /x\nlibx:amd64: /x\n";
        assert_eq!(owner(diverted), Some("libx"));
        assert_eq!(owner(""), None);
    }
}
