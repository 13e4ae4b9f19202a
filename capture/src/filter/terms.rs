//! The typed subset of pcap-filter: terms that all must hold.
//!
//! Terms are what the kernel compares without a program. They print as pcap-filter text
//! (`host 192.0.2.7 and tcp port 443`) that means the same to tcpdump.

use std::{fmt, net::IpAddr, str::FromStr};

/// Address terms that one filter can hold; as many as the kernel's table has room for.
pub const ADDRESS_TERMS_MAX: usize = 4;
/// Port terms that one filter can hold; as many as the kernel's table has room for.
pub const PORT_TERMS_MAX: usize = 4;

/// The network protocol (`ip`, `ip6`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// The transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Icmp,
    Tcp,
    Udp,
    Icmp6,
    Sctp,
}

impl Protocol {
    pub const ALL: [Self; 5] = [Self::Icmp, Self::Tcp, Self::Udp, Self::Icmp6, Self::Sctp];

    /// IANA's protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Icmp6 => 58,
            Self::Sctp => 132,
        }
    }

    /// The word of pcap-filter.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp6 => "icmp6",
            Self::Sctp => "sctp",
        }
    }

    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp)
    }

    /// The only family that carries it, as pcap-filter sees it.
    #[must_use]
    pub const fn family(self) -> Option<Family> {
        match self {
            Self::Icmp => Some(Family::Ipv4),
            Self::Icmp6 => Some(Family::Ipv6),
            Self::Tcp | Self::Udp | Self::Sctp => None,
        }
    }
}

impl Family {
    /// The word of pcap-filter.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }
}

/// Which end of the packet a term looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Source,
    Destination,
    /// Either may match.
    Either,
}

impl Side {
    /// The qualifier with its blank, as it stands before `host` or `port`.
    fn qualifier(self) -> &'static str {
        match self {
            Self::Source => "src ",
            Self::Destination => "dst ",
            Self::Either => "",
        }
    }
}

/// An address with the length of its network part; no bit is set beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// A text or a pair of values is not a prefix.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum PrefixError {
    #[error("not an address or a prefix like `192.0.2.0/24` or `2001:db8::/32`")]
    Syntax,
    #[error("a prefix length is at most {max}")]
    Length { max: u8 },
    #[error("bits are set beyond the prefix length; use `{0}`")]
    HostBits(Prefix),
}

impl Prefix {
    /// # Errors
    /// The length is longer than the address, or the address has bits set beyond it.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, PrefixError> {
        let max = bits(address);
        if length > max {
            return Err(PrefixError::Length { max });
        }
        let masked = match address {
            IpAddr::V4(a) => IpAddr::V4((a.to_bits() & mask(length.into(), 32) as u32).into()),
            IpAddr::V6(a) => IpAddr::V6((a.to_bits() & mask(length.into(), 128)).into()),
        };
        let prefix = Self {
            address: masked,
            length,
        };
        if masked == address {
            Ok(prefix)
        } else {
            Err(PrefixError::HostBits(prefix))
        }
    }

    /// The prefix that holds `address` alone.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self {
            address,
            length: bits(address),
        }
    }

    #[must_use]
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Length of the network part, in bits.
    #[must_use]
    pub fn length(self) -> u8 {
        self.length
    }

    #[must_use]
    pub fn is_host(self) -> bool {
        self.length == bits(self.address)
    }

    #[must_use]
    pub fn family(self) -> Family {
        match self.address {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }

    /// Address and mask in network byte order; an IPv4 address takes the first four bytes, the
    /// rest is zero.
    #[must_use]
    pub fn octets(self) -> ([u8; 16], [u8; 16]) {
        match self.address {
            IpAddr::V4(a) => {
                let mut octets = ([0; 16], [0; 16]);
                octets.0[..4].copy_from_slice(&a.octets());
                octets.1[..4].copy_from_slice(&(mask(self.length.into(), 32) as u32).to_be_bytes());
                octets
            }
            IpAddr::V6(a) => (a.octets(), mask(self.length.into(), 128).to_be_bytes()),
        }
    }

    /// One address can be in both.
    fn overlaps(self, other: Self) -> bool {
        let (shorter, longer) = if self.length <= other.length {
            (self, other)
        } else {
            (other, self)
        };
        let (address, mask) = shorter.octets();
        let (inner, _) = longer.octets();
        self.family() == other.family() && (0..16).all(|i| inner[i] & mask[i] == address[i])
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The highest `length` of `width` bits set.
fn mask(length: u32, width: u32) -> u128 {
    let ones = u128::MAX >> (128 - width);
    ones & !ones.checked_shr(length).unwrap_or(0)
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_invalid| PrefixError::Syntax)?;
        let Some(length) = length else {
            return Ok(Self::host(address));
        };
        if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(PrefixError::Syntax);
        }
        // Digits only, so what does not fit is too long.
        let length = length.parse().unwrap_or(u8::MAX);
        Self::new(address, length)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            self.address.fmt(f)
        } else {
            write!(f, "{}/{}", self.address, self.length)
        }
    }
}

