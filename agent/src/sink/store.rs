//! The data directory.
//!
//! ```text
//! lock                 held by the agent that uses the directory
//! <id>.open.json       the account of a capture that is running, with its counts still at zero
//! <id>.pcapng.part     its file; whole blocks only
//! <id>.reserve         disk space for its end, so that a full disk still gets an account
//! ── closed ──
//! <id>.pcapng          renamed from .part
//! <id>.json            the final account (written aside and renamed), then .open.json goes
//! ```
//! After a crash whatever has an `.open.json` is repaired and closed ([`Store::recover`]). Names
//! are made of the capture's id alone; files have mode 0600, the directory 0700.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use remora_capture::{
    pcapng::{self, Statistics},
    session::{CaptureId, CaptureState, Phase, StopReason},
    sidecar::{CaptureFile, Clock, Recovered as RecoveredNote, SIDECAR_BYTES_MAX, Sidecar, Tool},
};
use tokio::sync::watch;

use super::file::{FILE_MODE, FileSink, create};
use crate::{
    clock::ClockOffset,
    node::NodeFacts,
    session::{StartError, Tail},
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

    pub fn give_back(&self, bytes: u64) {
        // Never below zero: only what was taken is given back.
        let _before = self
            .used
            .fetch_update(Relaxed, Relaxed, |used| Some(used.saturating_sub(bytes)));
    }
}

/// A capture that an agent left open when it died, closed now.
#[derive(Debug)]
pub struct Recovered {
    pub state: CaptureState,
    pub truncated_bytes: u64,
}

