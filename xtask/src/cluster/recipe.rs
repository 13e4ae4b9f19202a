//! What the cluster's programs are made of: versions, and where the result is kept.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::workspace;

/// The module whose dependencies the programs are.
const MODULE: &str = "tests/cluster/go";
/// Its files; another byte in one of them makes other programs.
const FILES: [&str; 3] = ["go.mod", "go.sum", "kubernetes/main.go"];
/// What the programs are, in few words, and the module that gives the version.
const NAMED: [(&str, &str); 4] = [
    ("kubernetes", KUBERNETES),
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("containerd", CONTAINERD),
    ("helm", "helm.sh/helm/v4"),
];
const KUBERNETES: &str = "k8s.io/kubernetes";
const CONTAINERD: &str = "github.com/containerd/containerd/v2";

/// Names of the program that is all of Kubernetes.
pub(super) const KUBERNETES_NAMES: [&str; 6] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kubectl",
];
/// The file in a built directory that says what it was built from.
const STAMP: &str = "recipe";

/// A Go program, by the path that `go build` takes, and how it is called.
pub(super) struct Program {
    pub(super) package: &'static str,
    pub(super) name: &'static str,
}

/// What is built.
pub(super) const PROGRAMS: [Program; 5] = [
    Program {
        package: "./kubernetes",
        name: "kubernetes",
    },
    Program {
        package: "github.com/containerd/containerd/v2/cmd/containerd",
        name: "containerd",
    },
    Program {
        package: "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        name: "containerd-shim-runc-v2",
    },
    Program {
        package: "github.com/containerd/containerd/v2/cmd/ctr",
        name: "ctr",
    },
    Program {
        package: "helm.sh/helm/v4/cmd/helm",
        name: "helm",
    },
];

/// The module's files, read.
#[derive(Debug)]
pub(super) struct Recipe {
    text: String,
}

impl Recipe {
    /// # Errors
    /// A file of the module cannot be read.
    pub(super) fn read() -> Result<Self> {
        let mut text = linker_flags("") + "\n";
        for file in FILES {
            let path = module().join(file);
            text += &fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        }
        Ok(Self { text })
    }

    /// Version of a module, as go.mod has it: "v1.37.2".
    ///
    /// # Errors
    /// go.mod has none.
    pub(super) fn version(&self, module: &str) -> Result<&str> {
        self.text
            .lines()
            .find_map(|line| {
                let mut words = line.split_whitespace();
                let named = words.next() == Some(module);
                words.next().filter(|word| named && word.starts_with('v'))
            })
            .with_context(|| format!("{MODULE}/go.mod has no version of {module}"))
    }

    /// Where the programs of these versions are kept.
    ///
    /// # Errors
    /// go.mod lacks a version, or there is no cache.
    pub(super) fn directory(&self) -> Result<PathBuf> {
        let mut name = Vec::new();
        for (word, module) in NAMED {
            name.push(format!("{word}-{}", self.version(module)?));
        }
        Ok(kept()?.join(name.join("+")))
    }

    /// Their directory, if they were built from exactly this.
    ///
    /// # Errors
    /// As [`Self::directory`].
    pub(super) fn built(&self) -> Result<Option<PathBuf>> {
        let directory = self.directory()?;
        let same = fs::read_to_string(directory.join(STAMP)).is_ok_and(|stamp| stamp == self.text);
        Ok(same.then_some(directory))
    }

    /// Says in a directory that it was built from this.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn stamp(&self, directory: &Path) -> Result<()> {
        let path = directory.join(STAMP);
        fs::write(&path, &self.text).with_context(|| path.display().to_string())
    }

    /// What the linker writes into the programs: no debug information, and the versions, which
    /// they tell each other.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub(super) fn linker_flags(&self) -> Result<String> {
        let containerd = self.version(CONTAINERD)?;
        let version = linker_flags(self.version(KUBERNETES)?);
        Ok(format!(
            "{version} -X {CONTAINERD}/version.Version={containerd}"
        ))
    }
}

fn linker_flags(kubernetes: &str) -> String {
    let mut parts = kubernetes.trim_start_matches('v').split('.');
    let (major, minor) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let mut flags = "-s -w".to_owned();
    for package in [
        "k8s.io/component-base/version",
        "k8s.io/client-go/pkg/version",
    ] {
        for (variable, value) in [
            ("gitVersion", kubernetes),
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
        ] {
            flags += &format!(" -X {package}.{variable}={value}");
        }
    }
    flags
}

/// The module's folder.
pub(super) fn module() -> PathBuf {
    workspace::root().join(MODULE)
}

/// Where programs of all versions are kept.
///
/// # Errors
/// There is no cache.
pub(super) fn kept() -> Result<PathBuf> {
    Ok(workspace::cache_dir()?.join("cluster"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_named_by_the_versions_of_the_module() {
        let recipe = Recipe::read().unwrap();
        let name = recipe.directory().unwrap();
        let name = name.file_name().unwrap().to_string_lossy().into_owned();
        for (word, module) in NAMED {
            let version = recipe.version(module).unwrap();
            assert!(name.contains(&format!("{word}-{version}")), "{name}");
        }
        assert!(recipe.version("k8s.io/no-such-module").is_err());
    }

    #[test]
    fn kubernetes_says_its_version_and_minor() {
        let flags = Recipe::read().unwrap().linker_flags().unwrap();
        assert!(
            flags.contains("k8s.io/component-base/version.gitMajor=1 "),
            "{flags}"
        );
        assert!(
            flags.contains("containerd/v2/version.Version=v2."),
            "{flags}"
        );
    }

    #[test]
    fn programs_of_another_recipe_are_not_these() {
        let directory = tempfile::tempdir().unwrap();
        let recipe = Recipe::read().unwrap();
        recipe.stamp(directory.path()).unwrap();
        let stamp = fs::read_to_string(directory.path().join(STAMP)).unwrap();
        assert_eq!(stamp, recipe.text);
        assert!(stamp.contains("go.etcd.io/etcd/server/v3"));
    }
}
