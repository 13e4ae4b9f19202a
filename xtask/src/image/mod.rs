//! `cargo xtask image`: our programs as one OCI image, in an archive that `ctr images import`,
//! `skopeo` and `podman load` take. No Docker, no base image.
//!
//! - [`programs`]: built without the paths of this machine in them, and stripped.
//! - [`libraries`]: the shared libraries that they load, of which Debian packages.
//! - [`crates`]: the Rust crates that are linked into them.
//! - [`notices`]: the licences of both.
//! - [`layer`]: a file system as a tar archive, the same bytes each time.
//! - [`oci`]: layers, configuration, manifest and index, as an archive with its digest.
//! - [`sbom`]: what is in it, as CycloneDX.
//!
//! The image is made of a libc because libpcap, which compiles filters, is there as a shared library
//! only, with libraries of its own. Nothing else of a distribution is in it: no shell, no package
//! manager, no other program.
//!
//! The same programs and libraries give the same digest: entries are sorted, have one time (the
//! commit's, or SOURCE_DATE_EPOCH), user 0 and no name of it.

mod crates;
mod layer;
mod libraries;
mod notices;
mod oci;
mod programs;
mod sbom;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use self::layer::{Layer, Mode};
use self::oci::{Digest, Image};
use crate::process::{output, step};
use crate::setup::{Installing, Purpose, setup};
use crate::workspace;

/// The image's name without its tag: where the chart looks for it unless told otherwise.
const NAME: &str = "remora.dev/remora";
/// Nobody's on any distribution, so that no file of a node is its own.
const USER: u32 = 65532;
/// CAP_NET_ADMIN and CAP_BPF (linux/capability.h).
const AGENT_CAPABILITIES: [u32; 2] = [12, 39];

/// Where programs come from.
#[derive(Debug)]
pub(crate) enum Programs {
    /// Built for the image, with no path of this machine in them.
    Built(Installing),
    /// Taken as they are, from this directory.
    Taken(PathBuf),
}

/// What was made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) archive: PathBuf,
    pub(crate) digest: Digest,
}

/// Makes the image's archive and its SBOM in `directory`.
///
/// # Errors
/// Building failed; a program or library cannot be read; a program has a path of this machine in it.
pub(crate) fn image(programs: &Programs, directory: &Path) -> anyhow::Result<Made> {
    let programs = match programs {
        Programs::Built(installing) => {
            let tools = setup(Purpose::Build, *installing)?;
            let built = programs::build(&tools)?;
            programs::of(&built, programs::Paths::Refused)?
        }
        Programs::Taken(directory) => programs::of(directory, programs::Paths::Told)?,
    };
    step("packing the image", || pack(&programs, directory))
}

fn pack(programs: &[programs::Program], directory: &Path) -> anyhow::Result<Made> {
    let epoch = epoch()?;
    let libraries = libraries::of(programs)?;
    let packages = libraries::packages(&libraries)?;
    let crates = crates::linked()?;

    let mut base = Layer::new(epoch);
    for (path, target) in [
        ("bin", "usr/bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        base.link(path, target);
    }
    for library in &libraries {
        base.file(&library.inside, Mode::Program, library.content.clone());
    }
    for (path, text) in accounts() {
        base.file(path, Mode::Text, text.into_bytes());
    }
    base.file(
        "etc/nsswitch.conf",
        Mode::Text,
        b"hosts: files dns\n".to_vec(),
    );
    for package in &packages {
        let path = format!("usr/share/doc/{}/copyright", package.name);
        base.file(&path, Mode::Text, package.copyright.clone());
    }

    let mut ours = Layer::new(epoch);
    for program in programs {
        let path = format!("usr/bin/{}", program.name);
        ours.file(&path, Mode::Program, program.content.clone());
        if program.name == programs::AGENT {
            // A container's process that is not root gets its capabilities by its file.
            ours.capabilities(&path, &AGENT_CAPABILITIES);
        }
    }
    let licence = fs::read(workspace::root().join("LICENSE")).context("LICENSE")?;
    ours.file("usr/share/doc/remora/LICENSE", Mode::Text, licence);
    ours.file(
        "usr/share/doc/remora/THIRD-PARTY.txt",
        Mode::Text,
        notices::of(&crates)?,
    );

    let version = env!("CARGO_PKG_VERSION");
    let image = Image {
        name: format!("{NAME}:{version}"),
        version: version.to_owned(),
        revision: revision(),
        epoch,
        user: format!("{USER}:{USER}"),
        layers: vec![base.packed()?, ours.packed()?],
    };
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let archive = directory.join(format!("remora-{version}.oci.tar"));
    let digest = image.write(&archive)?;
    let bill = directory.join(format!("remora-{version}.cdx.json"));
    let text = sbom::of(&image, digest.as_str(), &crates, &packages)?;
    fs::write(&bill, text).with_context(|| bill.display().to_string())?;

    say!("   {} {}", image.name, digest.as_str());
    say!("   {}", archive.display());
    say!("   {}", bill.display());
    Ok(Made { archive, digest })
}

/// `/etc/passwd` and `/etc/group`, of root and our own user.
fn accounts() -> [(&'static str, String); 2] {
    [
        (
            "etc/passwd",
            format!(
                "root:x:0:0:root:/:/nonexistent\nremora:x:{USER}:{USER}:remora:/:/nonexistent\n"
            ),
        ),
        ("etc/group", format!("root:x:0:\nremora:x:{USER}:\n")),
    ]
}

/// Seconds since 1970 that everything in the image is dated by.
fn epoch() -> anyhow::Result<u64> {
    if let Ok(given) = env::var("SOURCE_DATE_EPOCH") {
        return given
            .parse()
            .with_context(|| format!("SOURCE_DATE_EPOCH is `{given}`, not seconds since 1970"));
    }
    // Outside of a checkout there is no commit, and any fixed time serves.
    Ok(git(&["log", "-1", "--format=%ct"])
        .and_then(|text| text.parse().ok())
        .unwrap_or(0))
}

/// The commit, if this is a checkout.
fn revision() -> Option<String> {
    git(&["rev-parse", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let said = output(
        Command::new("git")
            .arg("-C")
            .arg(workspace::root())
            .args(args),
    )
    .ok()?;
    Some(said.trim().to_owned()).filter(|text| !text.is_empty())
}
