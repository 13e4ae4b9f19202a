//! The blocks that a capture has once or once per tap.
//!
//! Texts are taken as they are found and made harmless: Wireshark's tools print option texts and
//! names raw.

use std::{borrow::Cow, collections::HashSet, net::IpAddr, time::Duration};

use pcap_file::{
    DataLink, Endianness,
    pcapng::{
        Block, PcapNgBlock as _, PcapNgWriter,
        blocks::{
            interface_description::{
                InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
            },
            interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption},
            name_resolution::{Ipv4Record, Ipv6Record, NameResolutionBlock, Record},
            opt_common::CommonOption,
            section_header::{SectionHeaderBlock, SectionHeaderOption},
        },
    },
};

use super::{
    OPTION_BYTES_MAX,
    packet::{OPTION_COMMENT, OPTION_END},
};
use crate::{
    filter::Filter,
    session::{Counts, NAMES_MAX, NameHint, Snaplen},
    text::one_line,
};

/// Comments that a section keeps.
const COMMENTS_MAX: usize = 16;
/// Longest name of hardware, operating system, application or interface, in bytes.
const NAME_BYTES_MAX: usize = 1024;
/// Longest comment of an Interface Statistics Block, in bytes.
const STATISTICS_COMMENT_BYTES_MAX: usize = 1024;
/// Most bytes that [`interface_statistics`] makes: room for it is kept within a file limit.
pub const STATISTICS_BYTES_MAX: usize = 24 + 7 * 12 + 4 + STATISTICS_COMMENT_BYTES_MAX + 4;

/// Where and by what a file is made.
#[derive(Clone, Debug, Default)]
pub struct Section<'a> {
    /// Machine: "x86_64".
    pub hardware: &'a str,
    /// Node and kernel: "Linux 6.18.44, node worker-1".
    pub os: &'a str,
    /// Tool with version.
    pub application: &'a str,
    /// What else is worth knowing, the alert in full for one.
    pub comments: &'a [String],
}

/// One tap.
#[derive(Clone, Debug)]
pub struct Interface<'a> {
    /// "namespace/pod/eth0".
    pub name: &'a str,
    pub description: &'a str,
    pub filter: &'a Filter,
    pub snaplen: Snaplen,
}

/// The closing account of one tap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Number of its Interface Description Block, from 0.
    pub interface_id: u32,
    /// Moment of the account, in nanoseconds of UTC.
    pub time_ns: u64,
    /// Start of the capture, in nanoseconds of UTC.
    pub start_ns: u64,
    /// End of the capture, in nanoseconds of UTC.
    pub end_ns: u64,
    /// isb_ifrecv: packets looked at.
    pub received: u64,
    /// isb_ifdrop: packets dropped in user space.
    pub dropped: u64,
    /// isb_filteraccept: packets that matched.
    pub matched: u64,
    /// isb_osdrop: packets lost in the kernel.
    pub lost: u64,
    /// isb_usrdeliv: packets in the file.
    pub written: u64,
    pub comment: String,
}

impl Statistics {
    /// The account of `counts`, with every count in the comment. Packets beyond a limit are
    /// neither lost nor dropped: `matched = written + lost + dropped + over_budget`.
    #[must_use]
    pub fn new(interface_id: u32, counts: &Counts, start_ns: u64, end_ns: u64) -> Self {
        // Bytes are not among them: they are not known before the file is closed.
        let named = counts.by_name().map(|(name, n)| format!("{name}={n}"));
        Self {
            interface_id,
            time_ns: end_ns,
            start_ns,
            end_ns,
            received: counts.seen,
            dropped: counts.dropped(),
            matched: counts.matched,
            lost: counts.lost_in_kernel(),
            written: counts.written,
            comment: named.join(" "),
        }
    }
}

