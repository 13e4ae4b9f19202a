//! One of the streams that are merged: its blocks, checked, with its own interfaces known.

use std::{
    io::{self, Read},
    time::Duration,
};

use super::NodeClock;
use crate::pcapng::{Block, Blocks, Tear};

/// Interfaces that one source may have, over all its sections.
pub const INTERFACES_MAX: usize = 256;

/// How much earlier than one that came before it a packet of the same source may be: packets are
/// stamped before they have their place in the node's ring.
pub const DISORDER: Duration = Duration::from_millis(10);

/// Where a source comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub node: String,
    /// `None` where it was not measured.
    pub clock: Option<NodeClock>,
}

/// A source is no stream of an agent's. What came before is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("its stream is not pcapng: {0}")]
    Torn(Tear),
    #[error("its stream has an interface that is not Ethernet in nanoseconds")]
    Interface,
    #[error("its stream has more than {INTERFACES_MAX} interfaces")]
    Interfaces,
    #[error("it sent blocks after its end")]
    Ended,
}

/// Bytes that came and are not read yet.
#[derive(Debug, Default)]
struct Feed {
    bytes: Vec<u8>,
    at: usize,
}

impl Read for Feed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut rest = &self.bytes[self.at..];
        let n = rest.read(buf)?;
        self.at += n;
        Ok(n)
    }
}

#[derive(Debug)]
pub(super) struct Source {
    blocks: Blocks<Feed>,
    pub(super) state: SourceState,
}

/// What is known of a source.
#[derive(Debug)]
pub(super) struct SourceState {
    pub(super) number: u16,
    pub(super) origin: Origin,
    /// Of the present section: interfaces of the merged file.
    pub(super) section: Vec<u32>,
    /// Every interface that it ever described, as it did, and which that is in the merged file: each
    /// file of a set that rotates describes them again.
    pub(super) known: Vec<(Vec<u8>, u32)>,
    /// The latest time that came, in the merger's clock; `None` before the first packet.
    pub(super) latest_ns: Option<u64>,
    pub(super) is_open: bool,
    /// Packets that wait.
    pub(super) queued: usize,
}

impl Source {
    pub(super) fn new(number: u16, origin: Origin) -> Self {
        Self {
            blocks: Blocks::new(Feed::default()),
            state: SourceState {
                number,
                origin,
                section: Vec::new(),
                known: Vec::new(),
                latest_ns: None,
                is_open: true,
                queued: 0,
            },
        }
    }

    /// Hands each of the blocks to `take`, with what is known of the source.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(&mut SourceState, Block<'_>) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        if !self.state.is_open {
            return Err(SourceError::Ended);
        }
        let feed = self.blocks.reader_mut();
        feed.bytes.clear();
        feed.bytes.extend_from_slice(bytes);
        feed.at = 0;
        let blocks = &mut self.blocks;
        while let Some(block) = blocks.next_block().expect("memory is read without errors") {
            take(&mut self.state, block)?;
        }
        match blocks.tear() {
            Some(tear) => Err(SourceError::Torn(tear)),
            None => Ok(()),
        }
    }
}

impl SourceState {
    pub(super) fn correction_ns(&self) -> i64 {
        self.origin.clock.map_or(0, NodeClock::correction_ns)
    }

    /// Before this time nothing comes of it any more, as far as one can tell.
    pub(super) fn settled_ns(&self) -> u64 {
        if !self.is_open {
            return u64::MAX;
        }
        let disorder = DISORDER.as_nanos() as u64;
        self.latest_ns.map_or(0, |ns| ns.saturating_sub(disorder))
    }

    /// What its interfaces' descriptions say beside what its agent wrote.
    pub(super) fn remark(&self) -> String {
        let clock = match self.origin.clock {
            Some(clock) => clock.to_string(),
            None => "clock not compared with the controller's".to_owned(),
        };
        format!("node {}; {clock}", self.origin.node)
    }
}
