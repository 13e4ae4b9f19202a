//! Room for a tombstone, kept so that a full disk can be emptied.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use nix::sys::statvfs::statvfs;

use crate::sink::{file::reserve, store::remove_if_there};

const RESERVE: &str = "tombstone.reserve";
/// The tombstone of a capture of some twenty files.
const BYTES: u64 = 16 << 10;
/// Of the file system; where it would be more, nothing is kept.
const PART: u64 = 100;

/// Takes the room, if there is none yet and the disk has it.
pub(in crate::sink) fn keep(directory: &Path) {
    let path = directory.join(RESERVE);
    let is_there = fs::metadata(&path).is_ok_and(|file| file.len() == BYTES);
    if is_there || is_small(directory) {
        return;
    }
    if let Err(error) = remove_if_there(&path).and_then(|()| reserve(&path, BYTES)) {
        tracing::warn!(%error, "no room is kept for a tombstone: a disk that gets full stays so");
    }
}

fn is_small(directory: &Path) -> bool {
    statvfs(directory).is_ok_and(|disk| {
        let bytes = disk.blocks().saturating_mul(disk.fragment_size());
        bytes < BYTES * PART
    })
}

/// Writes a file into the room.
///
/// # Errors
/// There is none, or it does not suffice.
pub(super) fn write(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<File> {
    fs::rename(directory.join(RESERVE), path)?;
    let mut file = File::options().write(true).open(path)?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    Ok(file)
}
