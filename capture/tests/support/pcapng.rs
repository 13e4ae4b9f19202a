//! Capture files for tests.

use remora_capture::{
    pcapng::{
        Interface, PacketDirection, PacketMeta, Section, Statistics, encode_packet,
        interface_description, interface_statistics, name_resolution, section_header,
    },
    session::{Counts, NameHint, Snaplen},
};

/// An Ethernet frame from 192.0.2.7 to 198.51.100.23, UDP 5000 to 53, with `payload`.
pub(crate) fn udp_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = [[2u8; 12].as_slice(), &[0x08, 0x00]].concat();
    let udp_len = 8 + payload.len() as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_len).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0, 192, 0, 2, 7, 198, 51, 100, 23]);
    frame.extend(ip);
    for field in [5000, 53, udp_len, 0] {
        frame.extend(field.to_be_bytes());
    }
    frame.extend(payload);
    frame
}

pub(crate) fn meta(packet_id: u64) -> PacketMeta<'static> {
    PacketMeta {
        interface_id: (packet_id % 2) as u32,
        time_ns: 1_795_489_205_478_445_995 + packet_id * 1_000_003,
        direction: if packet_id.is_multiple_of(2) {
            PacketDirection::Ingress
        } else {
            PacketDirection::Egress
        },
        packet_id: Some(packet_id),
        drop_count: 0,
        original_len: 0,
        comment: None,
    }
}

/// A whole file as blocks: section, two interfaces, names, `packets` packets, two accounts.
pub(crate) fn blocks(packets: u64) -> Vec<Vec<u8>> {
    let section = Section {
        hardware: "x86_64",
        os: "Linux 6.18, node worker-1",
        application: "remora 0.1.0",
        comments: &[
            "capture 01J0000000000000000000000".to_owned(),
            ALERT.to_owned(),
        ],
    };
    let filter = "host 198.51.100.23 and udp port 53"
        .parse()
        .expect("filter");
    let mut blocks = vec![section_header(&section)];
    for name in ["shop/web/eth0", "shop/web/lo"] {
        blocks.push(interface_description(&Interface {
            name,
            description: "host end of the pod's veth",
            filter: &filter,
            snaplen: Snaplen::MAX,
        }));
    }
    let names = [
        NameHint {
            address: "192.0.2.7".parse().expect("address"),
            name: "web.shop".into(),
        },
        NameHint {
            address: "2001:db8::7".parse().expect("address"),
            name: "web6.shop".into(),
        },
    ];
    blocks.extend(name_resolution(&names));
    for id in 0..packets {
        let frame = udp_frame(&vec![id as u8; id as usize * 7 % 50]);
        let mut block = Vec::new();
        // Every third as a packet that had no link-layer header.
        if id % 3 == 0 {
            encode_packet(&mut block, &meta(id), &frame[..14], &frame[14..]);
        } else {
            let meta = PacketMeta {
                drop_count: id % 4,
                comment: Some("odd\none"),
                ..meta(id)
            };
            encode_packet(&mut block, &meta, &[], &frame);
        }
        blocks.push(block);
    }
    for interface in 0..2 {
        let counts = Counts {
            seen: 20,
            matched: packets,
            written: packets,
            ..Counts::default()
        };
        blocks.push(interface_statistics(&Statistics::new(
            interface,
            &counts,
            meta(0).time_ns,
            meta(packets).time_ns,
        )));
    }
    blocks
}

pub(crate) const ALERT: &str = r#"{"rule":"Outbound Connection to C2 Servers","output":"a > b"}"#;
