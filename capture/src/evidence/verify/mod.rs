//! What a set of files proves, and what not.
//!
//! First all files are read once ([`Inventory`]), then it is looked at how they fit together. So a
//! directory and an archive are verified alike, and nothing is unpacked.

mod deleted;
mod held;
mod links;
mod streamed;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
};

use ulid::Ulid;

use self::{
    deleted::Deleted,
    links::{Chain, Kind, Place},
};
use super::{
    DOCUMENT_BYTES_MAX, Digest, Digester, FileDigest, HOLD_ENDING, Head, MANIFEST_ENDING, Manifest,
    PlainRecord, PublicKey, RECEIPT_ENDING, RELEASE_ENDING, STAMP_ENDING, TOMBSTONE_ENDING,
};
use crate::{text::excerpt, upload::UPLOAD_ENDING};

/// Name of the file with the chain's head.
const HEAD: &str = "chain.head";
/// What the agent keeps beside captures, and what a person reads: no evidence.
const NO_EVIDENCE: [&str; 5] = [
    "lock",
    "README.txt",
    "node.key",
    "privacy-level",
    "tombstone.reserve",
];
/// Bytes read at a time.
const PIECE: usize = 1 << 18;
/// Characters of a name that are told.
const NAME_MAX: usize = 120;
/// Characters of a fault that are told: a reader's words may quote what it read.
const FAULT_MAX: usize = 240;

/// One file as it was read.
#[derive(Clone, Debug)]
pub struct Entry {
    digest: FileDigest,
    /// Of a document; packets are not kept.
    bytes: Vec<u8>,
    /// The account of a capture that was streamed.
    is_streamed: bool,
}

/// All files, by name.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    entries: BTreeMap<String, Entry>,
    /// What is wrong with the set itself.
    broken: Vec<String>,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A data directory or a copy of one: all that there is.
    Directory,
    /// Some captures: what is before and after them in the chain need not be there.
    Selection,
}

/// How far the proof goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of it is as it was signed.
    Proved,
    /// Nothing is wrong, but not all is proved.
    Partly,
    /// Something was changed, is missing or does not belong.
    Broken,
}

/// What was found, each a sentence for a person. Names in it are harmless to a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub proved: Vec<String>,
    pub unproved: Vec<String>,
    pub broken: Vec<String>,
    /// Whose signature fits.
    pub captures: usize,
}

impl Entry {
    /// Reads a file to its end. Only a document's bytes are kept.
    ///
    /// # Errors
    /// The reader's.
    pub fn read(name: &str, mut reader: impl Read) -> io::Result<Self> {
        let is_document = is_document(name);
        let wanted = if is_document {
            DOCUMENT_BYTES_MAX
        } else {
            streamed::bytes_wanted(name)
        };
        let mut digester = Digester::default();
        let mut bytes = Vec::new();
        let mut piece = vec![0; PIECE];
        loop {
            let read = match reader.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            digester.update(&piece[..read]);
            if wanted > 0 && bytes.len() <= wanted {
                bytes.extend_from_slice(&piece[..read]);
            }
        }
        let is_streamed = streamed::is_account(name, &bytes);
        if !is_document {
            bytes = Vec::new();
        }
        Ok(Self {
            digest: digester.finish(),
            bytes,
            is_streamed,
        })
    }

    /// Of a file that is no document and was digested elsewhere.
    #[must_use]
    pub fn of(digest: FileDigest) -> Self {
        Self {
            digest,
            bytes: Vec::new(),
            is_streamed: false,
        }
    }

    #[must_use]
    pub fn digest(&self) -> FileDigest {
        self.digest
    }
}

fn is_document(name: &str) -> bool {
    let endings = [
        MANIFEST_ENDING,
        TOMBSTONE_ENDING,
        HOLD_ENDING,
        RELEASE_ENDING,
        RECEIPT_ENDING,
        STAMP_ENDING,
    ];
    name == HEAD || endings.iter().any(|ending| name.ends_with(ending))
}

impl Inventory {
    /// Takes a file. Two of one name, and names that are none of a file in one directory, are a fault
    /// of the set.
    pub fn put(&mut self, name: &str, entry: Entry) {
        let plain = !name.is_empty()
            && !name.starts_with('.')
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !plain {
            self.fault(name, "is no name that evidence has");
        } else if self.entries.insert(name.to_owned(), entry).is_some() {
            self.fault(name, "is there twice");
        }
    }

    /// Something is wrong with a file that is there.
    pub fn fault(&mut self, name: &str, what: &str) {
        let what = excerpt(what, FAULT_MAX);
        self.broken.push(format!("{}: {what}", shown(name)));
    }

