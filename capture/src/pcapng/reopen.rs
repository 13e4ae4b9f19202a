//! Opening a file again that another process was killed over, to go on with it.
//!
//! It is cut behind the last packet that is whole: a torn block goes ([`repair`]), a closing block
//! too, for the capture goes on, and of a packet that is cut into segments all of them go unless it
//! is known that all are there.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom},
};

use super::{
    blocks::{Block, BlockKind, Blocks},
    compress::{Unpacked, cut_compressed},
    packet::OPTION_PACKET_ID,
    repair::{READ_BYTES, Scan, repair},
};

/// A file that more can be appended to, at its end.
#[derive(Debug)]
pub struct Reopened {
    /// What it holds; [`Scan::whole_bytes`] are the file's.
    pub scan: Scan,
    /// Bytes of its blocks before compression.
    pub plain_bytes: u64,
}

/// Cuts `file` (open for reading and writing). Packets with an id of `unsure` and more may have been
/// torn between two segments; `None`: packets have none.
///
/// # Errors
/// The file's.
pub fn reopen(file: &mut File, compressed: bool, unsure: Option<u64>) -> io::Result<Reopened> {
    file.seek(SeekFrom::Start(0))?;
    let (plain_bytes, scan) = if compressed {
        let end = end(Unpacked::new(&mut *file)?, unsure)?;
        (end, cut_compressed(file, end)?)
    } else {
        let end = end(&mut *file, unsure)?;
        file.set_len(end)?;
        (end, repair(file)?)
    };
    Ok(Reopened { scan, plain_bytes })
}

/// Where the last block ends that stays.
fn end(reader: impl Read, unsure: Option<u64>) -> io::Result<u64> {
    let mut blocks = Blocks::new(BufReader::with_capacity(READ_BYTES, reader));
    let mut end = 0;
    // Of the last packet: its id, and where its first segment begins.
    let mut last = (None, 0);
    while let Some(block) = blocks.next_block()? {
        match block.kind {
            BlockKind::InterfaceStatistics => continue,
            BlockKind::EnhancedPacket => {
                let id = packet_id(&block);
                if id.is_none() || id != last.0 {
                    last = (id, block.offset);
                }
            }
            _ => {}
        }
        end = block.offset + u64::from(block.len);
    }
    match (last, unsure) {
        ((Some(id), start), Some(unsure)) if id >= unsure => Ok(start),
        _ => Ok(end),
    }
}

fn packet_id(block: &Block<'_>) -> Option<u64> {
    let (_, value) = block
        .options()
        .find(|(code, _)| *code == OPTION_PACKET_ID)?;
    value.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::pcapng::{
        Interface, PacketDirection, PacketMeta, Section, Statistics, encode_packet, frame,
        interface_description, interface_statistics, section_header,
    };

    /// Packets 0, 1 and 2, the last of three segments, and a closing block; where each block ends.
    fn blocks() -> (Vec<u8>, Vec<usize>) {
        let mut blocks = section_header(&Section::default());
        blocks.extend(interface_description(&Interface {
            name: "",
            description: "",
            filter: &"".parse().expect("filter"),
            snaplen: Default::default(),
        }));
        let mut ends = vec![blocks.len()];
        for id in [0, 1, 2, 2, 2] {
            let meta = PacketMeta {
                interface_id: 0,
                time_ns: id,
                direction: PacketDirection::Ingress,
                packet_id: Some(id),
                drop_count: 0,
                original_len: 60,
                comment: None,
            };
            encode_packet(&mut blocks, &meta, &[], &[7; 60]);
            ends.push(blocks.len());
        }
        blocks.extend(interface_statistics(&Statistics::new(
            0,
            &Default::default(),
            0,
            0,
        )));
        ends.push(blocks.len());
        (blocks, ends)
    }

    fn reopened(bytes: &[u8], compressed: bool, unsure: Option<u64>) -> (Reopened, u64) {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("room");
        let reopened = reopen(&mut file, compressed, unsure).expect("read");
        (reopened, file.metadata().expect("a file").len())
    }

    #[test]
    fn a_file_is_cut_behind_its_last_whole_packet_wherever_it_was_torn() {
        let (blocks, ends) = blocks();
        for cut in ends[0]..=blocks.len() {
            let whole = ends[..6]
                .iter()
                .rev()
                .find(|end| **end <= cut)
                .expect("one");
            let (file, len) = reopened(&blocks[..cut], false, None);
            assert_eq!((file.plain_bytes, len), (*whole as u64, *whole as u64));
            assert_eq!(file.scan.whole_bytes, len);
            assert_eq!((file.scan.tear, file.scan.statistics), (None, 0));

            // Segments of packet 2 may be missing.
            let (file, _) = reopened(&blocks[..cut], false, Some(2));
            let whole = ends[..3]
                .iter()
                .rev()
                .find(|end| **end <= cut)
                .expect("one");
            assert_eq!(file.plain_bytes, *whole as u64);
            assert!(file.scan.last_packet_id < Some(2));
        }
    }

    #[test]
    fn of_a_compressed_file_the_same_stays() {
        let (blocks, ends) = blocks();
        for (bytes, unsure, end) in [
            (&blocks[..], None, ends[5]),
            (&blocks[..], Some(1), ends[2]),
            (&blocks[..ends[4] + 9], None, ends[4]),
        ] {
            let packed = frame(bytes).expect("memory");
            for cut in [0, 3, 9] {
                let (file, len) = reopened(&packed[..packed.len() - cut], true, unsure);
                assert_eq!(file.scan.whole_bytes, len);
                if cut <= 3 {
                    assert_eq!(file.plain_bytes, end as u64, "cut {cut}");
                }
                assert_eq!(file.scan.statistics, 0);
            }
        }
    }
}
