//! The rule grammar beside the real Falco Talon's verdicts (tests/fixtures/README.md): the same but
//! for what is listed here, and each difference is meant.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use remora_capture::alert::Alert;
use remora_rules::{Decision, Rules, decide};
use serde_json::Value;

/// Rules that Talon takes and we refuse: Talon drops the condition and matches everything.
const REFUSED: [&str; 7] = [
    "double eq",
    "no key eq",
    "no key ne",
    "prio operator only",
    "rules empty list",
    "value with =",
    "value with ! and ne",
];

/// Rules that match other events, with how many only ours matches and how many only Talon's.
#[rustfmt::skip]
const MATCHED: [(&str, usize, usize); 25] = [
    // Digits are compared as they came, not as a rounded float's text.
    ("evt.time", 30, 0),
    ("evt.time float text", 0, 30),
    ("loginuid max", 1, 0),
    ("pid over a million", 19, 0),
    ("pid over a million as float", 0, 19),
    ("field eq and number", 0, 1),
    ("field port", 0, 1),
    // A list or an object has no text.
    ("list field", 0, 1),
    ("object field", 0, 1),
    // "", "<NA>" and null are one thing: absent. An absent key is too.
    ("NA text", 5, 0),
    ("null as <nil>", 5, 0),
    ("null as empty", 5, 0),
    // A tag that comes twice is a tag.
    ("tags one", 1, 0),
    ("tags and", 0, 1),
    ("tags and, one missing", 0, 1),
    ("tags or", 0, 1),
    ("tags same twice", 1, 0),
    // No priority is not below Debug; Info is Informational.
    ("prio lt", 0, 2),
    ("prio le", 0, 2),
    ("prio lt debug", 0, 3),
    ("prio ge debug", 1, 0),
    ("prio informational", 1, 0),
    // Falcosidekick's "syscalls" is Falco's "syscall".
    ("source syscall", 1, 0),
    ("source syscalls", 0, 1),
    ("all together", 2, 0),
];

/// Events that Talon takes and we refuse as no alert.
const NO_ALERTS: [&str; 3] = ["22-priority-unknown", "27-tags-number", "42-no-rule"];

/// Files that one takes and the other does not.
#[rustfmt::skip]
const FILES: [(&str, &[&str]); 6] = [
    ("names that Falco has and Talon's pattern forgot", &[
        "fields-bracket-slash-key", "fields-dash-key", "fields-underscore-key",
        "priority-info-short", "tags-with-colon", "tags-with-dash", "tags-with-slash",
    ]),
    ("YAML 1.2 has True for true", &["continue-True"]),
    ("Talon would match everything, or drop a part", &[
        "fields-double-eq", "fields-no-key", "fields-not-no-key", "fields-value-with-eq",
        "no-rule-name", "priority-only-operator", "two-documents",
        "unknown-action-key", "unknown-match-key", "unknown-top-level-key",
    ]),
    ("one thing, one name, one value", &[
        "continue-empty", "rule-and-action-in-one-entry", "same-rule-name-twice",
    ]),
    ("not in this version", &[
        "action-continue-bool", "additional-contexts-unknown", "notifiers-unknown",
        "output-no-target", "output-not-allowed", "tcpdump-ok",
    ]),
    ("other actionners, other parameters", &[
        "default-action-merge", "default-action-twice", "default-action-unused-broken",
        "dollar-values", "lambda-no-parameters", "same-action-name-twice-in-rule", "yaml-merge-key",
    ]),
];

/// Pairs of files that Talon takes together and we do not: it changes what the first says by what the
/// second says of the same name, in ways that differ by the kind of value; we take each name once.
const PAIRS: [&str; 8] = [
    "output-merge",
    "override-action-actionner",
    "override-action-scalar-list-map",
    "override-action-type-clash",
    "override-rule-action-added",
    "override-rule-match",
    "override-rule-nothing-else",
    "same-file-twice",
];

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/talon-rules")
}

fn json(name: &str) -> BTreeMap<String, Value> {
    serde_json::from_slice(&fs::read(corpus().join(name)).unwrap()).unwrap()
}

/// Talon's rule with our actionner, which takes no Lambda's name.
fn ours(text: &str) -> String {
    text.replace("aws:lambda", "remora:capture")
        .replace("parameters: {aws_lambda_name: f}", "parameters: {}")
        .replace("dry_run: \"true\"", "dry_run: \"false\"")
}

