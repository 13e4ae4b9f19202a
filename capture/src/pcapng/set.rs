//! A capture's files: one, or a set that rotates by size and time.
//!
//! ```text
//! file 1                        file 2                             last file
//! section, interfaces, names    section, interfaces, names         …
//! packets 0 … n                 packets n+1 …                      …
//! its own statistics            its own statistics                 the set's statistics
//! ```
//! Each file is complete by itself, its section says which file of the set it is, and packet ids
//! go on from file to file. `isb_usrdeliv` is the file's own number of packets, so that it adds up
//! over the set; what was looked at, matched and lost is told once, in the last file.
//!
//! What a file's name is, and where it goes, is the [`Shelf`]'s business.

use std::{collections::VecDeque, io};

use super::{
    block_file::{BlockFile, Medium, Torn},
    blocks::{INTERFACE_DESCRIPTION, INTERFACE_STATISTICS, NAME_RESOLUTION, SECTION_HEADER},
    cold::{STATISTICS_BYTES_MAX, part_statistics, set_delivered, with_comment},
    part::{Part, Place, Totals},
    repair::Scan,
    whole::{PacketRun, Run, Whole, runs, whole_blocks},
};
use crate::{
    session::{Compression, Removed, Rotation},
    sidecar::CaptureFile,
};

/// Files that a set lists. One that is no ring rotates no more after as many.
pub const FILES_MAX: u32 = 9_999;

/// Where the files stand.
pub trait Shelf {
    type File: Medium;

    /// Makes a file; its name, without a directory.
    ///
    /// # Errors
    /// The file system's.
    fn create(&mut self, part: Part) -> io::Result<(String, Self::File)>;

    /// A file is complete.
    ///
    /// # Errors
    /// The file system's.
    fn close(&mut self, name: &str, file: Self::File) -> io::Result<()>;

    /// A file goes: a ring's oldest, or one that could not be begun.
    ///
    /// # Errors
    /// The file system's.
    fn remove(&mut self, file: &CaptureFile) -> io::Result<()>;
}

/// The files when all is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// Those that are there, oldest first.
    pub files: Vec<CaptureFile>,
    /// Those that a ring removed.
    pub removed: Removed,
}

/// The files of a set that is gone on with.
#[derive(Debug)]
pub struct SetSoFar<M> {
    /// Those that are complete, oldest first.
    pub closed: Vec<CaptureFile>,
    /// Those that a ring removed.
    pub removed: Removed,
    /// Name of the last one.
    pub name: String,
    /// The last one, at its end.
    pub last: M,
    /// What it holds.
    pub scan: Scan,
}

/// The open set.
#[derive(Debug)]
pub struct FileSet<S: Shelf> {
    shelf: S,
    rotation: Rotation,
    compressed: bool,
    start_ns: u64,
    /// Section, interfaces, names: what each file begins with.
    header: Vec<u8>,
    current: Option<Current<S::File>>,
    closed: VecDeque<CaptureFile>,
    removed: Removed,
    totals: Totals,
    /// Of the last packet that went in; what comes with the same one is more of its segments.
    last_id: Option<u64>,
}

#[derive(Debug)]
struct Current<M> {
    name: String,
    file: BlockFile<M>,
    part: Part,
    /// Bytes of blocks before compression.
    plain: u64,
    counted: Whole,
    dropped: u64,
    last_ns: u64,
    /// Number of the interval that its packets are from.
    period: u64,
}

impl<S: Shelf> FileSet<S> {
    /// Makes the first file.
    ///
    /// # Errors
    /// The shelf's.
    pub fn new(
        shelf: S,
        rotation: Rotation,
        compression: Compression,
        start_ns: u64,
    ) -> io::Result<Self> {
        let mut set = Self {
            shelf,
            rotation,
            compressed: compression == Compression::Zstd,
            start_ns,
            header: Vec::new(),
            current: None,
            closed: VecDeque::new(),
            removed: Removed::default(),
            totals: Totals::default(),
            last_id: None,
        };
        let first = Part {
            number: 1,
            time_ns: start_ns,
        };
        set.current = Some(set.open(first, &[])?);
        Ok(set)
    }

