//! Templates, right and wrong, and that no alert can write filter text.

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

fn alert(fields: &Json) -> Alert {
    let value = json!({"rule": "r", "output_fields": fields});
    Alert::from_json(value.to_string().as_bytes()).unwrap()
}

fn connection() -> Json {
    json!({
        "fd.name": "10.244.1.7:43812->198.51.100.23:4444", "fd.l4proto": "tcp",
        "evt.type": "connect", "custom.net": "203.0.113.0/24", "custom.mapped": "::ffff:192.0.2.9",
    })
}

fn filled(template: &str, fields: &Json) -> Result<String, String> {
    Template::parse(template)
        .unwrap_or_else(|problem| panic!("{template}: {problem}"))
        .fill(&alert(fields))
        .map(|filled| filled.text)
        .map_err(|error| error.to_string())
}

#[test]
fn holes_take_the_alerts_values() {
    for (template, expected) in [
        ("host ${remote.ip}", "host 198.51.100.23"),
        ("src ${own.ip}", "src 10.244.1.7"),
        ("dst port ${service.port}", "dst port 4444"),
        ("port ${own.port}", "port 43812"),
        ("${remote.proto} port ${remote.port}", "tcp port 4444"),
        ("${remote.proto}", "tcp"),
        ("net ${field:custom.net}", "net 203.0.113.0/24"),
        ("host ${field:custom.mapped}", "host 192.0.2.9"),
        (
            "host ${remote.ip} and ${remote.proto?} port ${remote.port}",
            "host 198.51.100.23 and tcp port 4444",
        ),
        (
            "(host ${remote.ip} and port ${service.port?}) or port 53",
            "(host 198.51.100.23 and port 4444) or port 53",
        ),
        (
            "not host ${own.ip} && tcp[tcpflags] & tcp-syn != 0",
            "not host 10.244.1.7 and tcp[tcpflags] & tcp-syn != 0",
        ),
        (
            "host ${remote.ip} and (tcp[12] & 0xf0) >> 2 = 5",
            "host 198.51.100.23 and ( tcp[12] & 0xf0 ) >> 2 = 5",
        ),
        (
            "src or dst port ${remote.port} and port (80 or 443)",
            "src or dst port 4444 and port ( 80 or 443 )",
        ),
        ("!!host ${remote.ip}", "host 198.51.100.23"),
    ] {
        assert_eq!(
            filled(template, &connection()).as_deref(),
            Ok(expected),
            "{template}"
        );
    }
}

#[test]
fn a_hole_with_a_question_mark_takes_its_whole_term_away() {
    let nothing = json!({});
    for (template, expected) in [
        ("host ${remote.ip?}", ""),
        ("host ${remote.ip?} and tcp", "tcp"),
        ("tcp and host ${remote.ip?}", "tcp"),
        ("host ${remote.ip?} or port 53", "port 53"),
        ("udp or host ${remote.ip?} and port 53", "udp and port 53"),
        ("not host ${remote.ip?} and tcp", "tcp"),
        (
            "(host ${remote.ip?} or port ${remote.port?}) and tcp",
            "tcp",
        ),
        ("not (host ${remote.ip?}) and tcp", "tcp"),
        ("${remote.proto?} port 53", "port 53"),
        ("${remote.proto?} port ${remote.port?} and ip", "ip"),
        ("src or dst port ${remote.port?} and udp", "udp"),
    ] {
        assert_eq!(
            filled(template, &nothing).as_deref(),
            Ok(expected),
            "{template}"
        );
    }
    let icmp = json!({"fd.name": "10.0.0.1:0->192.0.2.1:0", "fd.l4proto": "icmp"});
    for (template, expected) in [
        (
            "${remote.proto?} port ${remote.port?} and host ${remote.ip}",
            "host 192.0.2.1",
        ),
        (
            "${remote.proto?} and host ${remote.ip}",
            "icmp and host 192.0.2.1",
        ),
    ] {
        assert_eq!(
            filled(template, &icmp).as_deref(),
            Ok(expected),
            "{template}"
        );
    }
    let error = filled("host ${remote.ip} and tcp", &nothing).unwrap_err();
    assert_eq!(
        error,
        "the alert has no value for `${remote.ip}` that is an address"
    );
}

#[test]
fn what_a_server_calls_remote_is_the_client() {
    let accept = json!({
        "fd.name": "203.0.113.77:40000->10.244.1.7:8080", "fd.l4proto": "tcp", "evt.type": "accept4",
    });
    let template = "host ${remote.ip} and port ${remote.port} and host ${own.ip} and port \
                    ${own.port} and port ${service.port}";
    assert_eq!(
        filled(template, &accept).as_deref(),
        Ok("host 203.0.113.77 and port 40000 and host 10.244.1.7 and port 8080 and port 8080")
    );
}

