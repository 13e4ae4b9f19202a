//! The shared layouts, as aya reads and writes them.

use aya::Pod;
use remora_agent_common::{
    checkpoint::Checkpoint,
    counters::SessionCounters,
    filter as wire,
    look_back::{FlowState, PAGE_VALUE},
    program::Instruction,
    session::{Budget, DIRECTION_EGRESS, DIRECTION_INGRESS, FILTER_PROGRAM, FILTER_TYPED, Session},
    tap::{Gate, Tap, TapSessions},
};
use remora_capture::{
    filter::{AddressTerm, Family, PortTerm, Side, Terms},
    session::Direction,
};

use super::pool::Spans;
use crate::session::Arming;

/// A map value of `remora_agent_common`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub(super) struct Layout<T>(pub(super) T);

macro_rules! pod {
    ($($layout:ty),*) => {
        $(
            // SAFETY: the type is `repr(C)`, made of integers only, has explicit padding (its size
            // is asserted in agent-common), and every byte pattern is a value of it.
            unsafe impl Pod for Layout<$layout> {}
        )*
    };
}
pod!(
    Checkpoint,
    Gate,
    Tap,
    TapSessions,
    Session,
    Budget,
    SessionCounters,
    Instruction,
    FlowState,
    [u8; PAGE_VALUE]
);

/// How a session's directions are told to its taps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eyes {
    Same,
    /// The session's are for the interface's eyes, the tap sees with the pod's.
    Swapped,
    /// Packets pass twice; both means once.
    Once,
}

/// What the kernel is told of a session; `spans`: where its filter's programs lie, if it is not terms.
pub(super) fn session(arming: &Arming, eyes: Eyes, spans: Spans) -> Session {
    let spec = &arming.spec;
    let directions = match (spec.direction, eyes) {
        (Direction::Both, Eyes::Once) => DIRECTION_INGRESS,
        (Direction::Both, _) => DIRECTION_INGRESS | DIRECTION_EGRESS,
        (Direction::Egress, Eyes::Swapped) => DIRECTION_INGRESS,
        (Direction::Ingress, Eyes::Swapped) => DIRECTION_EGRESS,
        (Direction::Ingress, _) => DIRECTION_INGRESS,
        (Direction::Egress, _) => DIRECTION_EGRESS,
    };
    let terms = spec.filter.meaning().terms();
    Session {
        deadline_ns: arming.deadline_ns.unwrap_or(u64::MAX),
        packet_limit: spec.limits.packets.map_or(u64::MAX, std::num::NonZero::get),
        byte_limit: arming.byte_limit.unwrap_or(u64::MAX),
        generation: arming.generation,
        snaplen: spec.snaplen.get(),
        directions,
        filter_kind: if terms.is_some() {
            FILTER_TYPED
        } else {
            FILTER_PROGRAM
        },
        reserved: [0; 2],
        filter: terms.map(filter).unwrap_or_default(),
        ethernet: spans.ethernet,
        ip: spans.ip,
    }
}

/// Terms beyond the kernel's number cannot be: the parser has the same bound.
fn filter(terms: &Terms) -> wire::TypedFilter {
    let mut filter = wire::TypedFilter {
        family: terms.family.map_or(wire::FAMILY_ANY, family),
        protocol: terms.protocol.map_or(wire::PROTOCOL_ANY, |p| p.number()),
        ..wire::TypedFilter::default()
    };
    for (slot, term) in filter.address.iter_mut().zip(&terms.addresses) {
        *slot = address(term);
        filter.addresses += 1;
    }
    for (slot, &PortTerm { port, side: of }) in filter.port.iter_mut().zip(&terms.ports) {
        *slot = wire::PortTerm {
            port,
            side: side(of),
            reserved: 0,
        };
        filter.ports += 1;
    }
    filter
}

fn family(family: Family) -> u8 {
    match family {
        Family::Ipv4 => wire::FAMILY_IPV4,
        Family::Ipv6 => wire::FAMILY_IPV6,
    }
}

fn side(side: Side) -> u8 {
    match side {
        Side::Source => wire::SIDE_SOURCE,
        Side::Destination => wire::SIDE_DESTINATION,
        Side::Either => wire::SIDE_EITHER,
    }
}

fn address(term: &AddressTerm) -> wire::AddressTerm {
    let (address, mask) = term.prefix.octets();
    wire::AddressTerm {
        address: words(address),
        mask: words(mask),
        family: family(term.prefix.family()),
        side: side(term.side),
        reserved: [0; 2],
    }
}

