//! What keeps a capture, and lets it go.
//!
//! ```text
//! <id>.hold.json, a link of the chain: written aside, synced, renamed ─▶ directory synced ─▶ chain.head
//! <id>.N.release.json, likewise ─▶ <id>.hold.json removed ─▶ directory synced
//! ```
//! A release has the hold's file in it. Killed before a rename, nothing was done; killed after that of a
//! release, the next start removes the hold.

use std::{fs, io};

use jiff::Timestamp;
use remora_capture::{
    evidence::{
        Cause, Digest, EnvelopeError, HOLD_ENDING, Head, Hold, Link, Release, TOMBSTONE_ENDING,
        Tombstone,
    },
    session::CaptureId,
};

use super::{Sealer, deletion::failed, sealer::read, sync_directory};
use crate::{
    custody::{CustodyError, Mark},
    sink::{
        Store,
        fail_point::reach,
        store::{remove_if_there, write_anew},
    },
};

pub(super) const HOLD: &str = "hold.json";
pub(super) const HOLD_PART: &str = "hold.part";
pub(super) const RELEASE_PART: &str = "release.part";

/// Where the test may kill it.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) signed: &'static str,
    pub(super) written: &'static str,
    pub(super) synced: &'static str,
    pub(super) renamed: &'static str,
}

const HOLD_STEPS: Steps = Steps {
    signed: "hold signed",
    written: "hold written",
    synced: "hold synced",
    renamed: "hold renamed",
};
const RELEASE_STEPS: Steps = Steps {
    signed: "release signed",
    written: "release written",
    synced: "release synced",
    renamed: "release renamed",
};

impl Store {
    /// What lies beside a capture, by its own word.
    pub(in crate::sink) fn read_mark(&self, id: CaptureId) -> Mark {
        let read = |ending: &str| read(&self.directory.join(format!("{id}{ending}")));
        if let Ok(bytes) = read(TOMBSTONE_ENDING)
            && let Ok(tombstone) = Tombstone::unverified(&bytes)
        {
            return Mark::Deleted(Box::new(tombstone));
        }
        match read(HOLD_ENDING) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Mark::None,
            // What cannot be read holds all the same.
            read => Mark::Held(Box::new(hold_of(id, read))),
        }
    }

    /// The tombstone of who asked with these words, and its place in the chain.
    pub(in crate::sink) fn read_deleted(
        &self,
        id: CaptureId,
        by: &str,
        why: &str,
    ) -> Option<(Tombstone, Head)> {
        let bytes = read(&self.directory.join(format!("{id}{TOMBSTONE_ENDING}"))).ok()?;
        let stone = Tombstone::unverified(&bytes).ok()?;
        let is_theirs = stone.cause == Cause::Requested && stone.by == by && stone.why == why;
        let head = stone.chain.head(Digest::of(&bytes));
        is_theirs.then_some((stone, head))
    }

    /// The hold that the last release ended, if it was these who asked for that.
    pub(in crate::sink) fn read_released(&self, id: CaptureId, by: &str) -> Option<Hold> {
        let names = self.releases().ok()?.into_iter();
        let names = names.filter(|name| Release::capture_of(name) == Some(id));
        let releases = names.filter_map(|name| {
            let bytes = read(&self.directory.join(name)).ok()?;
            Release::unverified(&bytes).ok()
        });
        let last = releases.max_by_key(|release| release.chain.sequence)?;
        let hold = last.hold.unwrap_or_default().into_bytes();
        (last.by == by).then(|| hold_of(id, Ok(hold)))
    }
}

fn hold_of(id: CaptureId, read: io::Result<Vec<u8>>) -> Hold {
    let hold = read.ok().and_then(|bytes| Hold::unverified(&bytes).ok());
    hold.unwrap_or_else(|| Hold {
        capture_id: id,
        chain: None,
        since: Timestamp::UNIX_EPOCH,
        why: "the file of its hold cannot be read".to_owned(),
        by: "somebody".to_owned(),
    })
}

