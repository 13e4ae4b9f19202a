//! How a capture goes.
//!
//! ```text
//! hold? ─▶ <id>.tombstone.json: written aside, synced, renamed ─▶ directory synced ─▶ chain.head
//!   ─▶ packets' files removed ─▶ account removed ─▶ directory synced
//! ```
//! Killed before the rename, all of the capture is there; killed after it, the tombstone is, and the next
//! start removes the rest. The thread of the manifests does it all, so that no hold comes between.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use remora_capture::{
    evidence::{Cause, Digest, Head, Link, Manifest, Tombstone},
    session::{CaptureId, Destination},
};

use super::{
    Sealer,
    ahead::Ahead,
    holds::{HOLD, HOLD_PART, RELEASE_PART},
    receipts::RECEIPT_PART,
    room,
    sealer::read,
    sync_directory,
};
use crate::{
    custody::{CustodyError, Mark},
    sink::{
        fail_point::reach,
        store::{ACCOUNT, OPEN, remove_if_there, write_anew},
    },
};

pub(super) const TOMBSTONE: &str = "tombstone.json";
const TOMBSTONE_PART: &str = "tombstone.part";
/// Deletions before the next order is looked at: each waits for the disk some times.
const BATCH: usize = 8;
/// How often captures that could not be deleted are tried again.
const STUCK: Duration = Duration::from_secs(60);

pub(super) fn failed(id: CaptureId, what: &'static str) -> impl FnOnce(io::Error) -> CustodyError {
    move |source| CustodyError::Io { id, what, source }
}

