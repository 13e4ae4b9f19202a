//! A capture with its manifest, as an agent would have signed it: what the targets of evidence change.

use std::sync::LazyLock;

use jiff::Timestamp;
use remora_capture::{
    evidence::{
        Digest, Digester, FileDigest, FileRecord, Link, MANIFEST_ENDING, Manifest, Origin, Report,
        SecretKey,
    },
    session::{CaptureId, CaptureState, Counts, Files, Phase, SessionSpec, StopReason, Target},
    sidecar::{CaptureFile, Clock, Sidecar, Tool},
};

/// That of each run: a corpus lives longer than a program.
const ID: &str = "01J9ZQ3C7M8N4R5T6V7W8X9YZA";
const PACKETS: &[u8] = b"packets, to whoever proves them";

pub(crate) static KEY: LazyLock<SecretKey> = LazyLock::new(|| SecretKey::from_random(&[9; 32]));

/// Names and bytes: the packets, the account, the manifest.
pub(crate) static CAPTURE: LazyLock<[(String, Vec<u8>); 3]> = LazyLock::new(|| capture(PACKETS));

/// The manifest's file of a capture with these bytes.
pub(crate) fn manifest_of(packets: &[u8]) -> Vec<u8> {
    let [.., (_, manifest)] = capture(packets);
    manifest
}

fn capture(packets: &[u8]) -> [(String, Vec<u8>); 3] {
    let id: CaptureId = ID.parse().expect("an id");
    let mut spec = SessionSpec::new(Target::Pid(7));
    spec.trigger.alert = "{\"rule\":\"x\u{1b}\"}".to_owned();
    let file = CaptureFile {
        name: format!("{id}.pcapng"),
        bytes: packets.len() as u64,
        packets: 3,
        blocks: 3,
    };
    let state = CaptureState {
        id,
        spec,
        phase: Phase::Finished,
        stop_reason: Some(StopReason::Requested),
        message: String::new(),
        counts: Counts {
            seen: 9,
            matched: 5,
            lost: 2,
            submitted: 3,
            read: 3,
            written: 3,
            ..Counts::default()
        },
        started: Timestamp::UNIX_EPOCH,
        finished: Some(Timestamp::UNIX_EPOCH),
        first_packet: None,
        last_packet: None,
        file: file.name.clone(),
        files: Files::default(),
        taps: Vec::new(),
        node: "node-a".to_owned(),
        caller: "uid 0".to_owned(),
        resolved_target: "/pods/web".to_owned(),
        pod: None,
    };
    let sidecar = Sidecar::new(file.clone(), state, Clock::default(), Tool::default());
    let account = sidecar.to_json();
    let account_file = CaptureFile {
        name: format!("{id}.json"),
        ..CaptureFile::default()
    };
    let origin = Origin {
        node: "node-a".to_owned(),
        boot_id: "boot".to_owned(),
        bpf_object: Digest::of(b""),
    };
    let link = Link {
        chain: ID.parse().expect("an id"),
        sequence: 1,
        previous: None,
    };
    let manifest = Manifest::new(
        sidecar,
        (
            FileRecord::new(&account_file, Some(digest(&account))),
            vec![FileRecord::new(&file, Some(digest(packets)))],
        ),
        &origin,
        link,
        KEY.public().id(),
        Timestamp::UNIX_EPOCH,
    );
    [
        (file.name, packets.to_vec()),
        (account_file.name, account),
        (
            format!("{id}{MANIFEST_ENDING}"),
            manifest.sign(&KEY).expect("it has a canonical form"),
        ),
    ]
}

fn digest(bytes: &[u8]) -> FileDigest {
    let mut digester = Digester::default();
    digester.update(bytes);
    digester.finish()
}

/// Each of a report's sentences is one line that a terminal can show, and is no document.
pub(crate) fn confirm(report: &Report) {
    let sentences = [&report.proved, &report.unproved, &report.broken];
    for sentence in sentences.into_iter().flatten() {
        confirm_shown(sentence);
    }
}

pub(crate) fn confirm_shown(text: &str) {
    assert!(text.len() < 2048, "{} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
