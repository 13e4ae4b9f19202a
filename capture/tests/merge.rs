//! Many streams become one: nothing lost, nothing doubled, in order as far as it can be.

mod support;

use std::{collections::BTreeMap, io::Write as _, process::Command, time::Duration};

use pcap_file::pcapng::{
    Block, PcapNgReader, blocks::interface_statistics::InterfaceStatisticsOption,
};
use proptest::{collection::vec, prelude::*};
use remora_capture::{
    merge::{Account, Bounds, DISORDER, Merge, NodeClock, Origin, SourceError, SourceId},
    pcapng::{
        Interface, PacketDirection, PacketMeta, Section, Statistics, encode_packet,
        interface_description, interface_statistics, name_resolution, read_packets, scan,
        section_header,
    },
    session::{Counts, NameHint, Snaplen},
};

const EPOCH_NS: u64 = 1_795_489_205_000_000_000;

/// A packet of a source: its time in the true clock, and what makes it the one it is.
#[derive(Clone, Debug)]
struct Sent {
    true_ns: u64,
    interface: u32,
    dropped: u64,
}

/// A node's stream, by the block.
#[derive(Clone, Debug)]
struct Stream {
    node: String,
    clock: NodeClock,
    packets: Vec<Sent>,
    /// Bytes of payload beside the packet's name.
    padding: usize,
}

impl Stream {
    fn name(&self, packet: usize) -> Vec<u8> {
        let mut name = format!("{}:{packet}:", self.node).into_bytes();
        name.resize(name.len() + self.padding, b'.');
        name
    }

    fn heading(&self) -> Vec<Vec<u8>> {
        let section = Section {
            comments: &["the alert".to_owned(), format!("on {}", self.node)],
            ..Section::default()
        };
        let mut blocks = vec![section_header(&section)];
        for interface in ["eth0", "lo"] {
            blocks.push(interface_description(&Interface {
                name: &format!("shop/{}/{interface}", self.node),
                description: "host end",
                filter: &"tcp port 80".parse().unwrap(),
                snaplen: Snaplen::MAX,
            }));
        }
        let names = [
            NameHint {
                address: "10.0.0.1".parse().unwrap(),
                name: "shared.shop".into(),
            },
            NameHint {
                address: format!("2001:db8::{}", self.node.len()).parse().unwrap(),
                name: format!("{}.shop", self.node),
            },
        ];
        blocks.extend(name_resolution(&names));
        blocks
    }

    fn packet(&self, at: usize) -> Vec<u8> {
        let packet = &self.packets[at];
        let mut block = Vec::new();
        let meta = PacketMeta {
            interface_id: packet.interface,
            time_ns: packet.true_ns.saturating_add_signed(self.clock.offset_ns),
            direction: PacketDirection::Egress,
            packet_id: Some(at as u64),
            drop_count: packet.dropped,
            original_len: 0,
            comment: at.is_multiple_of(5).then_some("look-back"),
        };
        encode_packet(&mut block, &meta, &[0; 14], &self.name(at));
        block
    }

    fn account(&self) -> Vec<Vec<u8>> {
        (0..2)
            .map(|interface| {
                let counts = Counts {
                    written: self.packets.len() as u64,
                    ..Counts::default()
                };
                interface_statistics(&Statistics::new(interface, &counts, EPOCH_NS, EPOCH_NS + 9))
            })
            .collect()
    }

    fn blocks(&self) -> Vec<Vec<u8>> {
        let packets = (0..self.packets.len()).map(|at| self.packet(at));
        let heading = self.heading().into_iter();
        heading.chain(packets).chain(self.account()).collect()
    }

    fn origin(&self) -> Origin {
        Origin {
            node: self.node.clone(),
            clock: Some(self.clock),
        }
    }
}

/// Times go on, but for what a node's ring may put out of order.
fn stream() -> impl Strategy<Value = Stream> {
    let disorder = DISORDER.as_nanos() as u64;
    let packet = (
        0u64..30_000_000,
        0..disorder,
        0u32..2,
        prop_oneof![3 => Just(0u64), 1 => 1u64..9],
    );
    // Sure offsets only: what may be none is not corrected.
    let offset = prop_oneof![Just(0i64), 1_000_000i64..1 << 40, -(1i64 << 40)..-1_000_000];
    (vec(packet, 0..40), offset, 0usize..64).prop_map(|(steps, offset_ns, padding)| {
        let mut at = EPOCH_NS;
        let packets = steps
            .into_iter()
            .map(|(step, early, interface, dropped)| {
                at += step;
                Sent {
                    true_ns: at - early,
                    interface,
                    dropped,
                }
            })
            .collect();
        Stream {
            node: String::new(),
            clock: NodeClock {
                offset_ns,
                error_ns: 100_000,
            },
            packets,
            padding,
        }
    })
}

