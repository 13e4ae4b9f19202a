//! The thread that makes manifests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use remora_capture::{
    evidence::{
        Cause, DOCUMENT_BYTES_MAX, Digest, Digester, FileRecord, Head, Hold, Link, MANIFEST_ENDING,
        Manifest, Origin, Receipt, Release, Tombstone,
    },
    filter::{self, Meaning, Names},
    session::{CaptureId, Destination},
    sidecar::{CaptureFile, SIDECAR_BYTES_MAX, Sidecar},
};

use super::{
    Keys, Order, Recipients, Retention, Told, ahead::Ahead, deletion::TOMBSTONE,
    encrypt::plain_files, holds::HOLD, receipts::RECEIPT, retention::Kept, sync_directory,
};
use crate::{
    custody::CustodyError,
    sink::{
        fail_point::reach,
        store::{ACCOUNT, SEAL_RESERVE, Store, remove, write_anew},
    },
};

/// File with the signed head.
pub(in crate::sink) const HEAD: &str = "chain.head";
const HEAD_PART: &str = "chain.head.part";
/// The manifest while it is written.
const MANIFEST_PART: &str = "manifest.part";
/// How often growing files are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often it is looked whether captures are too old.
const SWEEP: Duration = Duration::from_secs(1);
/// How often a manifest that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Makes a store's manifests.
pub struct Sealer {
    pub(super) store: Arc<Store>,
    orders: Receiver<Order>,
    pub(super) told: Arc<Told>,
    pub(super) keys: Keys,
    pub(super) origin: Origin,
    pub(super) recipients: Recipients,
    pub(super) growing: BTreeMap<CaptureId, Ahead>,
    /// Captures whose manifest could not be written.
    failed: BTreeSet<CaptureId>,
    next_try: Instant,
    /// Deleted captures some of whose files could not be removed.
    pub(super) buried: BTreeSet<CaptureId>,
    pub(super) next_removal: Instant,
}

impl Sealer {
    /// `None` if the store has one already.
    #[must_use]
    pub fn new(store: Arc<Store>, keys: Keys, origin: Origin) -> Option<Self> {
        let seals = store.seals();
        let orders = seals.take()?;
        Some(Self {
            told: Arc::clone(&seals.told),
            store,
            orders,
            keys,
            origin,
            recipients: Recipients::default(),
            growing: BTreeMap::new(),
            failed: BTreeSet::new(),
            next_try: Instant::now(),
            buried: BTreeSet::new(),
            next_removal: Instant::now(),
        })
    }

    /// Encrypts finished files to these keys.
    #[must_use]
    pub fn encrypting_to(self, recipients: Recipients) -> Self {
        Self { recipients, ..self }
    }

    /// Makes what is missing, then what is ordered, until it is told to end.
    pub fn run(mut self) {
        let chain = self.take_up();
        if let Err(error) = &chain {
            tracing::error!(%error, "failed to read the chain of manifests");
        }
        let holds = self.finish_deletions().and_then(|()| self.read_holds());
        if let Err(error) = &holds {
            tracing::error!(%error, "failed to read tombstones and holds; nothing is deleted by itself");
        }
        self.seal_missing();
        if let Err(error) = self.missing_receipts() {
            tracing::error!(%error, "failed to look for uploads without a receipt");
        }
        // Nothing is deleted by itself where it is not known what is held.
        let is_known = chain.is_ok() && holds.is_ok();
        let is_retaining = is_known && self.store.retention() != Retention::default();
        let mut is_more = is_retaining;
        loop {
            match self.next(is_retaining, is_more) {
                // What is encrypted at the end is read then anyway.
                Ok(Order::Watch(..)) if !self.recipients.is_empty() => {}
                Ok(Order::Watch(id, growth)) => {
                    self.growing.insert(id, Ahead::new(Some(growth)));
                }
                Ok(Order::Seal(id)) => self.seal(id),
                Ok(Order::Forget(id)) => {
                    self.growing.remove(&id);
                }
                Ok(Order::Delete {
                    id,
                    not_uploaded,
                    why,
                    by,
                    reply,
                }) => {
                    let may = not_uploaded || !self.told.inventory().is_waiting(id);
                    let deleted = if may {
                        self.delete(id, (Cause::Requested, &why, &by))
                    } else {
                        Err(CustodyError::NotUploaded(id))
                    };
                    let _gone = reply.send(deleted);
                }
                Ok(Order::Hold { id, why, by, reply }) => {
                    let _gone = reply.send(self.hold(id, &why, &by));
                }
                Ok(Order::Release { id, by, reply }) => {
                    let _gone = reply.send(self.release(id, &by));
                }
                Ok(Order::Receipt(id)) => self.receipt(id),
                Err(RecvTimeoutError::Timeout) => self.hash_ahead(),
                Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => return,
            }
            let missed = self.told.missed.swap(false, Relaxed);
            if missed || (!self.failed.is_empty() && self.next_try <= Instant::now()) {
                self.seal_missing();
            }
            self.try_again();
            is_more = is_retaining && self.retain();
        }
    }