/// The Section Header Block: a file's first bytes.
#[must_use]
pub fn section_header(section: &Section<'_>) -> Vec<u8> {
    let mut options = Vec::new();
    for (text, option) in [
        (
            section.hardware,
            SectionHeaderOption::Hardware as fn(_) -> _,
        ),
        (section.os, SectionHeaderOption::OS),
        (section.application, SectionHeaderOption::UserApplication),
    ] {
        if !text.is_empty() {
            options.push(option(Cow::Owned(one_line(text, NAME_BYTES_MAX))));
        }
    }
    for text in section.comments.iter().take(COMMENTS_MAX) {
        options.push(SectionHeaderOption::Common(comment(text, OPTION_BYTES_MAX)));
    }
    writer(options).into_inner()
}

/// The Interface Description Block of the next interface.
#[must_use]
pub fn interface_description(interface: &Interface<'_>) -> Vec<u8> {
    let mut block = nanosecond_interface(interface.snaplen);
    let mut describe = |option| block.options.push(option);
    describe(InterfaceDescriptionOption::IfName(
        one_line(interface.name, NAME_BYTES_MAX).into(),
    ));
    if !interface.description.is_empty() {
        let text = one_line(interface.description, OPTION_BYTES_MAX);
        describe(InterfaceDescriptionOption::IfDescription(text.into()));
    }
    if !interface.filter.is_empty() {
        // A zero byte says that text follows, not a BPF program.
        let filter = [b"\0", interface.filter.text().as_bytes()].concat();
        describe(InterfaceDescriptionOption::IfFilter(filter.into()));
    }
    encode(&[], block.into_block())
}

/// The Name Resolution Block of `names`, or nothing when none is usable.
///
/// The first usable name of an address stays, for Wireshark shows one only, and which one depends
/// on how it reads. Usable is what [`NameHint`] promises.
#[must_use]
pub fn name_resolution(names: &[NameHint]) -> Option<Vec<u8>> {
    let mut named = HashSet::new();
    let records: Vec<_> = names
        .iter()
        .filter(|hint| hint.is_usable() && named.insert(hint.address))
        .take(NAMES_MAX)
        .map(|NameHint { address, name }| {
            let names = vec![Cow::Borrowed(name.as_str())];
            match *address {
                IpAddr::V4(ip_addr) => Record::Ipv4(Ipv4Record { ip_addr, names }),
                IpAddr::V6(ip_addr) => Record::Ipv6(Ipv6Record { ip_addr, names }),
            }
        })
        .collect();
    let block = NameResolutionBlock {
        records,
        options: Vec::new(),
    };
    (!block.records.is_empty()).then(|| encode(&[], block.into_block()))
}

/// The Interface Statistics Block; at most [`STATISTICS_BYTES_MAX`] bytes.
#[must_use]
pub fn interface_statistics(statistics: &Statistics) -> Vec<u8> {
    let mut options = vec![
        InterfaceStatisticsOption::IsbStartTime(Duration::from_nanos(statistics.start_ns)),
        InterfaceStatisticsOption::IsbEndTime(Duration::from_nanos(statistics.end_ns)),
        InterfaceStatisticsOption::IsbIfRecv(statistics.received),
        InterfaceStatisticsOption::IsbIfDrop(statistics.dropped),
        InterfaceStatisticsOption::IsbFilterAccept(statistics.matched),
        InterfaceStatisticsOption::IsbOsDrop(statistics.lost),
        InterfaceStatisticsOption::IsbUsrDeliv(statistics.written),
    ];
    if !statistics.comment.is_empty() {
        let text = comment(&statistics.comment, STATISTICS_COMMENT_BYTES_MAX);
        options.push(InterfaceStatisticsOption::Common(text));
    }
    // Encoded as the block of interface 0 and given its number after: what matters to the encoding
    // is only the resolution, and that is the same for all.
    let block = InterfaceStatisticsBlock {
        interface_id: 0,
        timestamp: Duration::from_nanos(statistics.time_ns),
        options,
    };
    let mut bytes = encode(&[nanosecond_interface(Snaplen::MAX)], block.into_block());
    bytes[8..12].copy_from_slice(&statistics.interface_id.to_le_bytes());
    bytes
}