impl Sealer {
    /// The capture is here, and neither deleted nor streamed; whether it runs.
    pub(super) fn find(&self, id: CaptureId) -> Result<bool, CustodyError> {
        if let Mark::Deleted(tombstone) = self.store.read_mark(id) {
            return Err(CustodyError::Deleted(tombstone));
        }
        let read = |ending| self.store.read_sidecar(&self.store.file(id, ending));
        // In this order: the account is there before the journal goes.
        let (read, runs) = match read(OPEN) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (read(ACCOUNT), false),
            read => (read, true),
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(CustodyError::NotFound(id))
            }
            Err(error) => Err(failed(id, "failed to read the account")(error)),
            Ok(sidecar) if sidecar.capture.spec.destination != Destination::Store => {
                Err(CustodyError::NotKept(id))
            }
            Ok(_) => Ok(runs),
        }
    }

    pub(super) fn delete(
        &mut self,
        id: CaptureId,
        (cause, why, by): (Cause, &str, &str),
    ) -> Result<(Tombstone, Head), CustodyError> {
        if self.find(id)? {
            return Err(CustodyError::Running(id));
        }
        if let Mark::Held(hold) = self.store.read_mark(id) {
            return Err(CustodyError::Held(hold));
        }
        let ahead = self.growing.remove(&id);
        if let Some(head) = self
            .try_seal(id, ahead.unwrap_or_else(|| Ahead::new(None)))
            .map_err(failed(id, "failed to write the manifest"))?
        {
            tracing::info!(capture = %id, %head, "signed");
        }
        let deleted = self
            .bury(id, (cause, why, by))
            .map_err(failed(id, "failed to write the tombstone"))?;
        tracing::info!(
            capture = %id, cause = cause.word(), why, by, head = %deleted.1, "deleted"
        );
        self.told.inventory().deleted(id, cause);
        self.remove_buried(&deleted.0);
        Ok(deleted)
    }

    /// From here on it is deleted, whatever becomes of its files.
    fn bury(
        &mut self,
        id: CaptureId,
        because: (Cause, &str, &str),
    ) -> io::Result<(Tombstone, Head)> {
        let bytes = read(&self.manifest(id))?;
        let manifest = Manifest::open(&bytes, &self.keys.public).map_err(io::Error::other)?;
        let link = Link::after(self.told.head().as_ref());
        let tombstone = Tombstone::new(
            (&manifest, Digest::of(&bytes)),
            &self.origin.node,
            link.clone(),
            self.keys.signing().id(),
            Timestamp::now(),
            because,
        );
        let signed = tombstone.clone().sign(&self.keys.secret);
        let signed = signed.map_err(io::Error::other)?;
        reach("tombstone signed");
        let aside = self.store.file(id, TOMBSTONE_PART);
        let file = match write_anew(&aside, &signed) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                room::write(&self.store.directory, &aside, &signed)?
            }
            written => written?,
        };
        reach("tombstone written");
        file.sync_all()?;
        reach("tombstone synced");
        fs::rename(&aside, self.store.file(id, TOMBSTONE))?;
        reach("tombstone renamed");
        let head = link.head(Digest::of(&signed));
        self.tell(Some(head));
        Ok((tombstone, head))
    }

    /// Removes the files of a capture that has a tombstone; what fails is tried again.
    fn remove_buried(&mut self, tombstone: &Tombstone) {
        let id = tombstone.capture_id;
        match self.try_remove(tombstone) {
            Ok(()) => {
                self.buried.remove(&id);
                room::keep(&self.store.directory);
            }
            Err(error) => {
                tracing::error!(capture = %id, %error, "failed to remove deleted files; tried again later");
                self.buried.insert(id);
                self.next_removal = Instant::now() + STUCK;
            }
        }
    }

    fn try_remove(&self, tombstone: &Tombstone) -> io::Result<()> {
        let directory = &self.store.directory;
        sync_directory(directory)?;
        reach("directory synced");
        let head = self.told.head();
        let is_head_late = match head.map_or(Ok(()), |head| self.keep_head(head)) {
            // The tombstone is there; its number is only said again. Room comes now.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => true,
            kept => {
                kept?;
                false
            }
        };
        let id = tombstone.capture_id.to_string();
        for file in &tombstone.files {
            // The agent's own words, signed; yet a name decides here what is removed.
            let is_own = file.name.strip_prefix(&id).is_some_and(|rest| {
                rest.starts_with(['.', '_']) && !rest.contains('/') && !rest.contains("..")
            });
            if !is_own {
                return Err(io::Error::other(
                    "its tombstone names a file that is not its own",
                ));
            }
            self.remove_file(directory, &file.name)?;
            reach("file removed");
        }
        sync_directory(directory)?;
        reach("removal synced");
        match head {
            Some(head) if is_head_late => self.keep_head(head),
            _ => Ok(()),
        }
    }

    fn remove_file(&self, directory: &Path, name: &str) -> io::Result<()> {
        let path = directory.join(name);
        let bytes = fs::metadata(&path).map_or(0, |file| file.len());
        remove_if_there(&path)?;
        // The quota is of packets alone.
        if name.contains(".pcapng") {
            self.store.usage().give_back(bytes);
        }
        Ok(())
    }

    /// Takes up what an agent that died had begun.
    pub(super) fn finish_deletions(&mut self) -> io::Result<()> {
        for ending in [TOMBSTONE_PART, HOLD_PART, RELEASE_PART, RECEIPT_PART] {
            for id in self.store.ids(ending).map_err(io::Error::other)? {
                remove_if_there(&self.store.file(id, ending))?;
            }
        }
        let there = self.store.captures_with_files()?;
        let buried = self.store.ids(TOMBSTONE).map_err(io::Error::other)?;
        for id in buried.into_iter().filter(|id| there.contains(id)) {
            self.remove_again(id);
        }
        Ok(())
    }

    fn remove_again(&mut self, id: CaptureId) {
        let tombstone = read(&self.store.file(id, TOMBSTONE)).and_then(|bytes| {
            let manifest = read(&self.manifest(id))?;
            let open = |bytes: &[u8]| Tombstone::open(bytes, &self.keys.public);
            let tombstone = open(&bytes).map_err(io::Error::other)?;
            let of = Manifest::open(&manifest, &self.keys.public).map_err(io::Error::other)?;
            if tombstone.is_of(&of, Digest::of(&manifest)) && !self.store.file(id, HOLD).exists() {
                Ok(tombstone)
            } else {
                Err(io::Error::other("it is of something else, or held"))
            }
        });
        match tombstone {
            Ok(tombstone) => self.remove_buried(&tombstone),
            // Nothing is removed on a stranger's word.
            Err(error) => {
                self.buried.remove(&id);
                tracing::error!(capture = %id, %error, "a tombstone that is not this node's");
            }
        }
    }

    /// What could not be removed, or deleted, is tried again from time to time.
    pub(super) fn try_again(&mut self) {
        if self.next_removal > Instant::now() {
            return;
        }
        self.next_removal = Instant::now() + STUCK;
        self.told.inventory().try_again();
        for id in self.buried.clone() {
            self.remove_again(id);
        }
    }

    /// Some of what is due. Whether more may be.
    pub(super) fn retain(&mut self) -> bool {
        let limits = self.store.retention();
        let by = format!("agent of {} (retention)", self.origin.node);
        for _ in 0..BATCH {
            let used = self.store.used_bytes();
            let next = self.told.inventory().next(limits, used, Timestamp::now());
            let Some((id, cause)) = next else {
                return false;
            };
            if let Err(error) = self.delete(id, (cause, "", &by)) {
                tracing::error!(capture = %id, %error, "failed to delete; tried again later");
                self.told.inventory().stuck(id);
            }
        }
        true
    }
}
