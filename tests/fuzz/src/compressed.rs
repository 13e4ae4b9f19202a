//! A compressed capture file after a crash.
//!
//! ```text
//! 0 (u8) | bytes as the disk may have them
//! 1 (u8) | cut (u16) | batches: length (u16), so many bytes of blocks; until there are no more
//! ```
//! The second is what a writer leaves that dies at byte `cut` of its file.

use remora_capture::pcapng::{Compressor, Scan, Unpacked, repair_compressed, scan};

use crate::{
    Pieces,
    repair::{content, holding},
};

/// # Panics
/// The file is not whole afterwards, or has other packets than were written.
pub fn check(data: &[u8]) {
    let mut pieces = Pieces(data);
    if pieces.u8() & 1 == 0 {
        confirm_repair(pieces.rest());
        return;
    }
    let cut = usize::from(pieces.u16());
    let mut compressor = Compressor::new().expect("memory");
    let (mut packed, mut plain, mut flushed) = (Vec::new(), Vec::new(), 0);
    while !pieces.0.is_empty() {
        let len = usize::from(pieces.u16());
        let batch = pieces.take(len);
        packed.extend_from_slice(compressor.compress(batch).expect("memory"));
        compressor.kept();
        plain.extend_from_slice(batch);
        if packed.len() <= cut {
            flushed = plain.len();
        }
    }
    packed.extend_from_slice(compressor.end());
    packed.truncate(cut);
    let (told, kept) = confirm_repair(&packed);
    assert!(plain.starts_with(&kept), "what is kept is what was written");
    // What was flushed before the cut is all there, as far as it is whole blocks.
    let least = scan(&plain[..flushed]).expect("memory");
    assert!(
        kept.len() as u64 >= least.whole_bytes && told.packets >= least.packets,
        "kept {} of {} bytes, flushed {flushed}: {least:?}",
        kept.len(),
        plain.len(),
    );
}

/// Repairs and reads it; what was told, and the blocks.
fn confirm_repair(packed: &[u8]) -> (Scan, Vec<u8>) {
    let mut file = holding(packed);
    let told = repair_compressed(&mut file).expect("a file in memory");
    let repaired = content(&mut file);
    assert_eq!(repaired.len() as u64, told.whole_bytes);
    let mut blocks = Vec::new();
    let mut unpacked = Unpacked::new(&repaired[..]).expect("memory");
    std::io::Read::read_to_end(&mut unpacked, &mut blocks).expect("memory");
    assert!(!unpacked.is_torn(), "whole frames");
    let again = scan(&blocks[..]).expect("memory");
    assert_eq!(again.tear, None);
    assert_eq!(again.whole_bytes, blocks.len() as u64);
    let expected = Scan {
        tear: None,
        whole_bytes: again.whole_bytes,
        ..told.clone()
    };
    assert_eq!(again, expected);
    (told, blocks)
}