    /// Goes on with a set of plain files that another process was killed over. `header`: what each
    /// file begins with.
    pub fn go_on(
        shelf: S,
        rotation: Rotation,
        start_ns: u64,
        header: Vec<u8>,
        so_far: SetSoFar<S::File>,
    ) -> Self {
        let SetSoFar {
            closed,
            removed,
            name,
            last,
            scan,
        } = so_far;
        let time_ns = scan.first_packet_ns.unwrap_or(start_ns);
        let counted = Whole {
            bytes: 0,
            packets: scan.packets,
            blocks: scan.packet_blocks,
        };
        let mut set = Self {
            shelf,
            rotation,
            compressed: false,
            start_ns,
            header,
            current: None,
            totals: Totals {
                packets: removed.packets + counted.packets,
                blocks: removed.blocks + counted.blocks,
                bytes: removed.bytes,
            },
            closed: closed.into(),
            removed,
            last_id: scan.last_packet_id,
        };
        for file in &set.closed {
            set.totals.packets += file.packets;
            set.totals.blocks += file.blocks;
            set.totals.bytes += file.bytes;
        }
        let last_ns = scan.last_packet_ns.unwrap_or(time_ns);
        set.current = Some(Current {
            name,
            file: BlockFile::go_on(last, scan.whole_bytes),
            part: Part {
                number: scan.place.map_or(1, |place| place.number),
                time_ns,
            },
            plain: scan.whole_bytes,
            counted,
            dropped: scan.dropped,
            last_ns,
            period: set.period(last_ns),
        });
        set
    }

    #[must_use]
    pub fn totals(&self) -> Totals {
        let open = self.current.as_ref().map_or(0, |c| c.file.bytes());
        Totals {
            bytes: self.totals.bytes + open,
            ..self.totals
        }
    }

    /// Name and bytes of the file that is written now.
    #[must_use]
    pub fn current(&self) -> Option<(&str, u64)> {
        let current = self.current.as_ref()?;
        Some((&current.name, current.file.bytes()))
    }

    /// What stands beside the files.
    pub fn shelf(&mut self) -> &mut S {
        &mut self.shelf
    }

    /// Appends whole blocks, to further files where it must rotate. [`FileSet::totals`] tells how
    /// many of them are there after an error.
    ///
    /// # Errors
    /// A file's; the files end on whole packets.
    pub fn append(&mut self, blocks: &[u8]) -> io::Result<()> {
        if !self.rotation.is_on() {
            return self.put(blocks);
        }
        let (mut from, mut end) = (0, 0);
        let mut packets = 0;
        let mut last_id = self.last_id;
        for run in runs(blocks) {
            if let Some(packet) = run.packet {
                let continued = packet.id.is_some() && packet.id == last_id;
                if !continued && self.is_full(&run, packet, (run.bytes.start - from, packets)) {
                    self.put(&blocks[from..run.bytes.start])?;
                    (from, packets) = (run.bytes.start, 0);
                    self.rotate(packet.time_ns)?;
                }
                packets += u64::from(!continued);
                last_id = packet.id;
            } else if matches!(run.kind, SECTION_HEADER | INTERFACE_STATISTICS) {
                self.put(&blocks[from..run.bytes.start])?;
                (from, packets) = (run.bytes.end, 0);
                self.put_special(&blocks[run.bytes.clone()], run.kind)?;
            } else if matches!(run.kind, INTERFACE_DESCRIPTION | NAME_RESOLUTION) {
                self.header.extend_from_slice(&blocks[run.bytes.clone()]);
            }
            end = run.bytes.end;
        }
        self.put(&blocks[from..end])
    }

