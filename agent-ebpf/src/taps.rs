//! Which tap a packet belongs to, and which of the two hooks owns it.
//!
//! TC owns what crosses an interface that is a tap. The cgroup hooks own the rest: loopback, and
//! everything of a cgroup without such an interface. A loopback packet passes the sender's egress
//! and the receiver's ingress; it is taken once:
//!
//! - at the receiver, if the receiving socket belongs to the same session's tap,
//! - else at the sender (no such socket, no ports, or a receiver outside of the tap).

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::{
        bpf_sk_ancestor_cgroup_id, bpf_sk_cgroup_id, bpf_sk_lookup_tcp, bpf_sk_lookup_udp,
        bpf_sk_release, bpf_skb_ancestor_cgroup_id,
    },
};
use remora_agent_common::{
    CGROUP_LEVELS, IFINDEX_ARRAY,
    filter::{FAMILY_IPV4, FAMILY_IPV6, Flow, PORTS_BOTH, PROTOCOL_TCP, PROTOCOL_UDP},
    record::HOOK_CGROUP_EGRESS,
    tap::{Gate, TAP_LOOPBACK_ONLY},
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

/// A packet's tap and the sessions armed on it. On the stack, so whole words: a write of half of one
/// is an attack on the other half to the verifier of 6.1.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) tap: u64,
    pub(crate) sessions: u64,
}

impl Owner {
    /// `gate.in_use` is small, which neither compiler nor verifier knows: plain zeroes side by
    /// side would become a loop over the stack, which takes CAP_PERFMON.
    #[inline(always)]
    pub(crate) fn none(gate: &Gate) -> Self {
        let zero = u64::from(gate.in_use >> 31);
        Self {
            tap: zero,
            sessions: zero,
        }
    }
}

/// The tap of an interface, if it is one.
#[inline(always)]
pub(crate) fn of_interface(ifindex: u32) -> Option<u32> {
    let tap = if ifindex < IFINDEX_ARRAY {
        *table::array(&maps::IFINDEX_TAPS, ifindex)?
    } else {
        // SAFETY: a torn u32 does not exist; the map's values are only ever written whole.
        *unsafe { maps::IFINDEX_TAPS_HIGH.get(&ifindex) }?
    };
    if tap == 0 { None } else { Some(tap) }
}

/// The slot of a tap's look-back ring, with `look_back::HEADERS_ONLY`, or 0.
#[inline(always)]
pub(crate) fn ring(tap: u32) -> u32 {
    match table::array_mut(&maps::LOOK_BACK_TAPS, tap) {
        // SAFETY: it points into a map value.
        Some(slot) => unsafe { slot.read_volatile() },
        None => 0,
    }
}

/// The sessions armed on a tap.
#[inline(always)]
pub(crate) fn sessions(tap: u32) -> u64 {
    match table::array_mut(&maps::TAP_SESSIONS, tap) {
        // SAFETY: it points into a map value.
        Some(sessions) => unsafe { sessions.read_volatile() },
        None => 0,
    }
}

/// Counts a packet that is looked at for the tap's sessions.
#[inline(always)]
pub(crate) fn seen(tap: u32) {
    if let Some(seen) = table::per_cpu(&maps::TAP_SEEN, tap) {
        // SAFETY: it points into a map value of this CPU.
        unsafe { add::<false>(seen, 1) };
    }
}

/// Fills in `owner`; false if there is none.
///
/// A function of its own, so that its stack is given back before the packet is looked at.
#[inline(never)]
pub(crate) fn of_cgroup<const HOOK: u8>(skb: &Skb, gate: &Gate, owner: &mut Owner) -> bool {
    let loopback = skb.ifindex() == LOOPBACK;
    cgroup_taps(&Sender(*skb), gate.cgroup_levels, loopback, true, owner);
    if HOOK == HOOK_CGROUP_EGRESS && loopback && owner.sessions != 0 {
        owner.sessions &= !(receivers_sessions(skb, gate) & gate.ingress_sessions);
    }
    owner.sessions != 0
}

/// Something that lives in a cgroup.
trait InCgroup {
    fn cgroup_id(&self) -> u64;
    /// The id of the ancestor at a depth of the tree, or 0.
    fn ancestor(&self, level: i32) -> u64;
}

/// The socket a packet came from or goes to.
struct Sender(Skb);

