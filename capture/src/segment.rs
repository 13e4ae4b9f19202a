//! Super-packets cut into the segments that the wire would have carried.
//!
//! ```text
//! link │ IP │ TCP/UDP │ payload of 2.5 segments
//!   ▼
//! link │ IP' │ TCP' │ part 1      lengths, IPv4 id and checksum, TCP sequence number and checksum
//! link │ IP' │ TCP' │ part 2      anew; FIN and PSH only on the last, CWR only on the first
//! link │ IP' │ TCP' │ part 2.5
//! ```
//! As the kernel does it (`net/ipv4/tcp_offload.c`, `udp_offload.c`, `af_inet.c`, v6.18). What a
//! snaplen cut off stays away: a segment has its headers and what of its payload was captured, its
//! right original length, and 0 for a checksum that cannot be told.
//!
//! One of more than 64 KiB (BIG TCP) has no length in its IP header, and of IPv6 a hop-by-hop header with
//! it, which no segment has.
//!
//! A packet of one segment whose checksum was left to the network card has the sum of its
//! pseudo-header in that field; it gets its checksum, too.

/// Longest headers that are cut: two VLAN tags, IP with options, TCP with options fit.
const HEADERS_MAX: usize = 256;
/// Most segments of a packet, so that their blocks stay bounded; one of more is left whole.
pub const SEGMENTS_MAX: usize = 2048;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPES_VLAN: [u16; 2] = [0x8100, 0x88a8];
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Extension headers of IPv6 that may stand before TCP or UDP: hop-by-hop and destination options.
/// Not routing: with it the pseudo-header has another destination.
const IPV6_EXTENSIONS: [u8; 2] = [0, 60];
/// VXLAN, its older port, Geneve: what is cut there is the packet within.
const TUNNEL_PORTS: [u16; 3] = [4789, 8472, 6081];

/// A hop-by-hop header with the jumbo payload option alone (RFC 2675), after its first byte.
const JUMBO: [u8; 3] = [0, 0xc2, 4];
const JUMBO_LEN: usize = 8;

const FLAG_FIN_PSH: u8 = 0x01 | 0x08;
const FLAG_CWR: u8 = 0x80;

/// What the kernel says of a super-packet; 0 and 0 for one that is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gso {
    /// Payload bytes of each segment but the last.
    pub size: u16,
    pub segments: u16,
}

/// A packet and how it is cut.
#[derive(Clone, Debug)]
pub struct Cut<'a> {
    headers: [u8; HEADERS_MAX],
    layout: Layout,
    /// As far as it was captured.
    payload: &'a [u8],
    payload_len: usize,
    segment_len: usize,
}

/// Where a packet's headers are.
#[derive(Clone, Copy, Debug)]
struct Layout {
    network: usize,
    is_ipv4: bool,
    transport: usize,
    protocol: u8,
    /// Bytes of all headers.
    len: usize,
}

/// Cuts a frame of Ethernet, of which `prefix` and then `data` were captured. `None` if it is not
/// one that is cut: then it is to be written as it is.
#[must_use]
pub fn cut<'a>(prefix: &[u8], data: &'a [u8], original_len: u32, gso: Gso) -> Option<Cut<'a>> {
    let mut headers = [0; HEADERS_MAX];
    let captured = (prefix.len() + data.len()).min(HEADERS_MAX);
    let from_data = captured.checked_sub(prefix.len())?;
    headers[..prefix.len()].copy_from_slice(prefix);
    headers[prefix.len()..captured].copy_from_slice(&data[..from_data]);
    let removed = match gso.size {
        // Not made by the kernel for itself, so the wire carried it.
        0 => 0,
        _ => without_jumbo(&mut headers[..captured]),
    };
    let layout = Layout::of(&headers[..captured - removed])?;
    let no_length = !layout.is_ipv4 && be16(&headers, layout.network + 4) == Some(0);
    if gso.size == 0 && no_length {
        return None;
    }
    let payload = data.get((layout.len + removed).checked_sub(prefix.len())?..)?;
    let payload_len = (original_len as usize).checked_sub(layout.len + removed)?;
    let payload = &payload[..payload.len().min(payload_len)];
    let mut cut = Cut {
        headers,
        layout,
        payload,
        payload_len,
        segment_len: usize::from(gso.size),
    };
    if gso.size == 0 {
        cut.segment_len = payload_len;
        return cut.is_checksum_partial().then_some(cut);
    }
    let segments = cut.segments();
    let told = usize::from(gso.segments);
    let is_this_packets = told == 0 || told == segments;
    (is_this_packets && segments <= SEGMENTS_MAX && !cut.is_tunnel()).then_some(cut)
}