    /// Like [`FileSet::append`], of blocks that were counted when they were made: they are not
    /// walked again unless the set rotates or the file fails.
    ///
    /// # Errors
    /// As [`FileSet::append`]'s.
    pub fn append_counted(&mut self, blocks: &[u8], counted: Whole) -> io::Result<()> {
        debug_assert_eq!(counted.bytes, blocks.len());
        match &mut self.current {
            Some(current) if !self.rotation.is_on() => match current.file.append(blocks) {
                Ok(()) => {
                    self.count(counted);
                    Ok(())
                }
                Err(Torn { kept, error }) => {
                    self.count(whole_blocks(blocks, kept));
                    Err(error)
                }
            },
            _ => self.append(blocks),
        }
    }

    /// # Errors
    /// The disk's: what was written since the last time may not be on it.
    pub fn sync(&mut self) -> io::Result<()> {
        match &mut self.current {
            Some(current) => current.file.sync(),
            None => Ok(()),
        }
    }

    /// Closes the last file. The set is what it is, whether that fails or not.
    pub fn finish(&mut self) -> (Finished, io::Result<()>) {
        let closed = self.close();
        let finished = Finished {
            files: std::mem::take(&mut self.closed).into(),
            removed: self.removed,
        };
        (finished, closed)
    }

    /// Makes a file that begins with `head`; leaves none if that fails.
    fn open(&mut self, part: Part, head: &[u8]) -> io::Result<Current<S::File>> {
        let (name, medium) = self.shelf.create(part)?;
        let begun =
            BlockFile::new(medium, self.compressed).and_then(|mut file| match file.append(head) {
                Ok(()) => Ok(file),
                Err(Torn { error, .. }) => Err(error),
            });
        match begun {
            Ok(file) => Ok(Current {
                name,
                file,
                part,
                plain: head.len() as u64,
                counted: Whole::default(),
                dropped: 0,
                last_ns: part.time_ns,
                period: self.period(part.time_ns),
            }),
            Err(error) => {
                let nothing = CaptureFile {
                    name,
                    ..CaptureFile::default()
                };
                // The first error is the one to tell.
                let _secondary = self.shelf.remove(&nothing);
                Err(error)
            }
        }
    }

