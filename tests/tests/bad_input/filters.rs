//! Filters: text, terms, and programs from outside.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use remora_proto::v1;
use remora_tests::{
    agent::{TestAgent, of_pod, of_pod_filtered},
    node::Node,
    wait,
};
use tonic::Code;

use crate::{Witness, assert_refused};

/// What hostile text may take of anybody's time.
const REFUSED_AT_ONCE: Duration = Duration::from_millis(50);

/// Classic BPF that a kernel must not run, and what the refusal says of it.
fn harmful_programs() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    // Code, jt, jf, k (linux/bpf_common.h).
    let bytes = |program: &[(u16, u8, u8, u32)]| {
        let instruction = |&(code, jt, jf, k): &(u16, u8, u8, u32)| {
            [&code.to_le_bytes()[..], &[jt, jf], &k.to_le_bytes()].concat()
        };
        program.iter().flat_map(instruction).collect::<Vec<u8>>()
    };
    const TAKE: (u16, u8, u8, u32) = (6, 0, 0, 255);
    let backward = |by: i32| bytes(&[TAKE, (5, 0, 0, by.cast_unsigned()), TAKE]);
    vec![
        ("a jump to itself", backward(-1), "jumps out"),
        ("a jump backward", backward(-2), "jumps out"),
        (
            "a jump beyond the end",
            bytes(&[(0x15, 0, 1, 0), TAKE]),
            "jumps out",
        ),
        (
            "a division by zero",
            bytes(&[(0x34, 0, 0, 0), TAKE]),
            "divides by zero",
        ),
        (
            "a remainder by zero",
            bytes(&[(0x94, 0, 0, 0), TAKE]),
            "divides by zero",
        ),
        (
            "scratch cell 16",
            bytes(&[(2, 0, 0, 16), TAKE]),
            "scratch cell 16",
        ),
        (
            "a cell never written",
            bytes(&[(0x60, 0, 0, 3), TAKE]),
            "not set",
        ),
        (
            "Linux' own offsets",
            bytes(&[(0x20, 0, 0, 0xffff_f038), TAKE]),
            "negative offset",
        ),
        ("4097 instructions", bytes(&[TAKE; 4097]), "4097"),
        ("no return", bytes(&[(0x20, 0, 0, 0)]), "return"),
        ("eBPF", bytes(&[(0x85, 0, 0, 1), TAKE]), "unknown code"),
        ("half an instruction", vec![6; 12], "8 bytes an instruction"),
    ]
}

#[test]
fn bad_filters_are_refused_at_the_word() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let witness = Witness::start(&agent, &web)?;
    let nonsense = [
        ("tcp port eighty", "eighty"),
        ("tcp port 70000", "70000"),
        ("host 999.1.2.3", "999.1.2.3"),
        ("net 10.0.0.0/33", "10.0.0.0/33"),
        ("tcp and", "and"),
        ("-z /tmp/evil.sh", "-z"),
        ("tcp; rm -rf /", ";"),
        ("$(reboot)", "$(reboot)"),
        ("tcp or host c2.example", "c2.example"),
        ("tcp[tcpflags & tcp-syn != 0", "!"),
        ("not ip protochain 6", "protochain"),
        ("not inbound", "inbound"),
        ("arp and (tcp or udp)", "rejects all"),
    ];
    for (filter, word) in nonsense {
        let answer = agent.capture(of_pod_filtered(&web, filter));
        let message = assert_refused(filter, answer, Code::InvalidArgument, "invalid_filter")?;
        ensure!(
            message.contains(word),
            "`{filter}`: {message:?} does not point at `{word}`"
        );
        println!("{filter}: {message}");
    }
    for filter in ["tcp\x1b[31m port 80", "tcp port 80\u{202e}", "tcp\0"] {
        let answer = agent.capture(of_pod_filtered(&web, filter));
        assert_refused(filter, answer, Code::InvalidArgument, "invalid_filter")?;
    }
    witness.assert_undisturbed(&agent, &node, &web, &api)
}

