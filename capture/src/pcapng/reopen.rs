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
    packet::OPTION_PACKET_ID,
    repair::{READ_BYTES, Scan, repair},
};

/// Cuts a plain `file` (open for reading and writing) and says what it holds; its position is its
/// end. Packets with an id of `unsure` and more may have been torn between two segments; `None`:
/// packets have none.
///
/// # Errors
/// The file's.
pub fn reopen(file: &mut File, unsure: Option<u64>) -> io::Result<Scan> {
    file.seek(SeekFrom::Start(0))?;
    let end = end(&mut *file, unsure)?;
    file.set_len(end)?;
    repair(file)
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
        Interface, PacketDirection, PacketMeta, Section, Statistics, encode_packet,
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

    fn reopened(bytes: &[u8], unsure: Option<u64>) -> (Scan, u64) {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("room");
        let reopened = reopen(&mut file, unsure).expect("read");
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
            let (file, len) = reopened(&blocks[..cut], None);
            assert_eq!((file.whole_bytes, len), (*whole as u64, *whole as u64));
            assert_eq!((file.tear, file.statistics), (None, 0));

            // Segments of packet 2 may be missing.
            let (file, _) = reopened(&blocks[..cut], Some(2));
            let whole = ends[..3]
                .iter()
                .rev()
                .find(|end| **end <= cut)
                .expect("one");
            assert_eq!(file.whole_bytes, *whole as u64);
            assert!(file.last_packet_id < Some(2));
        }
    }
}
