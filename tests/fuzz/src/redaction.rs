//! A redaction: what is redacted, and what is said to be.
//!
//! ```text
//! 0 (u8) | the original, whatever it is, as its manifest was signed for; which packets (u8); how cut (u8)
//! 1 (u8) | the document of one
//! 2 (u8) | the redacted file, beside a good document
//! ```

use std::{cell::Cell, sync::LazyLock};

use remora_capture::{
    evidence::{
        Cut, Order, RedactError, Redaction, RedactionKeys, SecretKey, Verdict, redact,
        verify_redaction,
    },
    pcapng::{
        Interface, PacketDirection, PacketMeta, Section, encode_packet, interface_description,
        section_header,
    },
    sidecar::Tool,
};

use crate::{
    Pieces,
    evidence::{KEY, confirm, confirm_shown, manifest_of},
};

static REDACTOR: LazyLock<SecretKey> = LazyLock::new(|| SecretKey::from_random(&[4; 32]));

static ORIGINAL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = section_header(&Section::default());
    bytes.extend(interface_description(&Interface {
        name: "a",
        description: "",
        filter: &Default::default(),
        snaplen: Default::default(),
    }));
    for id in 0..4 {
        let meta = PacketMeta {
            interface_id: 0,
            time_ns: id,
            direction: PacketDirection::Ingress,
            packet_id: Some(id),
            drop_count: 0,
            original_len: 60,
            comment: None,
        };
        encode_packet(&mut bytes, &meta, &[], &[id as u8; 60]);
    }
    bytes
});

/// File and document.
static GOOD: LazyLock<(Vec<u8>, Vec<u8>)> =
    LazyLock::new(|| make(&ORIGINAL, 2, Cut::Payload).expect("made"));

fn make(original: &[u8], every: u64, cut: Cut) -> Result<(Vec<u8>, Vec<u8>), RedactError> {
    let order = Order {
        manifest: manifest_of(original),
        name: "out.pcapng".to_owned(),
        cut,
        chosen: String::new(),
        why: String::new(),
        tool: Tool::default(),
    };
    let mut file = Vec::new();
    let most = Cell::new(0);
    let made = redact(original, &mut file, order, &REDACTOR, |packet| {
        most.set(packet.number);
        packet.number.is_multiple_of(every)
    })?;
    assert_eq!(made.redaction.original.packets, most.get());
    Ok((file, made.document))
}

/// # Panics
/// What was made is not proved, or what was not is.
pub fn check(data: &[u8]) {
    let keys = RedactionKeys {
        node: &[KEY.public()],
        redactor: &[REDACTOR.public()],
    };
    let mut pieces = Pieces(data);
    match pieces.u8() % 3 {
        0 => {
            let (every, how) = (u64::from(pieces.u8() % 8) + 1, pieces.u8());
            let cut = match how % 3 {
                0 => Cut::Nothing,
                1 => Cut::Payload,
                _ => Cut::Beyond(u32::from(how)),
            };
            let original = pieces.rest();
            match make(original, every, cut) {
                Ok((file, document)) => {
                    let report = verify_redaction(&document, file.as_slice(), Some(original), keys);
                    let report = report.expect("memory");
                    confirm(&report);
                    assert_eq!(report.verdict(), Verdict::Proved, "{report:?}");
                }
                Err(error) => confirm_shown(&error.to_string()),
            }
        }
        1 => {
            let document = pieces.rest();
            let (file, good) = &*GOOD;
            let report = verify_redaction(document, file.as_slice(), None::<&[u8]>, keys);
            let report = report.expect("memory");
            confirm(&report);
            assert!(report.verdict() == Verdict::Broken || document == good.as_slice());
            assert!(Redaction::open(document, &[KEY.public()]).is_err());
        }
        _ => {
            let (file, document) = &*GOOD;
            let found = pieces.rest();
            for original in [None, Some(ORIGINAL.as_slice())] {
                let report = verify_redaction(document, found, original, keys).expect("memory");
                confirm(&report);
                assert!(report.verdict() == Verdict::Broken || found == file.as_slice());
            }
        }
    }
}