/// EtherType behind the tags, and where the network header begins.
fn network(frame: &[u8]) -> Option<(u16, usize)> {
    let mut at = 12;
    let mut ethertype = be16(frame, at)?;
    while ETHERTYPES_VLAN.contains(&ethertype) {
        at += 4;
        ethertype = be16(frame, at)?;
    }
    Some((ethertype, at + 2))
}

/// Removes the header with the length of an IPv6 packet that has more than 64 KiB, as the kernel does before
/// it cuts one (`ipv6_hopopt_jumbo_remove`, v6.18); how many bytes these were.
fn without_jumbo(frame: &mut [u8]) -> usize {
    let Some((ETHERTYPE_IPV6, network)) = network(frame) else {
        return 0;
    };
    let (protocol, option) = (network + 6, network + 40);
    let is_jumbo = be16(frame, network + 4) == Some(0)
        && frame.get(protocol) == Some(&0)
        && frame.get(option + 1..option + 4) == Some(&JUMBO)
        && frame.len() >= option + JUMBO_LEN;
    if !is_jumbo {
        return 0;
    }
    frame[protocol] = frame[option];
    frame.copy_within(option + JUMBO_LEN.., option);
    JUMBO_LEN
}

impl Layout {
    fn of(frame: &[u8]) -> Option<Self> {
        let (ethertype, network) = network(frame)?;
        let (is_ipv4, protocol, transport) = match ethertype {
            ETHERTYPE_IPV4 => {
                let first = *frame.get(network)?;
                let len = usize::from(first & 0xf) * 4;
                let is_fragment = be16(frame, network + 6)? & 0x3fff != 0;
                if first >> 4 != 4 || len < 20 || is_fragment {
                    return None;
                }
                (true, *frame.get(network + 9)?, network + len)
            }
            ETHERTYPE_IPV6 => {
                let mut protocol = *frame.get(network + 6)?;
                let mut transport = network + 40;
                if frame.get(network)? >> 4 != 6 {
                    return None;
                }
                while IPV6_EXTENSIONS.contains(&protocol) {
                    protocol = *frame.get(transport)?;
                    transport += 8 + usize::from(*frame.get(transport + 1)?) * 8;
                }
                (false, protocol, transport)
            }
            _ => return None,
        };
        let len = match protocol {
            TCP => {
                let len = usize::from(frame.get(transport + 12)? >> 4) * 4;
                if len < 20 {
                    return None;
                }
                transport + len
            }
            UDP => transport + 8,
            _ => return None,
        };
        (len <= frame.len()).then_some(Self {
            network,
            is_ipv4,
            transport,
            protocol,
            len,
        })
    }

    fn checksum_at(self) -> usize {
        self.transport + if self.protocol == TCP { 16 } else { 6 }
    }
}

