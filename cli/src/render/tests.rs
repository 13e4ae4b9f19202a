use std::io;

use remora_capture::{
    evidence::Hold,
    filter::Filter,
    session::{CaptureState, Counts, Phase, SessionSpec, StopReason, Target},
};

use super::*;
use crate::{
    args::Format,
    commands::Outcome,
    follow::{End, Ownership},
    output::Written,
};

/// Terminal controls and a direction override, as an attacker would name things.
const HOSTILE: &str = "\u{1b}[31m\n\u{202e}x\u{9b}2J";

fn state() -> CaptureState {
    CaptureState {
        id: "01J9ZQ3C7M8N4R5T6V7W8X9YZA".parse().unwrap(),
        spec: SessionSpec {
            filter: Filter::parse("tcp port 80").unwrap(),
            ..SessionSpec::new(Target::CgroupPath("/remora/web".into()))
        },
        phase: Phase::Finished,
        stop_reason: Some(StopReason::Requested),
        message: String::new(),
        counts: Counts {
            seen: 300,
            matched: 110,
            submitted: 105,
            lost: 2,
            over_budget: 3,
            read: 105,
            written: 100,
            dropped_queue: 5,
            written_bytes: 12_345,
            ..Counts::default()
        },
        started: "2026-01-02T03:04:05Z".parse().unwrap(),
        finished: Some("2026-01-02T03:04:15Z".parse().unwrap()),
        first_packet: None,
        last_packet: None,
        file: "01J9ZQ3C7M8N4R5T6V7W8X9YZA.pcapng".into(),
        files: Default::default(),
        taps: vec![],
        node: "node-1".into(),
        caller: "uid=0 gid=0 pid=1".into(),
        resolved_target: "cgroup /remora/web (id 4711)".into(),
        pod: None,
    }
}

fn hostile() -> CaptureState {
    let mut state = state();
    state.spec.target = Target::CgroupPath(format!("/{HOSTILE}"));
    for text in [
        &mut state.message,
        &mut state.file,
        &mut state.node,
        &mut state.caller,
        &mut state.resolved_target,
        &mut state.spec.trigger.rule,
        &mut state.spec.trigger.alert,
        &mut state.spec.trigger.reason,
    ] {
        *text = HOSTILE.into();
    }
    state.spec.labels.insert(HOSTILE.into(), HOSTILE.into());
    state.taps = vec![remora_capture::session::TapInfo {
        hook: HOSTILE.into(),
        interface: HOSTILE.into(),
        description: HOSTILE.into(),
        ..Default::default()
    }];
    state
}

fn written(packets: u64) -> Written {
    Written {
        packets,
        ..Written::default()
    }
}

fn lines(written: &Written, end: &End) -> (Vec<String>, Outcome) {
    closing::lines(written, end, Ownership::Own)
}

fn finished(state: CaptureState) -> End {
    End::Finished(Box::new(state))
}

#[test]
fn closing_lines_are_tcpdumps() {
    let (lines, outcome) = lines(&written(100), &finished(state()));
    assert_eq!(
        lines,
        [
            "100 packets captured",
            "107 packets matched",
            "2 packets lost in kernel",
            "5 packets dropped by writer",
            "3 more packets matched after the limit",
        ]
    );
    assert_eq!(outcome, Outcome::Done);
}

#[test]
fn one_packet_is_singular() {
    let mut state = state();
    state.counts = Counts {
        matched: 3,
        submitted: 2,
        over_budget: 1,
        read: 2,
        written: 1,
        dropped_io: 1,
        ..Counts::default()
    };
    let (lines, _) = lines(&written(1), &finished(state));
    assert_eq!(lines[0], "1 packet captured");
    assert_eq!(lines[3], "1 packet dropped by writer");
    assert_eq!(lines[4], "1 more packet matched after the limit");
}

#[test]
fn packets_that_did_not_come_are_a_fault() {
    let (lines, outcome) = lines(&written(99), &finished(state()));
    assert_eq!(outcome, Outcome::Faulty);
    assert!(
        lines
            .last()
            .unwrap()
            .contains("the agent sent 100 packets and 99 came"),
        "{lines:?}"
    );
}

