//! What waits for its turn, and what had it.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    time::Duration,
};

use super::{
    Account, Bounds,
    block::{self, Described, corrected},
    names::Names,
    source::{INTERFACES_MAX, SourceError, SourceState},
};
use crate::pcapng::{Block, BlockKind, Section, section_header};

/// Comments of the sources' sections that the merged one keeps: their captures' ids and the alert.
const COMMENTS_MAX: usize = 12;

/// A packet that waits; ordered by time, then by source, so that the segments of a packet stay
/// together.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    time_ns: u64,
    source: u16,
    order: u64,
    came: Duration,
    block: Box<[u8]>,
}

/// The merged file's beginning, until the first byte of it is taken.
#[derive(Debug)]
pub(super) struct Heading {
    pub(super) hardware: String,
    pub(super) os: String,
    pub(super) application: String,
    pub(super) comments: Vec<String>,
}

/// An interface's last Interface Statistics Block. Of a set of files each tells only what it holds
/// itself: what those before the last one held is added up.
#[derive(Debug, Default)]
struct Told {
    block: Vec<u8>,
    delivered_before: u64,
}

#[derive(Debug)]
pub(super) struct Timeline {
    bounds: Bounds,
    /// `None` once it is written.
    heading: Option<Heading>,
    waiting: BinaryHeap<Reverse<Waiting>>,
    waiting_bytes: usize,
    names: Names,
    interfaces: u32,
    interface_names: HashSet<String>,
    /// The account of each interface, for the end.
    statistics: HashMap<u32, Told>,
    /// Blocks that stand before any packet that waits.
    described: Vec<u8>,
    out: Vec<u8>,
    last_ns: u64,
    order: u64,
    pub(super) account: Account,
}

impl Timeline {
    pub(super) fn new(heading: Heading, bounds: Bounds) -> Self {
        Self {
            bounds,
            heading: Some(heading),
            waiting: BinaryHeap::new(),
            waiting_bytes: 0,
            names: Names::default(),
            interfaces: 0,
            interface_names: HashSet::new(),
            statistics: HashMap::new(),
            described: Vec::new(),
            out: Vec::new(),
            last_ns: 0,
            order: 0,
            account: Account::default(),
        }
    }

    /// Takes a block of a source.
    pub(super) fn take(
        &mut self,
        source: &mut SourceState,
        block: Block<'_>,
        now: Duration,
    ) -> Result<(), SourceError> {
        match block.kind {
            BlockKind::SectionHeader => {
                for interface in source.section.drain(..) {
                    if let Some(told) = self.statistics.get_mut(&interface) {
                        told.delivered_before += block::delivered(&told.block);
                        block::set_delivered(&mut told.block, 0);
                    }
                }
                self.comments(&block);
            }
            BlockKind::InterfaceDescription => self.interface(source, &block)?,
            BlockKind::NameResolution => self.described.extend(self.names.unite(block.body)),
            BlockKind::EnhancedPacket => self.packet(source, &block, now),
            BlockKind::InterfaceStatistics => {
                if let Some(interface) = interface_of(source, &block) {
                    let correction = source.correction_ns();
                    self.statistics.entry(interface).or_default().block =
                        block::statistics(&block, interface, correction);
                }
            }
            BlockKind::Other(_) => self.account.left_out += 1,
        }
        Ok(())
    }

    fn comments(&mut self, block: &Block<'_>) {
        const COMMENT: u16 = 1;
        let Some(heading) = &mut self.heading else {
            return;
        };
        for (_, text) in block.options().filter(|(code, _)| *code == COMMENT) {
            let text = String::from_utf8_lossy(text).into_owned();
            if heading.comments.len() < COMMENTS_MAX && !heading.comments.contains(&text) {
                heading.comments.push(text);
            }
        }
    }

    fn interface(
        &mut self,
        source: &mut SourceState,
        block: &Block<'_>,
    ) -> Result<(), SourceError> {
        // The same one again, in a later section: one that this section has not described yet.
        let again = source
            .known
            .iter()
            .find(|(body, number)| body == block.body && !source.section.contains(number));
        if let Some((_, number)) = again {
            source.section.push(*number);
            return Ok(());
        }
        if source.known.len() == INTERFACES_MAX {
            return Err(SourceError::Interfaces);
        }
        let described = Described::read(block).ok_or(SourceError::Interface)?;
        let number = self.interfaces;
        self.interfaces += 1;
        let name = self.unique(described.name(), &source.origin.node);
        self.described
            .extend(described.with(&name, &source.remark()));
        source.known.push((block.body.to_vec(), number));
        source.section.push(number);
        Ok(())
    }