impl Cut<'_> {
    /// How many segments there are; at least one.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.payload_len.div_ceil(self.segment_len.max(1)).max(1)
    }

    /// Hands each segment to `visit`: its headers, its payload as far as it was captured, and its
    /// length on the wire.
    pub fn each(&self, mut visit: impl FnMut(&[u8], &[u8], u32)) {
        let segments = self.segments();
        let mut headers = self.headers;
        for number in 0..segments {
            let start = number * self.segment_len;
            let len = self.segment_len.min(self.payload_len - start);
            let captured = self.payload.get(start..).unwrap_or_default();
            let captured = &captured[..captured.len().min(len)];
            if segments > 1 {
                self.number(&mut headers, number, number + 1 == segments);
            }
            self.lengths_and_checksums(&mut headers, len, captured);
            visit(
                &headers[..self.layout.len],
                captured,
                (self.layout.len + len) as u32,
            );
        }
    }

    /// What differs from segment to segment by its place among them.
    fn number(&self, headers: &mut [u8; HEADERS_MAX], number: usize, is_last: bool) {
        let Layout {
            network,
            is_ipv4,
            transport,
            protocol,
            ..
        } = self.layout;
        let original = &self.headers;
        if is_ipv4 {
            let id = be16(original, network + 4).unwrap_or(0);
            put16(headers, network + 4, id.wrapping_add(number as u16));
        }
        if protocol == TCP {
            let sequence = original[transport + 4..transport + 8].try_into();
            let sequence = u32::from_be_bytes(sequence.unwrap_or_default())
                .wrapping_add((number * self.segment_len) as u32);
            headers[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
            let mut flags = original[transport + 13];
            if number > 0 {
                flags &= !FLAG_CWR;
            }
            if !is_last {
                flags &= !FLAG_FIN_PSH;
            }
            headers[transport + 13] = flags;
        }
    }

    /// Of a segment with so many payload bytes, some of which may not have been captured.
    fn lengths_and_checksums(
        &self,
        headers: &mut [u8; HEADERS_MAX],
        payload_len: usize,
        captured: &[u8],
    ) {
        let layout = self.layout;
        let Layout {
            network,
            is_ipv4,
            transport,
            protocol,
            len,
        } = layout;
        if is_ipv4 {
            put16(headers, network + 2, (len - network + payload_len) as u16);
            put16(headers, network + 10, 0);
            let checksum = !fold(sum(&headers[network..transport]));
            put16(headers, network + 10, checksum);
        } else {
            let bytes = len - network - 40 + payload_len;
            put16(headers, network + 4, bytes as u16);
        }
        let transport_len = len - transport + payload_len;
        if protocol == UDP {
            put16(headers, transport + 4, transport_len as u16);
        }
        put16(headers, layout.checksum_at(), 0);
        if captured.len() < payload_len {
            return;
        }
        // The payload begins at an even offset: TCP's header is a multiple of 4, UDP's is 8.
        let all = self.pseudo_header(transport_len) + sum(&headers[transport..len]) + sum(captured);
        let checksum = match !fold(all) {
            0 if protocol == UDP => 0xffff, // 0 would say that there is none (RFC 768)
            checksum => checksum,
        };
        put16(headers, layout.checksum_at(), checksum);
    }

    /// Sum of addresses, protocol and length (RFC 9293 section 3.1, RFC 8200 section 8.1).
    fn pseudo_header(&self, transport_len: usize) -> u64 {
        let Layout {
            network,
            is_ipv4,
            protocol,
            ..
        } = self.layout;
        let addresses = if is_ipv4 {
            network + 12..network + 20
        } else {
            network + 8..network + 40
        };
        sum(&self.headers[addresses]) + u64::from(protocol) + transport_len as u64
    }

    /// The checksum is still to be filled in by the network card, and can be.
    fn is_checksum_partial(&self) -> bool {
        let transport_len = self.layout.len - self.layout.transport + self.payload_len;
        self.payload.len() == self.payload_len
            && be16(&self.headers, self.layout.checksum_at())
                == Some(fold(self.pseudo_header(transport_len)))
    }

    fn is_tunnel(&self) -> bool {
        self.layout.protocol == UDP
            && be16(&self.headers, self.layout.transport + 2)
                .is_some_and(|port| TUNNEL_PORTS.contains(&port))
    }
}

/// Sum of 16-bit words, the last one padded (RFC 1071), not folded yet.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(2);
    let last = words
        .remainder()
        .first()
        .map_or(0, |byte| u64::from(*byte) << 8);
    words.fold(last, |sum, word| {
        sum + u64::from(u16::from_be_bytes([word[0], word[1]]))
    })
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
