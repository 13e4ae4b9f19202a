//! A capture's file while it is written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::{FallocateFlags, fallocate};
use remora_capture::{pcapng::whole_blocks, session::StopReason};
use tokio::sync::watch;

use super::store::Usage;
use crate::writer::{AppendError, Sink};

/// Files of captures are secret.
pub(super) const FILE_MODE: u32 = 0o600;

/// Writes whole blocks; after an error the file is cut back to its last whole block.
#[derive(Debug)]
pub struct FileSink {
    file: File,
    part: PathBuf,
    path: PathBuf,
    /// Bytes of whole blocks in the file, also for those who read it meanwhile.
    length: watch::Sender<u64>,
    usage: Arc<Usage>,
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

/// Makes a new file that only the agent may read.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)
}

impl FileSink {
    /// Makes `part`, which [`Sink::finish`] renames to `path`.
    ///
    /// # Errors
    /// The file or its reserve cannot be made; neither is left.
    pub(super) fn create(
        part: PathBuf,
        path: PathBuf,
        reserve: (PathBuf, u64),
        usage: Arc<Usage>,
        length: watch::Sender<u64>,
    ) -> io::Result<Self> {
        let file = create(&part)?;
        let reserve = match Reserve::keep(reserve.0, reserve.1) {
            Ok(reserve) => reserve,
            Err(error) => {
                let _secondary = fs::remove_file(&part);
                return Err(error);
            }
        };
        Ok(Self {
            file,
            part,
            path,
            length,
            usage,
            reserve: Some(reserve),
        })
    }

    fn write(&mut self, blocks: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut done = 0;
        while let Some(rest) = blocks.get(done..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(0) => return Err((done, io::ErrorKind::WriteZero.into())),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((done, error)),
            }
        }
        Ok(())
    }
}

impl Sink for FileSink {
    fn append(&mut self, blocks: Vec<u8>) -> Result<Option<Vec<u8>>, AppendError> {
        let before = *self.length.borrow();
        if !self.usage.take(blocks.len() as u64) {
            let problem = "the data directory's quota is reached; remove captures or raise \
                           --quota"
                .to_owned();
            return Err(AppendError {
                taken: 0,
                blocks,
                reason: StopReason::NoSpace,
                problem,
            });
        }
        match self.write(&blocks) {
            Ok(()) => {
                self.length.send_replace(before + blocks.len() as u64);
                Ok(Some(blocks))
            }
            Err((done, error)) => {
                let taken = whole_blocks(&blocks, done).bytes;
                self.usage.give_back((blocks.len() - taken) as u64);
                let end = before + taken as u64;
                let cut = self
                    .file
                    .set_len(end)
                    .and_then(|()| self.file.seek(SeekFrom::Start(end)).map(drop));
                if let Err(error) = cut {
                    tracing::error!(%error, "failed to cut a file to its last whole block");
                }
                self.length.send_replace(end);
                let reason = match error.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        StopReason::NoSpace
                    }
                    _ => StopReason::IoError,
                };
                let problem = format!("failed to write {}: {error}", self.part.display());
                Err(AppendError {
                    taken,
                    blocks,
                    reason,
                    problem,
                })
            }
        }
    }

    fn release_reserve(&mut self) {
        self.reserve = None;
    }

    fn finish(&mut self) -> Result<(), String> {
        self.reserve = None;
        self.file
            .sync_data()
            .and_then(|()| fs::rename(&self.part, &self.path))
            .map_err(|error| format!("failed to finish {}: {error}", self.path.display()))
    }
}
