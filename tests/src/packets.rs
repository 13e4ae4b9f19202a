//! What a capture file holds, read by the crate `pcap-file`: none of Remora's own code.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read as _},
    net::IpAddr,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use pcap_file::{
    pcap::PcapReader,
    pcapng::{
        Block, PcapNgReader,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption},
            name_resolution::Record,
            opt_common::CommonOption,
            section_header::SectionHeaderOption,
        },
    },
};

/// Largest block that is read, in bytes: a 64 KiB packet or comment with all around it.
const BLOCK_MAX: usize = 1 << 20;
/// Code of the option `epb_packetid` (pcapng draft-05, section 4.3).
const EPB_PACKETID: u16 = 5;
/// Packets that an error shows.
const DIFFERENCES_SHOWN: usize = 10;

/// Into or out of the target, by a packet's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Inbound,
    Outbound,
}

/// One packet of a file.
#[derive(Clone, Debug)]
pub struct Packet {
    pub interface: u32,
    /// Since the epoch.
    pub time: Duration,
    /// Bytes it had.
    pub original_len: u32,
    /// Bytes that were kept.
    pub data: Vec<u8>,
    pub direction: Option<Direction>,
    /// Number of the packet in its capture.
    pub id: Option<u64>,
    /// Packets lost between the one before and this.
    pub dropped: u64,
    pub comments: Vec<String>,
}

/// An interface of a pcapng file.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    pub name: String,
    pub description: String,
    pub filter: String,
    pub snaplen: u32,
    pub linktype: u32,
}

/// An interface's statistics at the end of a pcapng file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    pub received: u64,
    pub accepted: u64,
    pub interface_dropped: u64,
    pub os_dropped: u64,
    pub delivered: u64,
}

/// A capture file.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    pub packets: Vec<Packet>,
    pub interfaces: Vec<Interface>,
    pub names: BTreeMap<IpAddr, String>,
    /// By interface; the last one written counts.
    pub statistics: BTreeMap<u32, Statistics>,
    /// Of the section header.
    pub comments: Vec<String>,
    pub application: String,
}

impl Capture {
    /// Reads a pcap or pcapng file to its end.
    ///
    /// # Errors
    /// The file is not whole.
    pub fn read(path: &Path) -> Result<Self> {
        let open = || File::open(path).with_context(|| format!("no file {}", path.display()));
        let mut magic = [0u8; 4];
        open()?
            .read_exact(&mut magic)
            .context("the file has less than 4 bytes")?;
        // pcapng draft-05, section 4.1: the section header's type reads the same from both sides.
        if magic == [0x0a, 0x0d, 0x0d, 0x0a] {
            Self::read_pcapng(BufReader::new(open()?))
        } else {
            Self::read_pcap(BufReader::new(open()?))
        }
        .with_context(|| format!("failed to read {}", path.display()))
    }

    fn read_pcap(reader: impl std::io::Read) -> Result<Self> {
        let mut reader = PcapReader::with_capacity(reader, BLOCK_MAX)?;
        let mut capture = Self::default();
        while let Some(packet) = reader.next_packet() {
            let packet = packet?;
            capture.packets.push(Packet {
                interface: 0,
                time: packet.timestamp(),
                original_len: packet.orig_len(),
                data: packet.data().to_vec(),
                direction: None,
                id: None,
                dropped: 0,
                comments: Vec::new(),
            });
        }
        Ok(capture)
    }

    /// Reads pcapng bytes to their end.
    ///
    /// # Errors
    /// They are not whole blocks.
    pub fn read_pcapng(reader: impl std::io::Read) -> Result<Self> {
        let mut reader = PcapNgReader::with_capacity(reader, BLOCK_MAX)?;
        let mut capture = Self::default();
        for option in &reader.section().options {
            match option {
                SectionHeaderOption::Common(CommonOption::Comment(text)) => {
                    capture.comments.push(text.to_string());
                }
                SectionHeaderOption::UserApplication(text) => {
                    capture.application = text.to_string();
                }
                _ => {}
            }
        }
        while let Some(block) = reader.next_block() {
            match block
                .map_err(|error| anyhow!("after {} packets: {error}", capture.packets.len()))?
                .0
            {
                Block::EnhancedPacket(block) => capture.packets.push(packet(&block)),
                Block::InterfaceDescription(block) => capture.interfaces.push(interface(&block)),
                Block::InterfaceStatistics(block) => {
                    capture
                        .statistics
                        .insert(block.interface_id, statistics(&block));
                }
                Block::NameResolution(block) => {
                    for record in &block.records {
                        let (address, names): (IpAddr, _) = match record {
                            Record::Ipv4(record) => (record.ip_addr.into(), &record.names),
                            Record::Ipv6(record) => (record.ip_addr.into(), &record.names),
                            Record::End | Record::Unknown(_) => continue,
                        };
                        let Some(name) = names.first() else {
                            bail!("{address} has no name")
                        };
                        capture.names.insert(address, name.to_string());
                    }
                }
                _ => {}
            }
        }
        Ok(capture)
    }