/// The Interface Statistics Block of a set's file that is not the last: only what is in the file.
pub(super) fn part_statistics(start_ns: u64, end_ns: u64, written: u64, text: &str) -> Vec<u8> {
    let block = InterfaceStatisticsBlock {
        interface_id: 0,
        timestamp: Duration::from_nanos(end_ns),
        options: vec![
            InterfaceStatisticsOption::IsbStartTime(Duration::from_nanos(start_ns)),
            InterfaceStatisticsOption::IsbEndTime(Duration::from_nanos(end_ns)),
            InterfaceStatisticsOption::IsbUsrDeliv(written),
            InterfaceStatisticsOption::Common(comment(text, STATISTICS_COMMENT_BYTES_MAX)),
        ],
    };
    encode(&[nanosecond_interface(Snaplen::MAX)], block.into_block())
}

/// A Section Header Block of ours with one comment more.
pub(super) fn with_comment(section: &[u8], text: &str) -> Vec<u8> {
    const OPTIONS: usize = 24;
    let Some((_, body)) = section.split_at_checked(OPTIONS) else {
        return section.to_vec();
    };
    let text = one_line(text, NAME_BYTES_MAX);
    let mut option = Vec::with_capacity(8 + text.len());
    option.extend_from_slice(&OPTION_COMMENT.to_le_bytes());
    option.extend_from_slice(&(text.len() as u16).to_le_bytes());
    option.extend_from_slice(text.as_bytes());
    option.resize(option.len().next_multiple_of(4), 0);
    let mut block = [&section[..OPTIONS], &option].concat();
    if body.len() == 4 {
        // No options were there, so no end of them either.
        block.extend_from_slice(&[0; 4]);
    }
    block.extend_from_slice(body);
    let len = (block.len() as u32).to_le_bytes();
    let end = block.len() - 4;
    block[4..8].copy_from_slice(&len);
    block[end..].copy_from_slice(&len);
    block
}

/// An Interface Statistics Block of ours with another isb_usrdeliv.
pub(super) fn set_delivered(statistics: &[u8], written: u64) -> Vec<u8> {
    const OPTIONS: usize = 20;
    const USER_DELIVERED: u16 = 8;
    let mut block = statistics.to_vec();
    let mut at = OPTIONS;
    while let Some([a, b, c, d]) = block.get(at..).and_then(|rest| rest.first_chunk().copied()) {
        let (code, len) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        if code == USER_DELIVERED
            && let Some(value) = block.get_mut(at + 4..at + 12)
        {
            value.copy_from_slice(&written.to_le_bytes());
        }
        if code == OPTION_END {
            break;
        }
        at += 4 + usize::from(len).next_multiple_of(4);
    }
    block
}

fn nanosecond_interface(snaplen: Snaplen) -> InterfaceDescriptionBlock<'static> {
    let mut block = InterfaceDescriptionBlock::new(DataLink::ETHERNET, snaplen.get());
    block.options.push(InterfaceDescriptionOption::IfTsResol(
        InterfaceTsResolution::NANO,
    ));
    block
}

fn comment(text: &str, max: usize) -> CommonOption<'static> {
    CommonOption::Comment(one_line(text, max).into())
}

fn writer(options: Vec<SectionHeaderOption<'_>>) -> PcapNgWriter<Vec<u8>> {
    let section = SectionHeaderBlock {
        endianness: Endianness::Little,
        options,
        ..Default::default()
    };
    PcapNgWriter::with_section_header(Vec::new(), section).expect(ENCODES)
}

