//! What an agent left open when it died, repaired and closed by the next.
//!
//! Each file is cut to its last whole block. The packets' ids tell how many are missing between
//! them; what came after the last one nobody knows, and the account says so.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use jiff::Timestamp;
use remora_capture::{
    pcapng::{self, Scan, Statistics},
    session::{CaptureId, CaptureState, Counts, Files, Phase, Removed, StopReason},
    sidecar::{CaptureFile, Recovered as RecoveredNote, Sidecar},
};

use crate::session::Standing;

use super::amendments::AMENDMENTS;
use super::store::{OPEN, PINNED, Store, StoreError, account, capture_files, closed_name, remove};

/// A capture that an agent left open when it died, closed now.
#[derive(Debug)]
pub struct Recovered {
    pub state: CaptureState,
    pub truncated_bytes: u64,
}

/// A file that was repaired.
struct Repaired {
    file: File,
    /// As it is when it is closed.
    name: String,
    compressed: bool,
    scan: Scan,
}

impl Store {
    /// Repairs and closes what an agent left open when it died, but for the captures `standing`, which
    /// go on.
    ///
    /// # Errors
    /// The directory cannot be read; a capture that cannot be repaired is logged and left.
    pub fn recover(&self, standing: &[Standing]) -> Result<Vec<Recovered>, StoreError> {
        let mut recovered = Vec::new();
        let goes_on = |id: &CaptureId| standing.iter().any(|s| s.state.id == *id);
        for id in self.ids(OPEN)?.into_iter().filter(|id| !goes_on(id)) {
            match self.recover_one(id) {
                Ok(one) => recovered.push(one),
                Err(error) => tracing::error!(capture = %id, %error, "failed to repair"),
            }
        }
        // Of streams, which leave no file.
        for id in self.ids(PINNED)?.into_iter().filter(|id| !goes_on(id)) {
            remove(&self.file(id, PINNED));
        }
        for id in self.ids(AMENDMENTS)?.into_iter().filter(|id| !goes_on(id)) {
            let log = self.file(id, AMENDMENTS);
            if !self.file(id, OPEN).exists() {
                remove(&log);
            }
        }
        Ok(recovered)
    }

    pub(super) fn recover_one(&self, id: CaptureId) -> io::Result<Recovered> {
        let mut journal = self.read_sidecar(&self.file(id, OPEN))?;
        let told = self.amendments(id)?;
        if let Some(duration) = told.duration {
            journal.capture.spec.limits.duration = duration;
        }
        journal.amendments = told.amendments;
        let state = &mut journal.capture;
        state.phase = Phase::Finished;
        state.stop_reason = Some(StopReason::CrashRecovered);
        state.finished = Some(Timestamp::now());
        let mut truncated_bytes = 0;
        let mut files = Vec::new();
        for path in capture_files(&self.directory, id)? {
            let repaired = Repaired::open(&path, &mut truncated_bytes)?;
            if repaired.scan.interface_packets.is_empty() {
                // It died before the header was whole: there is nothing to keep.
                fs::remove_file(&path)?;
            } else {
                repaired.close(&path)?;
                files.push(repaired);
            }
        }
        let statement = match files.last_mut() {
            None => {
                state.file.clear();
                "The agent died while this capture was being started.".to_owned()
            }
            Some(_) => {
                note(state, &files);
                if let Some(last) = files.last_mut() {
                    last.append_account(state)?;
                }
                let last = state.last_packet.map_or_else(
                    || "its start".to_owned(),
                    |time| format!("its last packet at {time}"),
                );
                format!(
                    "The agent died while this capture ran. What the file holds is complete up to \
                     {last}, but for what its drop counts tell; packets that matched after it are \
                     missing, and how many is not known: what was in the ring and in the writer's \
                     queue when the agent died, and all until it was started again."
                )
            }
        };
        let removed = state.files.removed.bytes;
        let bytes: u64 = files.iter().map(|file| file.scan.whole_bytes).sum();
        state.counts.written_bytes = bytes + removed;
        journal.file = account(state);
        if state.spec.writing.rotation.is_on() {
            journal.files = files.iter().map(Repaired::told).collect();
        }
        journal.recovered = Some(RecoveredNote {
            last_checkpoint: state.last_packet,
            counts_at_checkpoint: (!files.is_empty()).then_some(state.counts),
            statement,
            truncated_bytes,
        });
        self.finish_recovery(journal, truncated_bytes)
    }

