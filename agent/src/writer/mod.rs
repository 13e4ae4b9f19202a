//! From ring records to pcapng blocks.
//!
//! ```text
//! ring ─▶ consumer (one thread) ─▶ lane of each session ─batch─▶ writer (a thread a session) ─▶ sink
//!            parse, stale?            encode one block            one append a batch
//! ```
//! - [`consumer`]: reads the ring, hands each packet to the lanes of its sessions.
//! - [`lane`]: a session's way to its writer, and its current batch. [`encoder`]: its blocks.
//! - [`memory`]: bounds what all batches together take.
//! - [`progress`]: what of the ring was read and written, for the agent after this one.
//! - [`output`]: a session's writer thread, and how it ends with exact counts.
//! - [`past`]: what it writes first: packets from before it began.
//!
//! A packet is counted at each place where it can end: `read = written + dropped_queue +
//! dropped_io + malformed + stale`. The consumer never waits for a sink.

pub mod consumer;
pub mod encoder;
pub mod lane;
pub mod memory;
pub mod output;
pub mod past;
mod patience;
pub mod progress;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use memory::Permit;
use nix::sys::eventfd::EventFd;
use remora_capture::pcapng::{Finished, Totals, Whole};

pub use consumer::{Consumer, ConsumerHandle, RecordTotals};
pub use output::{WriterOutput, open};

/// Where records come from.
pub trait RecordSource: Send + 'static {
    /// Hands the next record and its position to `visit`; false if there is none now.
    fn next(&mut self, visit: &mut dyn FnMut(u64, &[u8])) -> bool;

    /// Where the next record will be: bytes since the first one ever.
    fn position(&self) -> u64;

    /// Bytes that it holds.
    fn capacity(&self) -> u64;

    /// What lies before `position` may be written over.
    fn release(&mut self, position: u64);

    /// Waits until much is there, someone calls the waker, or the time is over (`None`: never).
    fn wait(&mut self, timeout: Option<Duration>);

    fn waker(&self) -> Waker;

    fn frontier(&self) -> Frontier;
}

/// Ends a [`RecordSource::wait`].
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    #[must_use]
    pub fn new(event: Arc<EventFd>) -> Self {
        Self(event)
    }

    pub fn wake(&self) {
        // Fails only when the count is at its end, and then a wake-up is pending anyway.
        if let Err(error) = self.0.write(1) {
            tracing::debug!(%error, "the consumer has wake-ups enough");
        }
    }
}

/// Tells where the next record will be *made*, which is ahead of where it is read.
#[derive(Clone)]
pub struct Frontier(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Frontier {
    #[must_use]
    pub fn new(position: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(position))
    }

    /// Bytes since the first record ever.
    #[must_use]
    pub fn position(&self) -> u64 {
        (self.0)()
    }
}

impl fmt::Debug for Frontier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Frontier").field(&self.position()).finish()
    }
}

/// Where blocks go.
pub trait Sink: Send {
    /// Takes whole blocks, in which `counted` is. After an error the output ends on a whole block
    /// all the same, and [`Sink::totals`] tells which of them are in it.
    ///
    /// # Errors
    /// Not all of them are in the output.
    fn append(&mut self, blocks: Blocks, counted: Whole) -> Result<(), AppendError>;

    /// What the output holds.
    fn totals(&self) -> Totals;

    /// When [`Sink::sync`] is due; `None` if it is not.
    fn sync_due(&self) -> Option<Instant> {
        None
    }

    /// Waits until what was taken is where it lasts.
    ///
    /// # Errors
    /// It may not be there.
    fn sync(&mut self) -> Result<(), AppendError> {
        Ok(())
    }

    /// Room that was kept for the end is given free.
    fn release_reserve(&mut self) {}

    /// Nothing comes any more. Tells the files, and what failed, for a person.
    fn finish(&mut self) -> (Finished, Result<(), String>);
}

/// Bytes of whole blocks in a buffer that is used again.
#[derive(Debug)]
pub struct Blocks {
    bytes: Vec<u8>,
    /// What may exist because of it; none for a header or an account.
    permit: Option<Permit>,
}

impl Blocks {
    /// Of a batch, whose room is given back when nobody needs the bytes any more.
    #[must_use]
    pub fn of_batch(bytes: Vec<u8>, permit: Permit) -> Self {
        let permit = Some(permit);
        Self { bytes, permit }
    }
}

impl From<Vec<u8>> for Blocks {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            permit: None,
        }
    }
}

impl AsRef<[u8]> for Blocks {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        if let Some(permit) = &self.permit {
            permit.share().give_back(std::mem::take(&mut self.bytes));
        }
    }
}

/// A sink did not take all.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct AppendError {
    pub reason: remora_capture::session::StopReason,
    pub problem: String,
}
