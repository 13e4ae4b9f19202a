//! Debian packages: what is needed, why, whether it is there, and installing it.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::process::{as_root, find, is_root, line, output, run, step};
use crate::workspace;

/// A package that something of ours needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: Cow<'static, str>,
    pub(crate) probe: Probe,
    pub(crate) why: &'static str,
}

/// What shows that a package, or another distribution's counterpart of it, is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Probe {
    Program(&'static str),
    File(Cow<'static, str>),
}

/// May packages be installed?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Installing {
    Allowed,
    Refused,
}

/// What the tests, the demo and the benchmark run beside our own programs.
pub(crate) const PEERS: &[Package] = &[
    program(
        "tshark",
        "tshark",
        "reads every captured file, as the user's Wireshark would",
    ),
    program(
        "wireshark-common",
        "capinfos",
        "counts the packets of captured files",
    ),
    program(
        "tcpdump",
        "tcpdump",
        "captures the same traffic, to compare packet by packet",
    ),
    program(
        "iproute2",
        "ip",
        "makes network namespaces, veths and addresses",
    ),
    program("iputils-ping", "ping", "ICMP traffic of the test beds"),
    program(
        "ethtool",
        "ethtool",
        "sets offloads of the test beds' interfaces",
    ),
    program(
        "bpftool",
        "bpftool",
        "shows that no program, map or link is left behind",
    ),
    program(
        "zstd",
        "zstd",
        "unpacks compressed captures, as a user would",
    ),
    program(
        "age",
        "age",
        "decrypts captures, as who has the secret key would",
    ),
    program(
        "strace",
        "strace",
        "injects errors and delays into the agent's writes",
    ),
    program(
        "openssl",
        "openssl",
        "is the time stamp authority of the tests",
    ),
    Package {
        name: Cow::Borrowed("python3-boto3"),
        probe: Probe::File(Cow::Borrowed(
            "/usr/lib/python3/dist-packages/boto3/__init__.py",
        )),
        why: "reads what was uploaded, as an S3 client by other people",
    },
    program("procps", "kill", "ends our programs as an operator would"),
    program(
        "util-linux",
        "setpriv",
        "runs the agent with two capabilities alone, in namespaces",
    ),
];

/// What the nodes of a cluster run besides what is built for them.
pub(crate) const CLUSTER: &[Package] = &[
    program("runc", "runc", "starts the cluster's containers"),
    Package {
        name: Cow::Borrowed("containernetworking-plugins"),
        probe: Probe::File(Cow::Borrowed("/usr/lib/cni/bridge")),
        why: "gives the cluster's pods their veths and addresses",
    },
    program(
        "busybox-static",
        "busybox",
        "is the image of the cluster's test pods",
    ),
];

/// For the programs of 64-bit ARM, on another processor.
pub(crate) const CROSS: &[Package] = &[
    program(
        "gcc-aarch64-linux-gnu",
        "aarch64-linux-gnu-gcc",
        "compiles and links for 64-bit ARM",
    ),
    Package {
        name: Cow::Borrowed("libc6-dev-arm64-cross"),
        probe: Probe::File(Cow::Borrowed("/usr/aarch64-linux-gnu/include/stdio.h")),
        why: "the C library of 64-bit ARM",
    },
    program(
        "qemu-user",
        "qemu-aarch64",
        "runs programs of 64-bit ARM, as far as they need no kernel of it",
    ),
];

/// What our own programs are linked with.
pub(crate) fn libraries() -> Vec<Package> {
    vec![Package {
        name: "libpcap-dev".into(),
        probe: Probe::File("/usr/include/pcap/pcap.h".into()),
        why: "compiles filters in tcpdump's language",
    }]
}

/// For building bpf-linker against LLVM `major`.
pub(crate) fn linker(major: u32) -> Vec<Package> {
    let file = |name: String, file: String, why| Package {
        name: name.into(),
        probe: Probe::File(file.into()),
        why,
    };
    vec![
        file(
            format!("llvm-{major}-dev"),
            format!("/usr/lib/llvm-{major}/bin/llvm-config"),
            "LLVM, which bpf-linker is made of",
        ),
        file(
            "libzstd-dev".into(),
            "/usr/include/zstd.h".into(),
            "LLVM links it",
        ),
        file(
            "zlib1g-dev".into(),
            "/usr/include/zlib.h".into(),
            "LLVM links it",
        ),
    ]
}

pub(crate) const fn program(
    name: &'static str,
    program: &'static str,
    why: &'static str,
) -> Package {
    Package {
        name: Cow::Borrowed(name),
        probe: Probe::Program(program),
        why,
    }
}

impl Package {
    fn is_present(&self) -> bool {
        match &self.probe {
            Probe::Program(name) => find(name).is_some(),
            Probe::File(path) => Path::new(path.as_ref()).exists(),
        }
    }
}