#[test]
fn hostile_filters_are_refused_at_once() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let witness = Witness::start(&agent, &web)?;
    // Deep, long for libpcap's optimiser.
    let brackets = |count: usize| format!("{}tcp{} or udp", "(".repeat(count), ")".repeat(count));
    let ports = |count: usize| {
        let ports: Vec<_> = (1..=count).map(|port| format!("port {port}")).collect();
        ports.join(" or ")
    };
    for (case, filter) in [
        ("2000 brackets", brackets(2000)),
        ("10 000 brackets", brackets(10_000)),
        ("300 ports", ports(300)),
        ("5000 ports", ports(5000)),
        ("4000 times not", "!".repeat(4000)),
        ("a NUL", "tcp or not port 80\0".to_owned()),
    ] {
        wait::within(REFUSED_AT_ONCE, case, || {
            let asked = Instant::now();
            let answer = agent.capture(of_pod_filtered(&web, &filter));
            let took = asked.elapsed();
            assert_refused(case, answer, Code::InvalidArgument, "invalid_filter")?;
            Ok(took)
        })?;
    }
    let long = "tcp and ".repeat(1000) + "tcp";
    let answer = agent.capture(of_pod_filtered(&web, &long));
    assert_refused(
        "8 KB of filter",
        answer,
        Code::InvalidArgument,
        "invalid_filter",
    )?;
    // Larger than a request may be: refused before it is read, by gRPC itself.
    let megabyte = "x".repeat(1 << 20);
    wait::within(REFUSED_AT_ONCE, "1 MiB", || {
        let asked = Instant::now();
        let answer = agent.capture(of_pod_filtered(&web, &megabyte));
        let took = asked.elapsed();
        let status = answer.err().context("was taken")?;
        ensure!(
            matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted),
            "{:?}: {}",
            status.code(),
            status.message()
        );
        Ok(took)
    })?;
    witness.assert_undisturbed(&agent, &node, &web, &api)
}

#[test]
fn programs_that_could_do_harm_are_refused_and_arm_nothing() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let witness = Witness::start(&agent, &web)?;
    for (case, program, problem) in harmful_programs() {
        let spec = |ethernet: &[u8], raw: &[u8]| v1::CaptureSpec {
            programs: Some(v1::FilterPrograms {
                ethernet: ethernet.to_vec().into(),
                raw: raw.to_vec().into(),
            }),
            ..of_pod_filtered(&web, "host c2.example")
        };
        const TAKE_ALL: [u8; 8] = [6, 0, 0, 0, 0xff, 0, 0, 0];
        for spec in [spec(&program, &[]), spec(&TAKE_ALL, &program)] {
            let answer = agent.capture(spec);
            let message = assert_refused(case, answer, Code::InvalidArgument, "invalid_filter")?;
            ensure!(message.contains(problem), "{case}: {message}");
        }
    }
    witness.assert_undisturbed(&agent, &node, &web, &api)
}

#[test]
fn terms_that_are_none_are_refused() -> Result<()> {
    let node = Node::new()?;
    let (web, api) = (node.pod("web")?, node.pod("api")?);
    let agent = TestAgent::start(&node)?;
    let witness = Witness::start(&agent, &web)?;
    for (name, terms) in [
        (
            "family",
            v1::FilterTerms {
                family: "ipx".into(),
                ..Default::default()
            },
        ),
        (
            "protocol",
            v1::FilterTerms {
                protocol: "\x1b[31m".into(),
                ..Default::default()
            },
        ),
        (
            "host",
            v1::FilterTerms {
                host: "c2.example".into(),
                ..Default::default()
            },
        ),
        (
            "port",
            v1::FilterTerms {
                port: 65_536,
                ..Default::default()
            },
        ),
    ] {
        let answer = agent.capture(v1::CaptureSpec {
            terms: Some(terms),
            ..of_pod(&web)
        });
        assert_refused(name, answer, Code::InvalidArgument, "invalid_filter")?;
    }
    witness.assert_undisturbed(&agent, &node, &web, &api)
}
