//! Whatever is done to a redaction, or by who redacts, is found.

use std::sync::LazyLock;

use super::*;
use crate::{
    evidence::{
        CHUNK_BYTES, Report, Verdict,
        manifest::tests::{capture, digest, key},
    },
    pcapng::{
        self, Interface, PacketDirection, PacketMeta, Section, encode_packet,
        interface_description, interface_statistics, name_resolution, read_packets, section_header,
    },
    session::NameHint,
};

/// A capture's file of so many packets, with names and an account around them.
fn file(packets: u64, len: usize) -> Vec<u8> {
    let mut bytes = section_header(&Section {
        comments: &["the whole alert".to_owned()],
        ..Section::default()
    });
    for name in ["a", "b"] {
        bytes.extend(interface_description(&Interface {
            name,
            description: "",
            filter: &Default::default(),
            snaplen: Default::default(),
        }));
    }
    let names = [NameHint {
        address: "192.0.2.1".parse().expect("address"),
        name: "nobody-kept".to_owned(),
    }];
    bytes.extend(name_resolution(&names).expect("names"));
    for n in 0..packets {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&[8, 0, 0x45]);
        frame.resize(len, n as u8);
        // UDP.
        frame[23] = 17;
        frame[20..22].fill(0);
        let meta = PacketMeta {
            interface_id: (n % 2) as u32,
            time_ns: 1_000_000_000 + n,
            direction: PacketDirection::Ingress,
            packet_id: Some(n),
            drop_count: 0,
            original_len: len as u32 + 7,
            comment: (n % 3 == 0).then_some("said"),
        };
        encode_packet(&mut bytes, &meta, &[], &frame);
    }
    bytes.extend(interface_statistics(&pcapng::Statistics::default()));
    bytes
}

fn redactor() -> SecretKey {
    SecretKey::from_random(&[4; 32])
}

struct Bed {
    original: Vec<u8>,
    manifest: Vec<u8>,
}

struct Out {
    file: Vec<u8>,
    document: Vec<u8>,
    redaction: Redaction,
}

impl Bed {
    fn new(original: Vec<u8>) -> Self {
        let mut files = capture(None, &original, &key());
        let (_, manifest) = files.pop().expect("manifest");
        Self { original, manifest }
    }

    fn order(&self, cut: Cut) -> Order {
        Order {
            manifest: self.manifest.clone(),
            name: "out.pcapng".to_owned(),
            cut,
            chosen: "some packets".to_owned(),
            why: "case 42".to_owned(),
            tool: Tool::default(),
        }
    }

