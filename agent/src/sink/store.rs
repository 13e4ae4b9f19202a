//! The data directory.
//!
//! ```text
//! lock                 held by the agent that uses the directory
//! <id>.open.json       the account of a capture that is running, with its counts still at zero
//! <id>.pcapng.part     its file; whole blocks only
//! <id>.amendments      alerts that joined it, and what made it longer: see `amendments`
//! <id>.pinned.json     how the next agent goes on with it (`--pin`)
//! <id>.reserve         disk space for its end, so that a full disk still gets an account
//! <id>.seal.reserve    likewise for the manifest, which comes a moment later
//! ── closed ──
//! <id>.pcapng          renamed from .part
//! <id>.json            the final account (written aside and renamed), then .open.json goes
//! ── signed ──
//! <id>.manifest.json   the manifest, and the chain's head: see [`evidence`](super::evidence)
//! <id>.hold.json       nobody deletes it
//! <id>.N.release.json  it was held, and is not any more
//! <id>.pcapng.age      instead of <id>.pcapng, if files are encrypted: see `evidence/encrypt`
//! <id>.upload.json     how far it is on its way to its sink: see [`upload`](super::upload)
//! <id>.receipt.json    all of it is there
//! <id>.tombstone.json  its packets and account are deleted
//! chain.head
//! tombstone.reserve    disk space, so that a full disk can be emptied
//! keys/                what signs, and the public keys of all that have signed
//! ```
//! A compressed file's name ends in `.pcapng.zst` instead. Files that rotate have a number and the
//! time of their first packet: `<id>_000001_20261124112233.pcapng`.
//!
//! After a crash whatever has an `.open.json` is repaired and closed ([`Store::recover`]). Names
//! are made of the capture's id, number and time alone; files have mode 0600, the directory 0700.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use nix::fcntl::{Flock, FlockArg};
use remora_capture::{
    evidence::{
        ENCRYPTED_ENDING, HOLD_ENDING, Head, Hold, MANIFEST_ENDING, RECEIPT_ENDING, Release,
        TOMBSTONE_ENDING, Tombstone,
    },
    pcapng::{Finished, Part},
    session::{CaptureId, CaptureState, Durability, Writing},
    sidecar::{CaptureFile, Clock, SIDECAR_BYTES_MAX, Sidecar, Tool},
};
use tokio::sync::watch;

use super::{
    amendments::{AMENDMENTS, AmendmentLog, Told, read},
    evidence::{HEAD, Keys, Retention, Seals, public_files, room},
    fail_point::reach,
    file::{FileSink, reserve},
    shelf::{FILE_MODE, PART, StoreShelf, create},
};
use crate::{
    clock::ClockOffset,
    custody::{Custodian, CustodyError, Mark},
    node::{NodeFacts, RetentionNumbers},
    session::{Growth, StartError, Stored},
};

const DIRECTORY_MODE: u32 = 0o700;
/// Room for the closing block, and for growth of the account between its opening and its end.
const RESERVE_BYTES: u64 = 8 << 10;
/// Accounts of earlier captures that are read at start; `list` knows no more.
const KNOWN_MAX: usize = 1024;

/// The data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("failed to {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another agent uses the data directory {}; choose another --data-dir", .0.display())]
    InUse(PathBuf),
}

/// What captures take of the quota.
#[derive(Debug)]
pub struct Usage {
    used: AtomicU64,
    quota: u64,
}

impl Usage {
    /// Takes `bytes`, or nothing if they would exceed the quota.
    pub fn take(&self, bytes: u64) -> bool {
        self.used
            .fetch_update(Relaxed, Relaxed, |used| {
                used.checked_add(bytes).filter(|used| *used <= self.quota)
            })
            .is_ok()
    }

    /// Adds what is there already, whatever the quota is.
    pub(super) fn add(&self, bytes: u64) {
        let add = |used: u64| Some(used.saturating_add(bytes));
        let _before = self.used.fetch_update(Relaxed, Relaxed, add);
    }

    pub fn give_back(&self, bytes: u64) {
        // Never below zero: only what was taken is given back.
        let _before = self
            .used
            .fetch_update(Relaxed, Relaxed, |used| Some(used.saturating_sub(bytes)));
    }
}

/// The directory, locked.
#[derive(Debug)]
pub struct Store {
    pub(super) directory: PathBuf,
    usage: Arc<Usage>,
    node: NodeFacts,
    seals: Seals,
    retention: Retention,
    /// Of captures that run.
    logs: Mutex<BTreeMap<CaptureId, Arc<AmendmentLog>>>,
    _lock: Flock<File>,
}

