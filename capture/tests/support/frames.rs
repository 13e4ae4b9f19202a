//! Random frames of the kinds that filters tell apart: whole, cut anywhere, damaged, and noise.

use super::random::Random;

// The values that the corpus asks for, and others near them.
pub(crate) const V4: [[u8; 4]; 8] = [
    [192, 0, 2, 7],
    [192, 0, 2, 8],
    [10, 0, 0, 1],
    [10, 1, 2, 3],
    [172, 16, 5, 4],
    [224, 0, 0, 5],
    [255, 255, 255, 255],
    [127, 0, 0, 1],
];
pub(crate) const V6: [[u8; 16]; 5] = [
    [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
    [0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8],
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
];
pub(crate) const MAC: [[u8; 6]; 4] = [
    [0x02, 0, 0, 0, 0, 1],
    [0x02, 0, 0, 0, 0, 2],
    [0xff; 6],
    [0x01, 0, 0x5e, 0, 0, 5],
];
pub(crate) const PORTS: [u16; 12] = [0, 1, 22, 53, 80, 443, 1023, 1024, 3784, 6081, 8080, 65_535];
const PROTOCOLS: [u8; 16] = [1, 2, 6, 6, 6, 17, 17, 17, 41, 47, 50, 51, 58, 89, 112, 132];

fn transport(random: &mut Random, protocol: u8) -> Vec<u8> {
    let mut header = random.bytes(40);
    if matches!(protocol, 6 | 17 | 132) {
        header[..2].copy_from_slice(&random.one(&PORTS).to_be_bytes());
        header[2..4].copy_from_slice(&random.one(&PORTS).to_be_bytes());
        header[12] = random.one(&[0x50, 0x50, 0x80, 0xf0]);
        header[13] = random.one(&[0x02, 0x10, 0x12, 0x18, 0x04, 0x11, 0xff, 0]);
    } else {
        header[0] = random.one(&[0, 3, 5, 8, 11, 128, 129, 135, 136, 1]);
        header[1] = random.one(&[0, 1, 3]);
    }
    let payload = random.below(60);
    header.extend(random.bytes(payload));
    header
}

/// An IPv4 packet.
pub(crate) fn ipv4(random: &mut Random) -> Vec<u8> {
    let words = random.one(&[5usize, 5, 5, 6, 15]);
    let protocol = random.one(&PROTOCOLS);
    let mut packet = random.bytes(words * 4);
    packet[0] = 0x40 | words as u8;
    packet[1] = random.one(&[0, 0x10, 0xb8]);
    packet[6..8].copy_from_slice(
        &random
            .one(&[0u16, 0, 0x4000, 0x2000, 1, 0x20ff, 0x8000])
            .to_be_bytes(),
    );
    packet[8] = random.one(&[1, 64, 255]);
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&random.one(&V4));
    packet[16..20].copy_from_slice(&random.one(&V4));
    packet.extend(transport(random, protocol));
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet
}

/// An IPv6 packet, with up to two extension headers.
pub(crate) fn ipv6(random: &mut Random) -> Vec<u8> {
    let protocol = random.one(&PROTOCOLS);
    let extensions: Vec<u8> = (0..random.one(&[0, 0, 1, 2]))
        .map(|_| random.one(&[0u8, 43, 44, 60, 51]))
        .collect();
    let mut packet = random.bytes(40);
    packet[0] = 0x60 | packet[0] & 0xf;
    packet[6] = *extensions.first().unwrap_or(&protocol);
    packet[8..24].copy_from_slice(&random.one(&V6));
    packet[24..40].copy_from_slice(&random.one(&V6));
    for (i, _) in extensions.iter().enumerate() {
        let next = *extensions.get(i + 1).unwrap_or(&protocol);
        packet.extend([next, 0, 0, random.one(&[0, 1, 8]), 0, 0, 0, 9]);
    }
    packet.extend(transport(random, protocol));
    let len = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    packet
}

fn arp(random: &mut Random) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, random.one(&[1, 2, 3])];
    packet.extend(random.one(&MAC));
    packet.extend(random.one(&V4));
    packet.extend(random.one(&MAC));
    packet.extend(random.one(&V4));
    packet
}

/// The two addresses and no EtherType.
fn addresses(random: &mut Random) -> Vec<u8> {
    let mut frame = random.one(&MAC).to_vec();
    frame.extend(random.one(&MAC));
    frame
}

/// An Ethernet frame.
pub(crate) fn ethernet(random: &mut Random) -> Vec<u8> {
    let mut frame = addresses(random);
    for _ in 0..random.one(&[0, 0, 0, 0, 1, 2]) {
        let tag = random.one(&[0x8100u16, 0x8100, 0x88a8, 0x9100]);
        frame.extend(tag.to_be_bytes());
        frame.extend(random.one(&[7u16, 0x6007, 100, 0]).to_be_bytes());
    }
    let (ether_type, rest): (u16, Vec<u8>) = match random.below(12) {
        0..=3 => (0x0800, ipv4(random)),
        4..=6 => (0x86dd, ipv6(random)),
        7 => (random.one(&[0x0806, 0x8035]), arp(random)),
        8 => {
            let mut labels = vec![0, 0x40, random.one(&[0, 1]), 64];
            if labels[2] == 0 {
                labels.extend([0, 0, 0x11, 64]);
            }
            labels.extend(ipv4(random));
            (0x8847, labels)
        }
        9 => {
            let mut session = vec![0x11, 0, 0, random.one(&[1, 9]), 0, 60];
            session.extend(random.one(&[0x0021u16, 0x0057]).to_be_bytes());
            session.extend(ipv4(random));
            (random.one(&[0x8863, 0x8864]), session)
        }
        10 => {
            // IEEE 802.3 with LLC: spanning tree, NetBEUI, IPX, ISO, SNAP.
            let sap = random.one(&[0x42, 0xf0, 0xe0, 0xfe, 0xaa]);
            let mut llc = vec![sap, sap, 3];
            llc.extend(random.bytes(40));
            (43, llc)
        }
        _ => (
            random.one(&[0x88cc, 0x6003, 0x809b, 0x80f3, 0x8137]),
            random.bytes(46),
        ),
    };
    frame.extend(ether_type.to_be_bytes());
    frame.extend(rest);
    frame
}

/// Whole, cut anywhere, with one byte changed, or noise.
pub(crate) fn damaged(mut whole: Vec<u8>, random: &mut Random) -> Vec<u8> {
    match random.below(10) {
        0..=4 => {}
        5..=7 => whole.truncate(random.below(whole.len() + 1)),
        8 => {
            let at = random.below(whole.len());
            whole[at] = random.number() as u8;
        }
        _ => {
            let len = random.below(120);
            whole = random.bytes(len);
        }
    }
    whole
}