    /// Manifests as they are, not believed yet.
    pub fn manifests(&self) -> impl Iterator<Item = &[u8]> {
        self.entries
            .iter()
            .filter(|(name, _)| name.ends_with(MANIFEST_ENDING))
            .map(|(_, entry)| entry.bytes.as_slice())
    }

    /// Time stamps as they are, by capture, with the digest of the manifest that each should be of.
    pub fn stamps(&self) -> impl Iterator<Item = (&str, &[u8], Digest)> {
        self.entries.iter().filter_map(|(name, entry)| {
            let id = name.strip_suffix(STAMP_ENDING)?;
            let manifest = self.entries.get(&format!("{id}{MANIFEST_ENDING}"))?;
            Some((id, entry.bytes.as_slice(), manifest.digest.sha256))
        })
    }

    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Report {
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match (self.broken.is_empty(), self.unproved.is_empty()) {
            (false, _) => Verdict::Broken,
            (true, false) => Verdict::Partly,
            (true, true) => Verdict::Proved,
        }
    }
}

fn shown(name: &str) -> String {
    excerpt(name, NAME_MAX).to_string()
}

/// All of it: reasons are bounded where they come in.
fn shown_whole(text: &str) -> String {
    crate::text::escape(text).to_string()
}

/// Looks at everything with `keys` alone. `published`: the chain's head as it was told elsewhere.
#[must_use]
pub fn verify(
    inventory: &Inventory,
    keys: &[PublicKey],
    published: Option<&Head>,
    scope: Scope,
) -> Report {
    let mut report = Report {
        broken: inventory.broken.clone(),
        ..Report::default()
    };
    let mut accounted = BTreeSet::new();
    let mut chains: BTreeMap<Ulid, Chain> = BTreeMap::new();
    let mut deleted = Deleted::read(inventory, keys, &mut report);
    for (name, entry) in &inventory.entries {
        let Some(id) = name.strip_suffix(MANIFEST_ENDING) else {
            continue;
        };
        let manifest = match Manifest::open(&entry.bytes, keys) {
            Ok(manifest) => manifest,
            Err(error) => {
                report.broken.push(format!("{name}: {error}"));
                continue;
            }
        };
        report.captures += 1;
        if manifest.capture_id.to_string() != id {
            let of = manifest.capture_id;
            report
                .broken
                .push(format!("{name}: it is the manifest of {of}"));
        }
        let file = entry.digest.sha256;
        match deleted.take(&manifest, file, inventory, &mut report) {
            Some(tombstone) => deleted::files(&tombstone, inventory, &mut report, &mut accounted),
            None => files(&manifest, inventory, &mut report, &mut accounted),
        }
        let place = Place {
            file,
            link: manifest.chain,
            id: manifest.capture_id,
            kind: Kind::Manifest,
        };
        links::put(&mut chains, name, place, &mut report);
    }
    let held = held::places(inventory, keys, scope, &mut report);
    for (name, place) in deleted.places(&mut report).into_iter().chain(held) {
        links::put(&mut chains, &name, place, &mut report);
    }
    strangers(inventory, &accounted, scope, &mut report);
    let own = own_head(inventory, keys, &mut report);
    for (chain, places) in &chains {
        let of = |head: &&Head| head.chain == *chain;
        let known = [own.as_ref().filter(of), published.filter(of)];
        links::follow(*chain, places, known, scope, &mut report);
    }
    for head in own.iter().chain(published) {
        if !chains.contains_key(&head.chain) && scope == Scope::Directory {
            let Head {
                chain, sequence, ..
            } = head;
            report.broken.push(format!(
                "chain {chain}: none of its {sequence} manifests is here"
            ));
        }
    }
    if inventory.is_empty() {
        report.unproved.push("there is no file".to_owned());
    }
    report
}

