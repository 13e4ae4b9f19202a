//! A record of the ring, to its blocks in the file.
//!
//! ```text
//! a record as the ring holds it | how (u8)
//! ```
//! Of `how` the lowest bits say how it is written; the highest that the record's ABI version is as it
//! stands, not this build's, which is put in so that the corpus outlives a change of it.

use remora_agent::{
    record::{LookBackRecord, Packet, Record},
    session::{BoundTap, LinkEnd, Takes, TapHook, TapId, View},
    writer::encoder::{Encoder, Marks},
};
use remora_agent_common::{
    ABI_VERSION, SESSION_SLOTS,
    record::{CAPLEN_MAX, HEADER_LEN},
};
use remora_capture::{
    pcapng::{self, Section},
    session::{SuperPackets, TapInfo},
};

/// # Panics
/// A record is read as what it is not, or its blocks are not whole.
pub fn check(data: &[u8]) {
    let (how, bytes) = data.split_last().map_or((0, data), |(how, b)| (*how, b));
    let mut bytes = bytes.to_vec();
    if let (0, Some(abi)) = (how & 0x80, bytes.first_chunk_mut()) {
        *abi = ABI_VERSION.to_ne_bytes();
    }
    let bytes = &bytes[..];
    match Record::parse(bytes) {
        Ok(Record::Packet(packet)) => {
            assert_ne!(packet.header.sessions, 0);
            confirm(&packet, bytes);
            encode(&packet, how);
        }
        Ok(Record::Gap { slot, .. } | Record::Limit { slot, .. }) => {
            assert!(slot < SESSION_SLOTS);
            assert_eq!(Record::sessions_of(bytes), 1 << slot);
        }
        Err(error) => assert!(error.to_string().len() < 4096, "a message is bounded"),
    }
    if let Some(record) = LookBackRecord::parse(bytes) {
        confirm(&record.packet, bytes);
    }
}

/// The packet lies in the record.
fn confirm(packet: &Packet<'_>, bytes: &[u8]) {
    let caplen = packet.header.caplen;
    assert_eq!(packet.header.abi, ABI_VERSION);
    assert_eq!(packet.data, &bytes[HEADER_LEN..][..caplen as usize]);
    assert!(caplen <= CAPLEN_MAX && caplen <= packet.header.origlen);
}

/// Writes it as a session would that has taps of both hooks, and reads the blocks.
fn encode(packet: &Packet<'_>, how: u8) {
    let snaplen = [262_144, 64, 14, 1][usize::from(how & 3)];
    let super_packets = match how & 4 {
        0 => SuperPackets::Segmented,
        _ => SuperPackets::Whole,
    };
    let tap = |hook| BoundTap {
        id: TapId {
            index: packet.header.tap,
            generation: packet.header.tap_generation,
        },
        info: TapInfo::default(),
        hook,
        view: View::Interface,
        end: LinkEnd::VethHost,
        takes: Takes::All,
    };
    let taps = [tap(TapHook::Tc), tap(TapHook::Cgroup)];
    let encoder = Encoder::new(snaplen, super_packets, i64::from(how) << 54, &taps);
    let interface = encoder.interface(packet).expect("its tap");
    let marks = Marks {
        packet_id: (how & 8 == 0).then_some(7),
        drop_count: u64::from(how & 16),
        comment: (how & 32 == 0).then_some("said"),
    };
    let filter = Default::default();
    let mut file = pcapng::section_header(&Section::default());
    for _ in &taps {
        file.extend(pcapng::interface_description(&pcapng::Interface {
            name: "",
            description: "",
            filter: &filter,
            snaplen: Default::default(),
        }));
    }
    let blocks = encoder.encode(&mut file, packet, interface, &marks);
    let scan = pcapng::scan(&file[..]).expect("memory");
    assert_eq!(scan.tear, None);
    assert_eq!((scan.packet_blocks, scan.packets), (blocks, 1));
    let read = pcapng::read_packets(&file[..]).expect("another reader takes it");
    assert_eq!(read.len() as u64, blocks);
    assert!(
        read.iter()
            .all(|packet| packet.data.len() <= snaplen as usize)
    );
}