#[test]
fn pairs_of_files_are_right_where_talon_takes_them_but_for_names_given_twice() {
    let mut differ = BTreeSet::new();
    let verdicts = json("multi.verdicts.json");
    for (name, verdict) in &verdicts {
        let texts = [1, 2].map(|n| {
            let text = fs::read_to_string(corpus().join(format!("multi/{name}.{n}.yaml"))).unwrap();
            let kept = text.lines().filter(|line| {
                let key = line.trim_start();
                !key.starts_with("notifiers:") && !key.starts_with("parameters:")
            });
            ours(&kept.map(|line| format!("{line}\n")).collect::<String>())
        });
        let we = Rules::parse([("1", texts[0].as_str()), ("2", texts[1].as_str())]).is_ok();
        if we != (verdict["accepted"] == true) {
            assert!(!we, "{name}");
            differ.insert(name.as_str());
        }
    }
    assert_eq!(differ, PAIRS.into());
    assert_eq!(verdicts.len(), 11);
}

#[test]
fn each_difference_is_told_in_the_docs() {
    let docs = fs::read_to_string(corpus().join("../../../docs/falco.md")).unwrap();
    let names = REFUSED
        .into_iter()
        .chain(MATCHED.map(|(name, _, _)| name))
        .chain(NO_ALERTS)
        .chain(FILES.iter().flat_map(|(_, names)| names.iter().copied()))
        .chain(PAIRS);
    for name in names {
        assert!(docs.contains(&format!("`{name}`")), "not told: {name}");
    }
}

#[test]
fn rules_match_the_events_that_talon_matches_but_for_what_is_meant() {
    let matched = json("match/matched.json");
    let mut events = BTreeMap::new();
    for (name, value) in json("match/events.json") {
        let alert = Alert::from_json(&serde_json::to_vec(&value).unwrap());
        assert_eq!(alert.is_err(), NO_ALERTS.contains(&name.as_str()), "{name}");
        events.extend(alert.map(|alert| (name, alert)));
    }
    let text = fs::read_to_string(corpus().join("match/rules.yaml")).unwrap();
    let mut refused = BTreeSet::new();
    let mut differ = BTreeMap::new();
    let mut compared = 0;
    for block in text.split("- rule: ").skip(1) {
        let name = block.lines().next().unwrap().trim_matches('"');
        let Ok(rules) = Rules::parse([("rule", ours(&format!("- rule: {block}")).as_str())]) else {
            refused.insert(name);
            continue;
        };
        let (mut only_ours, mut only_talons) = (0, 0);
        for (event, alert) in &events {
            let talon = matched[event]["matched"]
                .as_array()
                .unwrap()
                .iter()
                .any(|m| m == name);
            let we = matches!(decide(&rules, alert), Decision::Capture(_));
            only_ours += usize::from(we && !talon);
            only_talons += usize::from(talon && !we);
            compared += 1;
        }
        if (only_ours, only_talons) != (0, 0) {
            differ.insert(name, (only_ours, only_talons));
        }
    }
    assert_eq!(refused, REFUSED.into());
    let meant = MATCHED.map(|(rule, only_ours, only_talons)| (rule, (only_ours, only_talons)));
    assert_eq!(differ, meant.into());
    assert!(compared > 1800, "{compared}");
}

#[test]
fn files_are_right_where_talon_takes_them_but_for_what_is_meant() {
    let mut differ = BTreeSet::new();
    let verdicts = json("parse.verdicts.json");
    for (name, verdict) in &verdicts {
        let text = fs::read_to_string(corpus().join(format!("parse/{name}.yaml"))).unwrap();
        let we = Rules::parse([("file", ours(&text).as_str())]).is_ok();
        // One file Talon takes although it logs an error.
        let talon = verdict["accepted"] == true && verdict["errors"] == serde_json::json!([]);
        if we != talon {
            differ.insert(name.as_str());
        }
    }
    let meant: BTreeSet<_> = FILES
        .iter()
        .flat_map(|(_, names)| names.iter().copied())
        .collect();
    assert_eq!(differ, meant);
    assert_eq!(verdicts.len(), 98);
}