/// Each file that the manifest stands for is as it was.
fn files(
    manifest: &Manifest,
    inventory: &Inventory,
    report: &mut Report,
    accounted: &mut BTreeSet<String>,
) {
    let id = manifest.capture_id;
    let before = report.broken.len();
    let mut bytes = 0;
    for file in manifest.records() {
        let name = shown(&file.name);
        accounted.insert(file.name.clone());
        let Some(digest) = file.digest else {
            report
                .unproved
                .push(format!("{name}: it was gone when the manifest was made"));
            continue;
        };
        match inventory.entries.get(&file.name) {
            None => report.broken.push(format!("{name}: missing, {id} has it")),
            Some(entry) if entry.digest.bytes != digest.bytes => {
                let (is, was) = (entry.digest.bytes, digest.bytes);
                report
                    .broken
                    .push(format!("{name}: {is} bytes, signed were {was}"));
            }
            Some(entry) if entry.digest != digest => {
                report
                    .broken
                    .push(format!("{name}: its bytes were changed"));
            }
            // Of a file that was read.
            Some(_) => bytes += digest.bytes,
        }
        if let Some(plain) = &file.plain {
            decrypted(plain, inventory, (report, accounted));
        }
    }
    let files = manifest.files.iter().map(|file| file.packets);
    let there: u128 = files
        .chain([manifest.removed.packets])
        .map(u128::from)
        .sum();
    let written = manifest.counts.written;
    if there != u128::from(written) || !manifest.counts.balanced() {
        report
            .broken
            .push(format!("{id}: the signed counts do not add up"));
    }
    if report.broken.len() == before {
        let (of, missing) = (&manifest.node, manifest.counts.missing());
        let complete = match (manifest.complete, missing) {
            (true, _) => "complete".to_owned(),
            (false, 0) => "not complete, as it says itself".to_owned(),
            (false, missing) => format!("not complete: {missing} missing, as it says itself"),
        };
        report.proved.push(format!(
            "{id}: {written} packets written on {}, {} files of {bytes} bytes as signed; {complete}",
            shown(of),
            manifest.files.len(),
        ));
    }
}

/// What an encrypted file holds, if it was decrypted, is as it was signed.
fn decrypted(
    plain: &PlainRecord,
    inventory: &Inventory,
    (report, accounted): (&mut Report, &mut BTreeSet<String>),
) {
    let name = shown(&plain.name);
    accounted.insert(plain.name.clone());
    match inventory.entries.get(&plain.name) {
        None => {}
        Some(entry) if entry.digest == plain.digest => {
            report
                .proved
                .push(format!("{name}: decrypted, the bytes that were signed"));
        }
        Some(_) => report
            .broken
            .push(format!("{name}: decrypted, it is not what was signed")),
    }
}

/// Files that no manifest knows.
fn strangers(
    inventory: &Inventory,
    accounted: &BTreeSet<String>,
    scope: Scope,
    report: &mut Report,
) {
    let mut streamed = Vec::new();
    for (name, entry) in &inventory.entries {
        let known = accounted.contains(name)
            || (is_document(name) && !is_lone_stamp(name, inventory))
            || name.ends_with(".pub")
            || name.ends_with(UPLOAD_ENDING)
            || NO_EVIDENCE.contains(&name.as_str());
        if known {
            continue;
        }
        if entry.is_streamed {
            streamed.push(name.as_str());
            continue;
        }
        // The agent was at it when the directory was copied.
        let parts = [
            ".manifest.part",
            ".tombstone.part",
            ".hold.part",
            ".release.part",
            ".receipt.part",
            ".upload.part",
            ".age.part",
        ];
        let is_part = parts.iter().any(|part| name.ends_with(part));
        if name.strip_suffix(".part") == Some(HEAD) || is_part {
            report
                .unproved
                .push(format!("{name}: it was being written"));
            continue;
        }
        // Of a capture that runs, or has ended this moment.
        let open = [
            ".open.json",
            ".part",
            ".reserve",
            ".pinned.json",
            ".amendments",
        ];
        let (id, _) = name.split_at(name.find(['.', '_']).unwrap_or(name.len()));
        let is_running = scope == Scope::Directory
            && inventory.entries.contains_key(&format!("{id}.open.json"))
            && !inventory
                .entries
                .contains_key(&format!("{id}{MANIFEST_ENDING}"));
        if is_running && (name.contains(".pcapng") || open.iter().any(|end| name.ends_with(end))) {
            report
                .unproved
                .push(format!("{name}: its capture was not finished"));
        } else {
            report
                .broken
                .push(format!("{name}: no manifest knows this file"));
        }
    }
    report.unproved.extend(streamed::told(&streamed));
}

/// A time stamp without the manifest that it would be of.
fn is_lone_stamp(name: &str, inventory: &Inventory) -> bool {
    let of = name.strip_suffix(STAMP_ENDING);
    of.is_some_and(|id| !inventory.contains(&format!("{id}{MANIFEST_ENDING}")))
}

fn own_head(inventory: &Inventory, keys: &[PublicKey], report: &mut Report) -> Option<Head> {
    let entry = inventory.entries.get(HEAD)?;
    match Head::from_signed(&entry.bytes, keys) {
        Ok(head) => Some(head),
        Err(error) => {
            report.broken.push(format!("{HEAD}: {error}"));
            None
        }
    }
}

#[cfg(test)]
mod tests;
