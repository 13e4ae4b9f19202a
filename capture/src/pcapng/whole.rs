//! Walking blocks that we wrote ourselves: their lengths are believed.
//!
//! For bytes from elsewhere there is [`Blocks`](super::Blocks), which believes nothing.

use std::ops::Range;

use super::packet::{ENHANCED_PACKET, OPTION_DROP_COUNT, OPTION_PACKET_ID};

/// Bytes of a block without a body.
const FRAME_BYTES: usize = 12;

/// Whole packets and other blocks within the first bytes of blocks that we encoded ourselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    pub bytes: usize,
    /// Packets among them, each once however many segments it was cut into.
    pub packets: u64,
    /// Enhanced Packet Blocks among them.
    pub blocks: u64,
}

/// The blocks of one packet (several where it was cut into segments, which share its id), or one
/// block of another kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where its bytes are.
    pub bytes: Range<usize>,
    /// pcapng's block type.
    pub kind: u32,
    pub blocks: u64,
    /// Of a packet: its id, its time, and how many were lost before it.
    pub packet: Option<PacketRun>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketRun {
    pub id: Option<u64>,
    /// Nanoseconds of UTC.
    pub time_ns: u64,
    pub dropped: u64,
}

/// The runs of whole blocks at the beginning of `blocks`.
pub fn runs(blocks: &[u8]) -> impl Iterator<Item = Run> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (kind, mut end) = block_at(blocks, at)?;
        let mut run = Run {
            bytes: at..end,
            kind,
            blocks: 1,
            packet: (kind == ENHANCED_PACKET).then(|| packet_of(&blocks[at..end])),
        };
        if let Some(PacketRun { id: Some(id), .. }) = run.packet {
            while let Some((ENHANCED_PACKET, next)) = block_at(blocks, end)
                && packet_of(&blocks[end..next]).id == Some(id)
            {
                end = next;
                run.blocks += 1;
            }
            run.bytes.end = end;
        }
        at = end;
        Some(run)
    })
}

/// Counts the runs that end within `limit`: a packet of several segments is there with all of
/// them, or not at all.
#[must_use]
pub fn whole_blocks(blocks: &[u8], limit: usize) -> Whole {
    let mut whole = Whole::default();
    for run in runs(blocks).take_while(|run| run.bytes.end <= limit) {
        whole.bytes = run.bytes.end;
        if run.packet.is_some() {
            whole.packets += 1;
            whole.blocks += run.blocks;
        }
    }
    whole
}

/// Type and end of the whole block at `at`.
fn block_at(blocks: &[u8], at: usize) -> Option<(u32, usize)> {
    let (kind, len) = (field(blocks, at)?, field(blocks, at + 4)? as usize);
    let end = at.checked_add(len)?;
    (len >= FRAME_BYTES && end <= blocks.len()).then_some((kind, end))
}

/// An Enhanced Packet Block's id, time and drop count. Ours begins its options with the flags,
/// then the drop count if there is one, then the id.
fn packet_of(block: &[u8]) -> PacketRun {
    let word = |at| field(block, at).unwrap_or(0);
    let mut packet = PacketRun {
        id: None,
        time_ns: u64::from(word(12)) << 32 | u64::from(word(16)),
        dropped: 0,
    };
    let mut at = 28 + (word(20) as usize).next_multiple_of(4);
    while let Some(head) = field(block, at) {
        let (code, len) = (head as u16, (head >> 16) as usize);
        let value = || u64::from(word(at + 4)) | u64::from(word(at + 8)) << 32;
        match code {
            OPTION_DROP_COUNT => packet.dropped = value(),
            OPTION_PACKET_ID => {
                packet.id = Some(value());
                break;
            }
            0 => break,
            _ => {}
        }
        at += 4 + len.next_multiple_of(4);
    }
    packet
}

fn field(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pcapng::{PacketDirection, PacketMeta, encode_packet};

    fn meta(packet_id: u64) -> PacketMeta<'static> {
        PacketMeta {
            interface_id: 0,
            time_ns: 0x1234_5678_9abc_def0,
            direction: PacketDirection::Ingress,
            packet_id: Some(packet_id),
            drop_count: packet_id,
            original_len: 1500,
            comment: Some("said"),
        }
    }

    #[test]
    fn a_cut_anywhere_keeps_the_blocks_before_it() {
        let mut blocks = Vec::new();
        let mut ends = vec![0];
        for (id, len) in [0usize, 1, 60, 1500].into_iter().enumerate() {
            encode_packet(&mut blocks, &meta(id as u64), &[], &vec![7; len]);
            ends.push(blocks.len());
        }
        for cut in 0..=blocks.len() {
            let packets = ends.iter().filter(|end| **end <= cut).count() - 1;
            let expected = Whole {
                bytes: ends[packets],
                packets: packets as u64,
                blocks: packets as u64,
            };
            assert_eq!(whole_blocks(&blocks, cut), expected, "cut at {cut}");
        }
    }

    #[test]
    fn segments_of_a_packet_stay_together() {
        let mut blocks = Vec::new();
        encode_packet(&mut blocks, &meta(1), &[], &[1; 9]);
        let first = blocks.len();
        for _ in 0..3 {
            encode_packet(&mut blocks, &meta(2), &[], &[2; 70]);
        }
        let whole = whole_blocks(&blocks, blocks.len());
        assert_eq!((whole.packets, whole.blocks), (2, 4));
        let cut = whole_blocks(&blocks, blocks.len() - 1);
        assert_eq!((cut.bytes, cut.packets, cut.blocks), (first, 1, 1));
        let packet = runs(&blocks).nth(1).and_then(|run| run.packet);
        let expected = PacketRun {
            id: Some(2),
            time_ns: 0x1234_5678_9abc_def0,
            dropped: 2,
        };
        assert_eq!(packet, Some(expected));
    }
}