fn streams(most: usize) -> impl Strategy<Value = Vec<Stream>> {
    vec(stream(), 1..=most).prop_map(|mut streams| {
        for (n, stream) in streams.iter_mut().enumerate() {
            stream.node = format!("node-{}", "x".repeat(n));
        }
        streams
    })
}

fn merge(bounds: Bounds) -> Merge {
    let section = Section {
        application: "remora",
        comments: &["merged".to_owned()],
        ..Section::default()
    };
    Merge::new(&section, bounds)
}

/// The streams' blocks, some at a time, in an order that the numbers choose.
fn fed(
    merge: &mut Merge,
    streams: &[Stream],
    choices: &[(usize, usize, u64)],
    mut out: impl FnMut(Vec<u8>),
) {
    let ids: Vec<_> = streams
        .iter()
        .map(|s| merge.add(s.origin()).unwrap())
        .collect();
    let mut rest: Vec<_> = streams.iter().map(|s| s.blocks().into_iter()).collect();
    let mut now = Duration::ZERO;
    let mut open: Vec<_> = (0..streams.len()).collect();
    for &(which, count, pause) in choices.iter().cycle() {
        if open.is_empty() {
            break;
        }
        let at = which % open.len();
        let source = open[at];
        let piece: Vec<_> = rest[source].by_ref().take(count).flatten().collect();
        if piece.is_empty() {
            merge.end(ids[source]);
            open.remove(at);
        } else {
            merge.push(ids[source], &piece, now).unwrap();
        }
        now += Duration::from_millis(pause);
        out(merge.take(now));
    }
}

/// Each packet once, with its source's name, its own time, id and drop count. Returns how many come
/// after one with a later time.
fn all_there(file: &[u8], streams: &[Stream]) -> Result<u64, TestCaseError> {
    let scan = scan(file).unwrap();
    prop_assert_eq!(scan.tear, None);
    let mut expected = BTreeMap::new();
    for (source, stream) in streams.iter().enumerate() {
        for (at, packet) in stream.packets.iter().enumerate() {
            let interface = ["eth0", "lo"][packet.interface as usize];
            let interface = format!("shop/{}/{interface}", stream.node);
            let id = (source as u64) << 48 | at as u64;
            expected.insert(
                stream.name(at),
                (packet.true_ns, interface, id, packet.dropped),
            );
        }
    }
    let (mut last, mut late) = (0, 0);
    for packet in read_packets(file).unwrap() {
        let told = (
            packet.time_ns,
            packet.interface,
            packet.packet_id.unwrap(),
            packet.drop_count,
        );
        let id = told.2;
        prop_assert_eq!(expected.remove(&packet.data[14..]), Some(told));
        let is_late = packet.time_ns < last;
        let says_so = packet
            .comments
            .iter()
            .any(|text| text.starts_with("out of order"));
        prop_assert_eq!(is_late, says_so);
        let was_said = packet.comments.iter().any(|text| text == "look-back");
        prop_assert_eq!(was_said, (id & 0xffff_ffff).is_multiple_of(5));
        late += u64::from(is_late);
        last = last.max(packet.time_ns);
    }
    prop_assert!(expected.is_empty(), "missing: {:?}", expected);
    Ok(late)
}