    fn period(&self, time_ns: u64) -> u64 {
        let interval = self.rotation.interval.map_or(0, |i| i.as_nanos());
        let since = u128::from(time_ns.saturating_sub(self.start_ns));
        u64::try_from(since.checked_div(interval).unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// The packet is for the next file, when `pending` bytes and packets come before it.
    fn is_full(&mut self, run: &Run, packet: PacketRun, (bytes, packets): (usize, u64)) -> bool {
        let period = self.period(packet.time_ns);
        let Rotation {
            file_bytes,
            interval: _,
            files,
        } = self.rotation;
        let Some(current) = &mut self.current else {
            return false;
        };
        if current.counted.packets + packets == 0 {
            // Every file has a packet at least, however large its head is.
            current.period = current.period.max(period);
            return false;
        }
        let is_ring = self.rotation.is_ring();
        let last = files.map_or(FILES_MAX, |files| files.get().min(FILES_MAX));
        if !is_ring && current.part.number >= last {
            return false;
        }
        let then = current.plain + (bytes + run.bytes.len() + STATISTICS_BYTES_MAX) as u64;
        file_bytes.is_some_and(|max| then > max.get()) || period > current.period
    }

    fn rotate(&mut self, time_ns: u64) -> io::Result<()> {
        let Some(current) = &self.current else {
            return Err(io::Error::other("the next file could not be made"));
        };
        let number = current.part.number + 1;
        let comment = format!(
            "file {} of a set: written={} dropped_before_its_packets={}; the account of the whole \
             set is in its last file",
            current.part.number, current.counted.packets, current.dropped
        );
        let statistics = part_statistics(
            current.part.time_ns,
            current.last_ns,
            current.counted.packets,
            &comment,
        );
        // Without room for it the file is whole all the same.
        let _no_room = self.put(&statistics);
        let next = Part { number, time_ns };
        // Until the next file is there, this one stays: it has to take the account then.
        if let Some(current) = &mut self.current {
            current.file.end()?;
        }
        if let (true, Some(files)) = (self.rotation.is_ring(), self.rotation.files) {
            // The current one is not among the closed yet.
            while self.closed.len() + 1 >= files.get() as usize
                && let Some(oldest) = self.closed.pop_front()
            {
                self.remove(&oldest)?;
            }
        }
        let first = runs(&self.header).next().map_or(0, |run| run.bytes.end);
        let (section, rest) = self.header.split_at(first);
        let place = Place {
            number,
            before: self.totals(),
        };
        let section = with_comment(section, &place.comment());
        let head = [&section, rest].concat();
        let opened = self.open(next, &head)?;
        if let Some(old) = self.current.replace(opened) {
            self.shelve(old)?;
        }
        if self.rotation.is_ring()
            && self.rotation.files.is_some_and(|files| files.get() == 1)
            && let Some(oldest) = self.closed.pop_front()
        {
            self.remove(&oldest)?;
        }
        Ok(())
    }

    /// A section says which file it is in, statistics what their file holds.
    fn put_special(&mut self, block: &[u8], kind: u32) -> io::Result<()> {
        let Some(current) = &self.current else {
            return Ok(());
        };
        let block = if kind == SECTION_HEADER {
            self.header.extend_from_slice(block);
            let place = Place {
                number: current.part.number,
                before: self.totals,
            };
            with_comment(block, &place.comment())
        } else {
            set_delivered(block, current.counted.packets)
        };
        self.put(&block)
    }

    fn put(&mut self, blocks: &[u8]) -> io::Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        let Some(current) = &mut self.current else {
            return Err(io::Error::other("the next file could not be made"));
        };
        let (kept, result) = match current.file.append(blocks) {
            Ok(()) => (blocks.len(), Ok(())),
            Err(Torn { kept, error }) => (kept, Err(error)),
        };
        let mut whole = Whole {
            bytes: kept,
            ..Whole::default()
        };
        for run in runs(&blocks[..kept]) {
            let Some(packet) = run.packet else {
                continue;
            };
            current.dropped += packet.dropped;
            current.last_ns = packet.time_ns;
            let continued = packet.id.is_some() && packet.id == self.last_id;
            self.last_id = packet.id;
            whole.packets += u64::from(!continued);
            whole.blocks += run.blocks;
        }
        self.count(whole);
        result
    }

    /// They are in the current file.
    fn count(&mut self, whole: Whole) {
        let Whole {
            bytes,
            packets,
            blocks,
        } = whole;
        if let Some(current) = &mut self.current {
            current.plain += bytes as u64;
            current.counted.packets += packets;
            current.counted.blocks += blocks;
        }
        self.totals.packets += packets;
        self.totals.blocks += blocks;
    }

    fn remove(&mut self, file: &CaptureFile) -> io::Result<()> {
        self.removed.files += 1;
        self.removed.packets += file.packets;
        self.removed.blocks += file.blocks;
        self.removed.bytes += file.bytes;
        self.shelf.remove(file)
    }

    fn close(&mut self) -> io::Result<()> {
        let Some(mut current) = self.current.take() else {
            return Ok(());
        };
        let ended = current.file.end();
        ended.and(self.shelve(current))
    }

    /// A complete file is put to the others.
    fn shelve(&mut self, current: Current<S::File>) -> io::Result<()> {
        let Current {
            name,
            file,
            counted,
            ..
        } = current;
        let bytes = file.bytes();
        self.totals.bytes += bytes;
        let closed = self.shelf.close(&name, file.into_medium());
        self.closed.push_back(CaptureFile {
            name,
            bytes,
            packets: counted.packets,
            blocks: counted.blocks,
        });
        closed
    }
}