#[test]
fn a_template_that_cannot_be_is_refused_when_the_rule_is_read() {
    for (template, expected) in [
        ("host ${remote.ip", "has no `}`"),
        ("host ${}", "is nothing that an alert has"),
        ("host ${field:}", "is nothing that an alert has"),
        ("host ${FD_SIP}", "is nothing that an alert has"),
        (
            "${remote.ip}",
            "is not a protocol (tcp, udp, sctp, icmp or icmp6), which belongs there",
        ),
        (
            "port ${remote.ip}",
            "is not a port from 1 to 65535, which belongs there",
        ),
        ("net ${remote.ip}/24", "a hole stands by itself"),
        ("net 10.0.0.${remote.port}", "a hole stands by itself"),
        ("host ${remote.ip}${remote.ip}", "a hole stands by itself"),
        (
            "portrange ${remote.port}",
            "stands after none of host, src, dst, net and port",
        ),
        ("ip[2] = ${remote.port}", "stands after none of"),
        ("port (${remote.port} or 80)", "stands after none of"),
        ("host ${remote.ip} and", "a term is missing"),
        ("host ${remote.ip} and ()", "a term is missing"),
        ("(host ${remote.ip}", "a `(` without its `)`"),
        ("host ${remote.ip})", "a `)` without its `(`"),
        ("port ${remote.port?} or 443", "`443` stands alone"),
        ("tcp host ${remote.ip}", "filled in as `tcp host 192.0.2.7`"),
        (
            "host ${remote.ip} and example.com",
            "`example.com` (word 4)",
        ),
        ("gateway ${remote.ip}", "stands after none of"),
    ] {
        let problem = Template::parse(template).expect_err(template).to_string();
        assert!(problem.contains(expected), "{template}\n{problem}");
    }
    let many = ["host ${remote.ip?}"; 17].join(" or ");
    assert!(
        Template::parse(&many)
            .unwrap_err()
            .to_string()
            .contains("more than 16 holes")
    );
    let deep = format!("{}host ${{remote.ip}}{}", "(".repeat(17), ")".repeat(17));
    assert!(
        Template::parse(&deep)
            .unwrap_err()
            .to_string()
            .contains("more than 16 brackets")
    );
}

/// Values that a hostile alert may have.
fn hostile() -> impl Strategy<Value = Json> {
    let text = prop_oneof![
        "(10\\.0\\.0\\.1|::1|443|tcp|0)?( or | and |\\) or \\(|\n|;|'|\\$\\{remote\\.ip\\}|/24|%eth0|:)?(tcp|host|port|10\\.0\\.0\\.1|443|\\PC){0,3}",
        "\\PC{0,20}",
        "[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}(:[0-9]{1,5})?",
        "[0-9a-f:.]{2,40}",
        "[+-]?[0-9]{1,6}",
    ];
    prop_oneof![
        8 => text.prop_map(Json::from),
        1 => any::<i64>().prop_map(Json::from),
        1 => any::<f64>().prop_map(Json::from),
        1 => Just(json!(["tcp"])),
        1 => Just(Json::Null),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Each word of what comes out is the template's own, or in the place of a hole a value that
    /// reads as what it should be and is written the one way that such a value is.
    #[test]
    fn no_alert_writes_filter_text(
        values in proptest::collection::vec(hostile(), 5),
        left in hostile(),
        right in hostile(),
    ) {
        let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let fields = json!({
            "a": values[0], "n": values[1], "p": values[2], "t": values[3], "fd.l4proto": values[4],
            "fd.name": format!("{}->{}", text(&left), text(&right)),
        });
        let template = "host ${field:a} and net ${field:n} and port ${field:p} and ${field:t} and \
                        host ${remote.ip} and port ${remote.port} and ${remote.proto}";
        // Each hole by itself, so that one absent value does not hide the others.
        for part in template.split(" and ") {
            let Ok(out) = filled(part, &fields) else { continue };
            let words: Vec<_> = out.split(' ').collect();
            let own: Vec<_> = part.split(' ').collect();
            prop_assert_eq!(words.len(), own.len(), "{}", out);
            let value = words[words.len() - 1];
            if own.len() == 2 {
                prop_assert_eq!(words[0], own[0]);
            }
            let same = match own[0] {
                "host" => value.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().to_string() == value),
                "net" => value.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_string() == value)
                    || value.parse::<remora_capture::filter::Prefix>().is_ok_and(|net| net.to_string() == value),
                "port" => value.parse::<u16>().is_ok_and(|port| port != 0 && port.to_string() == value),
                _ => ["tcp", "udp", "sctp", "icmp", "icmp6"].contains(&value),
            };
            prop_assert!(same, "{}", out);
            // As a filter it is nothing else, either.
            prop_assert!(Filter::compile(&out, compiler(Names::Refused)).is_ok(), "{}", out);
        }
    }

    #[test]
    fn no_text_breaks_the_parser(
        text in "(host |port |net |tcp |and |or |not |\\(|\\)|!|\\$\\{remote\\.(ip|port|proto)\\??\\}|\\$\\{|\\}| |443|[a-z]|\\PC){0,24}"
    ) {
        if let Ok(template) = Template::parse(&text) {
            for fields in [json!({}), connection()] {
                if let Ok(filled) = template.fill(&alert(&fields)) {
                    let has_hole = filled.text.contains("${");
                    prop_assert!(!has_hole);
                }
            }
        }
    }
}
