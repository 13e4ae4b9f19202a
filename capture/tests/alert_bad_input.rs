//! Alerts as nobody should send them: each gets a clear answer, none does harm.

use proptest::{collection::vec, prelude::*};
use remora_capture::{
    alert::{
        ALERT_BYTES_MAX, Alert, AlertError, Priority,
        mapping::{NoTarget, Traffic, endpoint, names, target, terms},
    },
    filter::Filter,
    text::is_hostile,
};

/// An alert with these output fields.
fn with_fields(fields: &str) -> Alert {
    let json = format!(r#"{{"rule":"r","output_fields":{{{fields}}}}}"#);
    Alert::from_json(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"))
}

fn refused(json: &str) -> AlertError {
    Alert::from_json(json.as_bytes()).expect_err(json)
}

#[test]
fn what_is_no_alert_is_told_why() {
    use AlertError as E;
    let wrong = |field, expected| E::WrongType { field, expected };
    for (json, error) in [
        ("", E::Empty),
        (" \r\n\t", E::Empty),
        ("[]", E::NotAnObject),
        (r#"[{"rule":"r"}]"#, E::NotAnObject),
        ("null", E::NotAnObject),
        ("7", E::NotAnObject),
        ("{}", E::MissingRule),
        (r#"{"rule":null}"#, E::MissingRule),
        (r#"{"rule":""}"#, E::MissingRule),
        (r#"{"rule":"<NA>"}"#, E::MissingRule),
        (r#"{"rule":7}"#, wrong("rule", "a string")),
        (
            r#"{"rule":"r","priority":4}"#,
            wrong("priority", "a string"),
        ),
        (
            r#"{"rule":"r","priority":"huge"}"#,
            E::Priority("huge".into()),
        ),
        (
            r#"{"rule":"r","priority":"\u001b"}"#,
            E::Priority("\\u{1b}".into()),
        ),
        (r#"{"rule":"r","time":1}"#, wrong("time", "a string")),
        (
            r#"{"rule":"r","time":"yesterday"}"#,
            E::Time("yesterday".into()),
        ),
        (
            r#"{"rule":"r","tags":"a"}"#,
            wrong("tags", "a list of strings"),
        ),
        (
            r#"{"rule":"r","tags":[1]}"#,
            wrong("tags", "a list of strings"),
        ),
        (
            r#"{"rule":"r","output_fields":[]}"#,
            wrong("output_fields", "an object"),
        ),
        (r#"{"rule":"r","output":{}}"#, wrong("output", "a string")),
    ] {
        assert_eq!(refused(json), error, "{json}");
        assert!(!refused(json).to_string().chars().any(is_hostile));
    }
    for json in [
        "rule=r",
        "{",
        r#"{"rule":"r""#,
        r#"{"rule":"r"} x"#,
        r#"{"rule":NaN}"#,
        "\u{feff}{}",
    ] {
        assert!(matches!(refused(json), AlertError::NotJson(_)), "{json}");
    }
    assert!(matches!(
        Alert::from_json(b"{\"rule\":\"\xff\"}"),
        Err(AlertError::NotJson(_))
    ));
}

#[test]
fn size_and_depth_are_bounded_before_parsing() {
    let megabyte = format!(r#"{{"rule":"{}"}}"#, "x".repeat(1 << 20));
    assert_eq!(refused(&megabyte), AlertError::TooLarge(megabyte.len()));
    let fits = format!(r#"{{"rule":"{}"}}"#, "x".repeat(ALERT_BYTES_MAX - 11));
    assert_eq!(
        Alert::from_json(fits.as_bytes()).expect("fits").rule.len(),
        ALERT_BYTES_MAX - 11
    );
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        for closed in [0, 10_000] {
            let deep = format!(
                r#"{{"rule":"r","output_fields":{{"a":{}0{}}}}}"#,
                open.repeat(10_000),
                close.repeat(closed)
            );
            assert_eq!(refused(&deep), AlertError::TooDeep);
        }
    }
    let brackets_in_text = format!(r#"{{"rule":"{}\"[{{"}}"#, "[".repeat(10_000));
    assert!(Alert::from_json(brackets_in_text.as_bytes()).is_ok());
}

#[test]
fn keys_and_priorities_come_in_any_case_and_the_last_counts() {
    let json = r#"{"RULE":"a","Rule":"b","Priority":"warning","TAGS":null,"Output_Fields":{"dup":1,"dup":"two","Dup":3},
        "rule":"c","unknown":{"x":[1]},"message":"m","hostname":"<NA>","source":null,"output":null,"time":null}"#;
    let alert = Alert::from_json(json.as_bytes()).expect("alert");
    assert_eq!(
        (alert.rule.as_str(), alert.priority),
        ("c", Some(Priority::Warning))
    );
    assert_eq!(
        (alert.field("dup"), alert.field("Dup")),
        (Some("two"), Some("3"))
    );
    assert_eq!(
        (alert.hostname, alert.source.as_str(), alert.time),
        (None, "syscall", None)
    );
    for (text, priority) in [
        ("EMERGENCY", Priority::Emergency),
        ("Info", Priority::Informational),
        ("informational", Priority::Informational),
    ] {
        assert_eq!(text.parse(), Ok(priority));
    }
    assert!(Priority::Critical > Priority::Error && Priority::Debug < Priority::Notice);
}

#[test]
fn odd_values_have_no_text_and_do_not_harm() {
    let fields = r#""a":null,"b":[1,{"c":"d"}],"e":"\ud800","f":"<no value>","g":-0.0,"h":false"#;
    let alert = with_fields(fields);
    let text = |key| alert.field(key);
    assert_eq!(
        [text("a"), text("b"), text("e"), text("f"), text("z")],
        [None; 5]
    );
    assert_eq!((text("g"), text("h")), (Some("-0.0"), Some("false")));
}

/// Output fields, and the filter of the endpoint.
#[test]
fn connections_are_read_however_falco_tells_them() {
    for (fields, filter) in [
        // A listening socket has no remote end.
        (
            r#""fd.name":"0.0.0.0:8080","fd.l4proto":"tcp""#,
            "tcp port 8080",
        ),
        (
            r#""fd.name":":::8080","fd.l4proto":"tcp","evt.type":"listen""#,
            "tcp port 8080",
        ),
        // But an unconnected socket that sends is not listening.
        (
            r#""fd.name":"0.0.0.0:5000","fd.l4proto":"udp","evt.type":"sendto""#,
            "udp",
        ),
        // Addresses that say nothing.
        (
            r#""fd.sip":"0.0.0.0","fd.sport":53,"fd.l4proto":"udp""#,
            "udp port 53",
        ),
        (
            r#""fd.sip":"127.0.0.1","fd.sport":6379,"fd.l4proto":"tcp""#,
            "tcp port 6379",
        ),
        (r#""fd.sip":"::1","fd.sport":"6379""#, "port 6379"),
        (r#""fd.sip":"::ffff:127.0.0.1","fd.sport":1"#, "port 1"),
        // IPv6, without and with brackets, IPv4-mapped.
        (
            r#""fd.name":"fd00::7:43812->2001:db8::bad:443","fd.type":"ipv6""#,
            "host 2001:db8::bad and port 443",
        ),
        (
            r#""fd.name":"[fd00::7]:1->[2001:db8::bad]:443""#,
            "host 2001:db8::bad and port 443",
        ),
        (
            r#""fd.name":"::ffff:10.0.0.1:1->::ffff:192.0.2.9:443","fd.l4proto":"tcp""#,
            "host 192.0.2.9 and tcp port 443",
        ),
        (r#""fd.sip":"::ffff:192.0.2.9""#, "host 192.0.2.9"),
        // A port without its address is taken from fd.name only where the address agrees.
        (
            r#""fd.sip":"192.0.2.9","fd.name":"10.0.0.1:1->192.0.2.9:443""#,
            "host 192.0.2.9 and port 443",
        ),
        (
            r#""fd.sip":"192.0.2.9","fd.name":"10.0.0.1:1->192.0.2.8:443""#,
            "host 192.0.2.9",
        ),
        // The guesses are never used.
        (
            r#""fd.rip":"192.0.2.9","fd.rport":443,"fd.lip":"10.0.0.1""#,
            "",
        ),
        // ICMP has no ports.
        (
            r#""fd.name":"10.0.0.1:8->192.0.2.9:0","fd.l4proto":"icmp""#,
            "host 192.0.2.9 and icmp",
        ),
        (
            r#""fd.sip":"2001:db8::9","fd.l4proto":"icmp""#,
            "host 2001:db8::9 and icmp6",
        ),
        (
            r#""fd.sip":"192.0.2.9","fd.l4proto":"raw""#,
            "host 192.0.2.9",
        ),
        // Server side: the client's address, the service's port.
        (
            r#""fd.is_server":true,"evt.type":"sendto","fd.cip":"192.0.2.9","fd.cport":4000,"fd.sip":"10.0.0.1","fd.sport":53"#,
            "host 192.0.2.9 and port 53",
        ),
        (
            r#""evt.type":"accept4","fd.name":"192.0.2.9:4000->10.0.0.1:80","fd.l4proto":"tcp""#,
            "host 192.0.2.9 and tcp port 80",
        ),
        (
            r#""fd.is_server":"true","fd.cip":"192.0.2.9""#,
            "host 192.0.2.9",
        ),
        // Files, pipes and nonsense.
        (r#""fd.name":"/etc/shadow""#, ""),
        (r#""fd.name":"/tmp/1.2.3.4:5->6.7.8.9:10""#, ""),
        (r#""fd.name":"1.2.3.4:5->6.7.8.9:10","fd.type":"file""#, ""),
        (r#""fd.name":"1.2.3.4:5->6.7.8.9:99999""#, ""),
        (r#""fd.name":"->""#, ""),
        (r#""fd.name":"1.2.3.4:5->6.7.8.9:10[...]""#, ""),
        (
            r#""fd.sip":"192.0.2.9 or host 0.0.0.0/0","fd.sport":"80 or 1""#,
            "",
        ),
        (r#""fd.sip":"c2.example","fd.sport":-1"#, ""),
        (r#""fd.sip":["192.0.2.9"],"fd.sport":{"a":1}"#, ""),
        (r#""fd.sip":"fe80::1%eth0""#, ""),
    ] {
        let alert = with_fields(fields);
        let text = terms(&alert, Traffic::Endpoint).to_string();
        assert_eq!(text, filter, "{fields}");
        assert!(Filter::parse(&text).is_ok());
    }
}

#[test]
fn target_is_the_container_then_the_process() {
    for (fields, expected) in [
        (r#""container.id":"EE97D9C4186F""#, "container:ee97d9c4186f"),
        (r#""container.id":"host","proc.pid":4321"#, "pid:4321"),
        (r#""container.id":"","proc.pid":"4321""#, "pid:4321"),
        (r#""container.id":"<NA>","proc.pid":1"#, "pid:1"),
        (r#""container.id":"mylxc","proc.pid":1"#, "pid:1"),
        (r#""container.id":"../../etc","proc.pid":1"#, "pid:1"),
    ] {
        let found = target(&with_fields(fields)).expect(fields);
        assert_eq!(found.to_string(), expected, "{fields}");
    }
    for (fields, error) in [
        ("", NoTarget::Missing),
        (r#""container.id":"host""#, NoTarget::Missing),
        (r#""container.id":null,"proc.pid":null"#, NoTarget::Missing),
        (
            r#""container.id":"../\n""#,
            NoTarget::Container("../\\n".into()),
        ),
        (r#""container.id":"abc""#, NoTarget::Container("abc".into())),
        (r#""proc.pid":0"#, NoTarget::Pid("0".into())),
        (r#""proc.pid":-5"#, NoTarget::Pid("-5".into())),
        (
            r#""proc.pid":1.234567e+06"#,
            NoTarget::Pid("1.234567e+06".into()),
        ),
        (
            r#""proc.pid":4294967295"#,
            NoTarget::Pid("4294967295".into()),
        ),
    ] {
        assert_eq!(target(&with_fields(fields)), Err(error), "{fields}");
    }
}

#[test]
fn hostile_names_stay_out_of_names_and_messages() {
    for name in ["a\\nb", "\\u001b[31m", "../x", "\\u202e", "\\u0000", "a b"] {
        let alert = with_fields(&format!(
            r#""fd.sip":"192.0.2.9","fd.sip.name":"{name}","container.id":"{name}""#
        ));
        let hints = names(&alert);
        // "../x" is dots and a slash; a slash is no part of a host name.
        assert!(hints.is_empty(), "{hints:?}");
        let message = target(&alert).expect_err(name).to_string();
        assert!(!message.chars().any(is_hostile), "{message}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>()) {
        let _ = Alert::from_json(&bytes);
        let json = br#"{"rule":"r","priority":"Error","time":"2026-11-24T03:00:05Z","tags":["a"],
            "output_fields":{"fd.name":"1.2.3.4:5->6.7.8.9:10","container.id":"host","proc.pid":7}}"#;
        let cut = cut.index(json.len());
        prop_assert!(Alert::from_json(&json[..cut]).is_err());
        let mut spliced = json.to_vec();
        spliced.splice(cut..(cut + bytes.len()).min(json.len()), bytes);
        if let Ok(alert) = Alert::from_json(&spliced) {
            let _ = (endpoint(&alert), target(&alert), names(&alert));
            let terms = terms(&alert, Traffic::Flow);
            prop_assert!(Filter::from_terms(&terms).is_ok());
        }
    }
}
