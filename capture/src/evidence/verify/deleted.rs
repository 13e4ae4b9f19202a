//! Captures that were deleted.

use std::collections::{BTreeMap, BTreeSet};

use super::{Inventory, Place, Report, links::Kind, shown, shown_whole};
use crate::{
    evidence::{Digest, HOLD_ENDING, Manifest, PublicKey, TOMBSTONE_ENDING, Tombstone},
    session::CaptureId,
};

/// Tombstones by the captures that their files' names tell, as long as no manifest was found for them.
pub(super) struct Deleted {
    waiting: BTreeMap<CaptureId, (Digest, Tombstone)>,
    /// Of all that were signed.
    places: Vec<(String, Place)>,
}

impl Deleted {
    /// Tombstones that one of the keys signed.
    pub(super) fn read(inventory: &Inventory, keys: &[PublicKey], report: &mut Report) -> Self {
        let mut deleted = Self {
            waiting: BTreeMap::new(),
            places: Vec::new(),
        };
        for (name, entry) in &inventory.entries {
            let Some(id) = name.strip_suffix(TOMBSTONE_ENDING) else {
                continue;
            };
            let tombstone = match Tombstone::open(&entry.bytes, keys) {
                Ok(tombstone) => tombstone,
                Err(error) => {
                    report.broken.push(format!("{name}: {error}"));
                    continue;
                }
            };
            let of = tombstone.capture_id;
            let place = Place {
                file: entry.digest.sha256,
                link: tombstone.chain.clone(),
                id: of,
                kind: Kind::Tombstone,
            };
            deleted.places.push((name.clone(), place));
            if of.to_string() == id {
                deleted.waiting.insert(of, (entry.digest.sha256, tombstone));
            } else {
                report
                    .broken
                    .push(format!("{name}: it is the tombstone of {of}"));
            }
        }
        deleted
    }

    /// The tombstone of the capture whose manifest this is, if it fits.
    pub(super) fn take(
        &mut self,
        manifest: &Manifest,
        digest: Digest,
        inventory: &Inventory,
        report: &mut Report,
    ) -> Option<Tombstone> {
        let id = manifest.capture_id;
        let (_, tombstone) = self.waiting.remove(&id)?;
        let (link, stone) = (&manifest.chain, &tombstone.chain);
        if !tombstone.is_of(manifest, digest) {
            report.broken.push(format!(
                "{id}: its tombstone is of another manifest, or names other files"
            ));
            return None;
        }
        if link.chain == stone.chain && link.sequence >= stone.sequence {
            report.broken.push(format!(
                "{id}: its tombstone, {}, is before its manifest, {}",
                stone.sequence, link.sequence
            ));
            return None;
        }
        if inventory.contains(&format!("{id}{HOLD_ENDING}")) {
            report
                .broken
                .push(format!("{id}: it was deleted, and is held"));
        }
        Some(tombstone)
    }

    /// All places; those whose manifest is nowhere are told.
    pub(super) fn places(self, report: &mut Report) -> Vec<(String, Place)> {
        for id in self.waiting.keys() {
            report.broken.push(format!(
                "{id}{TOMBSTONE_ENDING}: the manifest of what was deleted is missing"
            ));
        }
        self.places
    }
}

/// None of a deleted capture's files is there.
pub(super) fn files(
    tombstone: &Tombstone,
    inventory: &Inventory,
    report: &mut Report,
    accounted: &mut BTreeSet<String>,
) {
    let id = tombstone.capture_id;
    for file in &tombstone.files {
        let name = shown(&file.name);
        accounted.insert(file.name.clone());
        let Some(entry) = inventory.entries.get(&file.name) else {
            continue;
        };
        if Some(entry.digest) == file.digest {
            // An agent that was killed over it goes on at its next start.
            report.unproved.push(format!(
                "{name}: it is still here, as it was signed, but its tombstone says that it was deleted"
            ));
        } else {
            report.broken.push(format!(
                "{name}: it was deleted, and is here with other bytes"
            ));
        }
    }
    let bytes: u64 = tombstone
        .files
        .iter()
        .filter_map(|file| Some(file.digest?.bytes))
        .sum();
    report.proved.push(format!(
        "{id}: {}; {} files of {bytes} bytes",
        shown_whole(&tombstone.text()),
        tombstone.files.len()
    ));
}
