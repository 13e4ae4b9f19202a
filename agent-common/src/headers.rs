//! Where a packet's headers end and its payload begins, for taps that are recorded without payload.
//!
//! | packet | kept from the network header on |
//! |---|---|
//! | TCP | IP header and its extensions, TCP header with its options |
//! | UDP, UDP-Lite, ICMP, ICMPv6 | … and 8 bytes |
//! | SCTP, DCCP | … and 12 bytes |
//! | another protocol, a fragment after the first, more than [`EXTENSIONS`] extensions | the IP headers |
//! | ARP, RARP | 28 bytes: all of it |
//! | anything else | nothing: its link header alone |
//!
//! What an ICMP error quotes of another packet is payload.

use crate::filter::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_RARP, NetworkBytes, PROTOCOL_FRAGMENT,
    PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP,
};

/// IPv6 extension headers that are followed.
pub const EXTENSIONS: u32 = 4;

const PROTOCOL_HOP_BY_HOP: u8 = 0;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_DCCP: u8 = 33;
const PROTOCOL_ROUTING: u8 = 43;
const PROTOCOL_AUTHENTICATION: u8 = 51;
const PROTOCOL_ICMPV6: u8 = 58;
const PROTOCOL_DESTINATION_OPTIONS: u8 = 60;
const PROTOCOL_UDP_LITE: u8 = 136;

const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const ARP: u32 = 28;
const TCP_HEADER: u32 = 20;

/// Bytes of a packet's headers from its network header on; more than it has if it ends within them.
#[must_use]
#[inline(always)]
pub fn headers_len(ethertype: u16, packet: &impl NetworkBytes) -> u32 {
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(packet),
        ETHERTYPE_IPV6 => ipv6(packet),
        ETHERTYPE_ARP | ETHERTYPE_RARP => ARP,
        _ => 0,
    }
}

#[inline(always)]
fn ipv4(packet: &impl NetworkBytes) -> u32 {
    // First word: version and length, …, fragment; the protocol is the second's second byte.
    let Some(header) = packet.load::<10>(0) else {
        return IPV4_HEADER;
    };
    let mut len = u32::from(header[0] & 0x0f) * 4;
    if len < IPV4_HEADER {
        len = IPV4_HEADER;
    }
    let is_later_fragment = header[6] & 0x1f != 0 || header[7] != 0;
    if is_later_fragment {
        return len;
    }
    len + transport(packet, header[9], len)
}

#[inline(always)]
fn ipv6(packet: &impl NetworkBytes) -> u32 {
    let Some([mut protocol]) = packet.load::<1>(6) else {
        return IPV6_HEADER;
    };
    let mut at = IPV6_HEADER;
    let mut i = 0;
    while i < EXTENSIONS {
        let unit = match protocol {
            PROTOCOL_HOP_BY_HOP | PROTOCOL_ROUTING | PROTOCOL_DESTINATION_OPTIONS => 8,
            PROTOCOL_AUTHENTICATION => 4,
            PROTOCOL_FRAGMENT => 0,
            _ => break,
        };
        let Some(extension) = packet.load::<4>(at) else {
            return at;
        };
        let [next, len, ..] = extension;
        at += 8 + u32::from(len) * unit;
        if protocol == PROTOCOL_FRAGMENT && (extension[2] != 0 || extension[3] & 0xf8 != 0) {
            return at;
        }
        protocol = next;
        i += 1;
    }
    at + transport(packet, protocol, at)
}