    fn redact(&self, cut: Cut, keeps: impl FnMut(PacketSeen<'_>) -> bool) -> Out {
        let mut file = Vec::new();
        let made = redact(
            self.original.as_slice(),
            &mut file,
            self.order(cut),
            &redactor(),
            keeps,
        );
        let Made {
            document,
            redaction,
        } = made.expect("made");
        Out {
            file,
            document,
            redaction,
        }
    }

    fn verify(&self, document: &[u8], file: &[u8], original: Option<&[u8]>) -> Report {
        let keys = RedactionKeys {
            node: &[key().public()],
            redactor: &[redactor().public()],
        };
        verify_redaction(document, file, original, keys).expect("memory")
    }

    #[track_caller]
    fn assert_broken(&self, out: &Out, original: Option<&[u8]>, what: &str) {
        let document = out.redaction.clone().sign(&redactor()).expect("signed");
        let report = self.verify(&document, &out.file, original);
        assert_eq!(report.verdict(), Verdict::Broken, "{report:?}");
        assert!(
            report.broken.iter().any(|text| text.contains(what)),
            "{what}: {report:?}"
        );
    }
}

static SMALL: LazyLock<Bed> = LazyLock::new(|| Bed::new(file(12, 90)));

#[test]
fn what_was_made_is_proved_with_the_original_and_in_part_without() {
    // Some three chunks and a half; blocks lie across their ends.
    let bed = Bed::new(file(2600, 1400));
    assert!(bed.original.len() > 3 * CHUNK_BYTES);
    for (cut, len) in [
        (Cut::Nothing, 1400),
        (Cut::Payload, 42),
        (Cut::Beyond(5), 5),
    ] {
        let out = bed.redact(cut, |packet| packet.number % 7 == 0 || packet.number > 2590);
        let report = bed.verify(&out.document, &out.file, Some(&bed.original));
        assert_eq!(report.verdict(), Verdict::Proved, "{report:?}");
        let report = bed.verify(&out.document, &out.file, None);
        assert_eq!(report.verdict(), Verdict::Partly, "{report:?}");
        assert_eq!(report.unproved.len(), 1);
        assert_eq!(out.redaction.chunks.len(), 4);
        let packets = read_packets(out.file.as_slice()).expect("pcapng");
        let whole = read_packets(bed.original.as_slice()).expect("pcapng");
        let kept = whole
            .iter()
            .zip(1..)
            .filter(|(_, n)| n % 7 == 0 || *n > 2590);
        assert_eq!(packets.len(), out.redaction.redacted.packets as usize);
        assert!(packets.iter().zip(kept).all(|(packet, (original, _))| {
            packet.data == original.data[..len]
                && packet.original_len == 1407
                && packet.packet_id == original.packet_id
                && packet.interface == original.interface
                && packet.comments == original.comments
        }));
        let said = String::from_utf8_lossy(&out.file);
        assert!(said.contains("REDACTED: chosen packets of capture"));
        assert!(!said.contains("the whole alert") && !said.contains("nobody-kept"));
    }
}

#[test]
fn every_flipped_bit_of_file_and_document_is_found() {
    let bed = &*SMALL;
    let out = bed.redact(Cut::Payload, |packet| packet.number % 5 == 0);
    let clean = bed.verify(&out.document, &out.file, Some(&bed.original));
    assert_eq!(clean.verdict(), Verdict::Proved, "{clean:?}");
    for original in [None, Some(bed.original.as_slice())] {
        for bit in 0..out.file.len() * 8 {
            let mut file = out.file.clone();
            file[bit / 8] ^= 1 << (bit % 8);
            let report = bed.verify(&out.document, &file, original);
            assert_eq!(report.verdict(), Verdict::Broken, "bit {bit}: {report:?}");
        }
    }
    for bit in (0..out.document.len() * 8).step_by(7) {
        let mut document = out.document.clone();
        document[bit / 8] ^= 1 << (bit % 8);
        let report = bed.verify(&document, &out.file, None);
        assert_eq!(report.verdict(), Verdict::Broken, "bit {bit}: {report:?}");
    }
    for bit in (0..bed.original.len() * 8).step_by(5) {
        let mut original = bed.original.clone();
        original[bit / 8] ^= 1 << (bit % 8);
        let report = bed.verify(&out.document, &out.file, Some(&original));
        assert_eq!(report.verdict(), Verdict::Broken, "bit {bit}: {report:?}");
    }
    for len in 0..out.file.len() {
        let report = bed.verify(&out.document, &out.file[..len], None);
        assert_eq!(report.verdict(), Verdict::Broken, "cut at {len}");
    }
}

/// Who redacts signs a packet that is not the original's.
#[test]
fn a_packet_that_is_not_in_the_original_is_found_by_it() {
    let bed = &*SMALL;
    let original = Some(bed.original.as_slice());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for cut in [Cut::Nothing, Cut::Payload, Cut::Beyond(20)] {
        let honest = bed.redact(cut, |packet| packet.number % 2 == 0);
        for _ in 0..200 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let mut out = Out {
                file: honest.file.clone(),
                document: Vec::new(),
                redaction: honest.redaction.clone(),
            };
            // Any bit of a packet block or an interface; the section is who redacts' own word.
            let section = u32::from_le_bytes(out.file[4..8].try_into().expect("4")) as usize;
            let bit = section * 8 + (random % ((out.file.len() - section) as u64 * 8)) as usize;
            out.file[bit / 8] ^= 1 << (bit % 8);
            out.redaction.redacted.digest = digest(&out.file);
            bed.assert_broken(&out, original, "");
        }
    }
    // The same packet twice, left out, or said to be from elsewhere.
    let mut out = bed.redact(Cut::Nothing, |packet| packet.number % 2 == 0);
    let places = out.redaction.chunks[0].packets.clone();
    out.redaction.chunks[0].packets.swap(0, 1);
    bed.assert_broken(&out, None, "out of order");
    out.redaction.chunks[0].packets.clone_from(&places);
    out.redaction.chunks[0].packets[1] += 4;
    bed.assert_broken(&out, original, "it is said to be from");
    out.redaction.chunks[0].packets.clone_from(&places);
    out.redaction.chunks[0].packets.pop();
    bed.assert_broken(&out, None, "more packets than");
}

#[test]
fn a_link_to_another_original_is_found_without_the_original() {
    let bed = &*SMALL;
    let out = || bed.redact(Cut::Nothing, |packet| packet.number < 4);
    let mut forged = out();
    forged.redaction.chunks[0].leaf = Digest::of(b"other");
    bed.assert_broken(&forged, None, "none of the original's");
    let mut forged = out();
    forged.redaction.original.digest = digest(b"other");
    bed.assert_broken(&forged, None, "no file that the manifest");
    let mut forged = out();
    forged.redaction.capture_id = CaptureId::generate();
    bed.assert_broken(&forged, None, "the manifest in it is of");
    // A manifest that who redacts has signed instead of the node.
    let mut files = capture(None, &bed.original, &redactor());
    let (_, manifest) = files.pop().expect("manifest");
    let manifest = String::from_utf8(manifest).expect("JSON");
    let mut forged = out();
    forged.redaction.original.manifest = manifest;
    bed.assert_broken(&forged, None, "not among those given");
    // And a redaction that the node's key has signed, which nobody said may redact.
    let mut by_node = out().redaction;
    by_node.key_id = key().public().id();
    let document = by_node.sign(&key()).expect("signed");
    let report = bed.verify(&document, &out().file, None);
    assert_eq!(report.verdict(), Verdict::Broken, "{report:?}");
    let mut longer = out();
    longer.redaction.cut = Cut::Beyond(10);
    bed.assert_broken(&longer, None, "longer than it may be");
}

#[test]
fn what_is_no_whole_signed_capture_is_not_redacted() {
    let bed = &*SMALL;
    let refused = |original: &[u8], keeps: bool| {
        let order = bed.order(Cut::Nothing);
        redact(original, Vec::new(), order, &redactor(), |_| keeps).expect_err("refused")
    };
    let mut changed = bed.original.clone();
    let last = changed.len() - 30;
    changed[last] ^= 1;
    assert!(matches!(
        refused(&changed, true),
        RedactError::NotSigned | RedactError::Torn { .. }
    ));
    let cut = &bed.original[..bed.original.len() - 1];
    assert!(matches!(refused(cut, true), RedactError::Torn { .. }));
    assert!(matches!(
        refused(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0], true),
        RedactError::Torn { at: 0, .. }
    ));
    assert!(matches!(refused(&bed.original, false), RedactError::Empty));
}
