//! What a file holds, and cutting a torn one back to its last whole block.
//!
//! After a crash a file may end within a block, in zeroes (space that was allocated and never
//! written) or in anything else. Everything up to the first byte that is no whole block stays.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom},
};

use super::{
    blocks::{Block, BlockKind, Blocks, Tear},
    packet::{OPTION_COMMENT, OPTION_DROP_COUNT, OPTION_PACKET_ID},
    part::Place,
};

/// Read at once while scanning, in bytes.
pub(super) const READ_BYTES: usize = 256 * 1024;

/// What the whole blocks of a file say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Bytes up to the end of the last whole block.
    pub whole_bytes: u64,
    /// Why there are bytes beyond; `None` when there are none.
    pub tear: Option<Tear>,
    /// Packets, each once however many segments it was cut into (they share its id).
    pub packets: u64,
    /// Packet blocks.
    pub packet_blocks: u64,
    /// Packets of each interface of the last section.
    pub interface_packets: Vec<u64>,
    /// Time of the first packet in the file, in nanoseconds of UTC.
    pub first_packet_ns: Option<u64>,
    /// Time of the last packet in the file, in nanoseconds of UTC.
    pub last_packet_ns: Option<u64>,
    /// Id of the first packet in the file.
    pub first_packet_id: Option<u64>,
    /// Packets with an id: all but those from before the capture.
    pub numbered: u64,
    /// Highest packet id.
    pub last_packet_id: Option<u64>,
    /// Sum of the drop counts.
    pub dropped: u64,
    /// Which file of a set it is, if it says so.
    pub place: Option<Place>,
    /// Interface Statistics Blocks: with one per interface the capture was closed in order.
    pub statistics: u64,
}

/// Interfaces whose packets are told apart.
const INTERFACES_MAX: usize = 4096;

/// Reads to the end or to the first tear.
///
/// # Errors
/// The reader's.
pub fn scan(reader: impl Read) -> io::Result<Scan> {
    let mut blocks = Blocks::new(BufReader::with_capacity(READ_BYTES, reader));
    let mut scan = Scan::default();
    let mut before = None;
    while let Some(block) = blocks.next_block()? {
        match block.kind {
            BlockKind::SectionHeader => {
                scan.interface_packets.clear();
                scan.place = scan.place.or_else(|| place(&block));
            }
            BlockKind::InterfaceDescription => {
                if scan.interface_packets.len() < INTERFACES_MAX {
                    scan.interface_packets.push(0);
                }
            }
            BlockKind::InterfaceStatistics => scan.statistics += 1,
            BlockKind::EnhancedPacket => {
                scan.packet_blocks += 1;
                let mut id = None;
                let interface = block.interface_id().unwrap_or(0) as usize;
                scan.first_packet_ns = scan.first_packet_ns.or(block.time());
                scan.last_packet_ns = block.time();
                for (code, value) in block.options() {
                    let Some(value) = value.first_chunk().map(|b| u64::from_le_bytes(*b)) else {
                        continue;
                    };
                    match code {
                        OPTION_PACKET_ID => id = Some(value),
                        OPTION_DROP_COUNT => scan.dropped = scan.dropped.saturating_add(value),
                        _ => {}
                    }
                }
                if id.is_some() && id == before {
                    continue;
                }
                before = id;
                scan.packets += 1;
                scan.numbered += u64::from(id.is_some());
                scan.first_packet_id = scan.first_packet_id.or(id);
                scan.last_packet_id = scan.last_packet_id.max(id);
                if let Some(packets) = scan.interface_packets.get_mut(interface) {
                    *packets += 1;
                }
            }
            BlockKind::NameResolution | BlockKind::Other(_) => {}
        }
    }
    scan.whole_bytes = blocks.offset();
    scan.tear = blocks.tear();
    Ok(scan)
}

fn place(section: &Block<'_>) -> Option<Place> {
    section
        .options()
        .filter(|(code, _)| *code == OPTION_COMMENT)
        .find_map(|(_, text)| Place::of_comment(std::str::from_utf8(text).ok()?))
}

/// Cuts `file` (open for reading and writing) to its whole blocks and says what they hold. The
/// file's position is its end afterwards. A file that is whole is not changed; one that never was
/// pcapng has no whole block and becomes empty.
///
/// # Errors
/// The file's; it is not changed then, or cut.
pub fn repair(file: &mut File) -> io::Result<Scan> {
    file.seek(SeekFrom::Start(0))?;
    let scan = scan(&mut *file)?;
    if scan.tear.is_some() {
        file.set_len(scan.whole_bytes)?;
    }
    file.seek(SeekFrom::Start(scan.whole_bytes))?;
    Ok(scan)
}

/// Packets in the whole blocks of a file.
///
/// # Errors
/// The reader's.
pub fn count_packets(reader: impl Read) -> io::Result<u64> {
    scan(reader).map(|scan| scan.packets)
}
