//! Where blocks that we wrote ourselves end: their lengths are believed.
//!
//! For bytes from elsewhere there is [`Blocks`](super::Blocks), which believes nothing.

use super::packet::ENHANCED_PACKET;

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
    use super::*;
    use crate::pcapng::{PacketDirection, PacketMeta, encode_packet};

    #[test]
    fn a_cut_anywhere_keeps_the_blocks_before_it() {
        let mut blocks = Vec::new();
        let mut ends = vec![0];
        for len in [0usize, 1, 60, 1500] {
            let meta = PacketMeta {
                interface_id: 0,
                time_ns: 1,
                direction: PacketDirection::Ingress,
                packet_id: Some(1),
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
