//! The typed filter: terms that all must hold, compared without any program.
//!
//! A packet is decoded once into a [`Flow`]; each session compares its terms with it. Verdicts are
//! libpcap's for the same text on the Ethernet frame: a port term looks at TCP, UDP and SCTP
//! and never at a fragment that has no transport header; `tcp` on IPv6 looks at the
//! first next-header and through a leading fragment header, at no other extension header; `host`
//! without a family takes ARP and RARP, too.

/// Any family.
pub const FAMILY_ANY: u8 = 0;
/// ARP or RARP: addresses are compared as IPv4.
pub const FAMILY_ARP: u8 = 1;
pub const FAMILY_IPV4: u8 = 4;
pub const FAMILY_IPV6: u8 = 6;
/// None of these, or too short to tell.
pub const FAMILY_OTHER: u8 = 255;

/// Any protocol. (0, IPv6 hop-by-hop, is not a protocol one can filter for here.)
pub const PROTOCOL_ANY: u8 = 0;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;
pub const PROTOCOL_SCTP: u8 = 132;

/// Its header begins with source and destination port.
#[must_use]
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_SCTP)
}

/// IPv6 fragment header.
pub(crate) const PROTOCOL_FRAGMENT: u8 = 44;

/// The term looks at the source.
pub const SIDE_SOURCE: u8 = 1;
/// The term looks at the destination.
pub const SIDE_DESTINATION: u8 = 2;
/// Either may match.
pub const SIDE_EITHER: u8 = SIDE_SOURCE | SIDE_DESTINATION;

/// Address terms (and port terms) that one filter can hold.
pub const TERMS: usize = 4;

/// An address as four words whose bytes are in network order; IPv4 is the first word, the others
/// are zero.
pub type Address = [u32; 4];

/// An address term: the masked address of `side` equals `address`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressTerm {
    /// Already masked.
    pub address: Address,
    pub mask: Address,
    /// `FAMILY_IPV4` (then ARP takes it, too) or `FAMILY_IPV6`.
    pub family: u8,
    /// `SIDE_*`.
    pub side: u8,
    pub reserved: [u8; 2],
}

/// A port term.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortTerm {
    /// Host byte order.
    pub port: u16,
    /// `SIDE_*`.
    pub side: u8,
    pub reserved: u8,
}

/// All terms must hold. All zeroes match everything.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TypedFilter {
    /// `FAMILY_*`.
    pub family: u8,
    /// IP protocol number, or `PROTOCOL_ANY`.
    pub protocol: u8,
    /// Number of address terms in use, from the front.
    pub addresses: u8,
    /// Number of port terms in use, from the front.
    pub ports: u8,
    pub port: [PortTerm; TERMS],
    pub address: [AddressTerm; TERMS],
}

const _: () = assert!(size_of::<AddressTerm>() == 36);
const _: () = assert!(size_of::<PortTerm>() == 4);
const _: () = assert!(size_of::<TypedFilter>() == 4 + 16 + 144);

/// The packet has both ports.
pub const PORTS_BOTH: u8 = 1;
/// The packet ends after its source port. libpcap looks at that first, and rejects only when it has
/// to look further.
pub const PORTS_SOURCE: u8 = 2;

/// What the terms look at, decoded once a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub source: Address,
    pub destination: Address,
    /// Host byte order; meaningful if `ports`.
    pub source_port: u16,
    pub destination_port: u16,
    /// `FAMILY_*`, never `FAMILY_ANY`.
    pub family: u8,
    /// IP protocol, or 0.
    pub protocol: u8,
    /// Which ports a port term may look at: `PORTS_*`, or 0 for none.
    pub ports: u8,
}

/// Bytes of a packet, from its network header on.
pub trait NetworkBytes {
    /// `N` bytes at `offset`, or nothing if the packet is shorter.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

/// EtherTypes, host byte order.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_RARP: u16 = 0x8035;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

impl Flow {
    /// Decodes a packet. One that is too short for what its headers promise has no protocol, no
    /// addresses and no ports: libpcap rejects a packet when a load fails.
    ///
    /// `zero` is 0, but in a way that the eBPF verifier does not see: it would otherwise follow
    /// each way through this function with its own constants through all that comes after
    /// (930 000 instructions instead of some thousands).
    #[inline(always)]
    pub fn decode(ethertype: u16, packet: &impl NetworkBytes, zero: u32) -> Self {
        let mut flow = Self {
            source: [zero; 4],
            destination: [zero; 4],
            source_port: zero as u16,
            destination_port: zero as u16,
            family: zero as u8,
            protocol: zero as u8,
            ports: zero as u8,
        };
        flow.decode_into(ethertype, packet, zero);
        flow
    }

    /// The same, where the flow lies already: what was there before does not matter.
    #[inline(always)]
    pub fn decode_into(&mut self, ethertype: u16, packet: &impl NetworkBytes, zero: u32) {
        self.source = [zero; 4];
        self.destination = [zero; 4];
        self.source_port = zero as u16;
        self.destination_port = zero as u16;
        self.family = FAMILY_OTHER ^ zero as u8;
        self.protocol = zero as u8;
        self.ports = zero as u8;
        match ethertype {
            ETHERTYPE_IPV4 => self.decode_ipv4(packet, zero),
            ETHERTYPE_IPV6 => self.decode_ipv6(packet, zero),
            ETHERTYPE_ARP | ETHERTYPE_RARP => self.decode_arp(packet, zero),
            _ => {}
        }
    }