impl Store {
    /// Opens the directory, making it if need be.
    ///
    /// # Errors
    /// It cannot be made or read, or another agent uses it.
    pub fn open(directory: &Path, quota: u64, node: NodeFacts) -> Result<Self, StoreError> {
        let failed = |action| {
            let path = directory.to_owned();
            move |source| StoreError::Io {
                action,
                path,
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .map_err(failed("make the data directory"))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(FILE_MODE)
            .open(directory.join("lock"))
            .map_err(failed("open the lock of the data directory"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_held| StoreError::InUse(directory.to_owned()))?;
        let used = names(directory)
            .map_err(failed("read the data directory"))?
            .iter()
            .filter(|name| name.contains(".pcapng"))
            .filter_map(|name| fs::metadata(directory.join(name)).ok())
            .map(|file| file.len())
            .sum();
        room::keep(directory);
        Ok(Self {
            directory: directory.to_owned(),
            usage: Arc::new(Usage {
                used: AtomicU64::new(used),
                quota,
            }),
            node,
            seals: Seals::default(),
            retention: Retention::default(),
            logs: Mutex::default(),
            _lock: lock,
        })
    }

    /// What is kept how long, instead of all for ever.
    #[must_use]
    pub fn retaining(self, retention: Retention) -> Self {
        Self { retention, ..self }
    }

    pub(super) fn retention(&self) -> Retention {
        self.retention
    }

    /// What became of captures that are kept.
    #[must_use]
    pub fn retention_numbers(&self) -> RetentionNumbers {
        self.seals.inventory().numbers()
    }

    /// The key that its manifests are signed with: the one that is `given`, or the node's own.
    ///
    /// # Errors
    /// It cannot be read or made.
    pub fn keys(&self, given: Option<&Path>) -> Result<Keys, StoreError> {
        Keys::open(&self.directory, given)
    }

    /// What has its manifests made.
    #[must_use]
    pub fn seals(&self) -> &Seals {
        &self.seals
    }

    /// All files that are evidence of a capture: its manifest and account, its packets, the chain's
    /// head, the public keys.
    ///
    /// # Errors
    /// It has no manifest (yet), or the directory cannot be read.
    pub fn evidence(&self, id: CaptureId) -> io::Result<Vec<PathBuf>> {
        let manifest = self.directory.join(format!("{id}{MANIFEST_ENDING}"));
        fs::metadata(&manifest)?;
        let mut paths = vec![manifest];
        let beside = |ending: &str| self.directory.join(format!("{id}{ending}"));
        let is_there = |path: &PathBuf| path.exists();
        let tombstone = Some(beside(TOMBSTONE_ENDING)).filter(is_there);
        if tombstone.is_none() {
            paths.push(self.file(id, ACCOUNT));
            paths.extend(lasting_files(&self.directory, id)?);
        }
        paths.extend(tombstone);
        paths.extend(Some(beside(HOLD_ENDING)).filter(is_there));
        paths.extend(Some(beside(RECEIPT_ENDING)).filter(is_there));
        let releases = self.releases()?.into_iter();
        let own = releases.filter(|name| Release::capture_of(name) == Some(id));
        paths.extend(own.map(|name| self.directory.join(name)));
        // It comes a moment after the first manifest.
        paths.extend(Some(self.directory.join(HEAD)).filter(|head| head.exists()));
        paths.extend(public_files(&self.directory)?);
        Ok(paths)
    }

    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.usage.used.load(Relaxed)
    }

    #[must_use]
    pub fn quota_bytes(&self) -> u64 {
        self.usage.quota
    }

    /// A capture's files, as they are there and as `growth` tells.
    #[must_use]
    pub fn stored(&self, id: CaptureId, growth: Option<watch::Receiver<Growth>>) -> Stored {
        let directory = self.directory.clone();
        Stored {
            list: Arc::new(move || lasting_files(&directory, id)),
            growth,
        }
    }

    /// Room for a capture, the name its (first) file will have, and the files as they will grow.
    /// Touches no disk.
    ///
    /// # Errors
    /// [`StartError::Quota`].
    pub fn prepare(
        &self,
        state: &CaptureState,
    ) -> Result<(watch::Sender<Growth>, String, Stored), StartError> {
        if self.used_bytes() >= self.quota_bytes() {
            let (waiting, _) = self.seals.inventory().waiting_sum();
            let waiting = match waiting {
                0 => String::new(),
                n => format!(", and {n} captures wait for their upload and are not deleted before"),
            };
            return Err(StartError::Quota(format!(
                "the data directory holds {} of {} bytes{waiting}; `remora delete` captures, let --keep-bytes \
                 or --keep-age do so, or raise --quota",
                self.used_bytes(),
                self.quota_bytes()
            )));
        }
        self.admit_namespace(state)?;
        let (sender, growth) = watch::channel(Growth::default());
        let writing = state.spec.writing;
        let (id, ending) = (state.id.to_string(), writing.compression.ending());
        let name = if writing.rotation.is_on() {
            first_part(state).name(&id, ending)
        } else {
            format!("{id}{ending}")
        };
        Ok((sender, name, self.stored(state.id, Some(growth))))
    }

    /// A namespace gets no more than its quota. Where the agent makes room, only what is held counts.
    fn admit_namespace(&self, state: &CaptureState) -> Result<(), StartError> {
        let (Some(quota), Some(pod)) = (self.retention.namespace, &state.pod) else {
            return Ok(());
        };
        let taken = self.seals.inventory().namespace(&pod.namespace);
        let (bytes, what) = match self.retention.bytes {
            Some(_) => (taken.held, "held captures"),
            None => (taken.bytes, "captures"),
        };
        if bytes < quota {
            return Ok(());
        }
        Err(StartError::Quota(format!(
            "{what} of namespace {} take {bytes} of {quota} bytes (--namespace-quota); `remora delete` or \
             `remora release` some",
            pod.namespace
        )))
    }

    /// Makes the files of a capture that was prepared.
    ///
    /// # Errors
    /// [`StartError::Quota`], [`StartError::Output`]; nothing is left behind.
    pub fn create(
        &self,
        state: &CaptureState,
        growth: watch::Sender<Growth>,
    ) -> Result<FileSink, StartError> {
        let id = state.id;
        let writing = state.spec.writing;
        let shelf = self.shelf(id, writing);
        let journal = self.sidecar(state, &Finished::default()).to_json();
        let room = self.reserve_bytes(state);
        self.seals.watch(id, growth.subscribe());
        create(&self.file(id, OPEN))
            .and_then(|mut file| file.write_all(&journal))
            .and_then(|()| reserve(&self.file(id, SEAL_RESERVE), room))
            .and_then(|()| {
                FileSink::create(
                    shelf,
                    writing,
                    first_part(state).time_ns,
                    (self.file(id, RESERVE), room),
                    growth,
                )
            })
            .inspect(|_files| self.opened(id))
            .map_err(|error| {
                self.forget(id);
                let directory = self.directory.display();
                let message = format!("failed to make a file in {directory}: {error}");
                match error.kind() {
                    io::ErrorKind::QuotaExceeded | io::ErrorKind::StorageFull => {
                        StartError::Quota(message)
                    }
                    _ => StartError::Output(message),
                }
            })
    }

    /// Where a capture's files lie.
    pub(super) fn shelf(&self, id: CaptureId, writing: Writing) -> StoreShelf {
        StoreShelf {
            directory: self.directory.clone(),
            id,
            ending: writing.compression.ending(),
            rotates: writing.rotation.is_on(),
            usage: self.usage(),
            syncs: writing.durability == Durability::Synced,
        }
    }

    /// The final account is a little longer than the journal, and the manifest a third more than that.
    pub(super) fn reserve_bytes(&self, state: &CaptureState) -> u64 {
        let journal = self.sidecar(state, &Finished::default()).to_json();
        RESERVE_BYTES + 2 * journal.len() as u64
    }

    pub(super) fn usage(&self) -> Arc<Usage> {
        Arc::clone(&self.usage)
    }

    /// Removes what [`Store::create`] made of a capture that did not start.
    pub fn forget(&self, id: CaptureId) {
        let files = capture_files(&self.directory, id).unwrap_or_default();
        for path in files.into_iter().chain(
            [SEAL_RESERVE, RESERVE, OPEN, PINNED, AMENDMENTS].map(|ending| self.file(id, ending)),
        ) {
            remove(&path);
        }
        if let Some(log) = self.logs().remove(&id) {
            log.forget();
        }
        self.seals.forget(id);
    }

    /// Writes a capture's final account. Also for streamed captures, which have no file.
    ///
    /// # Errors
    /// Why not, for a person.
    pub fn keep(&self, state: &CaptureState, files: &Finished) -> Result<(), String> {
        self.keep_sidecar(self.sidecar(state, files))
    }

    /// With what was asked of the capture meanwhile.
    pub(super) fn keep_sidecar(&self, mut sidecar: Sidecar) -> Result<(), String> {
        let id = sidecar.capture.id;
        let log = self.logs().remove(&id);
        if let Some(log) = log {
            sidecar.amendments = log.end();
        }
        let path = self.file(id, ACCOUNT);
        let aside = self.file(id, ACCOUNT_PART);
        let write = || {
            reach("files closed");
            let file = write_anew(&aside, &sidecar.to_json())?;
            reach("account written");
            file.sync_data()?;
            reach("account synced");
            fs::rename(&aside, &path)
        };
        write().map_err(|error| {
            self.seals.forget(id);
            format!("failed to write {}: {error}", path.display())
        })?;
        reach("account renamed");
        for ending in [RESERVE, OPEN, PINNED, AMENDMENTS] {
            remove(&self.file(id, ending));
        }
        reach("journal removed");
        self.seals.seal(id);
        Ok(())
    }

    fn logs(&self) -> MutexGuard<'_, BTreeMap<CaptureId, Arc<AmendmentLog>>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A capture may be amended as soon as it is armed.
    pub(super) fn expect(&self, id: CaptureId) {
        let log = AmendmentLog::new(self.file(id, AMENDMENTS));
        self.logs().insert(id, log);
    }

    /// Its files are there: there will be an account.
    pub(super) fn opened(&self, id: CaptureId) {
        if let Some(log) = self.logs().get(&id) {
            log.opened();
        }
    }

    pub(super) fn amended(&self, id: CaptureId) -> Option<Arc<AmendmentLog>> {
        self.logs().get(&id).cloned()
    }

    /// Goes on with the amendments of an agent that is gone.
    pub(super) fn amend_again(&self, id: CaptureId) -> io::Result<()> {
        let log = AmendmentLog::go_on(self.file(id, AMENDMENTS))?;
        self.logs().insert(id, log);
        Ok(())
    }

    /// What a capture was amended by when its agent died.
    pub(super) fn amendments(&self, id: CaptureId) -> io::Result<Told> {
        read(&self.file(id, AMENDMENTS))
    }

    fn sidecar(&self, state: &CaptureState, files: &Finished) -> Sidecar {
        let clock = ClockOffset::known();
        let mut sidecar = Sidecar::new(
            account(state),
            state.clone(),
            Clock {
                offset_ns: clock.offset_ns,
                error_ns: clock.error_ns,
            },
            Tool {
                name: "remora".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                kernel: self.node.kernel.clone(),
            },
        );
        if state.spec.writing.rotation.is_on() {
            sidecar.files.clone_from(&files.files);
        }
        sidecar
    }

    /// States of the newest finished captures, oldest first.
    ///
    /// # Errors
    /// The directory cannot be read; an account that cannot be read is logged and left out.
    pub fn finished(&self) -> Result<Vec<CaptureState>, StoreError> {
        let mut ids = self.ids(ACCOUNT)?;
        ids.sort_unstable();
        let newest = ids.split_off(ids.len().saturating_sub(KNOWN_MAX));
        Ok(newest
            .into_iter()
            .filter_map(|id| match self.read_sidecar(&self.file(id, ACCOUNT)) {
                Ok(sidecar) => Some(sidecar.capture),
                Err(error) => {
                    tracing::warn!(capture = %id, %error, "failed to read an account");
                    None
                }
            })
            .collect())
    }

    pub(super) fn read_sidecar(&self, path: &Path) -> io::Result<Sidecar> {
        let mut json = Vec::new();
        File::open(path)?
            .take(SIDECAR_BYTES_MAX as u64 + 1)
            .read_to_end(&mut json)?;
        Sidecar::from_json(&json).map_err(io::Error::other)
    }

    /// Captures that have a file with this ending.
    pub(super) fn ids(&self, ending: &str) -> Result<Vec<CaptureId>, StoreError> {
        let names = names(&self.directory).map_err(|source| StoreError::Io {
            action: "read the data directory",
            path: self.directory.clone(),
            source,
        })?;
        Ok(names
            .iter()
            .filter_map(|name| name.split_once('.'))
            .filter(|(_, rest)| *rest == ending)
            .filter_map(|(id, _)| id.parse().ok())
            .collect())
    }

    /// Names of all releases.
    pub(super) fn releases(&self) -> io::Result<Vec<String>> {
        let mut names = names(&self.directory)?;
        names.retain(|name| Release::capture_of(name).is_some());
        names.sort_unstable();
        Ok(names)
    }

    /// Captures of which more is there than what is signed.
    pub(super) fn captures_with_files(&self) -> io::Result<HashSet<CaptureId>> {
        let has_file = |name: &&String| {
            let account = name
                .split_once('.')
                .is_some_and(|(_, rest)| rest == ACCOUNT);
            account || name.contains(".pcapng")
        };
        let names = names(&self.directory)?;
        let ids = names.iter().filter(has_file).filter_map(|name| {
            let (id, _) = name.split_at(name.find(['.', '_'])?);
            id.parse().ok()
        });
        Ok(ids.collect())
    }

    pub(super) fn file(&self, id: CaptureId, ending: &str) -> PathBuf {
        self.directory.join(format!("{id}.{ending}"))
    }
}

impl Custodian for Store {
    fn delete(
        &self,
        id: CaptureId,
        by: &str,
        why: &str,
        not_uploaded: bool,
    ) -> Result<(Tombstone, Head), CustodyError> {
        self.seals.delete(id, by, (why, not_uploaded))
    }

    fn hold(&self, id: CaptureId, by: &str, why: &str) -> Result<Hold, CustodyError> {
        self.seals.hold(id, by, why)
    }

    fn release(&self, id: CaptureId, by: &str) -> Result<Hold, CustodyError> {
        self.seals.release(id, by)
    }

    fn deleted(&self, id: CaptureId, by: &str, why: &str) -> Option<(Tombstone, Head)> {
        self.read_deleted(id, by, why)
    }

    fn released(&self, id: CaptureId, by: &str) -> Option<Hold> {
        self.read_released(id, by)
    }

    fn mark(&self, id: CaptureId) -> Mark {
        self.read_mark(id)
    }
}

pub(super) const ACCOUNT: &str = "json";
const ACCOUNT_PART: &str = "json.part";
pub(super) const OPEN: &str = "open.json";
pub(super) const PINNED: &str = "pinned.json";
pub(super) const RESERVE: &str = "reserve";
pub(super) const SEAL_RESERVE: &str = "seal.reserve";

/// The first file of a capture.
fn first_part(state: &CaptureState) -> Part {
    Part {
        number: 1,
        time_ns: u64::try_from(state.started.as_nanosecond()).unwrap_or(0),
    }
}

/// What all files of a capture come to, under the first one's name.
pub(super) fn account(state: &CaptureState) -> CaptureFile {
    if state.file.is_empty() {
        return CaptureFile::default();
    }
    CaptureFile {
        name: state.file.clone(),
        bytes: state.counts.written_bytes,
        packets: state.counts.written,
        blocks: state.files.blocks,
    }
}

/// A capture's files in the order in which they were made, those that are not closed, too.
pub(super) fn capture_files(directory: &Path, id: CaptureId) -> io::Result<Vec<PathBuf>> {
    let id = id.to_string();
    let mut names = names(directory)?;
    names.retain(|name| {
        name.strip_prefix(&id).is_some_and(|rest| {
            rest.starts_with(".pcapng") || (rest.starts_with('_') && rest.contains(".pcapng"))
        })
    });
    names.sort_unstable_by(|a, b| closed_name(a).cmp(closed_name(b)));
    Ok(names.iter().map(|name| directory.join(name)).collect())
}

/// The same without those that were encrypted and are about to go.
fn lasting_files(directory: &Path, id: CaptureId) -> io::Result<Vec<PathBuf>> {
    let paths = capture_files(directory, id)?;
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    let names: HashSet<String> = paths.iter().map(text).collect();
    let encrypted = |path: &PathBuf| format!("{}{ENCRYPTED_ENDING}", text(path));
    let lasting = paths.into_iter();
    Ok(lasting
        .filter(|path| !names.contains(&encrypted(path)))
        .collect())
}

/// A file's name as it is when it is closed.
pub(super) fn closed_name(name: &str) -> &str {
    name.strip_suffix(PART).unwrap_or(name)
}

/// A file with these bytes and nothing else, whatever was there.
pub(super) fn write_anew(path: &Path, bytes: &[u8]) -> io::Result<File> {
    remove_if_there(path)?;
    let mut file = create(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn remove(path: &Path) {
    if let Err(error) = remove_if_there(path) {
        tracing::warn!(%error, path = %path.display(), "failed to remove");
    }
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect()
}
