//! A capture's files in the data directory, as its file set makes and removes them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use remora_capture::{
    pcapng::{Medium, Part, Shelf},
    session::CaptureId,
    sidecar::CaptureFile,
};

use super::store::Usage;

/// Files of captures are secret.
pub(super) const FILE_MODE: u32 = 0o600;
/// Ends the name of a file that is being written.
pub(super) const PART: &str = ".part";

/// Makes a new file that only the agent may read.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)
}

/// The place of one capture's files.
#[derive(Debug)]
pub(super) struct StoreShelf {
    pub(super) directory: PathBuf,
    pub(super) id: CaptureId,
    /// `.pcapng`, or what it is compressed as.
    pub(super) ending: &'static str,
    /// Names have numbers.
    pub(super) rotates: bool,
    pub(super) usage: Arc<Usage>,
    /// A file that is closed is on the disk, too.
    pub(super) syncs: bool,
}

impl StoreShelf {
    fn part(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}{PART}"))
    }
}

impl Shelf for StoreShelf {
    type File = StoreFile;

    fn create(&mut self, part: Part) -> io::Result<(String, StoreFile)> {
        let id = self.id.to_string();
        let name = if self.rotates {
            part.name(&id, self.ending)
        } else {
            format!("{id}{}", self.ending)
        };
        let file = StoreFile {
            file: create(&self.part(&name))?,
            bytes: 0,
            usage: Arc::clone(&self.usage),
        };
        Ok((name, file))
    }

    fn close(&mut self, name: &str, file: StoreFile) -> io::Result<()> {
        let synced = if self.syncs {
            file.file.sync_data()
        } else {
            Ok(())
        };
        // What is there can be read, whatever the disk says.
        fs::rename(self.part(name), self.directory.join(name))?;
        synced
    }

    fn remove(&mut self, file: &CaptureFile) -> io::Result<()> {
        let closed = self.directory.join(&file.name);
        match fs::remove_file(&closed) {
            // It could not be begun, or not be closed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::remove_file(self.part(&file.name))?;
            }
            result => result?,
        }
        self.usage.give_back(file.bytes);
        Ok(())
    }
}

/// A file within the quota.
#[derive(Debug)]
pub(super) struct StoreFile {
    file: File,
    bytes: u64,
    usage: Arc<Usage>,
}

impl StoreFile {
    /// A file of `bytes`, which the quota knows of.
    pub(super) fn go_on(file: File, bytes: u64, usage: Arc<Usage>) -> Self {
        Self { file, bytes, usage }
    }
}

impl Write for StoreFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let wanted = bytes.len() as u64;
        if !self.usage.take(wanted) {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "the data directory's quota is reached; remove captures or raise --quota",
            ));
        }
        let written = self.file.write(bytes);
        let taken = *written.as_ref().unwrap_or(&0) as u64;
        self.usage.give_back(wanted - taken);
        self.bytes += taken;
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Medium for StoreFile {
    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.file.cut(len)?;
        self.usage.give_back(self.bytes.saturating_sub(len));
        self.bytes = len;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}
