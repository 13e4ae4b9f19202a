//! A stored capture's blocks, while its files are written or after.
//!
//! ```text
//! file 1 to its end ─▶ file 2 to its end ─▶ … ─▶ the one that grows, as far as it is whole ─▶ end
//! ```
//! Compressed files are sent as the blocks that they hold.

use std::{
    ffi::OsStr,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use remora_capture::{
    evidence::ENCRYPTED_ENDING,
    pcapng::{Unpacked, whole_blocks},
};
use remora_proto::{limits::STREAM_BLOCKS_BYTES_MAX, v1};
use tokio::{fs::File, io::AsyncReadExt as _, sync::watch};

use super::capture::{Ended, Sender, send_blocks};
use crate::session::{Growth, Stored};

/// Bytes sent at a time; with the start of the largest block before them they fit a message.
const CHUNK: usize = STREAM_BLOCKS_BYTES_MAX / 2;

/// Sends all blocks, and those that come until the capture ends.
pub(super) async fn send(stored: Stored, sender: &Sender<v1::StreamResponse>) -> Result<(), Ended> {
    let Stored { list, mut growth } = stored;
    let mut last = String::new();
    loop {
        // Asked before the list, which then has every file there will be.
        let ended = growth
            .as_ref()
            .is_none_or(|growth| growth.has_changed().is_err());
        let list = std::sync::Arc::clone(&list);
        let paths = tokio::task::spawn_blocking(move || list())
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|error| Ended::Failed(PathBuf::from("the data directory"), error))?;
        let next = paths
            .into_iter()
            .map(|path| (closed_name(&path), path))
            // What was sent may have been encrypted since.
            .find(|(name, _)| {
                *name > last && name.strip_suffix(ENCRYPTED_ENDING) != Some(last.as_str())
            });
        match (next, &mut growth) {
            (Some((name, path)), _) if name.ends_with(ENCRYPTED_ENDING) => {
                return Err(Ended::Encrypted(path));
            }
            (Some((name, path)), growth) => match BlockFile::open(path).await {
                Ok(file) => {
                    file.send(&name, growth.as_mut(), sender).await?;
                    last = name;
                }
                // It was closed and so renamed, or a ring removed it.
                Err(Ended::Failed(_, error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            },
            (None, Some(growth)) if !ended => grown(growth, sender).await?,
            (None, _) => return Ok(()),
        }
    }
}

/// Waits until there is more, or no more will come.
async fn grown(
    growth: &mut watch::Receiver<Growth>,
    sender: &Sender<v1::StreamResponse>,
) -> Result<(), Ended> {
    tokio::select! {
        // That the writer is gone is seen by the next look.
        _ = growth.changed() => Ok(()),
        () = sender.closed() => Err(Ended::ReaderGone),
    }
}

fn closed_name(path: &Path) -> String {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    name.strip_suffix(".part").unwrap_or(name).to_owned()
}

/// How much of a file may be read now.
enum Until {
    /// It is closed.
    End,
    Bytes(u64),
}

/// One file.
struct BlockFile {
    path: PathBuf,
    file: File,
    read: u64,
    /// Of a compressed file.
    unpacked: Option<Unpacked<Feed>>,
    /// The start of a block whose end is still to come.
    rest: Vec<u8>,
}

/// Compressed bytes on their way to the decoder.
#[derive(Default)]
struct Feed {
    bytes: Vec<u8>,
    used: usize,
}

impl io::Read for Feed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = io::Read::read(&mut &self.bytes[self.used..], buf)?;
        self.used += read;
        Ok(read)
    }
}

impl BlockFile {
    async fn open(path: PathBuf) -> Result<Self, Ended> {
        let opened = File::open(&path).await.and_then(|file| {
            let unpacked = closed_name(&path)
                .ends_with(".zst")
                .then(|| Unpacked::new(Feed::default()))
                .transpose()?;
            Ok((file, unpacked))
        });
        match opened {
            Ok((file, unpacked)) => Ok(Self {
                path,
                file,
                read: 0,
                unpacked,
                rest: Vec::new(),
            }),
            Err(error) => Err(Ended::Failed(path, error)),
        }
    }

    fn failed(&self, error: io::Error) -> Ended {
        Ended::Failed(self.path.clone(), error)
    }

    /// Sends what is in it, and what comes until it is closed.
    async fn send(
        mut self,
        name: &str,
        mut growth: Option<&mut watch::Receiver<Growth>>,
        sender: &Sender<v1::StreamResponse>,
    ) -> Result<(), Ended> {
        loop {
            let Some(growth) = &mut growth else {
                break self.send_until(Until::End, sender).await?;
            };
            let ended = growth.has_changed().is_err();
            let until = {
                let growth = growth.borrow_and_update();
                match name.cmp(&growth.name) {
                    std::cmp::Ordering::Less => Until::End,
                    std::cmp::Ordering::Equal => Until::Bytes(growth.bytes),
                    // It is there, but nothing was written to it yet.
                    std::cmp::Ordering::Greater => Until::Bytes(0),
                }
            };
            let closed = ended || matches!(until, Until::End);
            self.send_until(until, sender).await?;
            if closed {
                break;
            }
            grown(growth, sender).await?;
        }
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.failed(io::ErrorKind::UnexpectedEof.into()))
        }
    }

    async fn send_until(
        &mut self,
        until: Until,
        sender: &Sender<v1::StreamResponse>,
    ) -> Result<(), Ended> {
        loop {
            let limit = match until {
                Until::End => CHUNK as u64,
                Until::Bytes(bytes) => (bytes - self.read.min(bytes)).min(CHUNK as u64),
            };
            let mut bytes = Vec::new();
            let mut next = (&mut self.file).take(limit);
            let read = next.read_to_end(&mut bytes).await;
            let read = read.map_err(|error| self.failed(error))?;
            if read == 0 {
                return Ok(());
            }
            self.read += read as u64;
            match self.unpacked.take() {
                None => self.send_blocks(bytes, sender).await?,
                Some(mut unpacked) => {
                    *unpacked.get_mut() = Feed { bytes, used: 0 };
                    let sent = self.send_unpacked(&mut unpacked, sender).await;
                    self.unpacked = Some(unpacked);
                    sent?;
                }
            }
        }
    }

    /// Sends what the bytes that it was fed hold.
    async fn send_unpacked(
        &mut self,
        unpacked: &mut Unpacked<Feed>,
        sender: &Sender<v1::StreamResponse>,
    ) -> Result<(), Ended> {
        loop {
            let mut bytes = Vec::new();
            let read = io::Read::take(&mut *unpacked, CHUNK as u64).read_to_end(&mut bytes);
            if read.map_err(|error| self.failed(error))? == 0 {
                if unpacked.is_broken() {
                    return Err(self.failed(io::ErrorKind::InvalidData.into()));
                }
                return Ok(());
            }
            self.send_blocks(bytes, sender).await?;
        }
    }

    /// Sends the whole blocks, and keeps the start of one that goes on.
    async fn send_blocks(
        &mut self,
        bytes: Vec<u8>,
        sender: &Sender<v1::StreamResponse>,
    ) -> Result<(), Ended> {
        let mut blocks = std::mem::take(&mut self.rest);
        if blocks.is_empty() {
            blocks = bytes;
        } else {
            blocks.extend_from_slice(&bytes);
        }
        self.rest = blocks.split_off(whole_blocks(&blocks, blocks.len()).bytes);
        if blocks.is_empty() {
            return Ok(());
        }
        send_blocks(sender, blocks.into()).await
    }
}