    fn next(&self, is_retaining: bool, is_more: bool) -> Result<Order, RecvTimeoutError> {
        let wait = if is_more {
            Duration::ZERO
        } else if !self.growing.is_empty() {
            LOOK
        } else if !self.failed.is_empty() {
            RETRY
        } else if is_retaining || !self.buried.is_empty() {
            SWEEP
        } else {
            return self.orders.recv().map_err(RecvTimeoutError::from);
        };
        self.orders.recv_timeout(wait)
    }

    fn hash_ahead(&mut self) {
        for (id, ahead) in &mut self.growing {
            if let Err(error) = ahead.go_on(&self.store.directory, *id) {
                // The end reads it again.
                tracing::debug!(capture = %id, %error, "failed to hash ahead");
            }
        }
    }

    /// Finds the chain's last manifest: what `chain.head` says, or a later one that the agent was
    /// killed over. A number is never used twice, so whatever is the highest counts.
    fn take_up(&mut self) -> io::Result<()> {
        let path = self.store.directory.join(HEAD);
        let mut head = match read(&path) {
            Ok(bytes) => match Head::from_signed(&bytes, &self.keys.public) {
                Ok(head) => Some(head),
                Err(error) => {
                    tracing::error!(%error, "chain.head is not this node's; made anew of the manifests");
                    None
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let said = head;
        let stones = self.store.ids(TOMBSTONE).map_err(io::Error::other)?;
        let stones: BTreeSet<_> = stones.into_iter().collect();
        for id in self.manifests()? {
            let bytes = read(&self.manifest(id))?;
            match Manifest::open(&bytes, &self.keys.public) {
                Ok(manifest) => {
                    if !stones.contains(&id) {
                        let waits = manifest.sink.is_some() && !self.store.is_uploaded(id);
                        self.told.inventory().put(id, Kept::of(&manifest, waits));
                    }
                    later(&mut head, said, &manifest.chain, &bytes);
                    self.remove_plain(plain_files(&manifest));
                }
                Err(error) => {
                    tracing::error!(capture = %id, %error, "a manifest is not this node's");
                }
            }
        }
        for id in stones {
            let bytes = read(&self.store.file(id, TOMBSTONE))?;
            match Tombstone::open(&bytes, &self.keys.public) {
                Ok(tombstone) => later(&mut head, said, &tombstone.chain, &bytes),
                Err(error) => {
                    tracing::error!(capture = %id, %error, "a tombstone is not this node's");
                }
            }
        }
        for id in self.store.ids(HOLD).map_err(io::Error::other)? {
            let bytes = read(&self.store.file(id, HOLD))?;
            // What is not ours is told where holds are taken up.
            if let Ok(hold) = Hold::from_signed(&bytes, &self.keys.public)
                && let Some(link) = &hold.chain
            {
                later(&mut head, said, link, &bytes);
            }
        }
        for id in self.store.ids(RECEIPT).map_err(io::Error::other)? {
            let bytes = read(&self.store.file(id, RECEIPT))?;
            match Receipt::from_signed(&bytes, &self.keys.public) {
                Ok(receipt) => later(&mut head, said, &receipt.chain, &bytes),
                Err(error) => {
                    tracing::error!(capture = %id, %error, "a receipt is not this node's");
                }
            }
        }
        for name in self.store.releases()? {
            let bytes = read(&self.store.directory.join(&name))?;
            match Release::from_signed(&bytes, &self.keys.public) {
                Ok(release) => later(&mut head, said, &release.chain, &bytes),
                Err(error) => tracing::error!(name, %error, "a release is not this node's"),
            }
        }
        match head {
            Some(head) if Some(head) != said => self.keep_head(head)?,
            _ => self.tell(head),
        }
        Ok(())
    }

    pub(super) fn tell(&self, head: Option<Head>) {
        *self
            .told
            .head
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = head;
    }

    fn manifests(&self) -> io::Result<Vec<CaptureId>> {
        let ending = MANIFEST_ENDING.trim_start_matches('.');
        self.store.ids(ending).map_err(io::Error::other)
    }

    pub(super) fn manifest(&self, id: CaptureId) -> PathBuf {
        self.store.directory.join(format!("{id}{MANIFEST_ENDING}"))
    }

    /// Each finished capture without a manifest gets one, the oldest first.
    fn seal_missing(&mut self) {
        let sealed: BTreeSet<_> = self.manifests().unwrap_or_default().into_iter().collect();
        match self.store.ids(ACCOUNT) {
            Ok(mut ids) => {
                ids.retain(|id| !sealed.contains(id));
                ids.sort_unstable();
                self.failed.clear();
                ids.into_iter().for_each(|id| self.seal(id));
            }
            Err(error) => tracing::error!(%error, "failed to look for captures without a manifest"),
        }
    }

    fn seal(&mut self, id: CaptureId) {
        let ahead = self.growing.remove(&id);
        match self.try_seal(id, ahead.unwrap_or_else(|| Ahead::new(None))) {
            Ok(None) => {}
            Ok(Some(head)) => {
                tracing::info!(capture = %id, %head, "signed");
                self.failed.remove(&id);
            }
            Err(error) => {
                tracing::error!(capture = %id, %error, "failed to write the manifest; tried again later");
                self.failed.insert(id);
                self.next_try = Instant::now() + RETRY;
            }
        }
    }

    /// `None` if it needs no manifest, or has one.
    pub(super) fn try_seal(&self, id: CaptureId, mut ahead: Ahead) -> io::Result<Option<Head>> {
        let directory = &self.store.directory;
        let path = self.manifest(id);
        let bytes = read_up_to(&self.store.file(id, ACCOUNT), SIDECAR_BYTES_MAX)?;
        let mut sidecar = Sidecar::from_json(&bytes).map_err(io::Error::other)?;
        let spec = &mut sidecar.capture.spec;
        if spec.destination != Destination::Store || path.exists() {
            remove(&self.store.file(id, SEAL_RESERVE));
            return Ok(None);
        }
        if *spec.filter.meaning() == Meaning::Unread
            && let Ok(compiled) = spec
                .filter
                .clone()
                .compiled(filter::compiler(Names::Refused))
        {
            spec.filter = compiled;
        }
        let files = records(&sidecar)
            .into_iter()
            .map(|file| self.record(id, &mut ahead, &file))
            .collect::<io::Result<Vec<_>>>()?;
        reach("files hashed");
        let account = CaptureFile {
            name: format!("{id}.{ACCOUNT}"),
            bytes: bytes.len() as u64,
            ..CaptureFile::default()
        };
        let mut digester = Digester::default();
        digester.update(&bytes);
        let account = FileRecord::new(&account, Some(digester.finish()));
        let link = Link::after(self.told.head().as_ref());
        let manifest = Manifest::new(
            sidecar,
            (account, files),
            &self.origin,
            link.clone(),
            self.keys.signing().id(),
            Timestamp::now(),
        );
        let kept = Kept::of(&manifest, manifest.sink.is_some());
        let plain = plain_files(&manifest);
        let signed = manifest.sign(&self.keys.secret).map_err(io::Error::other)?;
        reach("manifest signed");
        remove(&self.store.file(id, SEAL_RESERVE));
        reach("reserve given free");
        let aside = self.store.file(id, MANIFEST_PART);
        let file = write_anew(&aside, &signed)?;
        reach("manifest written");
        file.sync_all()?;
        reach("manifest synced");
        fs::rename(&aside, &path)?;
        reach("manifest renamed");
        // From now on its number is taken, whatever becomes of the head's file.
        let head = link.head(Digest::of(&signed));
        self.tell(Some(head));
        self.told.inventory().put(id, kept);
        sync_directory(directory)?;
        reach("directory synced");
        self.remove_plain(plain);
        self.keep_head(head)?;
        Ok(Some(head))
    }

    pub(super) fn keep_head(&self, head: Head) -> io::Result<()> {
        let directory = &self.store.directory;
        self.tell(Some(head));
        let aside = directory.join(HEAD_PART);
        let file = write_anew(&aside, &head.to_signed(&self.keys.secret))?;
        reach("head written");
        file.sync_all()?;
        reach("head synced");
        fs::rename(&aside, directory.join(HEAD))?;
        reach("head renamed");
        sync_directory(directory)
    }
}

/// The files that an account tells of.
fn records(sidecar: &Sidecar) -> Vec<CaptureFile> {
    if sidecar.capture.spec.writing.rotation.is_on() {
        sidecar.files.clone()
    } else if sidecar.file.name.is_empty() {
        Vec::new()
    } else {
        vec![sidecar.file.clone()]
    }
}

/// Takes the place that a document has, if it is later than what is known; `said`: by chain.head.
fn later(head: &mut Option<Head>, said: Option<Head>, link: &Link, document: &[u8]) {
    let is_later = match *head {
        None => true,
        Some(head) if said.is_some() => link.chain == head.chain && link.sequence > head.sequence,
        Some(head) => (link.chain, link.sequence) > (head.chain, head.sequence),
    };
    if is_later {
        *head = Some(link.head(Digest::of(document)));
    }
}

pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_up_to(path, DOCUMENT_BYTES_MAX)
}

pub(in crate::sink) fn read_up_to(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(most as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
