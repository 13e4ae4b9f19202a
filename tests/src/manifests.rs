//! All manifests of a data directory, against what capinfos counts in the files they stand for.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use remora_capture::evidence::{Entry, MANIFEST_ENDING, Manifest, TOMBSTONE_ENDING};

use crate::{run, wire};

/// Files that one capinfos looks at.
const BATCH: usize = 200;

/// Each manifest's files have as many packets as were written, and those that lie there do so as they were signed:
/// capinfos counts as many blocks as the manifest tells. What is encrypted is for others to read. The number of
/// manifests.
///
/// # Errors
/// It is not so.
pub fn prove(directory: &Path) -> Result<usize> {
    let mut signed = BTreeMap::new();
    let mut manifests = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(id) = name.strip_suffix(MANIFEST_ENDING) else {
            continue;
        };
        let manifest = Manifest::unverified(&fs::read(&path)?).context(name.to_string())?;
        manifests += 1;
        let packets: u64 = manifest.files.iter().map(|file| file.packets).sum();
        let (told, written) = (packets + manifest.removed.packets, manifest.counts.written);
        ensure!(
            told == written,
            "{name}: files of {told} packets, {written} written"
        );
        if directory.join(format!("{id}{TOMBSTONE_ENDING}")).exists() {
            continue;
        }
        for file in manifest.files {
            let path = directory.join(&file.name);
            let lies_there = match File::open(&path) {
                Ok(open) => Entry::read(&file.name, open)?.digest(),
                // A test that makes many files removes them.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).context(file.name),
            };
            ensure!(
                Some(lies_there) == file.digest,
                "{}: not as it was signed",
                file.name
            );
            if file.plain.is_none() {
                signed.insert(path, file.blocks);
            }
        }
    }
    if !wire::has_reader("capinfos") {
        return Ok(manifests);
    }
    let paths: Vec<_> = signed.keys().collect();
    for paths in paths.chunks(BATCH) {
        for (path, counted) in counts(paths)? {
            let told = signed.get(&path).context("a file that was not asked for")?;
            ensure!(
                *told == counted,
                "{}: capinfos counts {counted}, its manifest says {told}",
                path.display()
            );
        }
    }
    Ok(manifests)
}

/// By `capinfos -cM`, a line a file.
fn counts(paths: &[&PathBuf]) -> Result<Vec<(PathBuf, u64)>> {
    let mut capinfos = run::command("capinfos");
    let lines = run::output(capinfos.args(["-T", "-r", "-c", "-M"]).args(paths))?;
    let counts: Vec<_> = lines
        .lines()
        .map(|line| {
            let (path, count) = line.split_once('\t')?;
            Some((PathBuf::from(path), count.trim().parse().ok()?))
        })
        .collect::<Option<_>>()
        .with_context(|| format!("not understood: {lines}"))?;
    ensure!(
        counts.len() == paths.len(),
        "{} of {}",
        counts.len(),
        paths.len()
    );
    Ok(counts)
}
