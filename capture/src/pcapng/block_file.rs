//! One file of blocks, plain or compressed, that ends on a whole block whatever fails.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom, Write},
};

use super::{compress::Compressor, whole::whole_blocks};

/// What a file's bytes go to. A trait for the sake of faults, quotas and the like.
pub trait Medium: Write {
    /// Cuts to `len` bytes and goes on from there.
    ///
    /// # Errors
    /// The file system's.
    fn cut(&mut self, len: u64) -> io::Result<()>;

    /// Waits until the bytes are on the disk (fdatasync).
    ///
    /// # Errors
    /// The disk's.
    fn sync(&mut self) -> io::Result<()>;
}

impl Medium for File {
    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)?;
        self.seek(SeekFrom::Start(len)).map(drop)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Blocks did not all get into the file.
#[derive(Debug)]
pub struct Torn {
    /// Bytes of the blocks, whole packets, that are in the file nevertheless.
    pub kept: usize,
    pub error: io::Error,
}

/// An open file.
#[derive(Debug)]
pub struct BlockFile<M> {
    medium: M,
    bytes: u64,
    compressor: Option<Compressor>,
}

impl<M: Medium> BlockFile<M> {
    /// A file that is still empty.
    ///
    /// # Errors
    /// There is no memory for the compressor.
    pub fn new(medium: M, compressed: bool) -> io::Result<Self> {
        Ok(Self {
            medium,
            bytes: 0,
            compressor: compressed.then(Compressor::new).transpose()?,
        })
    }

    /// A plain file of `bytes` whole ones, as [`reopen`](super::reopen()) leaves it.
    pub fn go_on(medium: M, bytes: u64) -> Self {
        Self {
            medium,
            bytes,
            compressor: None,
        }
    }

    /// Bytes of the file that stand.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends whole blocks. A compressed file takes all of them or none.
    ///
    /// # Errors
    /// [`Torn`]; the file ends on a whole packet, and more may be appended.
    pub fn append(&mut self, blocks: &[u8]) -> Result<(), Torn> {
        let Self {
            medium,
            bytes,
            compressor,
        } = self;
        let Some(compressor) = compressor else {
            return match write(medium, blocks) {
                Ok(()) => {
                    *bytes += blocks.len() as u64;
                    Ok(())
                }
                Err((done, error)) => {
                    let kept = whole_blocks(blocks, done).bytes;
                    *bytes += kept as u64;
                    let error = cut_back(medium, *bytes, error);
                    Err(Torn { kept, error })
                }
            };
        };
        let written = match compressor.compress(blocks) {
            Ok(packed) => match write(medium, packed) {
                Ok(()) => Ok(packed.len()),
                Err((_, error)) => Err(error),
            },
            Err(error) => Err(error),
        };
        match written {
            Ok(len) => {
                *bytes += len as u64;
                compressor.kept();
                Ok(())
            }
            Err(error) => {
                compressor.lost();
                let error = cut_back(medium, *bytes, error);
                Err(Torn { kept: 0, error })
            }
        }
    }

    /// # Errors
    /// The disk's: what was written since the last time may not be on it.
    pub fn sync(&mut self) -> io::Result<()> {
        self.medium.sync()
    }

    /// Ends the running frame of a compressed file, so that the file is complete as it stands.
    /// More may be appended.
    ///
    /// # Errors
    /// There was no room for it; the file is as it was.
    pub fn end(&mut self) -> io::Result<()> {
        let Some(compressor) = &mut self.compressor else {
            return Ok(());
        };
        let end = compressor.end();
        match write(&mut self.medium, end) {
            Ok(()) => {
                self.bytes += end.len() as u64;
                compressor.ended();
                Ok(())
            }
            Err((_, error)) => Err(cut_back(&mut self.medium, self.bytes, error)),
        }
    }

    /// What it was made of.
    pub fn into_medium(self) -> M {
        self.medium
    }
}

/// Cuts after `error`, and tells both if that fails, too.
fn cut_back(medium: &mut impl Medium, len: u64, error: io::Error) -> io::Error {
    match medium.cut(len) {
        Ok(()) => error,
        Err(second) => io::Error::new(
            error.kind(),
            format!("{error}; cutting the file to its last whole block failed, too: {second}"),
        ),
    }
}

/// Like [`Write::write_all`], but tells how many bytes went out before it failed.
fn write(medium: &mut impl Write, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match medium.write(rest) {
            Ok(0) => return Err((done, io::ErrorKind::WriteZero.into())),
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((done, error)),
        }
    }
    Ok(())
}