/// The directory, locked.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    usage: Arc<Usage>,
    node: NodeFacts,
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
        Ok(Self {
            directory: directory.to_owned(),
            usage: Arc::new(Usage {
                used: AtomicU64::new(used),
                quota,
            }),
            node,
            _lock: lock,
        })
    }

    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.usage.used.load(Relaxed)
    }

    #[must_use]
    pub fn quota_bytes(&self) -> u64 {
        self.usage.quota
    }

    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// Room for a capture, the name its file will have, and the file as it will grow. Touches no
    /// disk.
    ///
    /// # Errors
    /// [`StartError::Quota`].
    pub fn prepare(
        &self,
        state: &CaptureState,
    ) -> Result<(watch::Sender<u64>, String, Tail), StartError> {
        if self.used_bytes() >= self.quota_bytes() {
            return Err(StartError::Quota(format!(
                "the data directory holds {} of {} bytes; remove captures or raise --quota",
                self.used_bytes(),
                self.quota_bytes()
            )));
        }
        let (sender, length) = watch::channel(0);
        let path = self.file(state.id, PART);
        Ok((
            sender,
            format!("{}.{CAPTURE}", state.id),
            Tail { path, length },
        ))
    }

    /// Makes the files of a capture that was prepared.
    ///
    /// # Errors
    /// [`StartError::Output`]; nothing is left behind.
    pub fn create(
        &self,
        state: &CaptureState,
        length: watch::Sender<u64>,
    ) -> Result<FileSink, StartError> {
        let id = state.id;
        let journal = self.sidecar(state, 0, 0).to_json();
        // The final account is a little longer than the journal.
        let reserve = RESERVE_BYTES + 2 * journal.len() as u64;
        create(&self.file(id, OPEN))
            .and_then(|mut file| file.write_all(&journal))
            .and_then(|()| {
                FileSink::create(
                    self.file(id, PART),
                    self.file(id, CAPTURE),
                    (self.file(id, RESERVE), reserve),
                    Arc::clone(&self.usage),
                    length,
                )
            })
            .map_err(|error| {
                self.forget(id);
                StartError::Output(format!(
                    "failed to make a file in {}: {error}",
                    self.directory.display()
                ))
            })
    }

    /// Removes what [`Store::create`] made of a capture that did not start.
    pub fn forget(&self, id: CaptureId) {
        self.remove(id, &[PART, RESERVE, OPEN, CAPTURE]);
    }

    fn remove(&self, id: CaptureId, endings: &[&str]) {
        for ending in endings {
            let path = self.file(id, ending);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(%error, path = %path.display(), "failed to remove"),
            }
        }
    }

    /// Writes a capture's final account. Also for streamed captures, which have no file.
    ///
    /// # Errors
    /// Why not, for a person.
    pub fn keep(&self, state: &CaptureState) -> Result<(), String> {
        let Counts { bytes, packets } = Counts::of(state);
        self.keep_sidecar(&self.sidecar(state, bytes, packets))
    }

    fn keep_sidecar(&self, sidecar: &Sidecar) -> Result<(), String> {
        let id = sidecar.capture.id;
        let path = self.file(id, ACCOUNT);
        let aside = self.file(id, ACCOUNT_PART);
        let write = || {
            match fs::remove_file(&aside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = create(&aside)?;
            file.write_all(&sidecar.to_json())?;
            file.sync_data()?;
            fs::rename(&aside, &path)
        };
        write().map_err(|error| format!("failed to write {}: {error}", path.display()))?;
        self.remove(id, &[RESERVE, OPEN]);
        Ok(())
    }

    fn sidecar(&self, state: &CaptureState, bytes: u64, packets: u64) -> Sidecar {
        let clock = ClockOffset::measure();
        Sidecar::new(
            CaptureFile {
                name: state.file.clone(),
                bytes,
                packets,
                blocks: packets,
            },
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
        )
    }

    /// Repairs and closes what an agent left open when it died.
    ///
    /// # Errors
    /// The directory cannot be read; a capture that cannot be repaired is logged and left.
    pub fn recover(&self) -> Result<Vec<Recovered>, StoreError> {
        let mut recovered = Vec::new();
        for id in self.ids(OPEN)? {
            match self.recover_one(id) {
                Ok(one) => recovered.push(one),
                Err(error) => tracing::error!(capture = %id, %error, "failed to repair"),
            }
        }
        Ok(recovered)
    }

    fn recover_one(&self, id: CaptureId) -> io::Result<Recovered> {
        let mut journal = self.read_sidecar(&self.file(id, OPEN))?;
        let state = &mut journal.capture;
        let part = self.file(id, PART);
        let path = self.file(id, CAPTURE);
        // It died between the rename and the account if the part is gone.
        let open = if part.exists() { &part } else { &path };
        let mut truncated_bytes = 0;
        if open.exists() {
            let mut file = File::options().read(true).write(true).open(open)?;
            let before = file.metadata()?.len();
            let scan = pcapng::repair(&mut file)?;
            truncated_bytes = before - scan.whole_bytes;
            let mut bytes = scan.whole_bytes;
            note(state, &scan);
            if scan.interface_packets.is_empty() {
                // It died before the header was whole: there is nothing to keep.
                fs::remove_file(open)?;
                return self.close_empty(journal);
            }
            if scan.statistics == 0 {
                let end = scan.last_packet_ns.unwrap_or_default();
                let start = u64::try_from(state.started.as_nanosecond()).unwrap_or(0);
                let statistics = Statistics::new(0, &state.counts, start, end.max(start));
                let block = pcapng::interface_statistics(&statistics);
                file.write_all(&block)?;
                bytes += block.len() as u64;
            }
            file.sync_data()?;
            if open == &part {
                fs::rename(&part, &path)?;
            }
            state.file = format!("{id}.{CAPTURE}");
            state.counts.written_bytes = bytes;
        }
        state.phase = Phase::Finished;
        state.stop_reason = Some(StopReason::CrashRecovered);
        state.finished = Some(Timestamp::now());
        let (bytes, packets) = (state.counts.written_bytes, state.counts.written);
        journal.file = CaptureFile {
            name: state.file.clone(),
            bytes,
            packets,
            blocks: packets,
        };
        let last = state.last_packet.map_or_else(
            || "its start".to_owned(),
            |time| format!("its last packet at {time}"),
        );
        journal.recovered = Some(RecoveredNote {
            last_checkpoint: state.last_packet,
            counts_at_checkpoint: Some(state.counts),
            statement: format!(
                "The agent died while this capture ran. What the file holds is complete up to \
                 {last}, but for what its drop counts tell; packets that matched after it are \
                 missing, and how many is not known: what was in the ring and in the writer's \
                 queue when the agent died, and all until it was started again."
            ),
            truncated_bytes,
        });
        let state = journal.capture.clone();
        self.keep_sidecar(&journal).map_err(io::Error::other)?;
        Ok(Recovered {
            state,
            truncated_bytes,
        })
    }

    /// Closes a capture that never had a packet, nor a file that a reader takes.
    fn close_empty(&self, mut journal: Sidecar) -> io::Result<Recovered> {
        let state = &mut journal.capture;
        state.file.clear();
        state.phase = Phase::Finished;
        state.stop_reason = Some(StopReason::CrashRecovered);
        state.finished = Some(Timestamp::now());
        let statement = "The agent died while this capture was being started.".to_owned();
        journal.recovered = Some(RecoveredNote {
            statement,
            ..RecoveredNote::default()
        });
        let state = journal.capture.clone();
        self.keep_sidecar(&journal).map_err(io::Error::other)?;
        Ok(Recovered {
            state,
            truncated_bytes: 0,
        })
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

    fn read_sidecar(&self, path: &Path) -> io::Result<Sidecar> {
        let mut json = Vec::new();
        File::open(path)?
            .take(SIDECAR_BYTES_MAX as u64 + 1)
            .read_to_end(&mut json)?;
        Sidecar::from_json(&json).map_err(io::Error::other)
    }

    /// Captures that have a file with this ending.
    fn ids(&self, ending: &str) -> Result<Vec<CaptureId>, StoreError> {
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

    fn file(&self, id: CaptureId, ending: &str) -> PathBuf {
        self.directory.join(format!("{id}.{ending}"))
    }
}

const CAPTURE: &str = "pcapng";
const PART: &str = "pcapng.part";
const ACCOUNT: &str = "json";
const ACCOUNT_PART: &str = "json.part";
const OPEN: &str = "open.json";
const RESERVE: &str = "reserve";

struct Counts {
    bytes: u64,
    packets: u64,
}

impl Counts {
    fn of(state: &CaptureState) -> Self {
        if state.file.is_empty() {
            Self {
                bytes: 0,
                packets: 0,
            }
        } else {
            Self {
                bytes: state.counts.written_bytes,
                packets: state.counts.written,
            }
        }
    }
}

/// What a repaired file tells: packets in it, and those that its ids show to be missing between
/// them.
fn note(state: &mut CaptureState, scan: &pcapng::Scan) {
    let matched = scan
        .last_packet_id
        .map_or(scan.packets, |id| scan.packets.max(id + 1));
    let counts = &mut state.counts;
    counts.written = scan.packets;
    counts.read = scan.packets;
    counts.submitted = scan.packets;
    counts.matched = matched;
    counts.seen = counts.seen.max(matched);
    counts.lost = matched - scan.packets;
    let time = |ns: Option<u64>| ns.and_then(|ns| Timestamp::from_nanosecond(ns.into()).ok());
    state.first_packet = time(scan.first_packet_ns);
    state.last_packet = time(scan.last_packet_ns);
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect()
}
