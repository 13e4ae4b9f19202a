//! The filters' verdicts are libpcap's: random filters of the subset, on random and mutated
//! frames, beside the program that tcpdump compiles from the same text.

mod support;

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};
use remora_capture::filter::{Filter, FilterErrorKind, Terms};
use support::{
    cbpf::{Compiled, compile},
    installed,
};

/// Filters tried; each starts a tcpdump.
const FILTERS: u32 = 300;
/// Frames tried on each filter.
const FRAMES: usize = 150;

// Few values, so that filters and frames meet often.
const V4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(192, 0, 2, 7),
    Ipv4Addr::new(192, 0, 2, 8),
    Ipv4Addr::new(10, 1, 0, 0),
    Ipv4Addr::new(0, 0, 0, 0),
];
const V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 7),
    Ipv6Addr::UNSPECIFIED,
];
const PORTS: [u16; 4] = [0, 53, 80, 443];

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        3 => select(&V4[..]).prop_map(IpAddr::V4),
        2 => select(&V6[..]).prop_map(IpAddr::V6),
    ]
}

fn network() -> impl Strategy<Value = String> {
    let prefix = (
        address(),
        select(&[0u8, 1, 8, 16, 24, 31, 32, 33, 48, 64, 127, 128][..]),
    )
        .prop_map(|(address, length)| match address {
            IpAddr::V4(a) => {
                let length = length.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                format!("{}/{length}", Ipv4Addr::from_bits(a.to_bits() & mask))
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                format!("{}/{length}", Ipv6Addr::from_bits(a.to_bits() & mask))
            }
        });
    prop_oneof![
        6 => prefix,
        1 => select(&["10", "10.1", "10.1.0", "10.1/16", "192.0.2.7", "192.0.2.7/24"][..])
            .prop_map(str::to_owned),
    ]
}

fn side() -> impl Strategy<Value = &'static str> {
    select(
        &[
            "",
            "",
            "",
            "src ",
            "dst ",
            "src or dst ",
            "dst or src ",
            "src and dst ",
        ][..],
    )
}

fn term() -> impl Strategy<Value = String> {
    let protocol = select(&["tcp", "udp", "sctp", "icmp", "icmp6", "ip", "ip6"][..]);
    let network_qualifier = select(&["", "", "", "ip ", "ip6 "][..]);
    let host = (network_qualifier.clone(), side(), any::<bool>(), address()).prop_map(
        |(family, side, bare, address)| {
            let kind = if bare && !side.is_empty() {
                ""
            } else {
                "host "
            };
            format!("{family}{side}{kind}{address}")
        },
    );
    let net = (network_qualifier, side(), network())
        .prop_map(|(family, side, net)| format!("{family}{side}net {net}"));
    let protocol_qualifier = select(&["", "tcp ", "udp ", "sctp ", "icmp "][..]);
    let more = select(&["", "", "", " and 53", " and 80"][..]);
    let port = (protocol_qualifier, side(), select(&PORTS[..]), more)
        .prop_map(|(protocol, side, port, more)| format!("{protocol}{side}port {port}{more}"));
    let bare = address().prop_map(|a| a.to_string());
    prop_oneof![
        3 => protocol.prop_map(str::to_owned),
        4 => host,
        3 => net,
        5 => port,
        1 => bare,
    ]
}

fn expression() -> impl Strategy<Value = String> {
    vec((term(), select(&[" and ", " && ", "&&"][..])), 1..5).prop_map(|terms| {
        let mut text = String::new();
        for (i, (term, and)) in terms.iter().enumerate() {
            if i > 0 {
                text.push_str(and);
            }
            text.push_str(term);
        }
        text
    })
}

fn ipv4(payload: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let octets = || select(&V4[..]).prop_map(|a| a.octets());
    let fragment = select(&[0u16, 0, 0, 0x4000, 0x2000, 0x0001, 0x1000, 0x20ff]);
    let protocol = select(&[1u8, 6, 6, 17, 58, 132, 47]);
    (
        octets(),
        octets(),
        protocol,
        fragment,
        select(&[0x45u8, 0x45, 0x46, 0x4f, 0x40]),
    )
        .prop_map(
            move |(source, destination, protocol, fragment, version_ihl)| {
                let mut packet = vec![version_ihl, 0, 0, 60, 0, 1];
                packet.extend(fragment.to_be_bytes());
                packet.extend([64, protocol, 0, 0]);
                packet.extend(source);
                packet.extend(destination);
                packet.resize(usize::from(version_ihl & 0xf).max(5) * 4, 1);
                packet.extend(&payload);
                packet
            },
        )
}

fn ipv6(payload: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let octets = || select(&V6[..]).prop_map(|a| a.octets());
    let next = select(&[1u8, 6, 6, 17, 58, 132, 0, 44, 44, 60]);
    let inner = select(&[6u8, 17, 58, 132, 44]);
    (octets(), octets(), next, inner).prop_map(move |(source, destination, next, inner)| {
        let mut packet = vec![0x60, 0, 0, 0, 0, 40, next, 64];
        packet.extend(source);
        packet.extend(destination);
        if matches!(next, 0 | 44 | 60) {
            packet.extend([inner, 0, 0, 1, 0, 0, 0, 9]);
        }
        packet.extend(&payload);
        packet
    })
}

