//! What was said of captures later: that they must not be deleted, that they may be again, that they are uploaded.

use super::{Entry, Inventory, Place, Report, Scope, links::Kind, shown_whole};
use crate::{
    evidence::{
        Digest, HOLD_ENDING, Hold, MANIFEST_ENDING, Manifest, PublicKey, RECEIPT_ENDING,
        RELEASE_ENDING, Receipt, Release,
    },
    session::CaptureId,
};

/// Holds, releases and receipts that were signed, each of a capture that is there: their places in the chain.
pub(super) fn places(
    inventory: &Inventory,
    keys: &[PublicKey],
    scope: Scope,
    report: &mut Report,
) -> Vec<(String, Place)> {
    let mut places = Vec::new();
    for (name, entry) in &inventory.entries {
        let found = if let Some(id) = name.strip_suffix(HOLD_ENDING) {
            hold(id, entry, keys)
        } else if name.ends_with(RELEASE_ENDING) {
            release(name, entry, keys, inventory)
        } else if let Some(id) = name.strip_suffix(RECEIPT_ENDING) {
            receipt(id, entry, keys, inventory)
        } else {
            continue;
        };
        match found {
            Ok(found) if !is_there(found.id, inventory, scope) => {
                report
                    .broken
                    .push(format!("{name}: the capture that it is of is missing"));
            }
            Ok(found) => {
                let id = found.id;
                report
                    .proved
                    .push(format!("{id}: {}", shown_whole(&found.text)));
                if found.is_unfinished {
                    report.unproved.push(format!(
                        "{id}{HOLD_ENDING}: it is still here, but was released"
                    ));
                }
                places.extend(found.places.into_iter().map(|place| (name.clone(), place)));
            }
            Err(fault) => report.broken.push(format!("{name}: {fault}")),
        }
    }
    places
}

/// A document that is as it was signed.
struct Found {
    id: CaptureId,
    text: String,
    places: Vec<Place>,
    /// An agent was killed over it; its next start goes on.
    is_unfinished: bool,
}

fn hold(id: &str, entry: &Entry, keys: &[PublicKey]) -> Result<Found, String> {
    let hold = Hold::from_signed(&entry.bytes, keys).map_err(|error| error.to_string())?;
    if hold.capture_id.to_string() != id {
        return Err(format!("it is the hold of {}", hold.capture_id));
    }
    Ok(Found {
        id: hold.capture_id,
        text: hold.text(),
        places: place_of(&hold, entry.digest.sha256).into_iter().collect(),
        is_unfinished: false,
    })
}

fn release(
    name: &str,
    entry: &Entry,
    keys: &[PublicKey],
    inventory: &Inventory,
) -> Result<Found, String> {
    let release = Release::from_signed(&entry.bytes, keys).map_err(|error| error.to_string())?;
    let id = release.capture_id;
    if release.file_name() != name {
        return Err(format!("it is the file {}", release.file_name()));
    }
    let held = release.held(keys);
    let held = held.map_err(|error| format!("the hold that it ends: {error}"))?;
    let file = release.hold.as_deref().unwrap_or_default();
    let before = inventory.entries.get(&format!("{id}{HOLD_ENDING}"));
    let is_unfinished = before.is_some_and(|hold| hold.bytes == file.as_bytes());
    let mut places = vec![Place {
        file: entry.digest.sha256,
        link: release.chain.clone(),
        id,
        kind: Kind::Release,
    }];
    let mut text = release.text();
    if let Some(hold) = held {
        let is_before = hold.chain.as_ref().is_none_or(|link| {
            link.chain != release.chain.chain || link.sequence < release.chain.sequence
        });
        if !is_before {
            return Err("it is before the hold that it ends".to_owned());
        }
        text = format!("{}; {text}", hold.text());
        if !is_unfinished {
            places.extend(place_of(&hold, Digest::of(file.as_bytes())));
        }
    }
    Ok(Found {
        id,
        text,
        places,
        is_unfinished,
    })
}

fn receipt(
    id: &str,
    entry: &Entry,
    keys: &[PublicKey],
    inventory: &Inventory,
) -> Result<Found, String> {
    let receipt = Receipt::from_signed(&entry.bytes, keys).map_err(|error| error.to_string())?;
    if receipt.capture_id.to_string() != id {
        return Err(format!("it is the receipt of {}", receipt.capture_id));
    }
    let manifest = inventory.entries.get(&format!("{id}{MANIFEST_ENDING}"));
    let manifest = manifest.and_then(|entry| Manifest::open(&entry.bytes, keys).ok());
    if manifest.is_some_and(|manifest| !receipt.is_of(&manifest)) {
        return Err("it is of other files than the manifest".to_owned());
    }
    let text = receipt.text();
    Ok(Found {
        id: receipt.capture_id,
        text,
        places: vec![Place {
            file: entry.digest.sha256,
            link: receipt.chain,
            id: receipt.capture_id,
            kind: Kind::Receipt,
        }],
        is_unfinished: false,
    })
}

fn place_of(hold: &Hold, file: Digest) -> Option<Place> {
    Some(Place {
        file,
        link: hold.chain.clone()?,
        id: hold.capture_id,
        kind: Kind::Hold,
    })
}

fn is_there(id: CaptureId, inventory: &Inventory, scope: Scope) -> bool {
    let is_sealed = inventory.contains(&format!("{id}{MANIFEST_ENDING}"));
    let runs = inventory.contains(&format!("{id}.open.json"));
    is_sealed || (runs && scope == Scope::Directory)
}
