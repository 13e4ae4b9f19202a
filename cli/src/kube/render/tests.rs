use remora_capture::session::{Counts, Phase, PodRef, Selector};

use remora_proto::v1;

use super::{
    status::{NodeAgent, clock, nanos},
    *,
};

/// Terminal controls and a direction override, as an attacker would name things.
const HOSTILE: &str = "\u{1b}[31m\n\u{202e}x\u{9b}2J";

fn part(pod: &str, node: &str, error: &str) -> ClusterPart {
    ClusterPart {
        node: node.into(),
        pod: Some(PodRef {
            namespace: "shop".into(),
            name: pod.into(),
            uid: None,
            container: None,
        }),
        state: None,
        error: error.into(),
    }
}

fn state(parts: Vec<ClusterPart>) -> ClusterCapture {
    ClusterCapture {
        id: "01J9ZQ3C7M8N4R5T6V7W8X9YZA".parse().unwrap(),
        selector: Selector::parse("deploy/cart", "shop").unwrap(),
        fixed: false,
        phase: Phase::Capturing,
        counts: Counts {
            lost: 2,
            ..Counts::default()
        },
        started: None,
        finished: None,
        message: String::new(),
        parts,
    }
}

fn is_clean(text: &str) -> bool {
    !text.contains(['\u{1b}', '\u{202e}', '\u{9b}'])
}

#[test]
fn the_live_line_has_what_is_known() {
    let state = state(vec![part("a", "n1", "x"), part("b", "n2", "x")]);
    assert_eq!(live(None, 3, 2048, None), "Packets: 3 (2.0 KiB)");
    assert_eq!(
        live(Some(&state), 3, 100, Some(Duration::from_secs(41))),
        "Nodes: 0/2 Packets: 3 (100 bytes) Lost: 2 Left: 41s"
    );
}

#[test]
fn parts_beyond_those_listed_are_counted() {
    let parts = (0..100).map(|n| part(&format!("p{n}"), "n", "gone"));
    let lines = missing(&state(parts.collect()));
    assert_eq!(lines.len(), PARTS_SHOWN + 1);
    assert_eq!(lines[PARTS_SHOWN], "remora: 68 more parts are missing");
}

#[test]
fn an_outcome_is_of_all_parts() {
    assert_eq!(outcome(&state(vec![])), Outcome::Done);
    assert_eq!(
        outcome(&state(vec![part("a", "n", "gone")])),
        Outcome::Faulty
    );
}

#[test]
fn hostile_text_does_not_reach_a_terminal() {
    let mut state = state(vec![part(HOSTILE, HOSTILE, HOSTILE)]);
    state.message = HOSTILE.into();
    let agent = v1::NodeAgent {
        node: HOSTILE.into(),
        error: HOSTILE.into(),
        version: HOSTILE.into(),
        kernel: HOSTILE.into(),
        ..v1::NodeAgent::default()
    };
    let response = v1::ClusterStatusResponse {
        version: HOSTILE.into(),
        nodes: vec![agent.clone()],
        synced: false,
    };
    for format in [Format::Table, Format::Json] {
        assert!(is_clean(&show(&state, format).unwrap()));
        assert!(is_clean(&status(response.clone(), format).unwrap()));
        assert!(is_clean(
            &list(vec![state.clone()], format, Timestamp::UNIX_EPOCH).unwrap()
        ));
    }
    assert!(
        missing(&state)
            .iter()
            .all(|line| is_clean(line) && !line.contains('\n'))
    );
    assert!(silent_nodes(&[agent]).iter().all(|line| is_clean(line)));
}

#[test]
fn a_clock_is_told_with_its_error() {
    let mut agent = NodeAgent::from(v1::NodeAgent::default());
    assert_eq!(clock(&agent), "-");
    agent.clock_offset_ns = Some(nanos(-1, -500_000_000));
    agent.clock_error_ns = Some(nanos(0, 25_000));
    assert_eq!(clock(&agent), "-1500000 ± 25 us");
}