#[inline(always)]
fn transport(packet: &impl NetworkBytes, protocol: u8, at: u32) -> u32 {
    match protocol {
        PROTOCOL_TCP => match packet.load::<1>(at + 12) {
            Some([offset]) if offset >> 4 > 5 => u32::from(offset >> 4) * 4,
            _ => TCP_HEADER,
        },
        PROTOCOL_UDP | PROTOCOL_UDP_LITE | PROTOCOL_ICMP | PROTOCOL_ICMPV6 => 8,
        PROTOCOL_SCTP | PROTOCOL_DCCP => 12,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes<'a>(&'a [u8]);

    impl NetworkBytes for Bytes<'_> {
        fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
            let start = offset as usize;
            self.0.get(start..start + N)?.try_into().ok()
        }
    }

    /// A header whose bytes are 0 but for these, with 200 bytes after it.
    fn packet<const N: usize>(set: &[(usize, u8)]) -> [u8; N] {
        let mut bytes = [0; N];
        for &(at, byte) in set {
            bytes[at] = byte;
        }
        bytes
    }

    fn ipv4_len(set: &[(usize, u8)]) -> u32 {
        headers_len(ETHERTYPE_IPV4, &Bytes(&packet::<300>(set)))
    }

    fn ipv6_len(set: &[(usize, u8)]) -> u32 {
        headers_len(ETHERTYPE_IPV6, &Bytes(&packet::<300>(set)))
    }

    #[test]
    fn of_ipv4_header_options_and_the_transport_header_are_kept() {
        assert_eq!(ipv4_len(&[(0, 0x45), (9, 6), (32, 0x50)]), 40);
        assert_eq!(ipv4_len(&[(0, 0x45), (9, 6), (32, 0xf0)]), 80);
        assert_eq!(ipv4_len(&[(0, 0x46), (9, 6), (36, 0x80)]), 24 + 32);
        assert_eq!(ipv4_len(&[(0, 0x45), (9, 17)]), 28);
        assert_eq!(ipv4_len(&[(0, 0x45), (9, 1)]), 28);
        assert_eq!(ipv4_len(&[(0, 0x45), (9, 132)]), 32);
        // ESP, and what nobody knows.
        assert_eq!(ipv4_len(&[(0, 0x45), (9, 50)]), 20);
        assert_eq!(ipv4_len(&[(0, 0x45), (9, 255)]), 20);
    }

    #[test]
    fn lengths_that_lie_keep_no_more() {
        assert_eq!(ipv4_len(&[(0, 0x40), (9, 17)]), 28);
        assert_eq!(ipv4_len(&[(0, 0x45), (9, 6), (32, 0x10)]), 40);
        assert!(ipv4_len(&[(0, 0x4f), (9, 6), (72, 0xf0)]) <= 120);
    }

    #[test]
    fn a_later_fragment_has_no_transport_header() {
        for offset in [(6, 0x01), (7, 0x01), (6, 0x3f)] {
            assert_eq!(ipv4_len(&[(0, 0x45), (9, 17), offset]), 20);
        }
        // The first one, with more to come.
        assert_eq!(ipv4_len(&[(0, 0x45), (9, 17), (6, 0x20)]), 28);
        assert_eq!(ipv6_len(&[(6, 44), (40, 17), (43, 0x01)]), 48 + 8);
        assert_eq!(ipv6_len(&[(6, 44), (40, 17), (43, 0x08)]), 48);
        assert_eq!(ipv6_len(&[(6, 44), (40, 17), (42, 0x01)]), 48);
    }

    #[test]
    fn of_ipv6_extensions_are_followed() {
        assert_eq!(ipv6_len(&[(6, 6), (52, 0x50)]), 60);
        assert_eq!(ipv6_len(&[(6, 58)]), 48);
        // Hop-by-hop of 16 bytes, then UDP.
        assert_eq!(ipv6_len(&[(6, 0), (40, 17), (41, 1)]), 56 + 8);
        // AH of 24 bytes, in words less 2.
        assert_eq!(ipv6_len(&[(6, 51), (40, 17), (41, 4)]), 64 + 8);
        // A fifth one is not looked into.
        let five: [_; 6] =
            core::array::from_fn(|i| if i == 0 { (6, 60) } else { (32 + 8 * i, 60) });
        assert_eq!(ipv6_len(&five), 72);
    }

    #[test]
    fn arp_is_kept_and_of_what_is_no_ip_nothing() {
        assert_eq!(headers_len(ETHERTYPE_ARP, &Bytes(&[])), 28);
        for ethertype in [0x8100, 0x88cc, 0, 4] {
            assert_eq!(headers_len(ethertype, &Bytes(&[0x45; 100])), 0);
        }
    }

    #[test]
    fn a_packet_that_ends_within_its_headers_has_no_payload() {
        let bytes = packet::<60>(&[(0, 0x45), (9, 6), (32, 0x50)]);
        for end in 0..40 {
            assert!(headers_len(ETHERTYPE_IPV4, &Bytes(&bytes[..end])) as usize >= end);
        }
        let bytes = packet::<60>(&[(6, 17)]);
        for end in 0..48 {
            assert!(headers_len(ETHERTYPE_IPV6, &Bytes(&bytes[..end])) as usize >= end);
        }
    }
}