    /// The bytes of each packet.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.packets.iter().map(|packet| packet.data.as_slice())
    }

    /// Statistics of all interfaces together.
    #[must_use]
    pub fn statistics_sum(&self) -> Statistics {
        self.statistics
            .values()
            .fold(Statistics::default(), |sum, one| Statistics {
                received: sum.received + one.received,
                accepted: sum.accepted + one.accepted,
                interface_dropped: sum.interface_dropped + one.interface_dropped,
                os_dropped: sum.os_dropped + one.os_dropped,
                delivered: sum.delivered + one.delivered,
            })
    }
}

fn packet(block: &EnhancedPacketBlock<'_>) -> Packet {
    let mut packet = Packet {
        interface: block.interface_id,
        time: block.timestamp,
        original_len: block.original_len,
        data: block.data.to_vec(),
        direction: None,
        id: None,
        dropped: 0,
        comments: Vec::new(),
    };
    for option in &block.options {
        match option {
            // pcapng draft-05, section 4.3.1: bits 0 and 1, 1 is inbound, 2 outbound.
            EnhancedPacketOption::Flags(flags) => {
                packet.direction = match flags & 3 {
                    1 => Some(Direction::Inbound),
                    2 => Some(Direction::Outbound),
                    _ => None,
                };
            }
            EnhancedPacketOption::DropCount(count) => packet.dropped = *count,
            EnhancedPacketOption::Common(CommonOption::Comment(text)) => {
                packet.comments.push(text.to_string());
            }
            EnhancedPacketOption::Common(CommonOption::Unknown(option))
                if option.code == EPB_PACKETID =>
            {
                // The test runs on the machine that wrote the file.
                packet.id = option
                    .value
                    .first_chunk()
                    .map(|bytes| u64::from_ne_bytes(*bytes));
            }
            _ => {}
        }
    }
    packet
}

fn interface(block: &InterfaceDescriptionBlock<'_>) -> Interface {
    let mut interface = Interface {
        snaplen: block.snaplen,
        linktype: block.linktype.into(),
        ..Default::default()
    };
    for option in &block.options {
        match option {
            InterfaceDescriptionOption::IfName(text) => interface.name = text.to_string(),
            InterfaceDescriptionOption::IfDescription(text) => {
                interface.description = text.to_string();
            }
            // The first byte says what follows: 0 is filter text.
            InterfaceDescriptionOption::IfFilter(bytes) => {
                interface.filter =
                    String::from_utf8_lossy(bytes.get(1..).unwrap_or_default()).into_owned();
            }
            _ => {}
        }
    }
    interface
}

fn statistics(block: &InterfaceStatisticsBlock<'_>) -> Statistics {
    let mut statistics = Statistics::default();
    for option in &block.options {
        match option {
            InterfaceStatisticsOption::IsbIfRecv(count) => statistics.received = *count,
            InterfaceStatisticsOption::IsbIfDrop(count) => statistics.interface_dropped = *count,
            InterfaceStatisticsOption::IsbFilterAccept(count) => statistics.accepted = *count,
            InterfaceStatisticsOption::IsbOsDrop(count) => statistics.os_dropped = *count,
            InterfaceStatisticsOption::IsbUsrDeliv(count) => statistics.delivered = *count,
            _ => {}
        }
    }
    statistics
}

/// Frames with their original length, and how often each occurs.
pub type Bag<'a> = BTreeMap<(&'a [u8], u32), u32>;

/// How often each frame occurs, with the length it had: what two captures of the same traffic must
/// agree in, whatever the order in which two CPUs told theirs.
#[must_use]
pub fn bag<'a>(packets: impl IntoIterator<Item = &'a Packet>) -> Bag<'a> {
    let mut bag = Bag::new();
    for packet in packets {
        *bag.entry((packet.data.as_slice(), packet.original_len))
            .or_default() += 1;
    }
    bag
}

/// `ours` has what `theirs` has, each as often, and nothing else.
///
/// # Errors
/// They differ; with the first of the packets in which they do.
pub fn assert_same(ours: &[Packet], theirs: &[Packet]) -> Result<()> {
    assert_between(ours, theirs, theirs)
}

/// `ours` has at least what `least` has and at most what `most` has, each as often.
///
/// # Errors
/// It has not; with the first of the packets in which they differ.
pub fn assert_between(ours: &[Packet], least: &[Packet], most: &[Packet]) -> Result<()> {
    let (mine, lower, upper) = (bag(ours), bag(least), bag(most));
    let (missing, foreign) = (beyond(&lower, &mine), beyond(&mine, &upper));
    ensure!(
        missing.is_empty() && foreign.is_empty(),
        "{} packets; of the {} that must be there these are missing: {missing:#?}\n\
         of the {} that may be there these are not, but are here: {foreign:#?}",
        ours.len(),
        least.len(),
        most.len(),
    );
    Ok(())
}

/// The first packets that `a` has more often than `b`.
fn beyond(a: &Bag<'_>, b: &Bag<'_>) -> Vec<String> {
    a.iter()
        .filter(|(key, times)| b.get(*key).is_none_or(|there| there < times))
        .take(DIFFERENCES_SHOWN)
        .map(|((frame, original_len), times)| {
            format!("{times} times, length {original_len}, {}", shown(frame))
        })
        .collect()
}

/// The first bytes of a frame, for an error message.
#[must_use]
pub fn shown(frame: &[u8]) -> String {
    let head: Vec<String> = frame
        .iter()
        .take(54)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{} bytes: {}", frame.len(), head.join(" "))
}
