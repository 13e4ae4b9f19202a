//! An archive of evidence, to what it proves.
//!
//! ```text
//! 0 (u8) | the archive
//! 1 (u8) | files of it: which name (u8), how (u8), length (u16), so many bytes
//! 2 (u8) | changes of a good one: where (u16), how (u8), byte (u8)
//! ```
//! Of a file's `how` the lowest bits are its type, as tar has it, the highest that its header says
//! another length. A change sets a byte, or takes those up to it away.

use std::{collections::BTreeMap, sync::LazyLock};

use remora_capture::evidence::{Scope, Verdict, verify};
use remora_cli::read_archive;

use crate::{
    Pieces,
    evidence::{CAPTURE, KEY, confirm},
};

const RECORD: usize = 512;
const LIST: &str = "captures.txt";
/// What a person reads, and what is asked for beside the evidence.
const NO_EVIDENCE: [&str; 2] = ["README.txt", LIST];

static ARCHIVE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let [packets, ..] = &*CAPTURE;
    let id = packets.0.trim_end_matches(".pcapng");
    let mut bytes = Vec::new();
    put(&mut bytes, LIST, b'0', None, format!("{id}\n").as_bytes());
    for (name, content) in &*CAPTURE {
        put(&mut bytes, name, b'0', None, content);
    }
    bytes.resize(bytes.len() + 2 * RECORD, 0);
    bytes
});

/// # Panics
/// Something else than the capture is proved, or a message is not for a terminal.
pub fn check(data: &[u8]) {
    let mut pieces = Pieces(data);
    match pieces.u8() % 3 {
        0 => confirm_archive(pieces.rest()),
        1 => {
            let mut bytes = Vec::new();
            while !pieces.0.is_empty() {
                file(&mut bytes, &mut pieces);
            }
            confirm_archive(&bytes);
        }
        _ => {
            let mut bytes = ARCHIVE.clone();
            while !pieces.0.is_empty() {
                let at = usize::from(pieces.u16()) % bytes.len().max(1);
                match (pieces.u8() % 4, pieces.u8()) {
                    (0, _) => bytes.truncate(at),
                    (1, _) => drop(bytes.drain(..at)),
                    (_, byte) => {
                        if let Some(place) = bytes.get_mut(at) {
                            *place = byte;
                        }
                    }
                }
            }
            confirm_archive(&bytes);
        }
    }
}

fn confirm_archive(bytes: &[u8]) {
    let report = verify(
        &read_archive(bytes),
        &[KEY.public()],
        None,
        Scope::Selection,
    );
    confirm(&report);
    if report.verdict() == Verdict::Proved {
        let found = contents(bytes).expect("what is proved can be read");
        for (name, content) in &*CAPTURE {
            assert_eq!(found.get(name), Some(content), "{name} is another one");
        }
        let is_known = |name: &str| {
            CAPTURE.iter().any(|(known, _)| known == name)
                || NO_EVIDENCE.contains(&name)
                || name.ends_with(".pub")
        };
        assert!(found.keys().all(|name| is_known(name)), "{found:?}");
    }
}

/// As another reader has them.
fn contents(bytes: &[u8]) -> std::io::Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries()?.raw(true) {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content)?;
        found.insert(name, content);
    }
    Ok(found)
}

/// Appends a file as the input describes it.
fn file(bytes: &mut Vec<u8>, pieces: &mut Pieces<'_>) {
    let (which, how) = (usize::from(pieces.u8()), pieces.u8());
    let len = usize::from(pieces.u16());
    let (name, content) = match which {
        0..3 => {
            let (name, content) = &CAPTURE[which];
            (name.clone(), content.as_slice())
        }
        3 => (LIST.to_owned(), pieces.take(len)),
        4 => ("chain.head".to_owned(), pieces.take(len)),
        which => {
            let name = String::from_utf8_lossy(pieces.take(which % 32)).into_owned();
            (name, pieces.take(len))
        }
    };
    let told = (how & 0x80 != 0).then(|| pieces.u64());
    let kind = match how & 0x3f {
        0 => b'0',
        how => how,
    };
    put(bytes, &name, kind, told, content);
}

/// Appends a file; its header may say another length than it has.
fn put(bytes: &mut Vec<u8>, name: &str, kind: u8, told: Option<u64>, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    // As another program may write it: the crate itself refuses some names.
    let place = &mut header.as_old_mut().name;
    let len = name.len().min(place.len());
    place[..len].copy_from_slice(&name.as_bytes()[..len]);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(told.unwrap_or(content.len() as u64));
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(RECORD), 0);
}
