//! Alerts as the real senders sent them, and what is captured for each.

use std::{fs, path::PathBuf};

use remora_capture::{
    alert::{
        Alert, FieldValue, Priority,
        mapping::{Role, Traffic, endpoint, names, target, terms},
    },
    filter::Filter,
};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/falcosidekick-webhook")
}

/// The body of a recorded request.
fn request(name: &str) -> Vec<u8> {
    let bytes = fs::read(fixtures().join(format!("{name}.request.http"))).expect(name);
    let head = bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("a blank line");
    bytes[head + 4..].to_vec()
}

fn alert(name: &str) -> Alert {
    Alert::from_json(&request(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Each recorded request with the target and the filters of its traffic: flow, endpoint, remote
/// host, protocol.
#[rustfmt::skip]
const EXPECTED: [(&str, Option<&str>, [&str; 4]); 19] = [
    ("01-c2-outbound", Some("container:ee97d9c4186f"), [
        "host 198.51.100.23 and tcp port 4444 and tcp port 43812",
        "host 198.51.100.23 and tcp port 4444", "host 198.51.100.23", "tcp",
    ]),
    ("02-host-null-k8s", None, [
        "host 169.254.169.254 and tcp port 80 and tcp port 51000",
        "host 169.254.169.254 and tcp port 80", "host 169.254.169.254", "tcp",
    ]),
    ("03-na-strings", None, [
        "host 203.0.113.9 and udp port 5353 and udp port 53124",
        "host 203.0.113.9 and udp port 5353", "host 203.0.113.9", "udp",
    ]),
    // fd.rip is the pod's own address here.
    ("04-ipv6-connect", Some("container:5ac1fcb2b3a4"), [
        "host 2001:db8::bad and tcp port 443 and tcp port 43812",
        "host 2001:db8::bad and tcp port 443", "host 2001:db8::bad", "tcp",
    ]),
    ("05-long-payload", Some("container:ee97d9c4186f"), [
        "host 198.51.100.23 and port 4444 and port 43812",
        "host 198.51.100.23 and port 4444", "host 198.51.100.23", "",
    ]),
    ("06-tags-lowercase-priority", Some("container:ee97d9c4186f"), ["", "", "", ""]),
    ("07-event-generator-bracketreplacer", Some("container:9d5cf8c39a3b"), ["", "", "", ""]),
    ("07-event-generator", Some("container:9d5cf8c39a3b"), ["", "", "", ""]),
    ("08-k8s-audit", None, ["", "", "", ""]),
    ("09-udp-unconnected", Some("container:ee97d9c4186f"), [
        "host 203.0.113.9 and udp port 123 and udp port 53124",
        "host 203.0.113.9 and udp port 123", "host 203.0.113.9", "udp",
    ]),
    ("10-no-fd-fields", Some("container:ee97d9c4186f0000000000000000000000000000000000000000000000000000"), ["", "", "", ""]),
    ("11-custom-and-templated", Some("container:ee97d9c4186f"), [
        "host 198.51.100.23 and tcp port 4444 and tcp port 43812",
        "host 198.51.100.23 and tcp port 4444", "host 198.51.100.23", "tcp",
    ]),
    ("12-odd-json", Some("container:ee97d9c4186f"), [
        "host 198.51.100.23 and port 4444",
        "host 198.51.100.23 and port 4444", "host 198.51.100.23", "",
    ]),
    ("13-empty-source-debug", Some("container:ee97d9c4186f"), ["", "", "", ""]),
    ("14-inbound-accept", Some("container:ee97d9c4186f"), [
        "host 203.0.113.77 and tcp port 8080 and tcp port 40000",
        "host 203.0.113.77 and tcp port 8080", "host 203.0.113.77", "tcp",
    ]),
    ("15-sidekick-test", None, ["", "", "", ""]),
    ("16-put", Some("container:ee97d9c4186f"), [
        "host 198.51.100.23 and tcp port 4444 and tcp port 43812",
        "host 198.51.100.23 and tcp port 4444", "host 198.51.100.23", "tcp",
    ]),
    ("17-templated-field-missing", Some("container:ee97d9c4186f0000000000000000000000000000000000000000000000000000"), ["", "", "", ""]),
    ("18-mutualtls", Some("container:ee97d9c4186f"), [
        "host 198.51.100.23 and tcp port 4444 and tcp port 43812",
        "host 198.51.100.23 and tcp port 4444", "host 198.51.100.23", "tcp",
    ]),
];

#[test]
fn recorded_requests_map_to_target_and_filter() {
    let traffics = [
        Traffic::Flow,
        Traffic::Endpoint,
        Traffic::RemoteHost,
        Traffic::Protocol,
    ];
    for (name, expected_target, filters) in EXPECTED {
        let alert = alert(name);
        let found = target(&alert).ok().map(|target| target.to_string());
        assert_eq!(found.as_deref(), expected_target, "{name}");
        for (traffic, expected) in traffics.into_iter().zip(filters) {
            let filter = Filter::from_terms(&terms(&alert, traffic)).expect(name);
            assert_eq!(filter.text(), expected, "{name}, {traffic:?}");
        }
        assert!(terms(&alert, Traffic::All).is_empty());
    }
}

#[test]
fn every_recorded_request_is_expected_here() {
    let mut names: Vec<String> = fs::read_dir(fixtures())
        .expect("fixtures")
        .filter_map(|entry| {
            let name = entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("UTF-8");
            name.strip_suffix(".request.http").map(str::to_owned)
        })
        .collect();
    let mut expected: Vec<&str> = EXPECTED.iter().map(|(name, ..)| *name).collect();
    names.sort();
    expected.sort_unstable();
    assert_eq!(names, expected);
}

#[test]
fn falcos_own_form_of_an_alert_says_the_same() {
    for (name, ..) in EXPECTED {
        let path = fixtures().join(format!("{name}.input.json"));
        // The test request of Falcosidekick has no input; bracketreplacer renames fields.
        if !path.exists() || name.contains("bracketreplacer") {
            continue;
        }
        let falco = Alert::from_json(&fs::read(path).expect(name))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let sidekick = alert(name);
        assert_eq!(
            (&falco.rule, falco.priority),
            (&sidekick.rule, sidekick.priority),
            "{name}"
        );
        assert_eq!(
            (falco.time, &falco.source),
            (sidekick.time, &sidekick.source),
            "{name}"
        );
        assert_eq!(falco.hostname, sidekick.hostname, "{name}");
        assert_eq!(endpoint(&falco), endpoint(&sidekick), "{name}");
        assert_eq!(target(&falco), target(&sidekick), "{name}");
    }
}

#[test]
fn no_digit_is_lost() {
    let c2 = alert("01-c2-outbound");
    assert_eq!(c2.field("evt.time"), Some("1795489205478445995"));
    assert_eq!(
        c2.time.expect("time").as_nanosecond(),
        1_795_489_205_478_445_995
    );
    assert_eq!(c2.priority, Some(Priority::Critical));
    assert_eq!(c2.hostname.as_deref(), Some("worker-1"));
    assert_eq!(
        c2.uuid.as_deref(),
        Some("e7bcd738-6957-4276-af83-2da9c3bb24da")
    );
    assert_eq!(c2.tags, ["T1071", "mitre_command_and_control", "network"]);
    assert_eq!(names(&c2)[0].name, "c2.example");

    let odd = alert("12-odd-json");
    assert_eq!(odd.field("big"), Some("18446744073709551615"));
    assert_eq!(odd.field("exp"), Some("1E5"));
    assert_eq!(odd.field("float2"), Some("1.50"));
    assert_eq!(odd.field("dup"), Some("2"));
    assert_eq!(odd.field("true"), Some("true"));
    assert_eq!(odd.field("empty"), None);
    assert_eq!(
        odd.fields["arr"],
        FieldValue::Json("[\"10.0.0.1\",2,null]".into())
    );
    assert_eq!(odd.source, "syscall");
    assert_eq!(odd.time.expect("time").to_string(), "2026-11-24T02:00:05Z");
    assert!(odd.output.contains("nul \0 line\nbreak"));

    assert_eq!(
        alert("14-inbound-accept").field("fd.is_server"),
        Some("true")
    );
    let inbound = endpoint(&alert("14-inbound-accept")).expect("connection");
    assert_eq!(inbound.role, Role::Server);
    assert_eq!(
        alert("17-templated-field-missing").field("remora_missing"),
        None
    );
    assert_eq!(alert("03-na-strings").field("k8s.pod.name"), None);
}
