//! Which tap a packet belongs to, and which of the two hooks owns it.
//!
//! TC owns what crosses an interface that is a tap. The cgroup hooks own the rest: loopback, everything of
//! a cgroup without such an interface, and what it receives past it (another's `bpf_redirect_peer`). A
//! loopback packet passes the sender's egress and the receiver's ingress; it is taken once:
//!
//! - at the receiver, if the receiving socket belongs to the same tap,
//! - else at the sender (no such socket, no ports, or a receiver outside of the tap).
//!
//! Of cgroups within each other each may be a tap: a packet passes the programs of all.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::{
    bindings::bpf_sock_tuple,
    helpers::{bpf_sk_ancestor_cgroup_id, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
};
use remora_agent_common::{
    IFINDEX_ARRAY, TAP_SLOTS,
    filter::{FAMILY_IPV4, FAMILY_IPV6, Flow, PORTS_BOTH, PROTOCOL_TCP, PROTOCOL_UDP},
    record::{HOOK_CGROUP_INGRESS, HOOK_TCX_INGRESS},
    tap::{CGROUP_LOOPBACK_ONLY, CGROUP_RECEIVED},
};

use crate::{
    counters::add,
    maps,
    skb::{Network, Skb, zero},
    table,
};

/// `lo` is the first interface of every network namespace.
pub(crate) const LOOPBACK: u32 = 1;
/// `BPF_F_CURRENT_NETNS` (linux/bpf.h): look sockets up in the packet's own namespace.
const CURRENT_NETNS: u64 = u64::MAX;

/// The tap of an interface, if it is one.
#[inline(always)]
pub(crate) fn of_interface(ifindex: u32) -> Option<u64> {
    let tap = if ifindex < IFINDEX_ARRAY {
        match table::array(&maps::IFINDEX_TAPS, ifindex) {
            Some(&tap) => tap,
            None => 0,
        }
    } else {
        of_high_interface(ifindex)
    };
    if tap == 0 { None } else { Some(opaque(tap)) }
}

/// The same number, in one register: the compiler keeps a 32-bit number that it uses as an index, too, in
/// two, and has to put one on the stack then, which is slow (see [`crate::table`]).
#[inline(always)]
fn opaque(tap: u32) -> u64 {
    let mut tap = u64::from(tap);
    // SAFETY: no more than an AND.
    unsafe {
        asm!("{0} &= {mask}", inout(reg) tap, mask = const TAP_SLOTS - 1, options(nomem, nostack))
    };
    tap
}

/// The same of a large index; 0 for none. A function of its own, for its key is on the stack.
#[inline(never)]
fn of_high_interface(ifindex: u32) -> u32 {
    // SAFETY: a torn u32 does not exist; the map's values are only ever written whole.
    match unsafe { maps::IFINDEX_TAPS_HIGH.get(&ifindex) } {
        Some(&tap) => tap,
        None => 0,
    }
}

/// The slot of a tap's look-back ring, with `look_back::HEADERS_ONLY`, or 0.
#[inline(always)]
pub(crate) fn ring(tap: impl Into<u64>) -> u32 {
    match table::array_mut(&maps::LOOK_BACK_TAPS, tap) {
        // SAFETY: it points into a map value.
        Some(slot) => unsafe { slot.read_volatile() },
        None => 0,
    }
}

/// The sessions armed on a tap for packets that come in by the hook, or go out.
#[inline(always)]
pub(crate) fn sessions(tap: impl Into<u64>, hook: u8) -> u64 {
    let Some(sessions) = table::array_mut(&maps::TAP_SESSIONS, tap) else {
        return 0;
    };
    // SAFETY: it points into a map value.
    unsafe {
        if is_ingress(hook) {
            (&raw const (*sessions).ingress).read_volatile()
        } else {
            (&raw const (*sessions).egress).read_volatile()
        }
    }
}

/// Known when a program is compiled, as its hook is.
#[inline(always)]
const fn is_ingress(hook: u8) -> bool {
    matches!(hook, HOOK_TCX_INGRESS | HOOK_CGROUP_INGRESS)
}