/// Four words whose bytes keep their order.
fn words(bytes: [u8; 16]) -> wire::Address {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use remora_agent_common::filter::{Flow, NetworkBytes};
    use remora_capture::filter::Filter;

    use super::*;

    struct Network<'a>(&'a [u8]);

    impl NetworkBytes for Network<'_> {
        fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
            self.0.get(offset as usize..)?.first_chunk().copied()
        }
    }

    /// Few addresses and ports, so that terms and packets often meet.
    fn address(n: u8) -> [u8; 4] {
        [192, 0, 2 + n / 4, n % 4]
    }

    fn term() -> impl Strategy<Value = String> {
        let side = prop_oneof![Just(""), Just("src "), Just("dst ")];
        let address = (0u8..8).prop_map(|n| {
            let [a, b, c, d] = address(n);
            format!("{a}.{b}.{c}.{d}")
        });
        prop_oneof![
            prop_oneof![
                Just("tcp"),
                Just("udp"),
                Just("icmp"),
                Just("icmp6"),
                Just("sctp"),
                Just("ip"),
                Just("ip6")
            ]
            .prop_map(str::to_owned),
            (side.clone(), address).prop_map(|(side, a)| format!("{side}host {a}")),
            (side.clone(), 0u8..2).prop_map(|(side, n)| format!("{side}net 192.0.{}.0/24", 2 + n)),
            (side.clone(), 0u8..3).prop_map(|(side, n)| format!("{side}host 2001:db8::{n}")),
            (side, 79u16..82).prop_map(|(side, port)| format!("{side}port {port}")),
        ]
    }

    prop_compose! {
        /// IPv4, IPv6 (with and without a fragment header), ARP, RARP and others, cut anywhere.
        fn frame()(
            ethertype in prop_oneof![
                3 => Just(0x0800u16), 3 => Just(0x86dd), 1 => Just(0x0806), 1 => Just(0x8035), 1 => Just(0x88cc)
            ],
            protocol in prop_oneof![Just(6u8), Just(17), Just(1), Just(58), Just(132), Just(44)],
            inner in prop_oneof![Just(6u8), Just(17), Just(58)],
            fragment in prop_oneof![3 => Just(0u16), 1 => Just(1), 1 => Just(0x1000), 1 => Just(0x2000)],
            options in 0u8..2,
            ends in (0u8..8, 0u8..8),
            ports in (79u16..82, 79u16..82),
            cut in prop_oneof![3 => Just(200usize), 1 => 0usize..80],
        ) -> Vec<u8> {
            let mut bytes = vec![0u8; 14];
            bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
            let transport = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
            match ethertype {
                0x0800 => {
                    let mut header = vec![0u8; 20 + usize::from(options) * 4];
                    header[0] = 0x45 + options;
                    header[6..8].copy_from_slice(&fragment.to_be_bytes());
                    header[9] = protocol;
                    header[12..16].copy_from_slice(&address(ends.0));
                    header[16..20].copy_from_slice(&address(ends.1));
                    bytes.extend(header);
                    bytes.extend(transport);
                }
                0x86dd => {
                    let mut header = vec![0u8; 40];
                    header[6] = protocol;
                    for (at, end) in [(8, ends.0), (24, ends.1)] {
                        header[at..at + 4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
                        header[at + 15] = end;
                    }
                    bytes.extend(header);
                    if protocol == 44 {
                        bytes.extend([inner, 0, 0, 0, 0, 0, 0, 0]);
                    }
                    bytes.extend(transport);
                }
                _ => {
                    let mut body = vec![0u8; 28];
                    body[14..18].copy_from_slice(&address(ends.0));
                    body[24..28].copy_from_slice(&address(ends.1));
                    bytes.extend(body);
                }
            }
            // Of what is cut within the network header the kernel knows no address (see `Flow`); such
            // a packet is a raw socket's.
            let whole = match ethertype { 0x0800 => 34, 0x86dd => 54, _ => 42 };
            bytes.truncate(cut.max(whole));
            bytes
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn the_kernels_typed_filter_says_what_the_reference_says(
            terms in prop::collection::vec(term(), 0..4), frame in frame(),
        ) {
            // Terms that no packet can match together are refused.
            let Ok(parsed) = Filter::parse(&terms.join(" and ")) else { return Ok(()) };
            let terms = parsed.meaning().terms().expect("parsed");
            let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
            let flow = Flow::decode(ethertype, &Network(&frame[14..]), 0);
            prop_assert_eq!(
                filter(terms).matches(&flow),
                terms.matches(&frame),
                "{} on {:02x?}", parsed, frame
            );
        }
    }
}
