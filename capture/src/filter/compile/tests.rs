use super::{super::Filter, *};

fn unread(text: &str) -> Result<Filter, FilterError> {
    Filter::unread(text)
}

#[test]
fn hostile_text_is_refused_before_libpcap_sees_it() {
    type Expected = fn(&FilterErrorKind) -> bool;
    let ports = |n: u16| {
        let terms: Vec<_> = (1..=n).map(|port| format!("port {port}")).collect();
        terms.join(" or ")
    };
    let bare = |n: u16| {
        let values: Vec<_> = (1..=n).map(|port| port.to_string()).collect();
        format!("port {}", values.join(" or "))
    };
    let ranges = |n: u16| {
        let values: Vec<_> = (1..=n).map(|port| format!("{port}-{}", port + 9)).collect();
        format!("not portrange {}", values.join(" and not portrange "))
    };
    let endpoints = |n: u16, port: &str| {
        let endpoint = |i| format!("(tcp and dst host 192.0.2.{i} and {port} {i})");
        (1..=n).map(endpoint).collect::<Vec<_>>().join(" or ")
    };
    let brackets = |n: usize| format!("{}tcp{} or udp", "(".repeat(n), ")".repeat(n));
    let cases: [(String, Expected); 16] = [
        ("x".repeat(1 << 20), |k| {
            matches!(k, FilterErrorKind::TooLong(1_048_576))
        }),
        (brackets(10_000), |k| {
            matches!(k, FilterErrorKind::TooLong(_))
        }),
        (brackets(65), |k| matches!(k, FilterErrorKind::TooDeep(_))),
        ("tcp[".repeat(65), |k| {
            matches!(k, FilterErrorKind::TooDeep(_))
        }),
        (ports(51), |k| {
            matches!(k, FilterErrorKind::TooManyValues(_))
        }),
        (bare(51), |k| matches!(k, FilterErrorKind::TooManyValues(_))),
        (endpoints(51, "dst port"), |k| {
            matches!(k, FilterErrorKind::TooManyValues(_))
        }),
        // What costs libpcap more than that.
        (endpoints(34, "not port"), |k| {
            matches!(k, FilterErrorKind::TooManyValues(_))
        }),
        (endpoints(21, "portrange"), |k| {
            matches!(k, FilterErrorKind::TooManyValues(_))
        }),
        (ranges(26), |k| {
            matches!(k, FilterErrorKind::TooManyValues(_))
        }),
        (format!("src {} or tcp", "a or ".repeat(101)), |k| {
            matches!(k, FilterErrorKind::TooManyValues(_))
        }),
        ("!".repeat(2000), |k| {
            matches!(k, FilterErrorKind::TooManyWords(_))
        }),
        ("not tcp\0".to_owned(), |k| {
            matches!(k, FilterErrorKind::Character(_))
        }),
        ("not tcp \u{1b}[2J".to_owned(), |k| {
            matches!(k, FilterErrorKind::Character(_))
        }),
        ("not host b\u{fc}cher.example".to_owned(), |k| {
            matches!(k, FilterErrorKind::Character(_))
        }),
        ("not tcp\u{a0}port 80".to_owned(), |k| {
            matches!(k, FilterErrorKind::Character(_))
        }),
    ];
    for (text, expected) in cases {
        let error = unread(&text).expect_err("hostile");
        assert!(expected(&error.kind), "{error}");
        assert!(error.pointer(&text).chars().count() < 200);
        assert!(error.to_string().len() < 300, "{error}");
    }
    for text in [
        ports(50),
        bare(50),
        ranges(25),
        endpoints(50, "dst port"),
        brackets(64),
        "!".repeat(1023) + "tcp",
        vec!["tcp[13]&2!=0"; 90].join(" or "),
    ] {
        unread(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

#[test]
fn a_word_that_would_be_looked_up_is_named() {
    for (text, name) in [
        ("not host www.example.com", "www.example.com"),
        ("src c2 or tcp", "c2"),
        ("port http or tcp", "http"),
        ("portrange ftp-ssh", "ftp-ssh"),
        ("ip proto gre", "gre"),
        ("ip proto \\tcp", "\\tcp"),
        ("host \\tcp", "\\tcp"),
        ("not net loopback", "loopback"),
        ("ether host printer", "printer"),
        ("host 1.2.3.4.5", "1.2.3.4.5"),
        ("host 1.2.3.4-5", "1.2.3.4-5"),
        ("host deadbeefcafe", "deadbeefcafe"),
        ("host 0x", "0x"),
        ("host a:b", "a:b"),
        ("host fe80::1%eth0", "eth0"),
        ("tcp[13]&x=0", "x"),
        ("TCP", "TCP"),
        ("host -a", "-a"),
    ] {
        let error = names::refuse_names(text).expect_err(text);
        assert_eq!(&text[error.position..][..error.len], name, "{text}");
        assert!(matches!(error.kind, FilterErrorKind::Name(_)));
    }
    for text in [
        "tcp port 80 or udp port 53",
        "not net 10.0.0.0/8 and not net 2001:db8::/32 and net 192.0.2",
        "net 10.0.0.0 mask 255.0.0.0",
        "portrange 1-1023 and not port 0x50",
        "ether host 02:00:00:00:00:01 or ether host 0200.0000.0001 or ether host 2-0-0-0-0-1",
        "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn and tcp[13:1]&2!=0",
        "icmp6[icmp6type]=icmp6-echo or ip[0]-1>4 or ip[6:2]&0x1fff=0 or len>=-1",
        "host ::1 or host ::ffff:192.0.2.7",
    ] {
        assert_eq!(names::refuse_names(text), Ok(()), "{text}");
    }
}

#[test]
fn link_layer_bytes_are_not_those_of_a_raw_packet() {
    assert!(tokens::reads_link_layer("tcp and ether [0] & 1 = 1"));
    assert!(tokens::reads_link_layer("link[0]=0"));
    assert!(!tokens::reads_link_layer(
        "ether host 1:2:3:4:5:6 and tcp[0] = 1"
    ));
}

#[cfg(feature = "libpcap")]
mod with_libpcap {
    use super::*;

    fn compile(text: &str) -> Result<Filter, FilterError> {
        Filter::compile(text, compiler(Names::Refused))
    }

    #[test]
    fn typed_text_needs_no_program_and_all_else_has_two() {
        let typed = compile("host 192.0.2.7 and tcp port 443").expect("valid");
        assert!(typed.meaning().terms().is_some());
        let filter = compile(" tcp \n or\tudp ").expect("valid");
        assert_eq!(filter.text(), "tcp or udp");
        let programs = filter.meaning().programs().expect("programs");
        assert!(programs.raw.is_some() && !filter.is_empty());
        // More addresses than terms have room for.
        let many = "src net 10 and dst net 10.0.0.0/9 and net 10.0.0.0/10 and net 10.0.0.0/11 and host 10.0.0.1";
        assert!(compile(many).expect("valid").meaning().programs().is_some());
    }

    #[test]
    fn what_a_raw_packet_does_not_have_cannot_match_it() {
        let raw = |text: &str| {
            compile(text)
                .expect(text)
                .meaning()
                .programs()
                .expect(text)
                .raw
                .clone()
        };
        for text in [
            "ether host 02:00:00:00:00:01 or tcp",
            "vlan or tcp",
            "broadcast",
            "ether[0] & 1 = 1",
            "mpls",
        ] {
            assert_eq!(raw(text), None, "{text}");
        }
        // It is known that none matches; nothing needs to be said.
        assert_eq!(raw("arp"), Some(Program::reject_all()));
        assert_ne!(raw("arp or tcp"), None);
    }

    #[test]
    fn a_refusal_points_at_the_word_that_libpcap_did_not_take() {
        for (text, blamed, message) in [
            ("tcp or prot 80", "prot", "`prot` (word 3) is a name"),
            ("tcp or port 80 90", "90", "syntax error at `90` (word 5)"),
            ("not tcp port", "", "the filter ends where"),
            ("(tcp or udp", "", "the filter ends where"),
            ("tcp or udp)", ")", "syntax error at `)` (word 4)"),
            ("tcp[0:3] = 1 or udp", "", "data size must be 1, 2, or 4"),
            ("not host 300.1.1.1", "300.1.1.1", "invalid IPv4 address"),
            ("arp or net 10.0.0.1/8", "", "non-network bits set"),
            ("tcp or tcp and udp = 3", "=", "syntax error at `=`"),
            ("not ip protochain 6", "protochain", "needs a loop"),
            ("inbound and not tcp", "inbound", "not in the packet"),
            ("ifindex 3", "ifindex", "not in the packet"),
            ("ether[-1] = 0", "", "negative offset"),
            ("arp and (tcp or udp)", "", "expression rejects all packets"),
            ("tcp and udp", "udp", "expression rejects all packets"),
            ("ip[8] / 0 = 1", "", "division by zero"),
            ("vlan 5000", "", "VLAN tag"),
        ] {
            let error = compile(text).expect_err(text);
            assert!(error.to_string().contains(message), "{text}: {error}");
            assert_eq!(
                &text[error.position..][..error.len],
                blamed,
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn names_are_looked_up_where_that_is_allowed() {
        // Of /etc/services and /etc/hosts, which need no network.
        let by_name = Filter::compile("not host localhost", compiler(Names::LookedUp));
        assert!(
            by_name
                .expect("in /etc/hosts")
                .meaning()
                .programs()
                .is_some()
        );
        let error = Filter::compile("not port nosuchservice", compiler(Names::LookedUp));
        assert!(
            error
                .expect_err("no such service")
                .to_string()
                .contains("nosuchservice")
        );
    }

    #[test]
    fn a_typed_and_a_compiled_filter_join() {
        let typed = Filter::parse("tcp port 80").expect("typed");
        let other = compile("arp or tcp[13] & 2 != 0").expect("valid");
        let both = other.both(&typed);
        assert_eq!(both, "(arp or tcp[13] & 2 != 0) and tcp port 80");
        assert!(compile(&both).is_ok());
        assert_eq!(typed.both(&typed), "tcp port 80");
    }

    #[test]
    fn threads_compile_at_the_same_time() {
        std::thread::scope(|scope| {
            for thread in 0..8u16 {
                scope.spawn(move || {
                    for port in 0..50 {
                        let text = format!("port {} or port {port}", thread + 1000);
                        assert!(compile(&text).is_ok(), "{text}");
                    }
                });
            }
        });
    }

    #[test]
    fn programs_from_elsewhere_need_their_text() {
        let programs = Programs {
            ethernet: Program::reject_all(),
            raw: None,
        };
        let error = Filter::with_programs(" ", programs.clone()).expect_err("no text");
        assert_eq!(error.kind, FilterErrorKind::NoText);
        let named = Filter::with_programs("host www.example.com", programs.clone());
        assert!(named.expect("valid").meaning().programs().is_some());
        let typed = Filter::with_programs("tcp", programs).expect("valid");
        assert!(typed.meaning().terms().is_some());
    }
}
