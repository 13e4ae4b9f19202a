//! One pcapng of many: the streams of several agents in the order of their packets' time.
//!
//! ```text
//! push(source, blocks) ─▶ checked, renumbered, in the merger's clock ─▶ waiting, by time ─┐
//!                                                                                         ▼
//! take() ◀── heading, interfaces, names ◀── packets whose turn has come: every open source is past
//!                                           them, or they waited for `hold`, or there is no room
//! ```
//! - Each interface of a source is one of the merged file, described with its node and its node's
//!   clock. Times are the merger's: what a clock is ahead is taken off ([`NodeClock`]).
//! - No packet is left out or doubled. One that comes after a later one was written is written all
//!   the same, with a comment, and counted.
//! - Packet ids are the source's own, with its number (from 0) in the upper 16 bits: a gap is still a
//!   loss. Drop counts stay with their packets, accounts (ISB) with their interfaces; the last of
//!   each comes at the end.
//! - An address has one name.
//! - What is no stream of an agent's ends its source, and no other.

mod block;
mod clock;
mod names;
mod source;
mod timeline;

use std::time::Duration;

pub use clock::NodeClock;
use source::Source;
pub use source::{DISORDER, INTERFACES_MAX, Origin, SourceError};
use timeline::{Heading, Timeline};

use crate::pcapng::Section;

/// Sources that a merged file has: their numbers have 16 bits of a packet's id.
pub const SOURCES_MAX: usize = 1 << 16;

/// How long and how much is kept back for the sake of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How long a packet waits for sources that are silent. `None`: until they speak or end, for
    /// what is read from files.
    pub hold: Option<Duration>,
    /// Bytes of packets that wait; beyond, the earliest goes.
    pub bytes: usize,
}

impl Bounds {
    /// For packets that are captured now.
    pub const LIVE: Self = Self {
        hold: Some(Duration::from_secs(1)),
        bytes: 64 * 1024 * 1024,
    };
    /// For captures that have ended, of which a piece is read when it is wanted
    /// ([`Merge::wanted`]).
    pub const STORED: Self = Self {
        hold: None,
        bytes: 512 * 1024 * 1024,
    };
}

/// Which source a piece is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(u16);

/// What became of the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Packet blocks that were written.
    pub packets: u64,
    /// Of these: after one with a later time.
    pub late: u64,
    /// By how much, at most.
    pub latest: Duration,
    /// Blocks of kinds that agents do not write.
    pub left_out: u64,
}

/// Streams that become one.
#[derive(Debug)]
pub struct Merge {
    sources: Vec<Source>,
    timeline: Timeline,
}

impl Merge {
    /// With this heading, to which the comments of the first sources' sections come.
    #[must_use]
    pub fn new(section: &Section<'_>, bounds: Bounds) -> Self {
        let heading = Heading {
            hardware: section.hardware.to_owned(),
            os: section.os.to_owned(),
            application: section.application.to_owned(),
            comments: section.comments.to_vec(),
        };
        Self {
            sources: Vec::new(),
            timeline: Timeline::new(heading, bounds),
        }
    }

    /// One more stream; `None` when there are [`SOURCES_MAX`] already.
    pub fn add(&mut self, origin: Origin) -> Option<SourceId> {
        let number = u16::try_from(self.sources.len()).ok()?;
        self.sources.push(Source::new(number, origin));
        Some(SourceId(number))
    }

    /// The next piece of a source, of whole blocks. `now` counts from any moment, the same for all.
    ///
    /// # Errors
    /// It is none; the source has ended with what came before.
    pub fn push(
        &mut self,
        source: SourceId,
        blocks: &[u8],
        now: Duration,
    ) -> Result<(), SourceError> {
        let timeline = &mut self.timeline;
        let source = &mut self.sources[usize::from(source.0)];
        let read = source.read(blocks, |state, block| timeline.take(state, block, now));
        if read.is_err() {
            source.state.is_open = false;
        }
        read
    }

    /// Nothing more comes of this source.
    pub fn end(&mut self, source: SourceId) {
        self.sources[usize::from(source.0)].state.is_open = false;
    }

    /// The sources that all others wait for: those that are open and have nothing that waits.
    pub fn wanted(&self) -> impl Iterator<Item = SourceId> + '_ {
        let lacking = self.sources.iter().map(|source| &source.state);
        let earliest = self.settled_ns();
        lacking
            .filter(move |state| {
                state.is_open && (state.queued == 0 || state.settled_ns() <= earliest)
            })
            .map(|state| SourceId(state.number))
    }

    /// Bytes of packets that wait.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.timeline.waiting_bytes()
    }

    /// The next whole blocks of the merged file; empty when nothing's turn has come.
    pub fn take(&mut self, now: Duration) -> Vec<u8> {
        let settled = self.settled_ns();
        let Self { sources, timeline } = self;
        timeline.settle(Some(settled), now, |source| {
            sources[usize::from(source)].state.queued -= 1;
        });
        timeline.written()
    }

    /// Before this time nothing comes any more of any source.
    fn settled_ns(&self) -> u64 {
        let settled = self.sources.iter().map(|source| source.state.settled_ns());
        settled.min().unwrap_or(u64::MAX)
    }

    /// The rest of the merged file.
    #[must_use]
    pub fn finish(self) -> (Vec<u8>, Account) {
        self.timeline.finish()
    }
}
