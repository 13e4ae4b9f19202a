//! A capture file after a crash: cut to its whole blocks.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
};

use remora_capture::pcapng::{Scan, repair, scan};

/// # Panics
/// The file is not whole afterwards, has lost a whole block, or was told wrong.
pub fn check(data: &[u8]) {
    let mut file = holding(data);
    let told = repair(&mut file).expect("a file in memory");
    let kept = content(&mut file);
    assert_eq!(kept, &data[..told.whole_bytes as usize]);
    assert_eq!(told.tear.is_some(), kept.len() < data.len());
    let again = scan(&kept[..]).expect("memory");
    assert_eq!(
        again,
        Scan {
            tear: None,
            ..told.clone()
        }
    );
    assert!(told.packets <= told.packet_blocks && told.numbered <= told.packets);
}

/// A file of `data`, in memory where the machine has a place for that.
pub(crate) fn holding(data: &[u8]) -> File {
    let mut file = tempfile::tempfile_in("/dev/shm")
        .or_else(|_| tempfile::tempfile())
        .expect("a temporary file");
    file.write_all(data).expect("room");
    file
}

pub(crate) fn content(file: &mut File) -> Vec<u8> {
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0)).expect("a file");
    file.read_to_end(&mut content).expect("a file");
    content
}
