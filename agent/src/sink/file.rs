//! A capture's files while they are written.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

use nix::fcntl::{FallocateFlags, fallocate};
use remora_capture::{
    pcapng::{FileSet, Finished, SetSoFar, Totals, Unsynced, Whole},
    session::{Durability, StopReason, Writing},
};
use tokio::sync::watch;

use super::{
    shelf::{StoreFile, StoreShelf, create},
    store::remove_if_there,
};
use crate::{
    session::Growth,
    writer::{AppendError, Blocks, Sink},
};

/// Writes whole blocks; after an error the file ends on its last whole block.
#[derive(Debug)]
pub struct FileSink {
    files: FileSet<StoreShelf>,
    /// For those who read the files meanwhile.
    growth: watch::Sender<Growth>,
    durability: Durability,
    unsynced: Unsynced,
    reserve: Option<Reserve>,
}

/// Disk space kept back so that the closing block and the sidecar fit on a disk that is full.
#[derive(Debug)]
struct Reserve(PathBuf);

impl Reserve {
    fn keep(path: PathBuf, bytes: u64) -> io::Result<Self> {
        reserve(&path, bytes)?;
        Ok(Self(path))
    }
}

/// Makes a file that takes so much of the disk, or none.
pub(super) fn reserve(path: &Path, bytes: u64) -> io::Result<()> {
    let file = create(path)?;
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    fallocate(&file, FallocateFlags::empty(), 0, bytes).map_err(|error| {
        // The first error is the one to tell.
        let _secondary = fs::remove_file(path);
        error.into()
    })
}

impl Drop for Reserve {
    fn drop(&mut self) {
        let Self(path) = self;
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(%error, path = %path.display(), "failed to give the reserve free");
        }
    }
}

impl FileSink {
    /// Makes the first file, whose name ends in `.part` until it is closed.
    ///
    /// # Errors
    /// It or the reserve cannot be made.
    pub(super) fn create(
        shelf: StoreShelf,
        writing: Writing,
        start_ns: u64,
        reserve: (PathBuf, u64),
        growth: watch::Sender<Growth>,
    ) -> io::Result<Self> {
        let reserve = Reserve::keep(reserve.0, reserve.1)?;
        let Writing {
            rotation,
            compression,
            durability,
        } = writing;
        let sink = Self {
            files: FileSet::new(shelf, rotation, compression, start_ns)?,
            growth,
            durability,
            unsynced: Unsynced::default(),
            reserve: Some(reserve),
        };
        sink.tell_growth();
        Ok(sink)
    }

    /// Goes on with the files of an agent that is gone. `reserve`: where disk space for the end is kept,
    /// and its bytes.
    ///
    /// # Errors
    /// That agent's reserve cannot be removed.
    pub(super) fn go_on(
        shelf: StoreShelf,
        writing: Writing,
        start_ns: u64,
        header: Vec<u8>,
        so_far: SetSoFar<StoreFile>,
        (reserve, bytes): (PathBuf, u64),
        growth: watch::Sender<Growth>,
    ) -> io::Result<Self> {
        remove_if_there(&reserve)?;
        // A full disk is no reason to end it: that is found out by who writes.
        let reserve = Reserve::keep(reserve, bytes).ok();
        let Writing {
            rotation,
            durability,
            compression: _,
        } = writing;
        let sink = Self {
            files: FileSet::go_on(shelf, rotation, start_ns, header, so_far),
            growth,
            durability,
            unsynced: Unsynced::default(),
            reserve,
        };
        sink.tell_growth();
        Ok(sink)
    }

    fn tell_growth(&self) {
        let Some((name, bytes)) = self.files.current() else {
            return;
        };
        self.growth.send_modify(|growth| {
            if growth.name != name {
                name.clone_into(&mut growth.name);
            }
            growth.bytes = bytes;
        });
    }
}

impl Sink for FileSink {
    fn append(&mut self, blocks: Blocks, counted: Whole) -> Result<(), AppendError> {
        let appended = self.files.append_counted(blocks.as_ref(), counted);
        self.tell_growth();
        if self.durability == Durability::Synced {
            self.unsynced.written(counted.bytes as u64, Instant::now());
        }
        appended.map_err(|error| failed("write", &error))
    }

    fn totals(&self) -> Totals {
        self.files.totals()
    }

    fn sync_due(&self) -> Option<Instant> {
        self.unsynced.due()
    }

    fn sync(&mut self) -> Result<(), AppendError> {
        self.unsynced.synced();
        self.files.sync().map_err(|error| failed("sync", &error))
    }

    fn release_reserve(&mut self) {
        self.reserve = None;
    }

    fn finish(&mut self) -> (Finished, Result<(), String>) {
        self.reserve = None;
        self.files.shelf().syncs = true;
        let (finished, closed) = self.files.finish();
        let closed =
            closed.map_err(|error| format!("failed to finish the capture's file: {error}"));
        (finished, closed)
    }
}

fn failed(what: &str, error: &io::Error) -> AppendError {
    AppendError {
        reason: match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StopReason::NoSpace,
            _ => StopReason::IoError,
        },
        problem: format!("failed to {what} the capture's file: {error}"),
    }
}
