//! The typed filter: terms that all must hold, compared without any program.
//!
//! A packet is decoded once into a [`Flow`]; each session compares its terms with it. Verdicts are
//! libpcap's for the same text on the Ethernet frame: a port term looks at TCP, UDP and SCTP
//! and never at a fragment that has no transport header; `tcp` on IPv6 looks at the
//! first next-header and through a leading fragment header, at no other extension header; `host`
//! without a family takes ARP and RARP, too.

/// Any family.
pub const FAMILY_ANY: u8 = 0;
pub const FAMILY_IPV4: u8 = 4;
pub const FAMILY_IPV6: u8 = 6;
/// ARP or RARP: addresses are compared as IPv4.
pub const FAMILY_ARP: u8 = 1;

/// Any protocol. (0, IPv6 hop-by-hop, is not a protocol one can filter for here.)
pub const PROTOCOL_ANY: u8 = 0;

/// The term looks at the source.
pub const SIDE_SOURCE: u8 = 1;
/// The term looks at the destination.
pub const SIDE_DESTINATION: u8 = 2;
/// Either may match.
pub const SIDE_EITHER: u8 = SIDE_SOURCE | SIDE_DESTINATION;

/// Address terms (and port terms) that one filter can hold.
pub const TERMS: usize = 4;

/// An address term: the masked address of `side` equals `address`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressTerm {
    /// IPv4 in the first four bytes (then zeroes), or IPv6; network byte order, already masked.
    pub address: [u8; 16],
    pub mask: [u8; 16],
    /// `FAMILY_IPV4` (then ARP takes it, too) or `FAMILY_IPV6`.
    pub family: u8,
    /// `SIDE_*`; 0: the term is not used.
    pub side: u8,
    pub reserved: [u8; 6],
}

/// A port term.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortTerm {
    /// Host byte order.
    pub port: u16,
    /// `SIDE_*`; 0: the term is not used.
    pub side: u8,
    pub reserved: u8,
}

/// All terms must hold. All zeroes match everything.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TypedFilter {
    /// `FAMILY_*`; with a family, ARP matches no more.
    pub family: u8,
    /// IP protocol number, or `PROTOCOL_ANY`.
    pub protocol: u8,
    /// Number of address terms in use, from the front.
    pub addresses: u8,
    /// Number of port terms in use, from the front.
    pub ports: u8,
    pub reserved: [u8; 4],
    pub port: [PortTerm; TERMS],
    pub address: [AddressTerm; TERMS],
}

const _: () = assert!(size_of::<AddressTerm>() == 40);
const _: () = assert!(size_of::<PortTerm>() == 4);
const _: () = assert!(size_of::<TypedFilter>() == 8 + 16 + 160);
