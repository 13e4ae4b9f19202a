//! Super-packets cut into segments: nothing is lost, and every length and checksum is right by
//! another reckoning.

use proptest::prelude::*;
use remora_capture::segment::{Cut, Gso, cut};

const IPV4_ID: u16 = 0xfffe;
const SEQUENCE: u32 = u32::MAX - 1000;
const CHECKSUM_PARTIAL: u16 = 0x1234;
/// CWR, PSH, ACK, FIN.
const FLAGS: u8 = 0x80 | 0x08 | 0x10 | 0x01;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

#[derive(Clone, Debug)]
struct Shape {
    tags: usize,
    ipv4: bool,
    /// IPv4 options or an extension header of IPv6.
    more: bool,
    protocol: Protocol,
    payload: Vec<u8>,
}

/// The frame and where its network and transport headers and its payload begin.
fn frame(shape: &Shape) -> (Vec<u8>, usize, usize, usize) {
    let Shape {
        tags,
        ipv4,
        more,
        protocol,
        payload,
    } = shape;
    let mut frame = vec![0x02; 12];
    for _ in 0..*tags {
        frame.extend([0x81, 0x00, 0x00, 0x07]);
    }
    frame.extend(if *ipv4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    let network = frame.len();
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    let transport_header = match protocol {
        Protocol::Tcp => 32,
        Protocol::Udp => 8,
    };
    let rest = transport_header + payload.len();
    if *ipv4 {
        let options = if *more { 8 } else { 0 };
        let total = (20 + options + rest) as u16;
        frame.extend([0x40 | (5 + options as u8 / 4), 0]);
        frame.extend(total.to_be_bytes());
        frame.extend(IPV4_ID.to_be_bytes());
        frame.extend([0x40, 0, 64, number, 0xaa, 0xaa, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(vec![1; options]);
    } else {
        let options = if *more { 8 } else { 0 };
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(((options + rest) as u16).to_be_bytes());
        frame.extend([if *more { 60 } else { number }, 64]);
        frame.extend([0xfd; 16]);
        frame.extend([0xfc; 16]);
        if *more {
            frame.extend([number, 0, 1, 4, 0, 0, 0, 0]);
        }
    }
    let transport = frame.len();
    frame.extend([0x1f, 0x90, 0x00, 0x51]);
    match protocol {
        Protocol::Tcp => {
            frame.extend(SEQUENCE.to_be_bytes());
            frame.extend([0, 0, 0, 9, 0x80, FLAGS, 1, 0]);
            frame.extend(CHECKSUM_PARTIAL.to_be_bytes());
            frame.extend([0, 0]);
            frame.extend([1; 12]);
        }
        Protocol::Udp => {
            frame.extend((rest as u16).to_be_bytes());
            frame.extend(CHECKSUM_PARTIAL.to_be_bytes());
        }
    }
    let start = frame.len();
    frame.extend(payload);
    (frame, network, transport, start)
}

fn shape(payload: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Shape> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    (0usize..3, any::<bool>(), any::<bool>(), protocol, payload).prop_map(
        |(tags, ipv4, more, protocol, payload)| Shape {
            tags,
            ipv4,
            more,
            protocol,
            payload,
        },
    )
}

/// RFC 1071 as its text has it: word by word, carry added at once.
fn ones_complement(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for at in (0..bytes.len()).step_by(2) {
        let low = bytes.get(at + 1).copied().unwrap_or(0);
        sum += u32::from(bytes[at]) << 8 | u32::from(low);
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    sum as u16
}

/// Pseudo-header and all of the segment sum up to all ones.
fn transport_is_right(
    frame: &[u8],
    network: usize,
    transport: usize,
    ipv4: bool,
    udp: bool,
) -> bool {
    let addresses = if ipv4 { 12..20 } else { 8..40 };
    let mut bytes = frame[network..][addresses].to_vec();
    let len = (frame.len() - transport) as u32;
    bytes.extend(len.to_be_bytes());
    bytes.extend([0, 0, 0, if udp { 17 } else { 6 }]);
    bytes.extend(&frame[transport..]);
    ones_complement(&bytes) == 0xffff
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Each segment's captured bytes and its length on the wire.
fn all(cut: &Cut<'_>) -> Vec<(Vec<u8>, u32)> {
    let mut segments = Vec::new();
    cut.each(|headers, payload, len| segments.push(([headers, payload].concat(), len)));
    segments
}

proptest! {
    #[test]
    fn segments_have_all_bytes_once_and_right_headers(
        shape in shape(prop::collection::vec(any::<u8>(), 1..20_000)),
        size in 50u16..9000,
        split in 0usize..14,
        told in any::<bool>(),
    ) {
        let (frame, network, transport, start) = frame(&shape);
        let count = shape.payload.len().div_ceil(size.into());
        let gso = Gso { size, segments: if told { count as u16 } else { 0 } };
        let (prefix, data) = frame.split_at(split);
        let cut = cut(prefix, data, frame.len() as u32, gso).expect("cut");
        let segments = all(&cut);
        prop_assert_eq!(segments.len(), count);
        let mut payload: Vec<u8> = Vec::new();
        for (number, (segment, len)) in segments.iter().enumerate() {
            let (first, last) = (number == 0, number + 1 == count);
            prop_assert_eq!(segment.len(), *len as usize);
            prop_assert!(last || segment.len() == start + usize::from(size));
            prop_assert_eq!(&segment[..network], &frame[..network]);
            if shape.ipv4 {
                prop_assert_eq!(usize::from(be16(segment, network + 2)), segment.len() - network);
                prop_assert_eq!(be16(segment, network + 4), IPV4_ID.wrapping_add(number as u16));
                prop_assert_eq!(ones_complement(&segment[network..transport]), 0xffff);
            } else {
                let len = usize::from(be16(segment, network + 4));
                prop_assert_eq!(len, segment.len() - network - 40);
            }
            match shape.protocol {
                Protocol::Tcp => {
                    let sequence = &segment[transport + 4..transport + 8];
                    let offset = (number * usize::from(size)) as u32;
                    prop_assert_eq!(sequence, &SEQUENCE.wrapping_add(offset).to_be_bytes());
                    let flags = segment[transport + 13];
                    prop_assert_eq!(flags & 0x80 != 0, first, "CWR");
                    prop_assert_eq!(flags & 0x09, if last { 0x09 } else { 0 }, "FIN, PSH");
                    prop_assert_eq!(flags & 0x10, 0x10, "ACK");
                }
                Protocol::Udp => {
                    let len = usize::from(be16(segment, transport + 4));
                    prop_assert_eq!(len, segment.len() - transport);
                    prop_assert_ne!(be16(segment, transport + 6), 0, "it would be no checksum");
                }
            }
            let udp = shape.protocol == Protocol::Udp;
            prop_assert!(transport_is_right(segment, network, transport, shape.ipv4, udp));
            payload.extend(&segment[start..]);
        }
        prop_assert_eq!(payload, shape.payload);
    }

    #[test]
    fn what_was_not_captured_stays_away_and_is_told_by_the_lengths(
        shape in shape(prop::collection::vec(any::<u8>(), 1..9000)),
        size in 50u16..3000,
        kept in any::<prop::sample::Index>(),
    ) {
        let (frame, _, transport, start) = frame(&shape);
        let kept = kept.index(frame.len() + 1);
        let gso = Gso { size, segments: 0 };
        let cut = cut(&[], &frame[..kept], frame.len() as u32, gso);
        prop_assert_eq!(cut.is_some(), kept >= start, "headers are there");
        let Some(cut) = cut else { return Ok(()) };
        let (mut sum, mut bytes) = (0, 0);
        for (segment, len) in all(&cut) {
            prop_assert!(segment.len() >= start && segment.len() <= len as usize);
            let checksum = transport + if shape.protocol == Protocol::Tcp { 16 } else { 6 };
            if segment.len() < len as usize {
                prop_assert_eq!(be16(&segment, checksum), 0, "not to be told");
            }
            sum += len as usize - start;
            bytes += segment.len() - start;
        }
        prop_assert_eq!(sum, shape.payload.len());
        prop_assert_eq!(bytes, kept - start);
    }

    #[test]
    fn a_checksum_that_was_left_to_the_card_is_filled_in_and_no_other_touched(
        shape in shape(prop::collection::vec(any::<u8>(), 0..1500)),
        other in any::<u16>(),
    ) {
        let (mut frame, network, transport, _) = frame(&shape);
        let udp = shape.protocol == Protocol::Udp;
        let at = transport + if udp { 6 } else { 16 };
        // The sum of the pseudo-header: of the whole with a zero checksum, less the segment's.
        let addresses = if shape.ipv4 { 12..20 } else { 8..40 };
        let mut pseudo = frame[network..][addresses].to_vec();
        pseudo.extend(((frame.len() - transport) as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, if udp { 17 } else { 6 }]);
        let partial = ones_complement(&pseudo);
        frame[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        let cut_one = cut(&[], &frame, frame.len() as u32, Gso::default()).expect("partial");
        let segments = all(&cut_one);
        prop_assert_eq!(segments.len(), 1);
        let segment = &segments[0].0;
        prop_assert!(transport_is_right(segment, network, transport, shape.ipv4, udp));
        prop_assert_eq!(&segment[at + 2..], &frame[at + 2..]);
        if shape.ipv4 {
            prop_assert_eq!(be16(segment, network + 4), IPV4_ID);
        }
        // A bad checksum that was on the wire is evidence.
        if other != partial {
            frame[at..at + 2].copy_from_slice(&other.to_be_bytes());
            prop_assert!(cut(&[], &frame, frame.len() as u32, Gso::default()).is_none());
        }
    }

    #[test]
    fn no_bytes_panic(
        prefix in prop::collection::vec(any::<u8>(), 0..19),
        data in prop::collection::vec(any::<u8>(), 0..400),
        good in any::<bool>(),
        len in any::<u32>(),
        size in any::<u16>(),
        segments in any::<u16>(),
    ) {
        let mut data = data;
        if good && data.len() > 40 {
            data[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
            data[23] = 6;
        }
        if let Some(cut) = cut(&prefix, &data, len % 100_000, Gso { size, segments }) {
            let mut count = 0;
            cut.each(|_, _, _| count += 1);
            prop_assert_eq!(count, cut.segments());
        }
    }
}

/// BIG TCP: IPv6 says a length of more than 64 KiB in a header of its own, IPv4 nowhere.
#[test]
fn a_packet_of_more_than_64_kib_is_cut_into_segments_without_its_long_length() {
    for ipv4 in [true, false] {
        let shape = Shape {
            tags: 1,
            ipv4,
            more: false,
            protocol: Protocol::Tcp,
            payload: (0..150_000u32).map(|at| at as u8).collect(),
        };
        let (mut frame, network, transport, start) = frame(&shape);
        let plain = frame[..start].to_vec();
        let length = network + if ipv4 { 2 } else { 4 };
        frame[length..length + 2].fill(0);
        if !ipv4 {
            let option = [6, 0, 0xc2, 4, 0, 2, 0x49, 0xf0];
            frame.splice(network + 40..network + 40, option);
            frame[network + 6] = 0;
        }
        let gso = Gso {
            size: 1400,
            segments: 108,
        };
        let len = frame.len() as u32;
        // As much of it as a record holds.
        let (prefix, data) = frame[..66_000].split_at(14);
        let cut_all = cut(prefix, data, len, gso).expect("cut");
        let mut kept: Vec<u8> = Vec::new();
        let mut wire = 0;
        for (number, (segment, len)) in all(&cut_all).iter().enumerate() {
            assert_eq!(&segment[..length], &plain[..length]);
            let told = usize::from(be16(segment, length));
            let before = if ipv4 { network } else { network + 40 };
            assert_eq!(told, *len as usize - before);
            let offset = number as u32 * 1400;
            let sequence = &segment[transport + 4..transport + 8];
            assert_eq!(sequence, &SEQUENCE.wrapping_add(offset).to_be_bytes());
            if segment.len() == *len as usize {
                assert!(transport_is_right(segment, network, transport, ipv4, false));
            }
            wire += *len as usize - start;
            kept.extend(&segment[start..]);
        }
        assert_eq!(wire, shape.payload.len());
        let captured = 66_000 - start - if ipv4 { 0 } else { 8 };
        assert_eq!(kept, &shape.payload[..captured]);
        // The wire can have carried one that is no super-packet, so that is left as it is.
        let one = cut(prefix, data, len, Gso::default());
        assert!(one.is_none());
    }
}

#[test]
fn a_packet_in_a_tunnel_and_one_that_is_cut_otherwise_are_left_whole() {
    let shape = Shape {
        tags: 0,
        ipv4: true,
        more: false,
        protocol: Protocol::Udp,
        payload: vec![0; 3000],
    };
    let gso = Gso {
        size: 1400,
        segments: 3,
    };
    let (mut frame, network, transport, _) = frame(&shape);
    let len = frame.len() as u32;
    assert!(cut(&[], &frame, len, gso).is_some());
    let other = Gso { segments: 7, ..gso };
    assert!(cut(&[], &frame, len, other).is_none(), "told otherwise");
    frame[transport + 2..transport + 4].copy_from_slice(&4789u16.to_be_bytes());
    assert!(cut(&[], &frame, len, gso).is_none(), "VXLAN");
    frame[network + 9] = 132;
    assert!(cut(&[], &frame, len, gso).is_none(), "SCTP");
}
