use std::{
    net::IpAddr,
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use jiff::Timestamp;
use proptest::{collection, option, prelude::*, sample::select};
use prost::Message as _;
use remora_capture::{
    filter::{
        Filter, Meaning,
        program::{Program, Programs},
    },
    session::{
        CaptureId, CaptureState, Compression, Counts, Destination, Direction, Durability, Files,
        Limits, LookBackMode, LookBackRing, NameHint, Part, Phase, PodRef, Removed, Rotation,
        Selector, SessionSpec, Snaplen, StopReason, SuperPackets, TapInfo, Target, Trigger,
        WorkloadKind, Writing,
    },
};
use tonic::{Code, Status};

use super::*;
use crate::v1;

/// A request for everything of one interface.
fn wire() -> v1::CaptureSpec {
    (&SessionSpec::new(Target::Interface("eth0".into()))).into()
}

/// The whole way through `change`, as the agent would answer it.
fn refused(change: impl FnOnce(&mut v1::CaptureSpec)) -> Status {
    let mut spec = wire();
    change(&mut spec);
    let status = Status::from(SessionSpec::try_from(spec).expect_err("taken"));
    assert_eq!(status.code(), Code::InvalidArgument);
    status
}

#[test]
fn an_empty_request_says_what_is_missing() {
    let error = Start::try_from(v1::StartRequest::default()).unwrap_err();
    assert_eq!(error.to_string(), "spec: missing");
    let error = SessionSpec::try_from(v1::CaptureSpec::default()).unwrap_err();
    assert_eq!(error.to_string(), "spec.target: missing");
}

#[test]
fn each_bad_value_is_named_by_its_field() {
    let duration = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let limits = |duration| {
        Some(v1::Limits {
            duration,
            ..v1::Limits::default()
        })
    };
    type Change = Box<dyn FnOnce(&mut v1::CaptureSpec)>;
    let cases: [(Change, &str); 9] = [
        (
            Box::new(move |s| s.limits = limits(duration(-1, 0))),
            "spec.limits.duration: negative",
        ),
        (
            Box::new(move |s| s.limits = limits(duration(i64::MAX, 0))),
            "spec.limits.duration: out of range",
        ),
        (
            Box::new(move |s| s.look_back = duration(0, -5)),
            "spec.look_back: negative",
        ),
        (
            Box::new(|s| s.direction = 77),
            "spec.direction: unknown value 77",
        ),
        (
            Box::new(|s| s.destination = -1),
            "spec.destination: unknown value -1",
        ),
        (
            Box::new(|s| {
                s.names = vec![v1::NameHint {
                    address: "\u{1b}x".into(),
                    name: "a".into(),
                }];
            }),
            "spec.names[0].address: `\\u{1b}x` is not an address",
        ),
        (
            Box::new(|s| s.trigger.as_mut().unwrap().alert = vec![0xff].into()),
            "spec.trigger.alert: not UTF-8",
        ),
        (
            Box::new(|s| {
                s.trigger.as_mut().unwrap().time = Some(prost_types::Timestamp {
                    seconds: i64::MIN,
                    nanos: -1,
                });
            }),
            "spec.trigger.time: out of range",
        ),
        (
            Box::new(|s| s.snaplen = u32::MAX),
            "snaplen 4294967295 is out of range; use 1 to 262144",
        ),
    ];
    for (change, message) in cases {
        let status = refused(change);
        assert_eq!(status.message(), message);
        assert_eq!(reason::reason_of(&status), Some(Reason::InvalidSpec));
    }
}

#[test]
fn a_bad_filter_points_at_its_word() {
    let status = refused(|spec| spec.filter = "tcp and udp".into());
    assert_eq!(reason::reason_of(&status), Some(Reason::InvalidFilter));
    let lines: Vec<_> = status.message().lines().collect();
    assert_eq!(lines[1..], ["tcp and udp", "        ^^^"], "{lines:?}");
}

#[test]
fn programs_from_a_client_are_checked() {
    let bytes = |instructions: &[[u8; 8]]| prost::bytes::Bytes::from(instructions.concat());
    let take = [6, 0, 0, 0, 1, 0, 0, 0];
    let backward = [5, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let division = [0x34, 0, 0, 0, 0, 0, 0, 0];
    let cell = [0x60, 0, 0, 0, 16, 0, 0, 0];
    for (ethernet, raw, part) in [
        (
            bytes(&[take, backward, take]),
            bytes(&[]),
            "spec.programs.ethernet: instruction 1",
        ),
        (
            bytes(&[take]),
            bytes(&[division, take]),
            "spec.programs.raw: instruction 0",
        ),
        (bytes(&[cell, take]), bytes(&[]), "scratch cell 16"),
        (bytes(&[take; 4097]), bytes(&[]), "not 4097"),
        (bytes(&[]), bytes(&[take]), "not 0"),
        (
            prost::bytes::Bytes::from_static(&[6, 0, 0]),
            bytes(&[]),
            "no multiple",
        ),
    ] {
        let status = refused(|spec| {
            spec.filter = "host c2.example".into();
            spec.programs = Some(v1::FilterPrograms { ethernet, raw });
        });
        assert_eq!(reason::reason_of(&status), Some(Reason::InvalidFilter));
        assert!(status.message().contains(part), "{}", status.message());
    }
    let good = || v1::FilterPrograms {
        ethernet: bytes(&[take]),
        raw: bytes(&[]),
    };
    // Without text, and beside typed terms.
    refused(|spec| spec.programs = Some(good()));
    refused(|spec| {
        spec.filter = "host c2.example".into();
        spec.terms = Some(v1::FilterTerms::default());
        spec.programs = Some(good());
    });
}

#[test]
fn a_filters_programs_go_to_the_agent_and_do_not_come_back() {
    let program = Program::from_bytes(&[6, 0, 0, 0, 1, 0, 0, 0]).unwrap();
    let programs = Programs {
        ethernet: program,
        raw: None,
    };
    let mut spec = SessionSpec::new(Target::Pid(1));
    spec.filter = Filter::with_programs("host c2.example", programs).unwrap();
    let wire = v1::CaptureSpec::from(&spec);
    assert_eq!(SessionSpec::try_from(wire.clone()).unwrap(), spec);
    let told = v1::CaptureSpec {
        programs: None,
        ..wire
    };
    let told = SessionSpec::try_from(told).unwrap();
    assert_eq!(told.filter.text(), "host c2.example");
    assert_eq!(told.filter.meaning(), &Meaning::Unread);
}

#[test]
fn a_filter_of_a_mebibyte_is_refused_in_a_short_message() {
    let status = refused(|spec| spec.filter = "tcp and ".repeat(128 * 1024));
    assert_eq!(reason::reason_of(&status), Some(Reason::InvalidFilter));
    assert!(status.message().len() < 500, "{}", status.message());
}

#[test]
fn bad_typed_terms_are_bad_filters() {
    let terms = v1::FilterTerms::default;
    for (terms, field) in [
        (
            v1::FilterTerms {
                family: "ipx".into(),
                ..terms()
            },
            "family",
        ),
        (
            v1::FilterTerms {
                protocol: "TCP; rm".into(),
                ..terms()
            },
            "protocol",
        ),
        (
            v1::FilterTerms {
                host: "10.0.0.1/8".into(),
                ..terms()
            },
            "host",
        ),
        (
            v1::FilterTerms {
                port: 65_536,
                ..terms()
            },
            "port",
        ),
    ] {
        let status = refused(|spec| spec.terms = Some(terms));
        assert_eq!(reason::reason_of(&status), Some(Reason::InvalidFilter));
        assert!(
            status
                .message()
                .starts_with(&format!("spec.terms: {field}: ")),
            "{status}"
        );
    }
}

#[test]
fn text_and_terms_must_both_hold() {
    let spec = v1::CaptureSpec {
        filter: "tcp".into(),
        terms: Some(v1::FilterTerms {
            host: "192.0.2.7".into(),
            port: 443,
            ..v1::FilterTerms::default()
        }),
        ..wire()
    };
    let spec = SessionSpec::try_from(spec).unwrap();
    let expected = Filter::parse("host 192.0.2.7 and tcp port 443").unwrap();
    assert_eq!(spec.filter.meaning(), expected.meaning());

    let status = refused(|spec| {
        spec.filter = "udp".into();
        spec.terms = Some(v1::FilterTerms {
            protocol: "tcp".into(),
            ..Default::default()
        });
    });
    assert_eq!(reason::reason_of(&status), Some(Reason::InvalidFilter));
}

#[test]
fn zeros_mean_defaults() {
    let spec = SessionSpec::try_from(v1::CaptureSpec {
        target: wire().target,
        limits: Some(v1::Limits {
            duration: Some(prost_types::Duration::default()),
            ..Default::default()
        }),
        ..Default::default()
    })
    .unwrap();
    assert_eq!(spec, SessionSpec::new(Target::Interface("eth0".into())));
}

#[test]
fn a_long_idempotency_key_is_refused() {
    let start = |len| {
        Start::try_from(v1::StartRequest {
            spec: Some(wire()),
            idempotency_key: "k".repeat(len),
            ..Default::default()
        })
    };
    assert_eq!(start(0).unwrap().idempotency_key, None);
    assert_eq!(start(128).unwrap().idempotency_key, Some("k".repeat(128)));
    assert_eq!(
        start(129).unwrap_err().to_string(),
        "idempotency_key: 129 bytes; at most 128 are taken"
    );
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        "(/[a-z0-9.-]{3,20}){1,5}".prop_map(Target::CgroupPath),
        (1..u64::MAX).prop_map(Target::CgroupId),
        (1..i32::MAX.unsigned_abs()).prop_map(Target::Pid),
        "[a-z]{1,20}\\.service".prop_map(Target::Unit),
        "[0-9a-f]{12,64}".prop_map(Target::Container),
        "[a-z][a-z0-9]{0,14}".prop_map(Target::Interface),
        pod(),
    ]
}

fn filter() -> impl Strategy<Value = Filter> {
    prop_oneof![
        Just(Filter::default()),
        any::<u16>().prop_map(|port| Filter::parse(&format!("tcp dst port {port}")).unwrap()),
        any::<IpAddr>().prop_map(|a| Filter::parse(&format!("udp and host {a}")).unwrap()),
    ]
}

fn moment() -> impl Strategy<Value = Timestamp> {
    // The years 1 to 9999, before and after 1970.
    (-62_135_596_800i64..253_402_207_200, 0..1_000_000_000i32)
        .prop_map(|(seconds, nanos)| Timestamp::new(seconds, nanos).unwrap())
}

fn limits() -> impl Strategy<Value = Limits> {
    (
        any::<Option<NonZeroU64>>(),
        option::of(1024..u64::MAX),
        option::of((0..7 * 24 * 3600u64, 1..1_000_000_000u32)),
    )
        .prop_map(|(packets, file_bytes, duration)| Limits {
            packets,
            file_bytes: file_bytes.and_then(NonZeroU64::new),
            duration: duration.map(|(seconds, nanos)| Duration::new(seconds, nanos)),
        })
}

fn trigger() -> impl Strategy<Value = Trigger> {
    (
        ".{0,20}",
        ".{0,20}",
        ".{0,20}",
        ".{0,200}",
        ".{0,20}",
        option::of(moment()),
    )
        .prop_map(|(source, rule, priority, alert, reason, time)| Trigger {
            requester: format!("{source}@host"),
            trace_id: rule.clone(),
            source,
            rule,
            priority,
            alert,
            reason,
            time,
        })
}

fn spec() -> impl Strategy<Value = SessionSpec> {
    let name = ("[a-zA-Z0-9._-]{1,63}", any::<IpAddr>())
        .prop_map(|(name, address)| NameHint { address, name });
    (
        (
            target(),
            filter(),
            1..=remora_capture::session::SNAPLEN_MAX,
            limits(),
            trigger(),
        ),
        prop_oneof![
            Just(Direction::Both),
            Just(Direction::Ingress),
            Just(Direction::Egress)
        ],
        (
            prop_oneof![
                writing().prop_map(|writing| (Destination::Store, writing)),
                Just((Destination::Stream, Writing::default()))
            ],
            prop_oneof![Just(SuperPackets::Whole), Just(SuperPackets::Segmented)],
            option::of(part()),
        ),
        (0..315_576_000_000u64, 0..1_000_000_000u32),
        collection::btree_map(".{0,20}", ".{0,20}", 0..4),
        collection::vec(name, 0..4),
    )
        .prop_map(|(head, direction, destination, look_back, labels, names)| {
            let (target, filter, snaplen, mut limits, trigger) = head;
            let ((destination, writing), super_packets, part) = destination;
            if writing.rotation.is_on() || super_packets == SuperPackets::Segmented {
                limits.file_bytes = None;
            }
            SessionSpec {
                target,
                filter,
                snaplen: Snaplen::try_from(snaplen).unwrap(),
                direction,
                limits,
                destination,
                sink: (destination == Destination::Store && part.is_some())
                    .then(|| "evidence".parse().unwrap()),
                writing,
                super_packets,
                look_back: Duration::new(look_back.0, look_back.1),
                trigger,
                labels,
                names,
                part,
            }
        })
}

fn part() -> impl Strategy<Value = Part> {
    (selector(), any::<bool>()).prop_map(|(selector, fixed)| Part {
        capture: CaptureId::generate(),
        selector,
        fixed,
    })
}

fn selector() -> impl Strategy<Value = Selector> {
    let name = || "[a-z0-9]{1,20}";
    let kind = select(WorkloadKind::ALL.to_vec());
    prop_oneof![
        (name(), name(), option::of(name())).prop_map(|(namespace, name, container)| {
            Selector::Pod {
                namespace,
                name,
                container,
            }
        }),
        (name(), kind, name()).prop_map(|(namespace, kind, name)| Selector::Workload {
            namespace,
            kind,
            name
        }),
        (name(), name()).prop_map(|(namespace, name)| Selector::Service { namespace, name }),
        (name(), "[ -~]{1,40}")
            .prop_map(|(namespace, labels)| Selector::Labels { namespace, labels }),
        name().prop_map(|name| Selector::Node { name }),
    ]
}

fn pod() -> impl Strategy<Value = Target> {
    let name = || "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?";
    (
        name(),
        name(),
        option::of("[a-f0-9-]{1,36}"),
        option::of(name()),
    )
        .prop_map(|(namespace, name, uid, container)| {
            Target::Pod(PodRef {
                namespace,
                name,
                uid,
                container,
            })
        })
}

fn writing() -> impl Strategy<Value = Writing> {
    let rotation = (
        option::of(4096..u64::MAX),
        option::of(1..100_000u64),
        option::of(1..9999u32),
    )
        .prop_map(|(bytes, seconds, files)| Rotation {
            file_bytes: bytes.and_then(NonZeroU64::new),
            interval: seconds.map(Duration::from_secs),
            files: files
                .and_then(NonZeroU32::new)
                .filter(|_| bytes.is_some() || seconds.is_some()),
        });
    (
        rotation,
        prop_oneof![Just(Compression::None), Just(Compression::Zstd)],
        prop_oneof![Just(Durability::Cached), Just(Durability::Synced)],
    )
        .prop_map(|(rotation, compression, durability)| Writing {
            rotation,
            compression,
            durability,
        })
}

fn files() -> impl Strategy<Value = Files> {
    any::<[u64; 6]>().prop_map(|n| Files {
        count: n[0],
        removed: Removed {
            files: n[1],
            packets: n[2],
            blocks: n[3],
            bytes: n[4],
        },
        blocks: n[5],
    })
}

const PHASES: [Phase; 4] = [
    Phase::Capturing,
    Phase::Draining,
    Phase::Finished,
    Phase::Failed,
];
const STOP_REASONS: [Option<StopReason>; 11] = [
    None,
    Some(StopReason::Requested),
    Some(StopReason::Packets),
    Some(StopReason::FileBytes),
    Some(StopReason::Duration),
    Some(StopReason::TargetGone),
    Some(StopReason::ReaderGone),
    Some(StopReason::NoSpace),
    Some(StopReason::IoError),
    Some(StopReason::Shutdown),
    Some(StopReason::CrashRecovered),
];

fn counts() -> impl Strategy<Value = Counts> {
    any::<[u64; 14]>().prop_map(|n| Counts {
        seen: n[0],
        matched: n[1],
        submitted: n[2],
        lost: n[3],
        over_budget: n[4],
        copy_error: n[5],
        read: n[6],
        written: n[7],
        dropped_queue: n[8],
        dropped_io: n[9],
        malformed: n[10],
        stale: n[11],
        lost_on_crash: n[12],
        written_bytes: n[13],
    })
}

fn tap() -> impl Strategy<Value = TapInfo> {
    let modes = [
        LookBackMode::Payload,
        LookBackMode::Headers,
        LookBackMode::Off,
    ];
    let ring = option::of((any::<[u64; 5]>(), proptest::sample::select(modes.to_vec())));
    (
        ".{0,20}",
        ".{0,15}",
        any::<u32>(),
        any::<u64>(),
        ".{0,40}",
        ring,
    )
        .prop_map(
            |(hook, interface, ifindex, cgroup_id, description, ring)| TapInfo {
                hook,
                interface,
                ifindex,
                cgroup_id,
                description,
                look_back: ring.map(|(numbers, mode)| {
                    let [bytes, reach_ms, packets, cut_packets, cut_bytes] = numbers;
                    LookBackRing {
                        mode,
                        bytes,
                        reach_ms,
                        packets,
                        cut_packets,
                        cut_bytes,
                    }
                }),
            },
        )
}

fn state() -> impl Strategy<Value = CaptureState> {
    (
        (spec(), counts(), collection::vec(tap(), 0..3), files()),
        proptest::sample::select(&PHASES[..]),
        proptest::sample::select(&STOP_REASONS[..]),
        (
            moment(),
            option::of(moment()),
            option::of(moment()),
            option::of(moment()),
        ),
        (".{0,40}", ".{0,40}", ".{0,40}", ".{0,40}", ".{0,40}"),
    )
        .prop_map(
            |((spec, counts, taps, files), phase, stop_reason, times, texts)| {
                let (started, finished, first_packet, last_packet) = times;
                let (message, file, node, caller, resolved_target) = texts;
                CaptureState {
                    id: CaptureId::generate(),
                    spec,
                    phase,
                    stop_reason,
                    message,
                    counts,
                    started,
                    finished,
                    first_packet,
                    last_packet,
                    file,
                    files,
                    taps,
                    node,
                    caller,
                    resolved_target,
                    pod: None,
                }
            },
        )
}

proptest! {
    #[test]
    fn a_spec_comes_in_as_it_went_out(spec in spec()) {
        let bytes = v1::CaptureSpec::from(&spec).encode_to_vec();
        let wire = v1::CaptureSpec::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(SessionSpec::try_from(wire), Ok(spec));
    }

    #[test]
    fn a_state_comes_in_as_it_went_out(state in state()) {
        let bytes = v1::CaptureState::from(&state).encode_to_vec();
        let wire = v1::CaptureState::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(CaptureState::try_from(wire), Ok(state));
    }

    /// One flipped byte of a good request, and any bytes at all.
    #[test]
    fn no_bytes_make_the_conversion_panic(
        spec in spec(),
        at: proptest::sample::Index,
        flip in 1u8..,
        noise in collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = v1::CaptureSpec::from(&spec).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        for bytes in [bytes, noise] {
            if let Ok(wire) = v1::CaptureSpec::decode(bytes.as_slice())
                && let Ok(spec) = SessionSpec::try_from(wire)
            {
                prop_assert_eq!(spec.validate(), Ok(()));
            }
        }
    }
}
