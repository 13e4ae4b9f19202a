//! Reading packets back, by `pcap-file`: the reader of tests, and of tools that show captures.

use std::io::Read;

use pcap_file::pcapng::{
    Block, PcapNgReadError, PcapNgReader, PcapNgState,
    blocks::{
        enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
        interface_description::InterfaceDescriptionOption,
        opt_common::CommonOption,
    },
};

use super::packet::{OPTION_PACKET_ID, PacketDirection};

/// A packet as the file tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Name of its interface; empty when that has none.
    pub interface: String,
    /// Nanoseconds of UTC.
    pub time_ns: u64,
    pub direction: Option<PacketDirection>,
    pub packet_id: Option<u64>,
    /// Packets lost since the last one.
    pub drop_count: u64,
    /// Length on the wire, in bytes.
    pub original_len: u32,
    pub comments: Vec<String>,
    /// From the link-layer header on, as far as it was captured.
    pub data: Vec<u8>,
}

/// A file is not pcapng, or torn, or cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("failed to read pcapng")]
pub struct ReadError(#[from] PcapNgReadError);

/// The packets of a file, one after the other; other blocks are skipped.
///
/// # Errors
/// The file does not begin with a section. The iterator's errors are its last item.
pub fn packets<R: Read>(
    reader: R,
) -> Result<impl Iterator<Item = Result<Packet, ReadError>>, ReadError> {
    let mut reader = Some(PcapNgReader::new(reader)?);
    Ok(std::iter::from_fn(move || {
        loop {
            match reader.as_mut()?.next_block()? {
                Ok((Block::EnhancedPacket(block), state)) => return Some(Ok(packet(block, state))),
                Ok(_) => {}
                Err(error) => {
                    reader = None;
                    return Some(Err(error.into()));
                }
            }
        }
    }))
}

/// All packets of a file, in memory.
///
/// # Errors
/// The first [`ReadError`].
pub fn read_packets(reader: impl Read) -> Result<Vec<Packet>, ReadError> {
    packets(reader)?.collect()
}

fn packet(block: EnhancedPacketBlock<'_>, state: &PcapNgState) -> Packet {
    let interface = state
        .interfaces()
        .get(block.interface_id as usize)
        .and_then(|interface| {
            interface.options.iter().find_map(|option| match option {
                InterfaceDescriptionOption::IfName(name) => Some(name.clone().into_owned()),
                _ => None,
            })
        });
    let mut packet = Packet {
        interface: interface.unwrap_or_default(),
        time_ns: u64::try_from(block.timestamp.as_nanos()).unwrap_or(u64::MAX),
        direction: None,
        packet_id: None,
        drop_count: 0,
        original_len: block.original_len,
        comments: Vec::new(),
        data: block.data.into_owned(),
    };
    for option in block.options {
        match option {
            EnhancedPacketOption::Flags(flags) => {
                packet.direction = PacketDirection::from_flags(flags);
            }
            EnhancedPacketOption::DropCount(count) => packet.drop_count = count,
            EnhancedPacketOption::Common(CommonOption::Comment(text)) => {
                packet.comments.push(text.into_owned());
            }
            EnhancedPacketOption::Common(CommonOption::Unknown(option))
                if option.code == OPTION_PACKET_ID =>
            {
                packet.packet_id = option
                    .value
                    .first_chunk()
                    .map(|bytes| u64::from_le_bytes(*bytes));
            }
            _ => {}
        }
    }
    packet
}