proptest! {
    #[test]
    fn what_waits_for_all_comes_in_order(
        streams in streams(5),
        choices in vec((0usize..9, 1usize..6, 0u64..400), 1..20),
    ) {
        let mut merge = merge(Bounds::STORED);
        let mut file = Vec::new();
        fed(&mut merge, &streams, &choices, |piece| file.extend(piece));
        let (rest, account) = merge.finish();
        file.extend(rest);
        prop_assert_eq!(all_there(&file, &streams)?, 0);
        let packets: usize = streams.iter().map(|s| s.packets.len()).sum();
        let expected = Account { packets: packets as u64, ..Account::default() };
        prop_assert_eq!(account, expected);
        prop_assert_eq!(scan(&file[..]).unwrap().statistics, streams.len() as u64 * 2);
    }

    #[test]
    fn what_does_not_wait_is_late_by_its_own_word(
        streams in streams(4),
        choices in vec((0usize..9, 1usize..6, 0u64..400), 1..20),
        hold in 0u64..300,
        bytes in 0usize..4000,
    ) {
        let bounds = Bounds { hold: Some(Duration::from_millis(hold)), bytes };
        let mut merge = merge(bounds);
        let mut file = Vec::new();
        fed(&mut merge, &streams, &choices, |piece| file.extend(piece));
        prop_assert!(merge.waiting_bytes() <= bytes);
        let (rest, account) = merge.finish();
        file.extend(rest);
        prop_assert_eq!(all_there(&file, &streams)?, account.late);
    }

    /// Read a piece when it is wanted, little waits: a piece of each and what disorder keeps back.
    #[test]
    fn stored_captures_are_read_side_by_side(streams in streams(5), piece in 1usize..6) {
        let mut merge = merge(Bounds::STORED);
        let mut rest: Vec<_> = streams.iter().map(|s| s.blocks().into_iter()).collect();
        let ids: Vec<_> = streams.iter().map(|s| merge.add(s.origin()).unwrap()).collect();
        let by_id: BTreeMap<SourceId, usize> = ids.iter().copied().zip(0..).collect();
        let mut file = Vec::new();
        loop {
            let wanted: Vec<_> = merge.wanted().collect();
            if wanted.is_empty() {
                break;
            }
            for id in wanted {
                let blocks: Vec<_> = rest[by_id[&id]].by_ref().take(piece).flatten().collect();
                if blocks.is_empty() {
                    merge.end(id);
                } else {
                    merge.push(id, &blocks, Duration::ZERO).unwrap();
                }
            }
            file.extend(merge.take(Duration::ZERO));
        }
        prop_assert_eq!(merge.waiting_bytes(), 0);
        file.extend(merge.finish().0);
        prop_assert_eq!(all_there(&file, &streams)?, 0);
    }

    #[test]
    fn a_source_that_breaks_ends_alone(
        streams in streams(3),
        garbage in vec(any::<u8>(), 1..200),
        cut in 1usize..4000,
    ) {
        let mut merge = merge(Bounds::STORED);
        let [broken, torn] = ["broken", "torn"].map(|node| {
            let origin = Origin { node: node.to_owned(), clock: None };
            merge.add(origin).unwrap()
        });
        prop_assert!(merge.push(broken, &garbage, Duration::ZERO).is_err());
        prop_assert_eq!(merge.push(broken, &[], Duration::ZERO), Err(SourceError::Ended));
        // Whole blocks, and then the beginning of one.
        let whole = streams[0].heading().concat();
        let cut = cut % whole.len();
        if merge.push(torn, &whole[..cut], Duration::ZERO).is_ok() {
            merge.end(torn);
        }
        let mut file = Vec::new();
        let streams: Vec<_> = streams.into_iter().map(|mut s| { s.node.push('-'); s }).collect();
        fed(&mut merge, &streams, &[(0, 3, 0), (1, 2, 0)], |piece| file.extend(piece));
        file.extend(merge.finish().0);
        // Numbers begin after the two.
        let shifted: Vec<_> = read_packets(&file[..]).unwrap();
        let packets: usize = streams.iter().map(|s| s.packets.len()).sum();
        prop_assert_eq!(shifted.len(), packets);
    }

    #[test]
    fn damaged_bytes_never_break_the_merge(stream in streams(1), damage in vec((any::<usize>(), any::<u8>()), 1..9)) {
        let mut bytes = stream[0].blocks().concat();
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let mut merge = merge(Bounds::LIVE);
        let id = merge.add(stream[0].origin()).unwrap();
        let _broken = merge.push(id, &bytes, Duration::ZERO);
        let (file, _) = merge.finish();
        prop_assert_eq!(scan(&file[..]).unwrap().tear, None);
    }
}

fn two() -> Vec<Stream> {
    ["a", "bb"]
        .into_iter()
        .zip([0, 250_000_000])
        .map(|(node, offset_ns)| Stream {
            node: node.to_owned(),
            clock: NodeClock {
                offset_ns,
                error_ns: 400_000,
            },
            packets: (0..20)
                .map(|n| Sent {
                    true_ns: EPOCH_NS + n * 1_000_000 + node.len() as u64,
                    interface: (n % 2) as u32,
                    dropped: n % 3,
                })
                .collect(),
            padding: 40,
        })
        .collect()
}

fn merged(streams: &[Stream]) -> Vec<u8> {
    let mut merge = merge(Bounds::STORED);
    let mut file = Vec::new();
    fed(&mut merge, streams, &[(0, 4, 0), (1, 7, 0)], |piece| {
        file.extend(piece);
    });
    file.extend(merge.finish().0);
    file
}