pub(crate) fn missing(packages: &[Package]) -> Vec<Package> {
    packages
        .iter()
        .filter(|package| !package.is_present())
        .cloned()
        .collect()
}

/// Installs `packages`, saying first which and why. Does nothing for none.
///
/// # Errors
/// Installing is refused, this is no Debian, or apt failed; each says what to do by hand.
pub(crate) fn install(packages: &[Package], installing: Installing) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    say!("These Debian packages are missing:");
    for package in packages {
        say!("  {:<18} {}", package.name, package.why);
    }
    if find("apt-get").is_none() {
        bail!("this is no Debian: install what your distribution calls them, and run this again");
    }
    let names = || packages.iter().map(|package| package.name.as_ref());
    let lists_are_old = names().any(|name| candidate(name).is_none());
    let mut by_hand = line(as_root("apt-get").arg("install").args(names()));
    if lists_are_old {
        by_hand = format!("{} && {by_hand}", line(as_root("apt-get").arg("update")));
    }
    if installing == Installing::Refused {
        bail!("--no-install: run `{by_hand}`, then this again");
    }
    let mut command = apt_get()?;
    command.args(["install", "--yes", "--no-install-recommends"]);
    command.args(names());
    if lists_are_old {
        update()?;
    }
    step("apt-get install", || match run(&mut command) {
        // Lists that have aged name files that the mirror no longer has.
        Err(_) if !lists_are_old => update().and_then(|()| run(&mut command)),
        result => result,
    })
    .with_context(|| format!("cannot install; by hand: `{by_hand}`"))?;

    match missing(packages).first() {
        Some(package) => bail!(
            "`{}` is installed, but {:?} is not there",
            package.name,
            package.probe
        ),
        None => Ok(()),
    }
}

/// `promtool`: the machine's own, or of Debian's `prometheus`, unpacked into the cache and not installed:
/// that package starts a server. `None` after saying why.
pub(crate) fn promtool() -> Option<PathBuf> {
    let unpacked = || -> anyhow::Result<PathBuf> {
        let directory = workspace::cache_dir()?.join("prometheus");
        let program = directory.join("usr/bin/promtool");
        if program.is_file() {
            return Ok(program);
        }
        let parent = directory.parent().context("the cache has a parent")?;
        fs::create_dir_all(parent)?;
        let fresh = tempfile::TempDir::new_in(parent)?;
        step("fetching promtool", || {
            run(Command::new("apt-get")
                .args(["--quiet=2", "download", "prometheus"])
                .current_dir(fresh.path()))?;
            let deb = fs::read_dir(fresh.path())?
                .flatten()
                .map(|entry| entry.path())
                .find(|path| path.extension().is_some_and(|e| e == "deb"))
                .context("apt-get downloaded no package")?;
            run(Command::new("dpkg-deb")
                .arg("--extract")
                .arg(deb)
                .arg(&directory))
        })?;
        Ok(program)
    };
    find("promtool").or_else(|| {
        unpacked()
            .inspect_err(|error| say!("no promtool: {error:#}"))
            .ok()
    })
}

/// Version of the package that apt would install, if it knows one.
pub(crate) fn candidate(name: &str) -> Option<String> {
    let policy = output(
        Command::new("apt-cache")
            .args(["policy", name])
            .env("LC_ALL", "C"),
    )
    .ok()?;
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

pub(crate) fn update() -> anyhow::Result<()> {
    step("apt-get update", || run(apt_get()?.arg("update")))
}

fn apt_get() -> anyhow::Result<Command> {
    ensure!(
        is_root() || find("sudo").is_some(),
        "packages are missing, and here is neither root nor sudo: run `cargo xtask setup` as root"
    );
    let mut command = as_root("env");
    // No questions (wireshark-common has one), and patience with another apt at work.
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]);
    command.args(["--option", "DPkg::Lock::Timeout=300"]);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABSENT: Package = program("remora-no-such-package", "remora-no-such-program", "a test");

    #[test]
    fn a_package_is_present_when_its_program_or_file_is() {
        let present = program("coreutils", "env", "a test");
        assert_eq!(missing(&[present, ABSENT]), [ABSENT]);
        assert_eq!(
            missing(&linker(9)).first().map(|p| p.name.as_ref()),
            Some("llvm-9-dev")
        );
    }

    #[test]
    fn refused_installing_fails_with_the_command_to_run() {
        let error = install(&[ABSENT], Installing::Refused)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("remora-no-such-package") || error.contains("no Debian"),
            "{error}"
        );
        install(&[], Installing::Refused).unwrap();
    }

    #[test]
    fn every_peer_has_a_name_of_its_own_and_a_reason() {
        let all = || PEERS.iter().chain(CLUSTER).chain(CROSS);
        let mut names: Vec<_> = all().map(|package| &package.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all().count());
        assert!(all().all(|package| package.why.len() > 10));
    }
}