    fn finish_recovery(&self, journal: Sidecar, truncated_bytes: u64) -> io::Result<Recovered> {
        let state = journal.capture.clone();
        self.keep_sidecar(journal).map_err(io::Error::other)?;
        Ok(Recovered {
            state,
            truncated_bytes,
        })
    }
}

impl Repaired {
    /// Cuts the file to its whole blocks, and adds what was cut to `truncated`.
    fn open(path: &Path, truncated: &mut u64) -> io::Result<Self> {
        let name = path
            .file_name()
            .and_then(OsStr::to_str)
            .map(closed_name)
            .unwrap_or_default()
            .to_owned();
        let compressed = name.ends_with(".zst");
        let mut file = File::options().read(true).write(true).open(path)?;
        let before = file.metadata()?.len();
        let scan = if compressed {
            pcapng::repair_compressed(&mut file)?
        } else {
            pcapng::repair(&mut file)?
        };
        *truncated += before.saturating_sub(scan.whole_bytes);
        Ok(Self {
            file,
            name,
            compressed,
            scan,
        })
    }

    fn close(&self, path: &Path) -> io::Result<()> {
        self.file.sync_data()?;
        fs::rename(path, path.with_file_name(&self.name))
    }

    /// The closing block, if it is missing.
    fn append_account(&mut self, state: &CaptureState) -> io::Result<()> {
        if self.scan.statistics > 0 {
            return Ok(());
        }
        let start = u64::try_from(state.started.as_nanosecond()).unwrap_or(0);
        let end = self.scan.last_packet_ns.unwrap_or_default().max(start);
        let statistics = Statistics {
            written: self.scan.packets,
            ..Statistics::new(0, &state.counts, start, end)
        };
        let mut block = pcapng::interface_statistics(&statistics);
        if self.compressed {
            block = pcapng::frame(&block)?;
        }
        self.file.write_all(&block)?;
        self.file.sync_data()?;
        self.scan.whole_bytes += block.len() as u64;
        Ok(())
    }

    fn told(&self) -> CaptureFile {
        CaptureFile {
            name: self.name.clone(),
            bytes: self.scan.whole_bytes,
            packets: self.scan.packets,
            blocks: self.scan.packet_blocks,
        }
    }
}

/// What repaired files tell: packets in them, those that a ring removed with earlier files, and
/// those that the ids show to be missing.
fn note(state: &mut CaptureState, files: &[Repaired]) {
    let scans = || files.iter().map(|file| &file.scan);
    let removed = scans()
        .next()
        .and_then(|first| first.place)
        .map_or_else(Removed::default, pcapng::Place::removed);
    let there: u64 = scans().map(|scan| scan.packets).sum();
    let written = there + removed.packets;
    let last_id = scans().filter_map(|scan| scan.last_packet_id).max();
    let numbered = last_id.map_or(0, |id| id.saturating_add(1));
    // Those from before the capture have no id; of removed ones it is not known which had.
    let from_before: u64 = scans().map(|scan| scan.packets - scan.numbered).sum();
    let matched = written.max(from_before + numbered);
    state.counts = Counts {
        seen: state.counts.seen.max(matched),
        matched,
        submitted: written,
        lost: matched - written,
        read: written,
        written,
        ..state.counts
    };
    let blocks: u64 = scans().map(|scan| scan.packet_blocks).sum();
    state.files = Files {
        count: files.len() as u64,
        removed,
        blocks: blocks + removed.blocks,
    };
    if let Some(first) = files.first() {
        state.file.clone_from(&first.name);
    }
    let time = |ns: Option<u64>| ns.and_then(|ns| Timestamp::from_nanosecond(ns.into()).ok());
    state.first_packet = time(scans().find_map(|scan| scan.first_packet_ns));
    state.last_packet = time(scans().rev().find_map(|scan| scan.last_packet_ns));
}
