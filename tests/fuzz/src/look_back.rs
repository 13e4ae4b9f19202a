//! A copy of a look-back ring to its packets.
//!
//! ```text
//! 0           1            2                                        then
//! +-----------+------------+---------------------------------------+---------------------
//! | pages - 1 | pages told | before, after: position, overrun; cookie | pieces of the ring
//! +-----------+------------+---------------------------------------+---------------------
//! piece: where / 8 (u16) | how (u8) | length (u16) | so many bytes
//! ```
//! Numbers are of 8 bytes where nothing else is said. Of `how` the bits say: 1, make a record of it
//! that is at its place, as the kernel would; 2, in the round before. The rest of the ring is zeroes.

use remora_agent::record::look_back::{Copied, Reading};
use remora_agent_common::{
    ABI_VERSION,
    look_back::{HEAD_BYTES, PAGE_BYTES, PAGE_VALUE, RECORD_MAX, RingHead},
    record::{HEADER_LEN, KIND_LOOK_BACK},
};

use crate::Pieces;

const PAGES_MAX: usize = 3;

/// # Panics
/// A packet is found twice, or is longer than a record may be.
pub fn check(data: &[u8]) {
    let mut pieces = Pieces(data);
    let count = 1 + usize::from(pieces.u8()) % PAGES_MAX;
    let told = pieces.u8();
    let mut head = RingHead {
        position: pieces.u64(),
        overrun: pieces.u64(),
        ..RingHead::default()
    };
    let before = head;
    head.position = pieces.u64();
    head.overrun = pieces.u64();
    head.cookie = pieces.u64();
    // What user space wrote, most often.
    head.pages = match told {
        0xff => pieces.u64(),
        told if told & 0x80 == 0 => count as u64,
        told => u64::from(told & 3),
    };
    let mut pages = vec![vec![0; PAGE_VALUE].into_boxed_slice(); count];
    while !pieces.0.is_empty() {
        place(&mut pages, &mut pieces, &before, head.cookie);
    }
    let copied = Copied {
        before,
        after: head,
        pages,
    };
    let packets = copied.packets();
    let mut starts: Vec<_> = packets.iter().map(|r| r.packet.data.as_ptr()).collect();
    for recorded in &packets {
        assert!(recorded.packet.data.len() + HEADER_LEN <= RECORD_MAX as usize);
    }
    starts.sort();
    starts.dedup();
    assert_eq!(starts.len(), packets.len(), "a packet is found once");
    let reading = Reading {
        copied,
        begun_ns: 1,
    };
    let _reach = (reading.reaches_ns(), reading.is_overwritten());
}

/// Puts the next piece into the ring.
fn place(pages: &mut [Box<[u8]>], pieces: &mut Pieces<'_>, end: &RingHead, cookie: u64) {
    let ring = pages.len() * PAGE_BYTES as usize;
    let at = usize::from(pieces.u16()) * 8 % ring;
    let how = pieces.u8();
    let len = usize::from(pieces.u16());
    let mut bytes = pieces.take(len).to_vec();
    if how & 1 != 0 {
        bytes.resize(bytes.len().max(HEADER_LEN), 0);
        // The last position at this place before the end.
        let behind = (end.position.wrapping_sub(1 + at as u64)) % ring as u64 + 1;
        let round = if how & 2 != 0 { ring as u64 } else { 0 };
        let position = end.position.wrapping_sub(behind + round);
        bytes[..2].copy_from_slice(&ABI_VERSION.to_ne_bytes());
        bytes[2] = KIND_LOOK_BACK;
        bytes[24..32].copy_from_slice(&(position ^ cookie).to_ne_bytes());
    }
    let page = &mut pages[at / PAGE_BYTES as usize];
    let room = &mut page[HEAD_BYTES as usize + at % PAGE_BYTES as usize..];
    let len = bytes.len().min(room.len());
    room[..len].copy_from_slice(&bytes[..len]);
}
