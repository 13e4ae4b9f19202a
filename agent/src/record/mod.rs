//! Bytes of the ring to records. Total: no input makes it panic, and what does not fit the layout
//! of this build is [`Malformed`], never read as something else.
//!
//! The layout is `remora_agent_common::record`.

pub mod look_back;

use remora_agent_common::{
    ABI_VERSION, SESSION_SLOTS,
    record::{
        CAPLEN_MAX, HEADER_LEN, HOOK_CGROUP_EGRESS, HOOK_CGROUP_INGRESS, HOOK_TCX_EGRESS,
        HOOK_TCX_INGRESS, KIND_GAP, KIND_LIMIT, KIND_LOOK_BACK, KIND_PACKET, LINK_ETHERNET,
        LINK_IP, RecordHeader,
    },
    session::{DIRECTION_EGRESS, DIRECTION_INGRESS},
};

/// A record of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    Packet(Packet<'a>),
    /// `packets` of one session were lost on one CPU since its last record there.
    Gap {
        slot: u32,
        parity: bool,
        packets: u32,
    },
    /// A limit of one session is reached.
    Limit {
        slot: u32,
        parity: bool,
    },
}

/// A packet and which sessions it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub header: RecordHeader,
    /// `header.caplen` bytes.
    pub data: &'a [u8],
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("{0} bytes are shorter than a header")]
    Short(usize),
    #[error("ABI version {0} is not this agent's {ABI_VERSION}")]
    Abi(u16),
    #[error("kind {0} is not known")]
    Kind(u8),
    #[error("captured length {caplen} does not fit a record of {len} bytes")]
    Caplen { caplen: u32, len: usize },
    #[error("no session, or not one, in {0:#x}")]
    Sessions(u64),
    #[error("hook {hook}, direction {direction} or link {link} is not known")]
    Fields { hook: u8, direction: u8, link: u8 },
}

/// A packet of a look-back ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookBackRecord<'a> {
    /// Without a tap: the ring is one tap's.
    pub packet: Packet<'a>,
    /// What tells a record from other bytes.
    pub check: u64,
    /// Hash of its flow.
    pub flow: u32,
    pub left_out: u32,
}

impl<'a> LookBackRecord<'a> {
    /// Reads one; `None` if that is none.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, body) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let mut header = header(head);
        if header.abi != ABI_VERSION || header.kind != KIND_LOOK_BACK {
            return None;
        }
        let flow = std::mem::take(&mut header.tap);
        let left_out = std::mem::take(&mut header.tap_generation);
        let check = std::mem::take(&mut header.parity);
        let packet = packet(header, body, bytes.len()).ok()?;
        Some(Self {
            packet,
            check,
            flow,
            left_out,
        })
    }
}

impl<'a> Record<'a> {
    /// Reads one record.
    ///
    /// # Errors
    /// [`Malformed`], with what did not fit.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (head, body) = bytes
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(Malformed::Short(bytes.len()))?;
        let header = header(head);
        if header.abi != ABI_VERSION {
            return Err(Malformed::Abi(header.abi));
        }
        match header.kind {
            KIND_PACKET if header.sessions == 0 => Err(Malformed::Sessions(0)),
            KIND_PACKET => packet(header, body, bytes.len()).map(Self::Packet),
            KIND_GAP => {
                let (slot, parity) = one_session(&header)?;
                Ok(Self::Gap {
                    slot,
                    parity,
                    packets: header.origlen,
                })
            }
            KIND_LIMIT => {
                let (slot, parity) = one_session(&header)?;
                Ok(Self::Limit { slot, parity })
            }
            kind => Err(Malformed::Kind(kind)),
        }
    }

    /// The sessions that bytes which do not parse would have been for, if that much can be told:
    /// so that they are counted where they are missed.
    #[must_use]
    pub fn sessions_of(bytes: &[u8]) -> u64 {
        bytes
            .get(16..24)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_ne_bytes)
    }
}

