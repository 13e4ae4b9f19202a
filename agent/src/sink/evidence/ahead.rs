//! Digests of a capture's files.
//!
//! Small files are hashed when the capture is over. Of large ones most is hashed while they grow, so
//! that the manifest is there within a second of the end; by reading back what was written, for the
//! writer must not wait.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use remora_capture::{
    evidence::{Digester, FileDigest},
    session::CaptureId,
};
use tokio::sync::watch;

use crate::{
    session::Growth,
    sink::{
        shelf::PART,
        store::{capture_files, closed_name},
    },
};

/// Bytes that may wait for the end: a fifth of a second's work (1.4 ns a byte for both digests).
const BACKLOG: u64 = 128 << 20;
/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// A capture's files so far.
pub(super) struct Ahead {
    growth: Option<watch::Receiver<Growth>>,
    files: BTreeMap<String, Digester>,
}

impl Ahead {
    /// Of a capture that has ended, unless it is told how its files grow.
    pub(super) fn new(growth: Option<watch::Receiver<Growth>>) -> Self {
        Self {
            growth,
            files: BTreeMap::new(),
        }
    }

    /// Hashes what is too much to leave to the end. The bytes that a growth tells of stay as they are.
    ///
    /// # Errors
    /// The disk's; what was hashed stays so.
    pub(super) fn go_on(&mut self, directory: &Path, id: CaptureId) -> io::Result<()> {
        let Some(growth) = &mut self.growth else {
            return Ok(());
        };
        let Growth { name, bytes } = growth.borrow_and_update().clone();
        let mut there = vec![(name.clone(), bytes)];
        if name.contains('_') {
            for path in capture_files(directory, id)? {
                let closed = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
                if !closed.ends_with(PART) && closed != name {
                    there.push((closed.to_owned(), path.metadata()?.len()));
                }
            }
            there.sort_unstable();
            self.files
                .retain(|name, _| there.iter().any(|(there, _)| there == name));
        }
        let done = |name: &String| self.files.get(name).map_or(0, Digester::bytes);
        let waiting: u64 = there
            .iter()
            .map(|(name, bytes)| bytes.saturating_sub(done(name)))
            .sum();
        let mut room = waiting.saturating_sub(BACKLOG);
        for (name, bytes) in there {
            let digester = self.files.entry(name.clone()).or_default();
            let until = bytes.min(digester.bytes() + room);
            room -= until.saturating_sub(digester.bytes());
            if until > digester.bytes() {
                hash(&open(directory, &name)?, digester, until)?;
            }
        }
        Ok(())
    }

    /// The digest of a file that is closed; after this it is on the disk, too.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn finish(&mut self, directory: &Path, name: &str) -> io::Result<FileDigest> {
        let file = File::open(directory.join(name))?;
        let mut digester = self.files.remove(name).unwrap_or_default();
        if digester.bytes() > file.metadata()?.len() {
            digester = Digester::default(); // Somebody cut it.
        }
        hash(&file, &mut digester, u64::MAX)?;
        file.sync_all()?;
        Ok(digester.finish())
    }
}

fn open(directory: &Path, name: &str) -> io::Result<File> {
    let closed = directory.join(closed_name(name));
    File::open(directory.join(format!("{name}{PART}"))).or_else(|_closed| File::open(closed))
}

/// Hashes on up to the byte `until`, or the end.
fn hash(mut file: &File, digester: &mut Digester, until: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(digester.bytes()))?;
    let mut piece = vec![0; PIECE];
    while digester.bytes() < until {
        let most = (until - digester.bytes()).min(PIECE as u64) as usize;
        let read = file.read(&mut piece[..most])?;
        if read == 0 {
            break;
        }
        digester.update(&piece[..read]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_hashed_while_it_grew_has_the_digest_of_its_bytes() {
        let directory = tempfile::tempdir().expect("directory");
        let id = CaptureId::generate();
        let name = format!("{id}.pcapng");
        let part = directory.path().join(format!("{name}{PART}"));
        let mut file = File::create(&part).expect("file");
        let (sender, growth) = watch::channel(Growth::default());
        let mut ahead = Ahead::new(Some(growth));
        let mut expected = Digester::default();
        let mut bytes = 0;
        for n in 0..5 {
            let block = vec![n; 100 << 20];
            file.write_all(&block).expect("written");
            expected.update(&block);
            bytes += block.len() as u64;
            sender.send_modify(|growth| {
                growth.name.clone_from(&name);
                growth.bytes = bytes;
            });
            ahead.go_on(directory.path(), id).expect("read");
            let hashed = ahead.files[&name].bytes();
            assert_eq!(hashed, bytes.saturating_sub(BACKLOG), "after {bytes} bytes");
        }
        std::fs::rename(&part, directory.path().join(&name)).expect("renamed");
        let digest = ahead.finish(directory.path(), &name).expect("read");
        assert_eq!(digest, expected.finish());
    }
}
