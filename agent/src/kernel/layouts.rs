//! The shared layouts, as aya reads and writes them.

use aya::Pod;
use remora_agent_common::{
    counters::SessionCounters,
    filter as wire,
    session::{Budget, DIRECTION_EGRESS, DIRECTION_INGRESS, Session},
    tap::{Gate, Tap},
};
use remora_capture::{
    filter::{AddressTerm, Family, PortTerm, Side, Terms},
    session::Direction,
};

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
pod!(Gate, Tap, Session, Budget, SessionCounters);

/// How a session's directions are told to its taps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eyes {
    Same,
    /// The session's are for the interface's eyes, the tap sees with the pod's.
    Swapped,
    /// Packets pass twice; both means once.
    Once,
}

/// What the kernel is told of a session.
pub(super) fn session(arming: &Arming, eyes: Eyes) -> Session {
    let spec = &arming.spec;
    let directions = match (spec.direction, eyes) {
        (Direction::Both, Eyes::Once) => DIRECTION_INGRESS,
        (Direction::Both, _) => DIRECTION_INGRESS | DIRECTION_EGRESS,
        (Direction::Egress, Eyes::Swapped) => DIRECTION_INGRESS,
        (Direction::Ingress, Eyes::Swapped) => DIRECTION_EGRESS,
        (Direction::Ingress, _) => DIRECTION_INGRESS,
        (Direction::Egress, _) => DIRECTION_EGRESS,
    };
    Session {
        deadline_ns: arming.deadline_ns.unwrap_or(u64::MAX),
        packet_limit: spec.limits.packets.map_or(u64::MAX, std::num::NonZero::get),
        byte_limit: arming.byte_limit.unwrap_or(u64::MAX),
        generation: arming.generation,
        snaplen: spec.snaplen.get(),
        directions,
        reserved: [0; 3],
        filter: filter(spec.filter.terms()),
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
