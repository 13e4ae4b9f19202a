//! A capture's files while they are written.

use std::{fs, io, path::PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};
use remora_capture::{
    pcapng::{FileSet, Finished, Totals, Whole},
    session::{StopReason, Writing},
};
use tokio::sync::watch;

use super::shelf::{StoreShelf, create};
use crate::{
    session::Growth,
    writer::{AppendError, Sink},
};

/// Writes whole blocks; after an error the file ends on its last whole block.
#[derive(Debug)]
pub struct FileSink {
    files: FileSet<StoreShelf>,
    /// For those who read the files meanwhile.
    growth: watch::Sender<Growth>,
    reserve: Option<Reserve>,
}

/// Disk space kept back so that the closing block and the sidecar fit on a disk that is full.
#[derive(Debug)]
struct Reserve(PathBuf);

impl Reserve {
    fn keep(path: PathBuf, bytes: u64) -> io::Result<Self> {
        let file = create(&path)?;
        let reserve = Self(path);
        fallocate(
            &file,
            FallocateFlags::empty(),
            0,
            i64::try_from(bytes).unwrap_or(i64::MAX),
        )?;
        Ok(reserve)
    }
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
        } = writing;
        let sink = Self {
            files: FileSet::new(shelf, rotation, compression, start_ns)?,
            growth,
            reserve: Some(reserve),
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
    fn append(&mut self, blocks: Vec<u8>, counted: Whole) -> Result<Option<Vec<u8>>, AppendError> {
        let appended = self.files.append_counted(&blocks, counted);
        self.tell_growth();
        match appended {
            Ok(()) => Ok(Some(blocks)),
            Err(error) => Err(AppendError {
                reason: match error.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        StopReason::NoSpace
                    }
                    _ => StopReason::IoError,
                },
                problem: format!("failed to write the capture's file: {error}"),
            }),
        }
    }

    fn totals(&self) -> Totals {
        self.files.totals()
    }

    fn release_reserve(&mut self) {
        self.reserve = None;
    }

    fn finish(&mut self) -> (Finished, Result<(), String>) {
        self.reserve = None;
        let (finished, closed) = self.files.finish();
        let closed =
            closed.map_err(|error| format!("failed to finish the capture's file: {error}"));
        (finished, closed)
    }
}
