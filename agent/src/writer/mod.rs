//! From ring records to pcapng blocks.
//!
//! ```text
//! ring ─▶ consumer (one thread) ─▶ lane of each session ─batch─▶ writer (a thread a session) ─▶ sink
//!            parse, stale?            encode one block            one append a batch
//! ```
//! - [`consumer`]: reads the ring, hands each packet to the lanes of its sessions.
//! - [`lane`]: a session's encoder and its current batch.
//! - [`memory`]: bounds what all batches together take.
//! - [`output`]: a session's writer thread, and how it ends with exact counts.
//!
//! A packet is counted at each place where it can end: `read = written + dropped_queue +
//! dropped_io + malformed + stale`. The consumer never waits for a sink.

pub mod consumer;
pub mod lane;
pub mod memory;
pub mod output;

use std::{sync::Arc, time::Duration};

use nix::sys::eventfd::EventFd;
use remora_capture::pcapng::{Finished, Totals, Whole};

pub use consumer::{Consumer, ConsumerHandle, RecordTotals};
pub use output::{WriterOutput, open};

/// Where records come from.
pub trait RecordSource: Send + 'static {
    /// Hands the next record to `visit`; false if there is none now.
    fn next(&mut self, visit: &mut dyn FnMut(&[u8])) -> bool;

    /// Waits until much is there, someone calls the waker, or the time is over (`None`: never).
    fn wait(&mut self, timeout: Option<Duration>);

    fn waker(&self) -> Waker;
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

/// Where blocks go.
pub trait Sink: Send {
    /// Takes whole blocks, in which `counted` is. After an error the output ends on a whole block
    /// all the same, and [`Sink::totals`] tells which of them are in it. May give the buffer back.
    ///
    /// # Errors
    /// Not all of them are in the output.
    fn append(&mut self, blocks: Vec<u8>, counted: Whole) -> Result<Option<Vec<u8>>, AppendError>;

    /// What the output holds.
    fn totals(&self) -> Totals;

    /// Room that was kept for the end is given free.
    fn release_reserve(&mut self) {}

    /// Nothing comes any more. Tells the files, and what failed, for a person.
    fn finish(&mut self) -> (Finished, Result<(), String>);
}

/// A sink did not take all.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct AppendError {
    pub reason: remora_capture::session::StopReason,
    pub problem: String,
}