impl Sealer {
    /// Takes up what is held.
    pub(super) fn read_holds(&self) -> io::Result<()> {
        let ids = self.store.ids(HOLD).map_err(io::Error::other)?;
        for id in ids {
            if self.is_released(id)? {
                self.unhold(id)?;
                continue;
            }
            let bytes = read(&self.store.file(id, HOLD))?;
            if let Err(error) = Hold::from_signed(&bytes, &self.keys.public) {
                tracing::error!(capture = %id, %error, "a hold that is not this node's; it holds all the same");
            }
            self.told.inventory().hold(id, true);
        }
        Ok(())
    }

    /// An agent died, or the disk failed, between the release and the removal of the hold.
    fn is_released(&self, id: CaptureId) -> io::Result<bool> {
        let hold = read(&self.store.file(id, HOLD))?;
        for name in self.store.releases()? {
            if Release::capture_of(&name) != Some(id) {
                continue;
            }
            let bytes = read(&self.store.directory.join(&name))?;
            let release = Release::from_signed(&bytes, &self.keys.public);
            if release.is_ok_and(|release| release.ends(&hold)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes the hold, whose release is on the disk.
    fn unhold(&self, id: CaptureId) -> io::Result<()> {
        remove_if_there(&self.store.file(id, HOLD))?;
        reach("hold removed");
        sync_directory(&self.store.directory)?;
        self.told.inventory().hold(id, false);
        Ok(())
    }

    pub(super) fn hold(
        &mut self,
        id: CaptureId,
        why: &str,
        by: &str,
    ) -> Result<Hold, CustodyError> {
        self.find(id)?;
        if let Mark::Held(hold) = self.store.read_mark(id) {
            return Ok(*hold);
        }
        let link = Link::after(self.told.head().as_ref());
        let hold = Hold {
            capture_id: id,
            chain: Some(link.clone()),
            since: Timestamp::now(),
            why: why.to_owned(),
            by: by.to_owned(),
        };
        let signed = hold.to_signed(&self.keys.secret);
        let name = format!("{id}{HOLD_ENDING}");
        let kept = self.keep_link(id, (HOLD_PART, &name), &link, signed, HOLD_STEPS, || {
            self.told.inventory().hold(id, true);
        });
        kept.map_err(failed(id, "failed to write the hold"))?;
        tracing::info!(capture = %id, why, by, "held");
        Ok(hold)
    }

    pub(super) fn release(&mut self, id: CaptureId, by: &str) -> Result<Hold, CustodyError> {
        self.find(id)?;
        let Mark::Held(hold) = self.store.read_mark(id) else {
            return Err(CustodyError::NotHeld(id));
        };
        self.try_release(id, by)
            .map_err(failed(id, "failed to release"))?;
        tracing::info!(capture = %id, by, hold = hold.text(), "released");
        Ok(*hold)
    }

    fn try_release(&self, id: CaptureId, by: &str) -> io::Result<()> {
        if self.is_released(id)? {
            return self.unhold(id);
        }
        let bytes = read(&self.store.file(id, HOLD))?;
        let is_ours = Hold::from_signed(&bytes, &self.keys.public).is_ok();
        let link = Link::after(self.told.head().as_ref());
        let release = Release {
            capture_id: id,
            chain: link.clone(),
            released: Timestamp::now(),
            by: by.to_owned(),
            hold: String::from_utf8(bytes).ok().filter(|_| is_ours),
        };
        let signed = release.to_signed(&self.keys.secret);
        let name = release.file_name();
        self.keep_link(
            id,
            (RELEASE_PART, &name),
            &link,
            signed,
            RELEASE_STEPS,
            || {},
        )?;
        self.unhold(id)
    }

    /// Puts a document into the chain; `done` once it has its name, whatever comes after.
    pub(super) fn keep_link(
        &self,
        id: CaptureId,
        (aside, name): (&str, &str),
        link: &Link,
        signed: Result<Vec<u8>, EnvelopeError>,
        steps: Steps,
        done: impl FnOnce(),
    ) -> io::Result<()> {
        let signed = signed.map_err(io::Error::other)?;
        reach(steps.signed);
        let aside = self.store.file(id, aside);
        let file = write_anew(&aside, &signed)?;
        reach(steps.written);
        file.sync_all()?;
        reach(steps.synced);
        fs::rename(&aside, self.store.directory.join(name))?;
        reach(steps.renamed);
        let head = link.head(Digest::of(&signed));
        self.tell(Some(head));
        done();
        sync_directory(&self.store.directory)?;
        reach("directory synced");
        self.keep_head(head)
    }
}
