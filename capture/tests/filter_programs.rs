//! The whole language: each expression of the corpus compiles, or is refused, as `tcpdump -d` does it,
//! and the reference interpreter's verdict is libpcap's.
#![cfg(feature = "libpcap")]

mod support;

use std::{fs, process::Command};

use pcap::{Capture, Linktype};
use remora_capture::filter::{
    Filter, FilterErrorKind, Meaning, Names, compiler,
    program::{Frame, LinkType, Program},
};
use support::{frames, installed, random::Random};

const LINKS: [(LinkType, &str, Linktype); 2] = [
    (LinkType::Ethernet, "EN10MB", Linktype(1)),
    (LinkType::Raw, "RAW", Linktype(12)),
];
/// Frames that each program of the corpus sees.
const FRAMES: usize = 1500;
const EXPRESSIONS_MIN: usize = 300;

fn corpus() -> Vec<String> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/filters.txt");
    let lines: Vec<String> = fs::read_to_string(file)
        .expect("the corpus")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("# "))
        .map(str::to_owned)
        .collect();
    assert!(lines.len() >= EXPRESSIONS_MIN, "{}", lines.len());
    lines
}

fn compile(text: &str, link: LinkType) -> Result<Program, FilterErrorKind> {
    compiler(Names::LookedUp)
        .compile(text, link)
        .map_err(|error| error.kind)
}

/// `tcpdump -d`, or its message.
fn tcpdump(text: &str, link: &str) -> Result<String, String> {
    let output = Command::new("tcpdump")
        .args(["-y", link, "-d", "--", text])
        .output()
        .expect("tcpdump runs");
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).expect("ASCII"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// Frames for a link type: packets of the network layer for raw IP.
fn frames(link: LinkType, random: &mut Random) -> Vec<Vec<u8>> {
    (0..FRAMES)
        .map(|_| {
            let whole = match (link, random.below(2)) {
                (LinkType::Ethernet, _) => frames::ethernet(random),
                (LinkType::Raw, 0) => frames::ipv4(random),
                (LinkType::Raw, _) => frames::ipv6(random),
            };
            frames::damaged(whole, random)
        })
        .collect()
}

#[test]
fn each_expression_compiles_to_tcpdumps_program_or_is_refused_by_both() {
    if !installed("tcpdump") {
        return;
    }
    let (mut programs, mut refused) = (0, 0);
    for text in corpus() {
        for (link, name, _) in LINKS {
            match (tcpdump(&text, name), compile(&text, link)) {
                (Ok(theirs), Ok(ours)) => {
                    programs += 1;
                    let ours: Vec<_> = ours.to_string().lines().map(str::to_owned).collect();
                    let theirs: Vec<_> = theirs.lines().collect();
                    assert_eq!(ours, theirs, "{text} ({name})");
                }
                (Err(_), Err(_)) => refused += 1,
                // What tcpdump compiles and could not run in the kernel either.
                (Ok(_), Err(FilterErrorKind::Program(error))) => {
                    assert!(text.contains("[-1]"), "{text} ({name}): {error}");
                }
                (theirs, ours) => panic!("{text} ({name}): tcpdump {theirs:?}, here {ours:?}"),
            }
        }
    }
    println!("{programs} programs equal tcpdump's, {refused} refused by both");
    assert!(programs > EXPRESSIONS_MIN && refused > 100);
}

#[test]
fn the_interpreters_verdict_is_libpcaps() {
    let mut random = Random(42);
    let (mut pairs, mut taken) = (0u64, 0u64);
    for text in corpus() {
        for (link, _, number) in LINKS {
            let Ok(program) = compile(&text, link) else {
                continue;
            };
            let dead = Capture::dead(number).expect("a handle");
            let theirs = dead.compile(&text, true).expect("compiled before");
            for frame in frames(link, &mut random) {
                let verdict = program.run(Frame::whole(&frame));
                assert_eq!(
                    verdict,
                    theirs.filter(&frame),
                    "{text} {link:?}: {frame:02x?}"
                );
                pairs += 1;
                taken += u64::from(verdict);
            }
        }
    }
    println!("{pairs} pairs of expression and frame, {taken} taken, 0 differences");
    assert!(pairs > 500_000, "{pairs}");
    assert!((pairs / 20..pairs).contains(&taken), "{taken} of {pairs}");
}

/// A packet of a cgroup hook gets an Ethernet header in the file. What the raw program says of the
/// packet, the Ethernet program says of that frame; so a filter says on the file what it said live.
#[test]
fn the_raw_program_says_of_a_packet_what_the_ethernet_program_says_of_its_frame() {
    let mut random = Random(43);
    let mut pairs = 0u64;
    for text in corpus() {
        let Ok(filter) = Filter::compile(&text, compiler(Names::LookedUp)) else {
            continue;
        };
        let Meaning::Programs(programs) = filter.meaning() else {
            continue;
        };
        let Some(raw) = &programs.raw else {
            continue;
        };
        for _ in 0..FRAMES {
            let (ether_type, mut packet, header) = match random.below(2) {
                0 => (0x0800u16, frames::ipv4(&mut random), 20),
                _ => (0x86dd, frames::ipv6(&mut random), 40),
            };
            // A hook's packet has its network header.
            if random.below(4) == 0 {
                packet.truncate(header + random.below(packet.len() - header));
            }
            let mut frame = vec![0; 12];
            frame.extend(ether_type.to_be_bytes());
            frame.extend(&packet);
            assert_eq!(
                raw.run(Frame::network(&packet)),
                programs.ethernet.run(Frame::whole(&frame)),
                "{text}: {packet:02x?}"
            );
            pairs += 1;
        }
    }
    println!("{pairs} pairs, 0 differences");
    assert!(pairs > 100_000, "{pairs}");
}

#[test]
fn typed_terms_say_what_their_program_says() {
    let mut random = Random(44);
    let term = |random: &mut Random| {
        let side = random.one(&["", "src ", "dst ", "src or dst ", "src and dst "]);
        match random.below(4) {
            0 => random
                .one(&["tcp", "udp", "sctp", "icmp", "icmp6", "ip", "ip6"])
                .to_owned(),
            1 => {
                let host = ["192.0.2.7", "10.0.0.1", "2001:db8::7", "::1", "224.0.0.5"];
                format!("{side}host {}", random.one(&host))
            }
            2 => {
                let net = ["10", "192.0.2.0/24", "2001:db8::/32", "172.16.0.0/12"];
                format!("{side}net {}", random.one(&net))
            }
            _ => {
                let protocol = random.one(&["", "tcp ", "udp ", "sctp "]);
                format!("{protocol}{side}port {}", random.one(&[22, 53, 80, 443]))
            }
        }
    };
    let (mut texts, mut pairs, mut taken) = (0, 0u64, 0u64);
    while texts < 500 {
        let terms: Vec<_> = (0..=random.below(3)).map(|_| term(&mut random)).collect();
        let text = terms.join(" and ");
        let Ok(filter) = Filter::parse(&text) else {
            continue;
        };
        let program = compile(&text, LinkType::Ethernet).expect("what terms can say");
        let terms = filter.meaning().terms().expect("parsed");
        texts += 1;
        for frame in frames(LinkType::Ethernet, &mut random).iter().take(300) {
            let verdict = terms.matches(frame);
            assert_eq!(
                verdict,
                program.run(Frame::whole(frame)),
                "{text}: {frame:02x?}"
            );
            pairs += 1;
            taken += u64::from(verdict);
        }
    }
    println!("{texts} typed texts, {pairs} pairs, {taken} taken, 0 differences");
    assert!(taken > 1000, "{taken}");
}