#[test]
fn wiresharks_tools_read_it_without_complaint() {
    let file = merged(&two());
    let mut named = tempfile::NamedTempFile::new().unwrap();
    named.write_all(&file).unwrap();
    for (tool, arguments) in [
        ("capinfos", vec!["-cM"]),
        (
            "tshark",
            vec![
                "-T",
                "fields",
                "-e",
                "frame.interface_name",
                "-e",
                "frame.time_epoch",
                "-r",
            ],
        ),
        ("tcpdump", vec!["-n", "-r"]),
    ] {
        if !support::installed(tool) {
            continue;
        }
        let output = Command::new(tool)
            .args(&arguments)
            .arg(named.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{tool}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        match tool {
            "capinfos" => assert!(
                text.lines()
                    .any(|l| l.contains("packets") && l.ends_with(" 40")),
                "{text}"
            ),
            "tshark" => {
                assert_eq!(text.lines().count(), 40);
                assert!(text.starts_with("shop/a/eth0"), "{text}");
            }
            _ => assert_eq!(text.lines().count(), 40, "{text}"),
        }
    }
}

#[test]
fn interfaces_tell_their_node_and_its_clock() {
    let file = merged(&two());
    let mut reader = PcapNgReader::new(&file[..]).unwrap();
    let heading = format!("{:?}", reader.section());
    for text in ["merged", "the alert", "on a"] {
        assert!(heading.contains(text), "{heading}");
    }
    let (mut names, mut delivered) = (0, Vec::new());
    let mut interfaces = String::new();
    while let Some(read) = reader.next_block() {
        let (block, state) = read.unwrap();
        interfaces = format!("{:?}", state.interfaces());
        match block {
            Block::NameResolution(block) => names += block.records.len(),
            Block::InterfaceStatistics(block) => {
                delivered.extend(block.options.iter().filter_map(|option| match option {
                    InterfaceStatisticsOption::IsbUsrDeliv(packets) => Some(*packets),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    assert!(
        interfaces.contains("node a; clock within 0.400 ms of the controller's"),
        "{interfaces}"
    );
    assert!(
        interfaces.contains("node bb; clock 250.000 ms ahead of the controller's"),
        "{interfaces}"
    );
    assert!(interfaces.contains("host end; "), "{interfaces}");
    // Three addresses, one of them in both.
    assert_eq!(names, 3);
    assert_eq!(delivered, [20; 4]);
}

#[test]
fn a_set_of_files_is_one_source_with_the_same_interfaces() {
    let streams = two();
    let mut merge = merge(Bounds::STORED);
    let id = merge.add(streams[0].origin()).unwrap();
    let file = streams[0].blocks().concat();
    for _ in 0..3 {
        merge.push(id, &file, Duration::ZERO).unwrap();
    }
    let (file, account) = merge.finish();
    assert_eq!(account.packets, 60);
    let scan = scan(&file[..]).unwrap();
    assert_eq!(
        (scan.tear, scan.statistics, scan.interface_packets.len()),
        (None, 2, 2)
    );
    let mut reader = PcapNgReader::new(&file[..]).unwrap();
    while let Some(read) = reader.next_block() {
        let (block, _) = read.unwrap();
        if let Block::InterfaceStatistics(block) = block {
            let told = InterfaceStatisticsOption::IsbUsrDeliv(60);
            assert!(block.options.contains(&told), "{:?}", block.options);
        }
    }
}

#[test]
fn one_name_on_two_nodes_is_two_names() {
    let mut streams = two();
    streams[1].node = "a".to_owned();
    let mut merge = merge(Bounds::STORED);
    for (stream, node) in streams.iter().zip(["worker-1", "worker-2"]) {
        let origin = Origin {
            node: node.to_owned(),
            clock: None,
        };
        let id = merge.add(origin).unwrap();
        merge
            .push(id, &stream.blocks().concat(), Duration::ZERO)
            .unwrap();
    }
    let (file, _) = merge.finish();
    let mut names: Vec<_> = read_packets(&file[..])
        .unwrap()
        .into_iter()
        .map(|p| p.interface)
        .collect();
    names.sort();
    names.dedup();
    assert_eq!(
        names,
        [
            "shop/a/eth0",
            "shop/a/eth0@worker-2",
            "shop/a/lo",
            "shop/a/lo@worker-2"
        ]
    );
}