    /// Of two interfaces that have one name the later has its node's, too.
    fn unique(&mut self, name: String, node: &str) -> String {
        if self.interface_names.insert(name.clone()) {
            return name;
        }
        let named = format!("{name}@{node}");
        self.interface_names.insert(named.clone());
        named
    }

    fn packet(&mut self, source: &mut SourceState, block: &Block<'_>, now: Duration) {
        let (Some(interface), Some(time)) = (interface_of(source, block), block.time()) else {
            // The walk over the blocks let none through whose interface is not described.
            self.account.left_out += 1;
            return;
        };
        let time_ns = corrected(time, source.correction_ns());
        source.latest_ns = source.latest_ns.max(Some(time_ns));
        source.queued += 1;
        let block = block::packet(block, interface, time_ns, u64::from(source.number) << 48);
        self.waiting_bytes += block.len();
        self.order += 1;
        self.waiting.push(Reverse(Waiting {
            time_ns,
            source: source.number,
            order: self.order,
            came: now,
            block,
        }));
    }

    /// Writes the packets whose turn has come: before `settled_ns` nothing comes any more. `None`:
    /// all. Tells of which source each is.
    pub(super) fn settle(
        &mut self,
        settled_ns: Option<u64>,
        now: Duration,
        mut written: impl FnMut(u16),
    ) {
        while let Some(Reverse(first)) = self.waiting.peek() {
            let is_settled = settled_ns.is_none_or(|settled| first.time_ns <= settled);
            let is_due = || {
                let hold = self.bounds.hold;
                hold.is_some_and(|hold| now.saturating_sub(first.came) >= hold)
            };
            if !(is_settled || is_due()) && self.waiting_bytes <= self.bounds.bytes {
                break;
            }
            let Some(Reverse(first)) = self.waiting.pop() else {
                break;
            };
            self.waiting_bytes -= first.block.len();
            written(first.source);
            self.write(&first);
        }
    }

    fn write(&mut self, packet: &Waiting) {
        self.begin();
        self.account.packets += 1;
        if packet.time_ns >= self.last_ns {
            self.last_ns = packet.time_ns;
            self.out.extend_from_slice(&packet.block);
            return;
        }
        self.account.late += 1;
        let late = Duration::from_nanos(self.last_ns - packet.time_ns);
        self.account.latest = self.account.latest.max(late);
        let comment = format!("out of order: came {late:?} late");
        self.out
            .extend_from_slice(&block::commented(&packet.block, &comment));
    }

    /// The heading, once, then what describes the packets to come.
    fn begin(&mut self) {
        if let Some(heading) = self.heading.take() {
            self.out.extend(section_header(&Section {
                hardware: &heading.hardware,
                os: &heading.os,
                application: &heading.application,
                comments: &heading.comments,
            }));
        }
        self.out.append(&mut self.described);
    }

    /// What is written and not taken yet. Nothing before the first source has described itself.
    pub(super) fn written(&mut self) -> Vec<u8> {
        if !self.described.is_empty() {
            self.begin();
        }
        std::mem::take(&mut self.out)
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// The end: all that waits, then the accounts of the interfaces.
    pub(super) fn finish(mut self) -> (Vec<u8>, Account) {
        self.settle(None, Duration::ZERO, |_| {});
        self.begin();
        let mut statistics: Vec<_> = self.statistics.into_iter().collect();
        statistics.sort_unstable_by_key(|(interface, _)| *interface);
        for (_, mut told) in statistics {
            let here = block::delivered(&told.block);
            block::set_delivered(&mut told.block, told.delivered_before + here);
            self.out.extend(told.block);
        }
        (self.out, self.account)
    }
}

fn interface_of(source: &SourceState, block: &Block<'_>) -> Option<u32> {
    let number = block.interface_id()? as usize;
    source.section.get(number).copied()
}
