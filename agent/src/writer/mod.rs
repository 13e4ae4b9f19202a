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

/// Whole blocks within the first `limit` bytes of blocks that we encoded ourselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    pub bytes: usize,
    /// Enhanced Packet Blocks among them.
    pub packets: u64,
}

/// Counts the blocks that end within `limit`.
#[must_use]
pub fn whole_blocks(blocks: &[u8], limit: usize) -> Whole {
    const ENHANCED_PACKET: u32 = 6;
    let field = |at: usize| {
        blocks
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_le_bytes)
    };
    let mut whole = Whole::default();
    while let (Some(kind), Some(len)) = (field(whole.bytes), field(whole.bytes + 4)) {
        let end = whole.bytes + len as usize;
        if len < 12 || end > limit.min(blocks.len()) {
            break;
        }
        whole.bytes = end;
        whole.packets += u64::from(kind == ENHANCED_PACKET);
    }
    whole
}

#[cfg(test)]
mod tests {
    use remora_capture::pcapng::{PacketDirection, PacketMeta, encode_packet};

    use super::*;

    #[test]
    fn a_cut_anywhere_keeps_the_blocks_before_it() {
        let mut blocks = Vec::new();
        let mut ends = vec![0];
        for len in [0usize, 1, 60, 1500] {
            let meta = PacketMeta {
                interface_id: 0,
                time_ns: 1,
                direction: PacketDirection::Ingress,
                packet_id: 1,
                drop_count: 0,
                original_len: 1500,
                comment: None,
            };
            encode_packet(&mut blocks, &meta, &[], &vec![7; len]);
            ends.push(blocks.len());
        }
        for cut in 0..=blocks.len() {
            let packets = ends.iter().filter(|end| **end <= cut).count() - 1;
            let expected = Whole {
                bytes: ends[packets],
                packets: packets as u64,
            };
            assert_eq!(whole_blocks(&blocks, cut), expected, "cut at {cut}");
        }
    }
}