impl InCgroup for Sender {
    #[inline(always)]
    fn cgroup_id(&self) -> u64 {
        self.0.cgroup_id()
    }

    #[inline(always)]
    fn ancestor(&self, level: i32) -> u64 {
        // SAFETY: the pointer is the program's context.
        unsafe { bpf_skb_ancestor_cgroup_id(self.0.as_ptr(), level) }
    }
}

struct Socket(*mut bpf_sock);

impl InCgroup for Socket {
    #[inline(always)]
    fn cgroup_id(&self) -> u64 {
        // SAFETY: the socket was checked for null and is not yet released.
        unsafe { bpf_sk_cgroup_id(self.0.cast()) }
    }

    #[inline(always)]
    fn ancestor(&self, level: i32) -> u64 {
        // SAFETY: as above.
        unsafe { bpf_sk_ancestor_cgroup_id(self.0.cast(), level) }
    }
}

/// The taps of a cgroup and its ancestors: the innermost names the packet, the sessions of all are
/// joined. `counted`: the packet is seen by them.
#[inline(always)]
fn cgroup_taps(
    member: &impl InCgroup,
    levels: u32,
    loopback: bool,
    counted: bool,
    owner: &mut Owner,
) {
    let own = member.cgroup_id();
    join(owner, own, loopback, counted);
    // From the innermost depth outwards; level 0 is the root, which is never a tap. Not a loop: the
    // verifier loses sight of its counter.
    macro_rules! ancestors {
        ($($level:literal)*) => {
            $(if levels & (1 << $level) != 0 {
                let id = member.ancestor($level);
                if id != 0 && id != own {
                    join(owner, id, loopback, counted);
                }
            })*
            const { assert!([$($level),*].len() == CGROUP_LEVELS as usize - 1) };
        };
    }
    ancestors!(15 14 13 12 11 10 9 8 7 6 5 4 3 2 1);
}

#[inline(always)]
fn join(owner: &mut Owner, cgroup_id: u64, loopback: bool, counted: bool) {
    // SAFETY: as for IFINDEX_TAPS_HIGH.
    let Some(&tap) = (unsafe { maps::CGROUP_TAPS.get(&cgroup_id) }) else {
        return;
    };
    // By the stack, for the ways here are many: a pointer that is added to by each with its own
    // number takes CAP_PERFMON.
    let Some(&sessions) = maps::TAP_SESSIONS.get(tap) else {
        return;
    };
    if tap == 0 || sessions == 0 {
        return;
    }
    let Some(entry) = maps::TAPS.get(tap) else {
        return;
    };
    if entry.flags & TAP_LOOPBACK_ONLY != 0 && !loopback {
        return;
    }
    if owner.tap == 0 {
        owner.tap = tap.into();
    }
    owner.sessions |= sessions;
    if counted && let Some(seen) = maps::TAP_SEEN.get_ptr_mut(tap) {
        // SAFETY: it points into a map value of this CPU.
        unsafe { add::<true>(seen, 1) };
    }
}

/// Sessions whose tap the receiving socket of a loopback packet belongs to.
#[inline(never)]
fn receivers_sessions(skb: &Skb, gate: &Gate) -> u64 {
    let flow = Flow::decode(skb.ethertype(), &Network::of::<true>(*skb), zero(skb));
    if flow.ports != PORTS_BOTH {
        return 0;
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
        _ => return 0,
    };
    // Called by name: a helper behind a pointer is an indirect call, which eBPF has not.
    let (skb, tuple) = (skb.as_ptr().cast(), words.cast());
    // SAFETY: the context and the tuple are valid; the size is one of the two that the helpers
    // take.
    let socket = match flow.protocol {
        PROTOCOL_TCP => unsafe { bpf_sk_lookup_tcp(skb, tuple, size, CURRENT_NETNS, 0) },
        PROTOCOL_UDP => unsafe { bpf_sk_lookup_udp(skb, tuple, size, CURRENT_NETNS, 0) },
        _ => return 0,
    };
    if socket.is_null() {
        return 0;
    }
    let mut receiver = Owner::none(gate);
    cgroup_taps(
        &Socket(socket),
        gate.cgroup_levels,
        true,
        false,
        &mut receiver,
    );
    // SAFETY: it was looked up above and is not used afterwards.
    unsafe { bpf_sk_release(socket.cast()) };
    receiver.sessions
}
