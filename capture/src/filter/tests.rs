use super::*;

fn terms(filter: &Filter) -> &Terms {
    filter.meaning().terms().expect("typed")
}

fn refused(text: &str) -> FilterError {
    Filter::parse(text).expect_err(text)
}

#[test]
fn refusal_points_at_the_word() {
    let text = "tcp port 80 or port 443";
    let error = refused(text);
    assert_eq!(error.position, 12);
    assert_eq!(
        error.to_string(),
        "`or` (word 4) is not understood here; without libpcap a filter has tcp, udp, sctp, icmp, icmp6, \
         ip, ip6, host, net, port, src, dst and `and`"
    );
    assert_eq!(
        error.pointer(text),
        "tcp port 80 or port 443\n            ^^"
    );
}

#[test]
fn everything_beyond_the_subset_is_refused_at_its_place() {
    for (text, position) in [
        ("not tcp", 0),
        ("!tcp", 0),
        ("(tcp)", 0),
        ("tcp || udp", 4),
        ("portrange 1-2", 0),
        ("ether host 1:2:3:4:5:6", 0),
        ("vlan 7", 0),
        ("tcp and less 60", 8),
        ("tcp[13] & 2 != 0", 3),
        ("ip proto 6", 3),
        ("arp", 0),
        ("host www.example.com", 5),
        ("host 1.2", 5),
        ("host 10.0.0.0/8", 5),
        ("host fe80::1%eth0", 5),
        ("port http", 5),
        ("port 65536", 5),
        ("port 010", 5),
        ("port -1", 5),
        ("net 10.0.0.1/8", 4),
        ("net 10/8", 4),
        ("net 1.2.3.4/33", 4),
        ("net 1.2.3.4/999", 4),
        ("udp host 192.0.2.7", 0),
        ("ip port 80", 0),
        ("icmp port 80", 0),
        ("tcp and 443", 8),
        ("192.0.2.7", 0),
        ("and tcp", 0),
        ("tcp and", 7),
        ("tcp and and udp", 8),
        ("tcp udp", 4),
        ("host 192.0.2.7 port 80", 15),
        ("src and port 80", 8),
        ("src", 3),
        ("src host", 8),
        ("TCP", 0),
        ("tcp;udp", 0),
        ("-z /evil.sh", 0),
        ("tcp\u{a0}port 80", 0),
        ("tcp and \u{1b}[2J\u{202e}", 8),
    ] {
        assert_eq!(refused(text).position, position, "{text}");
    }
}

#[test]
fn term_that_no_packet_can_match_is_named() {
    for (text, position) in [
        ("tcp and udp", 8),
        ("ip and icmp6", 7),
        ("icmp and port 80", 9),
        ("host 192.0.2.7 and ip6", 19),
        ("ip6 host 192.0.2.7", 0),
        ("host 192.0.2.7 and ::1", 19),
        ("src 192.0.2.7 and src 192.0.2.8", 18),
        ("host 1.1.1.1 and host 2.2.2.2 and host 3.3.3.3", 34),
        ("net 10.0.0.0/8 and src and dst host 11.0.0.1", 19),
        ("src port 80 and 81", 16),
        ("port 80 and port 81 and port 82", 24),
    ] {
        let error = refused(text);
        assert!(
            matches!(error.kind, FilterErrorKind::RejectsAll(_)),
            "{text}: {error}"
        );
        assert_eq!(error.position, position, "{text}");
    }
    assert!(Filter::parse("host 1.1.1.1 and net 2.0.0.0/8 and src 2.2.2.2").is_ok());
}

#[test]
fn megabyte_is_refused_at_once() {
    let text = "tcp and ".repeat(1 << 17);
    assert_eq!(refused(&text).kind, FilterErrorKind::TooLong(1 << 20));
    assert!(refused(&text).pointer(&text).len() < 200);
}

#[test]
fn fifth_address_is_one_too_many() {
    let same = "src and dst host ::1 and host ::1 and src or dst host ::1 and net ::1 and ip6";
    assert_eq!(
        terms(&Filter::parse(same).expect("valid")).addresses.len(),
        3
    );
    let nets = (8..13)
        .map(|l| format!("net 10.0.0.0/{l}"))
        .collect::<Vec<_>>()
        .join(" and ");
    assert!(matches!(
        refused(&nets).kind,
        FilterErrorKind::TooManyTerms(_)
    ));
}

#[test]
fn pointer_is_bounded_and_harmless() {
    let text = format!(
        "{} \u{1b}[31m{} {}",
        "tcp and".repeat(40),
        "x".repeat(500),
        "y".repeat(90)
    );
    let pointer = refused(&text).pointer(&text);
    assert!(pointer.chars().count() < 250, "{pointer}");
    assert!(
        !pointer
            .replace('\n', "")
            .chars()
            .any(crate::text::is_hostile)
    );
    // A text that is not the refused one must not panic either.
    for other in ["", "é", "éé"] {
        let _ = refused("tcp and").pointer(other);
        let _ = refused("x").pointer(other);
    }
}

#[test]
fn bare_values_take_over_the_qualifiers() {
    let filter = Filter::parse("tcp src port 80 and 80").expect("valid");
    assert_eq!(
        terms(&filter).ports,
        [PortTerm {
            port: 80,
            side: Side::Source
        }]
    );
    let hosts = Filter::parse("ip host 192.0.2.7 and 192.0.2.8").expect("valid");
    assert_eq!(terms(&hosts).addresses.len(), 2);
}

#[test]
fn alert_terms_have_tcpdumps_text() {
    let terms = Terms {
        protocol: Some(Protocol::Tcp),
        addresses: vec![AddressTerm {
            prefix: "192.0.2.7".parse().expect("address"),
            side: Side::Either,
        }],
        ports: vec![PortTerm {
            port: 443,
            side: Side::Either,
        }],
        ..Terms::default()
    };
    let filter = Filter::from_terms(&terms).expect("satisfiable");
    assert_eq!(filter.text(), "host 192.0.2.7 and tcp port 443");
    assert_eq!(self::terms(&filter), &terms);
    let tcp = Filter::parse("  ip \n and   tcp ").expect("valid");
    assert_eq!(tcp.text(), "ip and tcp");
    let both = filter.and(&tcp).expect("compatible");
    assert_eq!(
        both.text(),
        "host 192.0.2.7 and tcp port 443 and ip and tcp"
    );
    assert_eq!(self::terms(&both).family, Some(Family::Ipv4));
    assert_eq!(filter.and(&Filter::default()).expect("compatible"), filter);
    assert!(filter.and(&"udp".parse().expect("valid")).is_err());
    assert!(
        Filter::from_terms(&Terms {
            family: Some(Family::Ipv6),
            protocol: Some(Protocol::Icmp),
            ..Terms::default()
        })
        .is_err()
    );
}

#[test]
fn filter_is_a_string_in_json() {
    let filter: Filter = serde_json::from_str("\"tcp  port 80\"").expect("valid");
    assert_eq!(
        serde_json::to_string(&filter).expect("string"),
        "\"tcp port 80\""
    );
    let beyond: Filter = serde_json::from_str("\"tcp or udp\"").expect("told of");
    assert_eq!(
        (beyond.text(), beyond.meaning()),
        ("tcp or udp", &Meaning::Unread)
    );
    assert_eq!(Filter::parse(" \t").expect("empty"), Filter::default());
    assert!(terms(&Filter::default()).matches(&[]));
}