#[test]
fn a_full_disk_is_a_fault_and_its_packets_are_counted() {
    let written = Written {
        packets: 60,
        dropped: 40,
        failure: Some(io::ErrorKind::StorageFull.into()),
        ..Written::default()
    };
    let (lines, outcome) = lines(&written, &finished(state()));
    assert_eq!(outcome, Outcome::Faulty);
    assert_eq!(lines[0], "60 packets captured");
    assert_eq!(lines[3], "45 packets dropped by writer");
    assert!(
        lines[5].contains("40 packets after it were dropped"),
        "{lines:?}"
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_fault() {
    let written = Written {
        packets: 60,
        dropped: 40,
        failure: Some(io::ErrorKind::BrokenPipe.into()),
        ..Written::default()
    };
    let (lines, outcome) = lines(&written, &finished(state()));
    assert_eq!((lines.len(), outcome), (5, Outcome::Done));
}

#[test]
fn an_end_that_nobody_asked_for_is_told() {
    let mut state = state();
    state.stop_reason = Some(StopReason::TargetGone);
    let (told, outcome) = lines(&written(100), &finished(state.clone()));
    assert_eq!(
        told.last().unwrap(),
        "remora: ended early: the target is gone"
    );
    assert_eq!(outcome, Outcome::Done);

    state.phase = Phase::Failed;
    state.message = "disk\u{1b} full".into();
    let (told, outcome) = lines(&written(100), &finished(state));
    assert_eq!(
        told.last().unwrap(),
        "remora: ended early: the target is gone: disk\\u{1b} full"
    );
    assert_eq!(outcome, Outcome::Faulty);
}

#[test]
fn a_whole_copy_of_a_failed_capture_is_no_fault() {
    let failed = finished(CaptureState {
        phase: Phase::Failed,
        ..state()
    });
    let (_, outcome) = closing::lines(&written(100), &failed, Ownership::Other);
    assert_eq!(outcome, Outcome::Done);
}

fn kept(capture: CaptureState) -> Kept {
    Kept {
        capture,
        hold: None,
        upload: None,
    }
}

#[test]
fn a_held_capture_says_so_in_words_and_in_json() {
    let mut held = kept(state());
    held.hold = Some(Hold {
        capture_id: held.capture.id,
        chain: None,
        since: "2026-01-02T03:04:05Z".parse().unwrap(),
        why: "case\u{1b} 42".to_owned(),
        by: "uid=0".to_owned(),
    });
    let now = "2026-01-02T03:09:35Z".parse().unwrap();
    let text = show::describe(&held, now);
    let line = "held since 2026-01-02T03:04:05Z by uid=0: case\\u{1b} 42\n";
    assert!(text.contains(line), "{text}");
    let json = show(&held, Format::Json).unwrap();
    assert!(
        json.contains("\"hold\"") && !json.contains('\u{1b}'),
        "{json}"
    );
    assert!(list::table(&[held], now).contains("Finished, held"));
}

#[test]
fn a_list_is_a_table() {
    let now = "2026-01-02T03:09:35Z".parse().unwrap();
    assert_eq!(
        list::table(&[kept(state())], now),
        "ID                           TARGET               FILTER        PHASE      PACKETS   LOST   AGE\n\
         01J9ZQ3C7M8N4R5T6V7W8X9YZA   cgroup:/remora/web   tcp port 80   Finished   100       7      5m30s\n"
    );
    assert_eq!(list::table(&[], now), "no captures\n");
}

#[test]
fn a_description_has_the_conservation_law() {
    let text = show::describe(&kept(state()), "2026-01-02T03:09:35Z".parse().unwrap());
    for part in [
        "Phase:         Finished: stopped on request\n",
        "Started:       2026-01-02T03:04:05Z (5m30s ago)\n",
        "Finished:      2026-01-02T03:04:15Z (after 10s)\n",
        "  matched     110   = submitted 105 + lost 2 + over budget 3 + copy error 0\n",
        "  written     100   12.1 KiB\n",
        "The counts balance.",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    let mut broken = state();
    broken.counts.lost += 1;
    assert!(
        show(&kept(broken), Format::Table)
            .unwrap()
            .contains("DO NOT BALANCE")
    );
}

#[test]
fn nothing_hostile_reaches_the_terminal() {
    let node = remora_proto::v1::StatusResponse {
        node: HOSTILE.into(),
        version: HOSTILE.into(),
        kernel: HOSTILE.into(),
        ..Default::default()
    };
    let agent = Default::default();
    let (closing, _) = lines(&written(1), &finished(hostile()));
    let outputs = [
        list(vec![kept(hostile())], Format::Table).unwrap(),
        list(vec![kept(hostile())], Format::Json).unwrap(),
        show(&kept(hostile()), Format::Table).unwrap(),
        show(&kept(hostile()), Format::Json).unwrap(),
        status(&agent, node.clone(), Format::Table).unwrap(),
        status(&agent, node, Format::Json).unwrap(),
        closing.join("\n"),
    ];
    for output in outputs {
        assert!(
            !output.chars().any(|c| text::is_hostile(c) && c != '\n'),
            "{output:?}"
        );
    }
}

#[test]
fn json_gives_back_the_state() {
    let json = show(&kept(hostile()), Format::Json).unwrap();
    assert_eq!(
        serde_json::from_str::<CaptureState>(&json).unwrap(),
        hostile()
    );
    let json = list(vec![kept(state())], Format::Json).unwrap();
    assert_eq!(
        serde_json::from_str::<Vec<CaptureState>>(&json).unwrap(),
        [state()]
    );
}

#[test]
fn ages_and_sizes_read_well() {
    for (seconds, age) in [
        (0, "0s"),
        (119, "119s"),
        (330, "5m30s"),
        (600, "10m"),
        (11_400, "3h10m"),
        (90_000, "25h"),
        (200_000, "2d7h"),
        (9_000_000, "104d"),
    ] {
        assert_eq!(unit::age(std::time::Duration::from_secs(seconds)), age);
    }
    for (bytes, size) in [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (u64::MAX, "16.0 EiB"),
    ] {
        assert_eq!(unit::bytes(bytes), size);
    }
}
