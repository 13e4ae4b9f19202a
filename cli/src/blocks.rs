//! The frames of pcapng blocks, as much of them as a reader needs who passes blocks on.
//!
//! ```text
//! 0      4              8                    total-4        total
//! ┌──────┬──────────────┬────────────────────┬──────────────┐
//! │ type │ total length │ body               │ total length │   little-endian, total % 4 = 0
//! └──────┴──────────────┴────────────────────┴──────────────┘
//! ```
//! Unlike [`remora_capture::pcapng::Blocks`], which reads a file from its section header, this
//! takes a message of a stream, which begins with any block. Blocks with the same packet id, one
//! after the other, are segments of one packet. Agents write little-endian whatever
//! their machine (draft-ietf-opsawg-pcapng, section 3.1).

use bytes::{Bytes, BytesMut};
use remora_capture::pcapng::{BLOCK_BYTES_MAX, runs};

/// Type, length, and length again.
const FRAME: usize = 12;

/// Bytes in the middle of which a block's frame is broken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("broken pcapng block at byte {0}")]
pub(crate) struct Broken(usize);

/// Bytes of the whole blocks at the start of `bytes`; a block that is cut short ends them.
///
/// # Errors
/// A length that no block can have.
fn whole(bytes: &[u8]) -> Result<usize, Broken> {
    let mut whole = 0;
    loop {
        let rest = &bytes[whole..];
        let Some(total) = word(rest, 4) else {
            return Ok(whole);
        };
        let total = total as usize;
        if total < FRAME || !total.is_multiple_of(4) || total > BLOCK_BYTES_MAX as usize {
            return Err(Broken(whole));
        }
        let Some(trailer) = word(rest, total - 4) else {
            return Ok(whole);
        };
        if trailer as usize != total {
            return Err(Broken(whole));
        }
        whole += total;
    }
}

/// Whole blocks, and the packets that begin in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) blocks: Bytes,
    pub(crate) packets: u64,
}

/// Joins blocks that are spread over messages; holds one block that is not whole yet.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    rest: BytesMut,
    /// Of the last packet.
    last_id: Option<u64>,
}

impl Joiner {
    /// The whole blocks up to the end of `message`, and the packets in them.
    ///
    /// # Errors
    /// What came is not pcapng.
    pub(crate) fn push(&mut self, message: Bytes) -> Result<Message, Broken> {
        let bytes = if self.rest.is_empty() {
            message
        } else {
            self.rest.extend_from_slice(&message);
            self.rest.split().freeze()
        };
        let whole = whole(&bytes)?;
        self.rest.extend_from_slice(&bytes[whole..]);
        let blocks = bytes.slice(..whole);
        let mut packets = 0;
        for packet in runs(&blocks).filter_map(|run| run.packet) {
            packets += u64::from(packet.id.is_none() || packet.id != self.last_id);
            self.last_id = packet.id;
        }
        Ok(Message { blocks, packets })
    }

    /// No block waits for its end.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(kind: u32, body: usize) -> Vec<u8> {
        let total = (FRAME + body) as u32;
        [
            &kind.to_le_bytes()[..],
            &total.to_le_bytes(),
            &vec![0xaa; body],
            &total.to_le_bytes(),
        ]
        .concat()
    }

    #[test]
    fn packets_are_counted_and_other_blocks_are_not() {
        let bytes = [
            block(0x0a0d_0d0a, 16),
            block(6, 40),
            block(4, 8),
            block(6, 0),
        ]
        .concat();
        let message = Joiner::default().push(bytes.into()).unwrap();
        assert_eq!(message.packets, 2);
    }

    #[test]
    fn a_torn_block_is_left_out_wherever_it_is_torn() {
        let bytes = [block(6, 20), block(6, 20)].concat();
        for cut in 32..64 {
            assert_eq!(whole(&bytes[..cut]), Ok(32));
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_broken() {
        for total in [0u32, 4, 11, 13, 30] {
            let mut bytes = [block(6, 20), block(6, 20)].concat();
            bytes[36..40].copy_from_slice(&total.to_le_bytes());
            assert_eq!(whole(&bytes), Err(Broken(32)), "{total}");
        }
        let mut bytes = block(6, 20);
        bytes[28] ^= 1;
        assert_eq!(whole(&bytes), Err(Broken(0)));
    }

    proptest! {
        #[test]
        fn parts_join_to_the_whole(
            sizes in proptest::collection::vec(0usize..40, 0..20),
            part in 1usize..200,
        ) {
            let blocks = sizes.iter().flat_map(|size| block(6, size * 4)).collect::<Vec<_>>();
            let (mut joiner, mut joined, mut packets) = (Joiner::default(), Vec::new(), 0);
            for part in blocks.chunks(part) {
                let message = joiner.push(Bytes::copy_from_slice(part)).unwrap();
                prop_assert_eq!(whole(&message.blocks).unwrap(), message.blocks.len());
                joined.extend(message.blocks);
                packets += message.packets;
            }
            prop_assert!(joiner.is_empty());
            prop_assert_eq!((joined, packets), (blocks, sizes.len() as u64));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(whole) = whole(&bytes) {
                prop_assert!(whole <= bytes.len());
            }
            let _broken = Joiner::default().push(bytes.into());
        }
    }
}
