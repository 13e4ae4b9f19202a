//! How much of a packet is kept.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::pcapng::{Block, BlockKind};

/// What is left out of each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    Nothing,
    /// What comes after the transport header, as with the privacy level `headers`; of what is no IP or
    /// ARP all but the link header.
    Payload,
    /// What is beyond so many bytes.
    Beyond(u32),
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("packets whole"),
            Self::Payload => f.write_str("payloads cut off after the transport header"),
            Self::Beyond(bytes) => write!(f, "packets cut off after {bytes} bytes"),
        }
    }
}

/// Bytes of a packet block's body before the packet.
const PACKET: usize = 20;
/// Where the body says how much of the packet is there.
const CAPTURED: usize = 12;

impl Cut {
    /// Bytes that are kept of an Ethernet frame.
    #[must_use]
    pub fn kept(self, frame: &[u8]) -> usize {
        let most = match self {
            Self::Nothing => usize::MAX,
            Self::Payload => headers_len(frame),
            Self::Beyond(bytes) => bytes as usize,
        };
        frame.len().min(most)
    }

    /// The bytes of a packet's block with the rest left out; all else of it stays.
    pub(super) fn apply(self, block: &Block<'_>) -> Vec<u8> {
        debug_assert_eq!(block.kind, BlockKind::EnhancedPacket);
        let frame = frame(block);
        let kept = self.kept(frame);
        let options = PACKET + frame.len().next_multiple_of(4);
        let mut body = block.body[..PACKET].to_vec();
        body[CAPTURED..CAPTURED + 4].copy_from_slice(&(kept as u32).to_le_bytes());
        body.extend_from_slice(&frame[..kept]);
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend_from_slice(block.body.get(options..).unwrap_or_default());
        whole(6, &body)
    }
}

/// The captured bytes of a packet.
pub(super) fn frame<'a>(block: &Block<'a>) -> &'a [u8] {
    let len = block.body[CAPTURED..].first_chunk().copied();
    let len = u32::from_le_bytes(len.unwrap_or_default()) as usize;
    block.body.get(PACKET..PACKET + len).unwrap_or_default()
}

/// A block as it is in a file.
pub(super) fn whole(code: u32, body: &[u8]) -> Vec<u8> {
    let len = (body.len() as u32 + 12).to_le_bytes();
    [&code.to_le_bytes(), len.as_slice(), body, &len].concat()
}

const VLANS_MAX: usize = 2;
const EXTENSIONS_MAX: usize = 4;

/// Bytes up to the end of the transport header; of lengths that lie no more than a true one has.
fn headers_len(frame: &[u8]) -> usize {
    let mut at = 12;
    let mut vlans = 0;
    let mut kind = be16(frame, at);
    while matches!(kind, Some(0x8100 | 0x88a8)) && vlans < VLANS_MAX {
        (at, vlans) = (at + 4, vlans + 1);
        kind = be16(frame, at);
    }
    let network = at + 2;
    let rest = frame.get(network..).unwrap_or_default();
    network
        + match kind {
            Some(0x0800) => ipv4(rest),
            Some(0x86dd) => ipv6(rest),
            Some(0x0806 | 0x8035) => 28,
            _ => 0,
        }
}

fn ipv4(packet: &[u8]) -> usize {
    let Some(header) = packet.first_chunk::<10>() else {
        return 20;
    };
    let len = (usize::from(header[0] & 0x0f) * 4).max(20);
    let is_later_fragment = header[6] & 0x1f != 0 || header[7] != 0;
    if is_later_fragment {
        len
    } else {
        len + transport(packet, header[9], len)
    }
}

fn ipv6(packet: &[u8]) -> usize {
    let mut at = 40;
    let Some(&(mut protocol)) = packet.get(6) else {
        return at;
    };
    for _ in 0..EXTENSIONS_MAX {
        let unit = match protocol {
            // Hop-by-hop, routing, destination options; authentication; fragment.
            0 | 43 | 60 => 8,
            51 => 4,
            44 => 0,
            _ => break,
        };
        let extension = packet.get(at..).and_then(<[u8]>::first_chunk::<4>);
        let Some([next, len, high, low]) = extension else {
            return at;
        };
        at += 8 + usize::from(*len) * unit;
        if protocol == 44 && (*high != 0 || low & 0xf8 != 0) {
            return at;
        }
        protocol = *next;
    }
    at + transport(packet, protocol, at)
}

fn transport(packet: &[u8], protocol: u8, at: usize) -> usize {
    match protocol {
        6 => match packet.get(at + 12) {
            Some(offset) => (usize::from(offset >> 4) * 4).max(20),
            None => 20,
        },
        // UDP, UDP-Lite, ICMP, ICMPv6; SCTP, DCCP.
        17 | 136 | 1 | 58 => 8,
        132 | 33 => 12,
        _ => 0,
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use remora_agent_common::{filter::NetworkBytes, headers};

    use super::*;

    struct Bytes<'a>(&'a [u8]);

    impl NetworkBytes for Bytes<'_> {
        fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
            self.0.get(offset as usize..)?.first_chunk().copied()
        }
    }

    fn ethertype() -> impl Strategy<Value = u16> {
        prop_oneof![
            4 => Just(0x0800_u16),
            4 => Just(0x86dd),
            1 => Just(0x0806),
            1 => Just(0x8035),
            1 => 1..0x8000_u16,
        ]
    }

    proptest! {
        /// The kernel cuts a tap's packets at the same byte.
        #[test]
        fn payload_begins_where_the_kernel_says(
            kind in ethertype(),
            mut packet in proptest::collection::vec(any::<u8>(), 0..200),
            first in prop_oneof![Just(0x45_u8), any::<u8>()],
            protocols in proptest::collection::vec(
                prop_oneof![Just(0_u8), Just(6), Just(17), Just(43), Just(44), Just(51), Just(60), any::<u8>()], 3),
            vlans in 0..=2_usize,
        ) {
            for (at, byte) in [(0, first), (6, protocols[0]), (9, protocols[1]), (40, protocols[2])] {
                if let Some(place) = packet.get_mut(at) {
                    *place = byte;
                }
            }
            let expected = headers::headers_len(kind, &Bytes(&packet)) as usize;
            let mut frame = vec![0; 12];
            for _ in 0..vlans {
                frame.extend_from_slice(&[0x81, 0, 0, 1]);
            }
            frame.extend_from_slice(&kind.to_be_bytes());
            let expected = frame.len() + expected;
            frame.extend_from_slice(&packet);
            prop_assert_eq!(headers_len(&frame), expected);
            prop_assert!(Cut::Payload.kept(&frame) <= frame.len());
        }
    }
}