fn arp() -> impl Strategy<Value = Vec<u8>> {
    (select(&V4[..]), select(&V4[..])).prop_map(|(sender, target)| {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2];
        packet.extend(sender.octets());
        packet.extend([0; 6]);
        packet.extend(target.octets());
        packet
    })
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let ports = (
        select(&PORTS[..]),
        select(&PORTS[..]),
        vec(any::<u8>(), 0..24),
    )
        .prop_map(|(source, destination, rest)| {
            let mut payload = source.to_be_bytes().to_vec();
            payload.extend(destination.to_be_bytes());
            payload.extend(rest);
            payload
        });
    let network = ports.prop_flat_map(|payload| {
        prop_oneof![
            5 => (Just(0x0800u16), ipv4(payload.clone())),
            4 => (Just(0x86dd), ipv6(payload.clone())),
            2 => (select(&[0x0806, 0x8035]), arp()),
            // A tag in the frame, an unknown type, a length.
            1 => (select(&[0x8100, 0x88cc, 0x0040]), ipv4(payload)),
        ]
    });
    let whole = network.prop_map(|(ether_type, packet)| {
        let mut frame = vec![2; 12];
        frame.extend(ether_type.to_be_bytes());
        frame.extend(packet);
        frame
    });
    let cut = any::<prop::sample::Index>();
    prop_oneof![
        6 => whole.clone(),
        3 => (whole.clone(), cut).prop_map(|(mut frame, cut)| {
            frame.truncate(cut.index(frame.len() + 1));
            frame
        }),
        2 => (whole, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut frame, at, byte)| {
            let at = at.index(frame.len());
            frame[at] = byte;
            frame
        }),
        1 => vec(any::<u8>(), 0..80),
    ]
}

fn terms(filter: &Filter) -> &Terms {
    filter.meaning().terms().expect("parsed")
}

#[test]
fn verdicts_equal_libpcaps() {
    if !installed("tcpdump") {
        return;
    }
    let (programs, taken) = (Cell::new(0u32), Cell::new(0u64));
    let config = Config {
        cases: FILTERS,
        failure_persistence: None,
        ..Config::default()
    };
    let strategy = (expression(), vec(frame(), FRAMES));
    TestRunner::new(config)
        .run(&strategy, |(text, frames)| {
            let ours = Filter::parse(&text);
            match (compile(&text), ours) {
                (Compiled::Program(program), Ok(filter)) => {
                    programs.set(programs.get() + 1);
                    for frame in &frames {
                        let verdict = terms(&filter).matches(frame);
                        taken.set(taken.get() + u64::from(verdict));
                        prop_assert_eq!(verdict, program.takes(frame), "{}: {:02x?}", &text, frame);
                    }
                    let reread = Filter::from_terms(terms(&filter));
                    prop_assert_eq!(reread.as_ref().map(terms), Ok(terms(&filter)));
                }
                // libpcap's optimiser need not see that a filter rejects all.
                (Compiled::Program(program), Err(error)) => {
                    let sound = match error.kind {
                        FilterErrorKind::RejectsAll(_) => !frames.iter().any(|f| program.takes(f)),
                        FilterErrorKind::TooManyTerms(_) => true,
                        _ => false,
                    };
                    prop_assert!(sound, "{}: {}", text, error);
                }
                (Compiled::RejectsAll, Ok(filter)) => {
                    prop_assert!(false, "{} should reject all: {:?}", text, terms(&filter));
                }
                (Compiled::Refused(message), Ok(_)) => {
                    prop_assert!(false, "{}: tcpdump says {}", text, message);
                }
                (_, Err(_)) => {}
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    // The run is worth nothing when filters and frames never meet.
    let (programs, taken) = (programs.get(), taken.get());
    println!("{programs} of {FILTERS} filters compiled; they took {taken} frames of {FRAMES} each");
    assert!(programs > FILTERS / 8, "only {programs} filters compiled");
    assert!(
        taken > u64::from(programs),
        "only {taken} frames were taken"
    );
}

/// What the property test might meet seldom.
#[test]
fn canonical_texts_compile_to_libpcaps_program() {
    if !installed("tcpdump") {
        return;
    }
    for text in [
        "",
        "tcp",
        "icmp6",
        "host 192.0.2.7 and tcp port 443",
        "src and dst net 10.0.0.0/8",
        "net 0.0.0.0/0",
        "net ::/0",
        "host ::ffff:192.0.2.7",
        "host ::1.2.3.4",
        "ip6 host fe80::1 and udp dst or src port 53 and 53",
    ] {
        let filter = Filter::parse(text).expect(text);
        let canonical = terms(&filter).to_string();
        for text in [text, canonical.as_str()] {
            assert!(matches!(compile(text), Compiled::Program(_)), "{text}");
        }
    }
}