    #[inline(always)]
    fn decode_ipv4(&mut self, packet: &impl NetworkBytes, zero: u32) {
        self.family = FAMILY_IPV4 ^ zero as u8;
        let Some(header) = packet.load::<20>(0) else {
            return;
        };
        self.protocol = header[9];
        self.source[0] = word(&header, 12);
        self.destination[0] = word(&header, 16);
        let fragment_offset = half(&header, 6) & 0x1fff;
        if fragment_offset == 0 {
            self.decode_ports(packet, u32::from(header[0] & 0x0f) * 4, zero);
        }
    }

    #[inline(always)]
    fn decode_ipv6(&mut self, packet: &impl NetworkBytes, zero: u32) {
        self.family = FAMILY_IPV6 ^ zero as u8;
        let Some(header) = packet.load::<40>(0) else {
            return;
        };
        self.protocol = header[6];
        self.source = [
            word(&header, 8),
            word(&header, 12),
            word(&header, 16),
            word(&header, 20),
        ];
        self.destination = [
            word(&header, 24),
            word(&header, 28),
            word(&header, 32),
            word(&header, 36),
        ];
        if self.protocol == PROTOCOL_FRAGMENT {
            if let Some([next]) = packet.load::<1>(40) {
                self.protocol = next;
            }
        } else {
            self.decode_ports(packet, 40, zero);
        }
    }

    #[inline(always)]
    fn decode_arp(&mut self, packet: &impl NetworkBytes, zero: u32) {
        self.family = FAMILY_ARP ^ zero as u8;
        let Some(body) = packet.load::<28>(0) else {
            return;
        };
        self.source[0] = word(&body, 14);
        self.destination[0] = word(&body, 24);
    }

    #[inline(always)]
    fn decode_ports(&mut self, packet: &impl NetworkBytes, offset: u32, zero: u32) {
        if !has_ports(self.protocol) {
            return;
        }
        if let Some(ports) = packet.load::<4>(offset) {
            self.source_port = half(&ports, 0);
            self.destination_port = half(&ports, 2);
            self.ports = PORTS_BOTH ^ zero as u8;
        } else if let Some(source) = packet.load::<2>(offset) {
            self.source_port = half(&source, 0);
            self.ports = PORTS_SOURCE ^ zero as u8;
        }
    }
}

#[inline(always)]
fn half<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline(always)]
fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl TypedFilter {
    /// The filter's verdict.
    ///
    /// Each term's verdict is computed without a branch, and the first that fails ends it: else the
    /// eBPF verifier would follow every combination of what they compare (a million instructions).
    #[inline(always)]
    pub fn matches(&self, flow: &Flow) -> bool {
        if self.family != FAMILY_ANY && self.family != flow.family {
            return false;
        }
        if self.protocol != PROTOCOL_ANY
            && (self.protocol != flow.protocol
                || (flow.family != FAMILY_IPV4 && flow.family != FAMILY_IPV6))
        {
            return false;
        }
        if self.ports | self.addresses == 0 {
            return true;
        }
        let mut i = 0;
        while i < TERMS {
            if self.port[i].miss(flow) & used(i, self.ports) != 0
                || self.address[i].miss(flow) & used(i, self.addresses) != 0
            {
                return false;
            }
            i += 1;
        }
        true
    }
}

/// All ones for the terms in use, 0 for the others.
#[inline(always)]
fn used(i: usize, terms: u8) -> u64 {
    ((i as i64 - terms as i64) >> 63) as u64
}

/// 0 if one of the sides that are looked at does not differ. `differences` have 16 bits.
#[inline(always)]
fn miss(side: u8, source_difference: u64, destination_difference: u64) -> u64 {
    let ignored = !side as u64;
    let source = source_difference | (ignored & SIDE_SOURCE as u64) << 16;
    let destination = destination_difference | (ignored & SIDE_DESTINATION as u64) << 16;
    source * destination
}

impl PortTerm {
    /// 0 if it matches.
    #[inline(always)]
    fn miss(&self, flow: &Flow) -> u64 {
        let source = (self.port ^ flow.source_port) as u64;
        let unknown = flow.ports as u64 >> 1;
        let destination = (self.port ^ flow.destination_port) as u64 | unknown;
        let none = ((flow.ports as u64 | unknown) & 1) ^ 1;
        miss(self.side, source, destination) | none
    }
}

impl AddressTerm {
    /// 0 if it matches.
    #[inline(always)]
    fn miss(&self, flow: &Flow) -> u64 {
        // ARP is looked at as IPv4: 1 becomes 4, the others stay.
        let arp = ((flow.family ^ FAMILY_ARP) as i64 - 1) >> 63;
        let family = flow.family as i64 + (arp & (FAMILY_IPV4 - FAMILY_ARP) as i64);
        let family = (family ^ self.family as i64) as u64;
        miss(
            self.side,
            self.difference(&flow.source),
            self.difference(&flow.destination),
        ) | family
    }

    /// 0 if the address is in the term's network; at most 16 bits.
    #[inline(always)]
    fn difference(&self, address: &Address) -> u64 {
        let difference = ((address[0] & self.mask[0]) ^ self.address[0])
            | ((address[1] & self.mask[1]) ^ self.address[1])
            | ((address[2] & self.mask[2]) ^ self.address[2])
            | ((address[3] & self.mask[3]) ^ self.address[3]);
        (difference >> 16 | difference & 0xffff) as u64
    }
}
