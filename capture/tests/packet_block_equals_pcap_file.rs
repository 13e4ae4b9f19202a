//! Our encoder of the Enhanced Packet Block writes what `pcap-file` writes, and never more than
//! the kernel side charged for.

mod support;

use std::{borrow::Cow, time::Duration};

use pcap_file::{
    DataLink, Endianness,
    pcapng::{
        PcapNgBlock as _, PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{
                InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
            },
            opt_common::{CommonOption, UnknownOption},
        },
    },
};
use proptest::{collection::vec, prelude::*};
use remora_agent_common::session::block_cost;
use remora_capture::{
    pcapng::{PacketDirection, PacketMeta, encode_packet, gso_comment},
    session::SNAPLEN_MAX,
};

fn pcap_files_encoding(meta: &PacketMeta<'_>, frame: &[u8]) -> Vec<u8> {
    let mut writer =
        PcapNgWriter::with_endianness(Vec::new(), Endianness::Little).expect("section");
    for _ in 0..=meta.interface_id {
        let mut interface = InterfaceDescriptionBlock::new(DataLink::ETHERNET, 0);
        let resolution = InterfaceTsResolution::NANO;
        interface
            .options
            .push(InterfaceDescriptionOption::IfTsResol(resolution));
        writer.write_pcapng_block(interface).expect("interface");
    }
    let start = writer.get_ref().len();
    let direction = match meta.direction {
        PacketDirection::Ingress => 1,
        PacketDirection::Egress => 2,
    };
    let id = meta.packet_id.unwrap_or_default().to_le_bytes();
    let mut options = vec![EnhancedPacketOption::Flags(direction)];
    if meta.drop_count > 0 {
        options.push(EnhancedPacketOption::DropCount(meta.drop_count));
    }
    options.push(EnhancedPacketOption::Common(CommonOption::Unknown(
        UnknownOption::new(5, &id),
    )));
    if let Some(comment) = meta.comment {
        options.push(EnhancedPacketOption::Common(CommonOption::Comment(
            comment.into(),
        )));
    }
    let block = EnhancedPacketBlock {
        interface_id: meta.interface_id,
        timestamp: Duration::from_nanos(meta.time_ns),
        original_len: meta.original_len.max(frame.len() as u32),
        data: Cow::Borrowed(frame),
        options,
    };
    writer.write_block(&block.into_block()).expect("packet");
    writer.into_inner().split_off(start)
}

fn direction() -> impl Strategy<Value = PacketDirection> {
    prop_oneof![
        Just(PacketDirection::Ingress),
        Just(PacketDirection::Egress)
    ]
}

proptest! {
    #[test]
    fn encoding_is_byte_equal(
        (interface_id, time_ns, direction, packet_id, original_len) in
            (0u32..5, any::<u64>(), direction(), any::<u64>(), any::<u32>()),
        drop_count in prop_oneof![Just(0), any::<u64>()],
        comment in proptest::option::of("[ -~é日]{0,70}"),
        frame in vec(any::<u8>(), 0..200),
        prefix in 0usize..20,
        before in vec(any::<u8>(), 0..20),
    ) {
        let comment = comment.as_deref();
        let meta =
            PacketMeta { interface_id, time_ns, direction, packet_id: Some(packet_id), drop_count, original_len, comment };
        let (prefix, data) = frame.split_at(prefix.min(frame.len()));
        let mut buf = before.clone();
        encode_packet(&mut buf, &meta, prefix, data);
        prop_assert_eq!(&buf[..before.len()], &before[..]);
        prop_assert_eq!(&buf[before.len()..], &pcap_files_encoding(&meta, &frame)[..]);
    }

    #[test]
    fn block_never_costs_more_than_the_kernel_charges(
        drop_count in prop_oneof![Just(0), any::<u64>()],
        segments in any::<u16>(),
        segment_bytes in any::<u16>(),
        gso in any::<bool>(),
        len in 0usize..2000,
    ) {
        let comment = gso.then(|| gso_comment(segments, segment_bytes));
        let meta = PacketMeta { drop_count, comment: comment.as_deref(), ..support::pcapng::meta(1) };
        let mut buf = Vec::new();
        encode_packet(&mut buf, &meta, &[0; 14], &vec![0; len]);
        prop_assert!(buf.len() as u64 <= block_cost(14 + len as u32, gso));
    }

    #[test]
    fn any_comment_makes_a_block_that_reads_back(
        comment in ".{0,60}|[\n\r\t\u{1b}\u{202e}a]{0,9}",
        repeat in 0usize..3000,
    ) {
        let comment = comment.repeat(repeat);
        let meta = PacketMeta { interface_id: 0, comment: Some(&comment), ..support::pcapng::meta(1) };
        let mut file = support::pcapng::blocks(0)[..3].concat();
        encode_packet(&mut file, &meta, &[], &[1, 2, 3]);
        let packets = remora_capture::pcapng::read_packets(&file[..]).expect("file");
        prop_assert_eq!(packets.len(), 1);
        prop_assert!(!packets[0].comments[0].chars().any(remora_capture::text::is_hostile));
    }
}

#[test]
fn oversized_packet_is_cut_at_the_snaplen_limit() {
    let mut file = support::pcapng::blocks(0)[..3].concat();
    let data = vec![7; SNAPLEN_MAX as usize + 9];
    let meta = PacketMeta {
        original_len: data.len() as u32,
        ..support::pcapng::meta(0)
    };
    encode_packet(&mut file, &meta, &[1; 14], &data);
    let packets = remora_capture::pcapng::read_packets(&file[..]).expect("file");
    assert_eq!(packets[0].data.len(), SNAPLEN_MAX as usize);
    assert_eq!(packets[0].original_len, SNAPLEN_MAX + 9);
    assert_eq!(
        remora_capture::pcapng::count_packets(&file[..]).expect("memory"),
        1
    );
}