fn packet(header: RecordHeader, body: &[u8], len: usize) -> Result<Packet<'_>, Malformed> {
    let RecordHeader {
        caplen,
        hook,
        direction,
        link,
        ..
    } = header;
    let data = usize::try_from(caplen)
        .ok()
        .filter(|_| caplen <= CAPLEN_MAX && caplen <= header.origlen)
        .and_then(|n| body.get(..n))
        .ok_or(Malformed::Caplen { caplen, len })?;
    let known = matches!(
        hook,
        HOOK_TCX_INGRESS | HOOK_TCX_EGRESS | HOOK_CGROUP_INGRESS | HOOK_CGROUP_EGRESS
    ) && matches!(direction, DIRECTION_INGRESS | DIRECTION_EGRESS)
        && matches!(link, LINK_ETHERNET | LINK_IP);
    if !known {
        return Err(Malformed::Fields {
            hook,
            direction,
            link,
        });
    }
    Ok(Packet { header, data })
}

fn one_session(header: &RecordHeader) -> Result<(u32, bool), Malformed> {
    if header.sessions.count_ones() != 1 {
        return Err(Malformed::Sessions(header.sessions));
    }
    let slot = header.sessions.trailing_zeros();
    debug_assert!(slot < SESSION_SLOTS);
    Ok((slot, header.parity & header.sessions != 0))
}

