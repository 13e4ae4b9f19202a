//! The reference verdict: what libpcap 1.10 says of the same terms on an Ethernet frame.
//!
//! As libpcap's generated code (`tcpdump -d`):
//! - a load beyond the frame's end refuses the packet; what need not be loaded may be missing;
//! - IPv4 header length is believed as it stands; a fragment with an offset has no ports;
//! - `tcp` on IPv6 looks at the first next-header, and behind one fragment header if that is
//!   first; a port only where the transport header comes first;
//! - an IPv4 address takes ARP and RARP at the same places for sender and target;
//! - a mask that covers nothing of a word loads nothing of it.

use super::terms::{AddressTerm, Family, PortTerm, Protocol, Side, Terms};

const ETHER_TYPE: usize = 12;
/// Offset of the network header in an Ethernet frame.
const L3: usize = 14;

const IPV4_FRAGMENT: usize = L3 + 6;
const IPV4_FRAGMENT_OFFSET_MASK: u16 = 0x1fff;
const IPV4_PROTOCOL: usize = L3 + 9;
const IPV6_NEXT_HEADER: usize = L3 + 6;
const IPV6_HEADER_LEN: usize = 40;
const IPV6_FRAGMENT_HEADER: u8 = 44;

/// What the EtherType says is in the frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Network {
    Ipv4,
    Ipv6,
    /// ARP or RARP.
    Arp,
}

impl Network {
    fn of(frame: &[u8]) -> Option<Self> {
        match be16(frame, ETHER_TYPE)? {
            0x0800 => Some(Self::Ipv4),
            0x86dd => Some(Self::Ipv6),
            0x0806 | 0x8035 => Some(Self::Arp),
            _ => None,
        }
    }

    /// Offsets of the source and the destination address (ARP: sender and target).
    fn address_offsets(self) -> [usize; 2] {
        match self {
            Self::Ipv4 => [L3 + 12, L3 + 16],
            Self::Ipv6 => [L3 + 8, L3 + 24],
            Self::Arp => [L3 + 14, L3 + 24],
        }
    }
}

impl Terms {
    /// Whether libpcap's program for these terms takes the Ethernet frame.
    #[must_use]
    pub fn matches(&self, frame: &[u8]) -> bool {
        if self.is_empty() {
            return true;
        }
        let Some(network) = Network::of(frame) else {
            return false;
        };
        self.family_matches(network)
            && self
                .protocol
                .is_none_or(|p| protocol_matches(p, network, frame))
            && self
                .addresses
                .iter()
                .all(|term| term.matches(network, frame))
            && (self.ports.is_empty() || self.ports_match(network, frame))
    }

    fn family_matches(&self, network: Network) -> bool {
        match self.family.or(self.protocol.and_then(Protocol::family)) {
            None => true,
            Some(Family::Ipv4) => network == Network::Ipv4,
            Some(Family::Ipv6) => network == Network::Ipv6,
        }
    }

    fn ports_match(&self, network: Network, frame: &[u8]) -> bool {
        let Some((protocol, offset)) = transport(network, frame) else {
            return false;
        };
        let carries_ports = match self.protocol {
            Some(wanted) => wanted.has_ports() && protocol == wanted.number(),
            None => Protocol::ALL
                .iter()
                .any(|p| p.has_ports() && p.number() == protocol),
        };
        carries_ports && self.ports.iter().all(|term| term.matches(offset, frame))
    }
}

impl AddressTerm {
    fn matches(&self, network: Network, frame: &[u8]) -> bool {
        let comparable = match self.prefix.family() {
            Family::Ipv4 => matches!(network, Network::Ipv4 | Network::Arp),
            Family::Ipv6 => network == Network::Ipv6,
        };
        let (address, mask) = self.prefix.octets();
        let equal_at = |offset: usize| {
            (0..16).step_by(4).all(|word| {
                let mask = u32_at(&mask, word);
                mask == 0
                    || be32(frame, offset + word)
                        .is_some_and(|value| value & mask == u32_at(&address, word))
            })
        };
        comparable && either_end(self.side, network.address_offsets(), equal_at)
    }
}

impl PortTerm {
    fn matches(&self, transport_offset: usize, frame: &[u8]) -> bool {
        either_end(
            self.side,
            [transport_offset, transport_offset + 2],
            |offset| be16(frame, offset) == Some(self.port),
        )
    }
}

fn either_end(side: Side, [source, destination]: [usize; 2], at: impl Fn(usize) -> bool) -> bool {
    match side {
        Side::Source => at(source),
        Side::Destination => at(destination),
        Side::Either => at(source) || at(destination),
    }
}

fn protocol_matches(protocol: Protocol, network: Network, frame: &[u8]) -> bool {
    let number = Some(protocol.number());
    match network {
        Network::Arp => false,
        Network::Ipv4 => frame.get(IPV4_PROTOCOL).copied() == number,
        Network::Ipv6 => {
            let next = frame.get(IPV6_NEXT_HEADER).copied();
            next == number
                || (next == Some(IPV6_FRAGMENT_HEADER)
                    && frame.get(L3 + IPV6_HEADER_LEN).copied() == number)
        }
    }
}

/// Protocol number and offset of a transport header that follows the network header at once.
fn transport(network: Network, frame: &[u8]) -> Option<(u8, usize)> {
    match network {
        Network::Arp => None,
        Network::Ipv4 => {
            let protocol = *frame.get(IPV4_PROTOCOL)?;
            let first = be16(frame, IPV4_FRAGMENT)? & IPV4_FRAGMENT_OFFSET_MASK == 0;
            let header_len = usize::from(frame.get(L3)? & 0xf) * 4;
            first.then_some((protocol, L3 + header_len))
        }
        Network::Ipv6 => Some((*frame.get(IPV6_NEXT_HEADER)?, L3 + IPV6_HEADER_LEN)),
    }
}

fn be16(frame: &[u8], offset: usize) -> Option<u16> {
    frame
        .get(offset..)?
        .first_chunk()
        .map(|bytes| u16::from_be_bytes(*bytes))
}

fn be32(frame: &[u8], offset: usize) -> Option<u32> {
    frame
        .get(offset..)?
        .first_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes))
}

fn u32_at(octets: &[u8; 16], offset: usize) -> u32 {
    be32(octets, offset).unwrap_or(0)
}
