//! The image that `cargo xtask image` makes of the programs under test.

use std::{
    collections::BTreeSet,
    env, fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use remora_tests::run;
use serde_json::Value;

use super::golden;

struct Made {
    directory: tempfile::TempDir,
    digest: String,
    archive: PathBuf,
}

fn make() -> Result<Made> {
    let xtask =
        env::var_os("REMORA_XTASK").context("REMORA_XTASK is not set: use `cargo xtask test`")?;
    let programs = run::remora_program("remora")?;
    let directory = tempfile::tempdir()?;
    // One after the other: each reads and packs all programs, which takes its time on a busy machine.
    static ONE: Mutex<()> = Mutex::new(());
    let _alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new(xtask);
    command.args(["image", "--programs"]);
    command.arg(programs.parent().context("no directory")?);
    command.arg("--output").arg(directory.path());
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // The last line: digest and archive.
    let (digest, archive) = said
        .lines()
        .last()
        .and_then(|line| line.split_once(' '))
        .with_context(|| said.clone())?;
    Ok(Made {
        digest: digest.to_owned(),
        archive: archive.into(),
        directory,
    })
}

/// Members of a tar archive, in order.
fn members(archive: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut members = Vec::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        members.push((path, content));
    }
    Ok(members)
}

/// The blob that a descriptor names, after checking it by the digest.
fn blob<'a>(members: &'a [(String, Vec<u8>)], descriptor: &Value) -> Result<&'a [u8]> {
    let digest = descriptor["digest"].as_str().context("no digest")?;
    let path = format!("blobs/{}", digest.replace(':', "/"));
    let (_, content) = members
        .iter()
        .find(|(name, _)| *name == path)
        .with_context(|| format!("no {path}"))?;
    ensure!(descriptor["size"] == content.len(), "size of {path}");
    ensure!(sha256(content)? == digest, "content of {path}");
    Ok(content)
}

/// By a program that is not ours.
fn sha256(content: &[u8]) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), content)?;
    let said = run::output(run::command("sha256sum").arg(file.path()))?;
    let hex = said.split_whitespace().next().context("sha256sum")?;
    Ok(format!("sha256:{hex}"))
}

fn unzipped(blob: &[u8]) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::with_suffix(".gz")?;
    fs::write(file.path(), blob)?;
    run::output(
        run::command("gzip")
            .arg("--decompress")
            .arg("--keep")
            .arg(file.path()),
    )?;
    let plain = file.path().with_extension("");
    let content = fs::read(&plain)?;
    fs::remove_file(plain)?;
    Ok(content)
}

#[test]
fn twice_the_same_programs_are_the_same_image() -> Result<()> {
    let (one, two) = (make()?, make()?);
    assert_eq!(one.digest, two.digest);
    assert_eq!(fs::read(&one.archive)?, fs::read(&two.archive)?);
    let bill = |made: &Made| -> Result<Vec<u8>> {
        let path = sorted_bills(made.directory.path())?;
        Ok(fs::read(path)?)
    };
    assert_eq!(bill(&one)?, bill(&two)?);
    Ok(())
}

fn sorted_bills(directory: &Path) -> Result<PathBuf> {
    fs::read_dir(directory)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().ends_with(".cdx.json"))
        .context("no SBOM")
}

#[test]
fn it_holds_our_programs_their_libraries_and_licences_and_nothing_else() -> Result<()> {
    let made = make()?;
    let archive = members(&fs::read(&made.archive)?)?;
    let index: Value = serde_json::from_slice(&find(&archive, "index.json")?)?;
    let entry = &index["manifests"][0];
    assert_eq!(entry["digest"], made.digest.as_str());
    let manifest: Value = serde_json::from_slice(blob(&archive, entry)?)?;
    let config: Value = serde_json::from_slice(blob(&archive, &manifest["config"])?)?;
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["os"], "linux");
    let labels = &config["config"]["Labels"];
    for label in ["title", "version", "licenses", "created"] {
        let label = format!("org.opencontainers.image.{label}");
        assert!(labels[&label].is_string(), "{label}: {labels}");
    }

    let mut listed = Vec::new();
    let mut packages = BTreeSet::new();
    for (layer, descriptor) in manifest["layers"]
        .as_array()
        .context("layers")?
        .iter()
        .enumerate()
    {
        let plain = unzipped(blob(&archive, descriptor)?)?;
        assert_eq!(
            config["rootfs"]["diff_ids"][layer],
            sha256(&plain)?.as_str()
        );
        for entry in tar::Archive::new(plain.as_slice()).entries()? {
            let mut entry = entry?;
            let header = entry.header();
            assert_eq!((header.uid()?, header.gid()?), (0, 0));
            let mode = header.mode()?;
            assert_eq!(mode & 0o7000, 0, "set-user-id and the like");
            let path = entry.path()?.to_string_lossy().into_owned();
            let target = entry
                .link_name()?
                .map(|target| format!(" -> {}", target.display()))
                .unwrap_or_default();
            let capabilities = match entry.pax_extensions()? {
                Some(mut extensions) => match extensions.next() {
                    Some(extension) => format!(" {}", extension?.key()?),
                    None => String::new(),
                },
                None => String::new(),
            };
            if let Some(package) = path
                .strip_prefix("usr/share/doc/")
                .and_then(|p| p.split_once('/'))
            {
                packages.insert(package.0.to_owned());
            }
            listed.push(format!("{mode:o} {path}{target}{capabilities}"));
        }
    }
    golden("image.txt", &listed)?;

    let bill: Value = serde_json::from_slice(&fs::read(sorted_bills(made.directory.path())?)?)?;
    assert_eq!(bill["bomFormat"], "CycloneDX");
    let named: BTreeSet<&str> = super::rights::each(&bill["components"])
        .filter_map(|component| component["name"].as_str())
        .collect();
    for package in packages.iter().filter(|package| *package != "remora") {
        assert!(
            named.contains(package.as_str()),
            "{package} is not in the SBOM"
        );
    }
    for linked in ["aya", "aya-ebpf", "remora-agent", "tonic", "libc6"] {
        assert!(named.contains(linked), "{linked} is not in the SBOM");
    }
    assert!(!named.contains("proptest"), "what tests use is not shipped");
    Ok(())
}

fn find(members: &[(String, Vec<u8>)], name: &str) -> Result<Vec<u8>> {
    let found = members.iter().find(|(path, _)| path == name);
    Ok(found.with_context(|| format!("no {name}"))?.1.clone())
}