/// `side`'s address is in `prefix`. An IPv4 prefix takes ARP and RARP too, as long as no other
/// term asks for a family, a protocol or a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressTerm {
    pub prefix: Prefix,
    pub side: Side,
}

/// `side`'s TCP, UDP or SCTP port is `port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortTerm {
    pub port: u16,
    pub side: Side,
}

/// All must hold; the default matches every packet.
///
/// The terms of a [`Filter`](super::Filter) are normal: no term twice, no more terms than
/// [`ADDRESS_TERMS_MAX`] and [`PORT_TERMS_MAX`], `icmp` and `icmp6` with their family, and some
/// packet matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Terms {
    pub family: Option<Family>,
    pub protocol: Option<Protocol>,
    pub addresses: Vec<AddressTerm>,
    pub ports: Vec<PortTerm>,
}

impl Terms {
    /// Every packet matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.family.is_none()
            && self.protocol.is_none()
            && self.addresses.is_empty()
            && self.ports.is_empty()
    }

    /// Some packet matches.
    #[must_use]
    pub fn is_satisfiable(&self) -> bool {
        let mut families = self
            .family
            .into_iter()
            .chain(self.protocol.and_then(Protocol::family))
            .chain(self.addresses.iter().map(|term| term.prefix.family()));
        let one_family = families
            .next()
            .is_none_or(|first| families.all(|f| f == first));
        let ports_possible = self.ports.is_empty() || self.protocol.is_none_or(Protocol::has_ports);
        let addresses: Vec<_> = self.addresses.iter().map(|t| (t.prefix, t.side)).collect();
        let ports: Vec<_> = self.ports.iter().map(|t| (t.port, t.side)).collect();
        one_family
            && ports_possible
            && two_ends_satisfy(&addresses, |a, b| a.overlaps(b))
            && two_ends_satisfy(&ports, |a, b| a == b)
    }
}

/// Each value can be given to an end (the one it asks for, or the better of both) so that all
/// values at one end agree. Prefixes nest, so agreeing in pairs is agreeing at once.
fn two_ends_satisfy<T: Copy>(terms: &[(T, Side)], agree: impl Fn(T, T) -> bool) -> bool {
    let free = terms
        .iter()
        .filter(|(_, side)| *side == Side::Either)
        .count();
    // More free terms than any filter has: not worth proving anything of.
    if free > ADDRESS_TERMS_MAX.max(PORT_TERMS_MAX) {
        return true;
    }
    (0..1u32 << free).any(|choice| {
        let mut next_free = 0;
        let at_source: Vec<bool> = terms
            .iter()
            .map(|(_, side)| match side {
                Side::Source => true,
                Side::Destination => false,
                Side::Either => {
                    next_free += 1;
                    choice >> (next_free - 1) & 1 == 1
                }
            })
            .collect();
        (0..terms.len())
            .all(|i| (0..i).all(|j| at_source[i] != at_source[j] || agree(terms[i].0, terms[j].0)))
    })
}

impl fmt::Display for Terms {
    /// Canonical pcap-filter text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut and = "";
        if let Some(family) = self.family
            && self.protocol.and_then(Protocol::family) != self.family
        {
            write!(f, "{}", family.word())?;
            and = " and ";
        }
        for AddressTerm { prefix, side } in &self.addresses {
            let kind = if prefix.is_host() { "host" } else { "net" };
            write!(f, "{and}{}{kind} {prefix}", side.qualifier())?;
            and = " and ";
        }
        // With a port the protocol is its qualifier.
        let qualifier = match self.protocol {
            Some(protocol) if protocol.has_ports() && !self.ports.is_empty() => {
                format!("{} ", protocol.word())
            }
            Some(protocol) => {
                write!(f, "{and}{}", protocol.word())?;
                and = " and ";
                String::new()
            }
            None => String::new(),
        };
        for PortTerm { port, side } in &self.ports {
            write!(f, "{and}{qualifier}{}port {port}", side.qualifier())?;
            and = " and ";
        }
        Ok(())
    }
}