/// Field by field, at the offsets of the layout.
fn header(bytes: &[u8; HEADER_LEN]) -> RecordHeader {
    let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let u32_at =
        |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let u64_at = |at: usize| {
        u64::from(u32_at(at)) // low half first on the little-endian machines eBPF is built for
            | (u64::from(u32_at(at + 4)) << 32)
    };
    RecordHeader {
        abi: u16_at(0),
        kind: bytes[2],
        hook: bytes[3],
        caplen: u32_at(4),
        time_ns: u64_at(8),
        sessions: u64_at(16),
        parity: u64_at(24),
        tap: u32_at(32),
        tap_generation: u32_at(36),
        ifindex: u32_at(40),
        origlen: u32_at(44),
        gso_size: u16_at(48),
        gso_segs: u16_at(50),
        vlan_tci: u16_at(52),
        direction: bytes[54],
        packet_type: bytes[55],
        vlan_proto: u16_at(56),
        link: bytes[58],
        reserved: bytes[59],
        protocol: u16_at(60),
        reserved_end: [bytes[62], bytes[63]],
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::mem::offset_of;

    use proptest::prelude::*;

    use super::*;

    pub(crate) fn bytes_of(header: &RecordHeader, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(offset_of!(RecordHeader, abi), &header.abi.to_ne_bytes());
        put(offset_of!(RecordHeader, kind), &[header.kind]);
        put(offset_of!(RecordHeader, hook), &[header.hook]);
        put(
            offset_of!(RecordHeader, caplen),
            &header.caplen.to_ne_bytes(),
        );
        put(
            offset_of!(RecordHeader, time_ns),
            &header.time_ns.to_ne_bytes(),
        );
        put(
            offset_of!(RecordHeader, sessions),
            &header.sessions.to_ne_bytes(),
        );
        put(
            offset_of!(RecordHeader, parity),
            &header.parity.to_ne_bytes(),
        );
        put(offset_of!(RecordHeader, tap), &header.tap.to_ne_bytes());
        put(
            offset_of!(RecordHeader, tap_generation),
            &header.tap_generation.to_ne_bytes(),
        );
        put(
            offset_of!(RecordHeader, ifindex),
            &header.ifindex.to_ne_bytes(),
        );
        put(
            offset_of!(RecordHeader, origlen),
            &header.origlen.to_ne_bytes(),
        );
        put(
            offset_of!(RecordHeader, gso_size),
            &header.gso_size.to_ne_bytes(),
        );
        put(
            offset_of!(RecordHeader, gso_segs),
            &header.gso_segs.to_ne_bytes(),
        );
        put(
            offset_of!(RecordHeader, vlan_tci),
            &header.vlan_tci.to_ne_bytes(),
        );
        put(offset_of!(RecordHeader, direction), &[header.direction]);
        put(offset_of!(RecordHeader, packet_type), &[header.packet_type]);
        put(
            offset_of!(RecordHeader, vlan_proto),
            &header.vlan_proto.to_ne_bytes(),
        );
        put(offset_of!(RecordHeader, link), &[header.link]);
        put(
            offset_of!(RecordHeader, protocol),
            &header.protocol.to_ne_bytes(),
        );
        bytes.extend_from_slice(data);
        bytes
    }

    fn sample(caplen: u32) -> RecordHeader {
        RecordHeader {
            abi: ABI_VERSION,
            kind: KIND_PACKET,
            hook: HOOK_CGROUP_EGRESS,
            caplen,
            time_ns: 0x0123_4567_89ab_cdef,
            sessions: 0x8000_0000_0000_0001,
            parity: 0x8000_0000_0000_0000,
            tap: 7,
            tap_generation: 3,
            ifindex: 11,
            origlen: 2000,
            gso_size: 1448,
            gso_segs: 2,
            vlan_tci: 0x2064,
            direction: DIRECTION_EGRESS,
            packet_type: 4,
            vlan_proto: 0x8100,
            link: LINK_IP,
            reserved: 0,
            protocol: 0x0800,
            reserved_end: [0; 2],
        }
    }

    #[test]
    fn every_field_is_read_where_the_kernel_writes_it() {
        let header = sample(3);
        let bytes = bytes_of(&header, b"abc and the padding of the class");
        assert_eq!(
            Record::parse(&bytes),
            Ok(Record::Packet(Packet {
                header,
                data: b"abc"
            }))
        );
    }

    #[test]
    fn a_record_of_another_abi_version_is_malformed() {
        let mut header = sample(0);
        header.abi += 1;
        assert_eq!(
            Record::parse(&bytes_of(&header, &[])),
            Err(Malformed::Abi(ABI_VERSION + 1))
        );
    }

    #[test]
    fn a_torn_length_is_malformed() {
        let bytes = bytes_of(&sample(100), &[0; 99]);
        assert!(matches!(
            Record::parse(&bytes),
            Err(Malformed::Caplen { caplen: 100, .. })
        ));
        let mut header = sample(100);
        header.origlen = 99;
        let bytes = bytes_of(&header, &[0; 100]);
        assert!(matches!(
            Record::parse(&bytes),
            Err(Malformed::Caplen { .. })
        ));
    }

    #[test]
    fn gap_and_limit_name_exactly_one_session() {
        let mut header = sample(0);
        header.kind = KIND_GAP;
        assert!(matches!(
            Record::parse(&bytes_of(&header, &[])),
            Err(Malformed::Sessions(_))
        ));
        header.sessions = 1 << 63;
        header.origlen = 42;
        assert_eq!(
            Record::parse(&bytes_of(&header, &[])),
            Ok(Record::Gap {
                slot: 63,
                parity: true,
                packets: 42
            })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_malformed(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Record::Packet(packet)) = Record::parse(&bytes) {
                prop_assert_eq!(packet.data.len(), packet.header.caplen as usize);
            }
        }

        #[test]
        fn any_change_of_a_good_record_parses_or_is_malformed(
            at in 0usize..HEADER_LEN, value in any::<u8>(), len in 0usize..200,
        ) {
            let mut bytes = bytes_of(&sample(100), &[7; 100]);
            bytes[at] = value;
            bytes.truncate(len);
            if let Ok(Record::Packet(packet)) = Record::parse(&bytes) {
                prop_assert!(packet.data.len() + HEADER_LEN <= bytes.len());
            }
        }
    }
}