/// Counts a packet that is looked at for the tap's sessions.
#[inline(always)]
pub(crate) fn seen(tap: impl Into<u64>) {
    if let Some(seen) = table::per_cpu(&maps::TAP_SEEN, tap) {
        // SAFETY: it points into a map value of this CPU.
        unsafe { add::<false>(seen, 1) };
    }
}

/// The tap of the cgroup that this run of the program is for, if it takes the packet: a program runs
/// once for each cgroup that it is attached to, from the socket's upwards.
#[inline(always)]
pub(crate) fn of_cgroup(skb: &Skb, hook: u8) -> Option<u32> {
    let elsewhere = if is_ingress(hook) {
        CGROUP_LOOPBACK_ONLY
    } else {
        CGROUP_LOOPBACK_ONLY | CGROUP_RECEIVED
    };
    let point = maps::CGROUP_TAP.get();
    let tap = point as u32;
    if tap == 0 || (point & elsewhere != 0 && skb.ifindex() != LOOPBACK) {
        return None;
    }
    Some(tap)
}

/// The sessions of a cgroup's tap that take a packet which one of its sockets sends: a loopback packet
/// to another of its sockets is taken there by those that capture ingress.
#[inline(always)]
pub(crate) fn senders_sessions(skb: &Skb, tap: u32, sessions: u64) -> u64 {
    if skb.ifindex() != LOOPBACK {
        return sessions;
    }
    let at_receiver = match table::first(&maps::GATE) {
        Some(gate) => sessions & gate.ingress_sessions,
        None => 0,
    };
    if at_receiver != 0 && is_receiver_inside(skb, tap) {
        sessions & !at_receiver
    } else {
        sessions
    }
}

/// The receiving socket of a loopback packet belongs to the tap's cgroup.
#[inline(never)]
fn is_receiver_inside(skb: &Skb, tap: u32) -> bool {
    let Some(tap) = table::array(&maps::TAPS, tap) else {
        return false;
    };
    let flow = Flow::decode(skb.ethertype(), &Network::of::<true>(*skb), zero(skb));
    if flow.ports != PORTS_BOTH {
        return false;
    }
    // A `bpf_sock_tuple`, by whole words of the stack (see `Owner`): addresses, then ports.
    let mut tuple = MaybeUninit::<[u64; size_of::<bpf_sock_tuple>().div_ceil(8)]>::uninit();
    let words = tuple.as_mut_ptr().cast::<u64>();
    let word = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let ports =
        u32::from(flow.source_port.to_be()) | u32::from(flow.destination_port.to_be()) << 16;
    let (from, to) = (flow.source, flow.destination);
    let size = match flow.family {
        // SAFETY (both): the words lie in `tuple`, and all `size` bytes are written.
        FAMILY_IPV4 => unsafe {
            words.write(word(from[0], to[0]));
            words.add(1).write(ports.into());
            12
        },
        FAMILY_IPV6 => unsafe {
            words.write(word(from[0], from[1]));
            words.add(1).write(word(from[2], from[3]));
            words.add(2).write(word(to[0], to[1]));
            words.add(3).write(word(to[2], to[3]));
            words.add(4).write(ports.into());
            36
        },
        _ => return false,
    };
    // Called by name: a helper behind a pointer is an indirect call, which eBPF has not.
    let (skb, tuple) = (skb.as_ptr().cast(), words.cast());
    // SAFETY: the context and the tuple are valid; the size is one of the two that the helpers
    // take.
    let socket = match flow.protocol {
        PROTOCOL_TCP => unsafe { bpf_sk_lookup_tcp(skb, tuple, size, CURRENT_NETNS, 0) },
        PROTOCOL_UDP => unsafe { bpf_sk_lookup_udp(skb, tuple, size, CURRENT_NETNS, 0) },
        _ => return false,
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the socket was checked for null and is not yet released.
    let ancestor = unsafe { bpf_sk_ancestor_cgroup_id(socket.cast(), tap.cgroup_level as i32) };
    // SAFETY: it was looked up above and is not used afterwards.
    unsafe { bpf_sk_release(socket.cast()) };
    ancestor == tap.cgroup_id
}
