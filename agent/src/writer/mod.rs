//! From ring records to pcapng blocks.
//!
//! ```text
//! ring ─▶ consumer (one thread) ─▶ lane of each session ─batch─▶ writer (a thread a session) ─▶ sink
//!            parse, stale?            encode one block            one append a batch
//! ```
//! - [`consumer`]: reads the ring, hands each packet to the lanes of its sessions.
//! - [`lane`]: a session's way to its writer, and its current batch. [`encoder`]: its blocks.
//! - [`memory`]: bounds what all batches together take.
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

use std::{sync::Arc, time::Duration};

use nix::sys::eventfd::EventFd;

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
    /// Takes whole blocks. After an error the output ends on a whole block all the same.
    ///
    /// # Errors
    /// How many bytes (whole blocks) of `blocks` were taken nevertheless, and why no more.
    fn append(&mut self, blocks: Vec<u8>) -> Result<Option<Vec<u8>>, AppendError>;

    /// Room that was kept for the end is given free.
    fn release_reserve(&mut self) {}

    /// Nothing comes any more.
    ///
    /// # Errors
    /// What failed, for a person.
    fn finish(&mut self) -> Result<(), String>;
}

/// A sink did not take all.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct AppendError {
    /// Bytes of whole blocks that are in the output.
    pub taken: usize,
    /// The blocks, back.
    pub blocks: Vec<u8>,
    pub reason: remora_capture::session::StopReason,
    pub problem: String,
}
