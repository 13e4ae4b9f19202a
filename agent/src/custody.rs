//! What is done with captures that are kept: they are deleted, held, and let go.

use std::io;

use remora_capture::{
    evidence::{Head, Hold, Tombstone},
    session::CaptureId,
};

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum CustodyError {
    #[error("capture {0} is not known here; `remora list --all` shows those that are")]
    NotFound(CaptureId),
    #[error("capture {0} runs; `remora stop {0}` ends it")]
    Running(CaptureId),
    #[error("capture {0} was streamed to its reader; nothing of it is kept here")]
    NotKept(CaptureId),
    #[error("capture {id} is {hold}; `remora release {id}` lets it go", id = .0.capture_id, hold = .0.text())]
    Held(Box<Hold>),
    #[error(
        "capture {0} is not in its sink yet (`remora show {0}` says why); `remora delete --not-uploaded {0}` deletes \
         it all the same"
    )]
    NotUploaded(CaptureId),
    #[error("capture {0} is not held")]
    NotHeld(CaptureId),
    #[error(
        "capture {id} was {stone}; `remora show {id} --custody` tells its story",
        id = .0.capture_id, stone = .0.text()
    )]
    Deleted(Box<Tombstone>),
    #[error("the agent is ending, or has too much to do: try again")]
    Busy,
    #[error("{what} of capture {id}: {source}")]
    Io {
        id: CaptureId,
        what: &'static str,
        source: io::Error,
    },
}

/// What is to be known of a capture beside its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    None,
    Held(Box<Hold>),
    Deleted(Box<Tombstone>),
}

/// Who keeps captures. All calls block.
pub trait Custodian: Send + Sync {
    /// Deletes a capture's files; answers with the chain's head. One that waits for its upload only if
    /// `not_uploaded` says so.
    ///
    /// # Errors
    /// [`CustodyError`]; it was not deleted.
    fn delete(
        &self,
        id: CaptureId,
        by: &str,
        why: &str,
        not_uploaded: bool,
    ) -> Result<(Tombstone, Head), CustodyError>;

    /// Holds a capture; one that is held stays as it is.
    ///
    /// # Errors
    /// [`CustodyError`].
    fn hold(&self, id: CaptureId, by: &str, why: &str) -> Result<Hold, CustodyError>;

    /// Lets a capture go, and answers with the hold that was.
    ///
    /// # Errors
    /// [`CustodyError`].
    fn release(&self, id: CaptureId, by: &str) -> Result<Hold, CustodyError>;

    /// What [`delete`](Self::delete) answered to the same, who asks again since the answer was lost.
    fn deleted(&self, id: CaptureId, by: &str, why: &str) -> Option<(Tombstone, Head)>;

    /// What the last [`release`](Self::release) answered, likewise.
    fn released(&self, id: CaptureId, by: &str) -> Option<Hold>;

    /// What lies beside a capture, by its own word.
    fn mark(&self, id: CaptureId) -> Mark;
}