/// The bytes of `block`, which stands after `interfaces`.
fn encode(interfaces: &[InterfaceDescriptionBlock<'_>], block: Block<'_>) -> Vec<u8> {
    let mut writer = writer(Vec::new());
    for interface in interfaces {
        writer
            .write_block(&interface.clone().into_block())
            .expect(ENCODES);
    }
    let start = writer.get_ref().len();
    writer.write_block(&block).expect(ENCODES);
    writer.into_inner().split_off(start)
}

/// Why encoding cannot fail.
const ENCODES: &str = "options are bounded, the interface is known, and memory takes all bytes";

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::PcapNgReader;
    use proptest::prelude::*;

    use super::*;

    fn hint(address: &str, name: &str) -> NameHint {
        NameHint {
            address: address.parse().expect("address"),
            name: name.to_owned(),
        }
    }

    #[test]
    fn address_has_one_name_and_bad_names_stay_out() {
        let names = [
            hint("192.0.2.7", "web.shop"),
            hint("192.0.2.7", "second"),
            hint("2001:db8::1", "\u{1b}[31m"),
            hint("2001:db8::1", &"x".repeat(64)),
            hint("2001:db8::1", ""),
            hint("2001:db8::1", "db.shop"),
        ];
        let file = [
            section_header(&Section::default()),
            name_resolution(&names).expect("names"),
        ];
        let file = file.concat();
        let mut reader = PcapNgReader::new(&file[..]).expect("section");
        let (block, _) = reader.next_block().expect("block").expect("valid");
        let records = block.into_name_resolution().expect("names").records;
        assert_eq!(records.len(), 2);
        assert!(format!("{records:?}").contains("web.shop"));
        assert!(format!("{records:?}").contains("db.shop"));
        assert_eq!(name_resolution(&names[2..5]), None);
    }

    #[test]
    fn statistics_tell_every_count_within_their_bound() {
        let counts = Counts {
            seen: 9,
            matched: 7,
            lost: 1,
            over_budget: 2,
            written: 4,
            ..Counts::default()
        };
        let statistics = Statistics::new(3, &counts, 5, 6);
        assert_eq!(
            (
                statistics.received,
                statistics.matched,
                statistics.lost,
                statistics.written
            ),
            (9, 7, 1, 4)
        );
        let most = Counts {
            seen: u64::MAX,
            matched: u64::MAX,
            submitted: u64::MAX,
            lost: u64::MAX >> 1,
            over_budget: u64::MAX,
            copy_error: u64::MAX >> 1,
            read: u64::MAX,
            written: u64::MAX,
            dropped_queue: u64::MAX >> 3,
            dropped_io: u64::MAX >> 3,
            malformed: u64::MAX >> 3,
            stale: u64::MAX >> 3,
            lost_on_crash: u64::MAX >> 3,
            written_bytes: u64::MAX,
        };
        let largest = Statistics::new(u32::MAX, &most, u64::MAX, u64::MAX);
        let end = format!("lost_on_crash={}", u64::MAX >> 3);
        assert!(
            largest.comment.ends_with(&end) && largest.comment.len() < STATISTICS_COMMENT_BYTES_MAX
        );
        let largest = Statistics {
            comment: "x".repeat(5000),
            ..largest
        };
        assert_eq!(interface_statistics(&largest).len(), STATISTICS_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_text_makes_a_section_that_reads_back(
            texts in proptest::collection::vec("\\PC{0,40}|.{0,40}|[\n\r\t\u{1b}\u{202e}a]{0,9}", 6),
            repeat in 0usize..9000,
        ) {
            let long = texts[4].repeat(repeat);
            let comments = [texts[0].clone(), long];
            let section = Section {
                hardware: &texts[1],
                os: &texts[2],
                application: &texts[3],
                comments: &comments,
            };
            let interface = Interface {
                name: &texts[5],
                description: &texts[0],
                filter: &"tcp port 80".parse().expect("filter"),
                snaplen: Snaplen::MAX,
            };
            let mut file = section_header(&section);
            file.extend(interface_description(&interface));
            let mut reader = PcapNgReader::new(&file[..]).expect("section");
            for option in &reader.section().options {
                let (SectionHeaderOption::Hardware(text)
                | SectionHeaderOption::OS(text)
                | SectionHeaderOption::UserApplication(text)
                | SectionHeaderOption::Common(CommonOption::Comment(text))) = option
                else {
                    panic!("an option that was not written: {option:?}")
                };
                prop_assert!(!text.chars().any(crate::text::is_hostile), "{}", text);
            }
            let (block, state) = reader.next_block().expect("block").expect("valid");
            prop_assert!(matches!(block, Block::InterfaceDescription(_)));
            prop_assert_eq!(state.interfaces()[0].ts_resolution(), InterfaceTsResolution::NANO);
        }
    }
}
