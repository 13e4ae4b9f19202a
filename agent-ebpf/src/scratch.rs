//! Memory of a program beside the stack, which is slow (see [`crate::table`]) and small, and whose
//! contents the verifier follows: what lies in a map is any number to it, so that the ways through
//! a loop's body meet again.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use remora_agent_common::{SESSION_SLOTS, filter::Flow, look_back::FLOW_BYTES_IPV6};

use crate::{
    counters::{fetch_add, swap},
    interpret::Machine,
    maps, table,
};

/// Scratches of a CPU: one for TC, whose programs do not interrupt each other, the others for
/// cgroup programs, which can be interrupted by a softirq or another task.
pub(crate) const SCRATCHES: u32 = 9;
const TC_SCRATCH: u32 = 0;

/// What is known of the packet in work.
#[repr(C)]
pub(crate) struct Scratch {
    /// The first bytes from the network header on, as they lie in the packet. In the first place, so that
    /// its address takes no register of its own.
    pub(crate) network: [u64; FLOW_BYTES_IPV6 / 8],
    /// 1 while a cgroup program uses it.
    busy: u64,
    pub(crate) time_ns: u64,
    /// Sessions that the round has yet to visit.
    pub(crate) left: u64,
    /// Sessions that took the packet.
    pub(crate) taken: u64,
    pub(crate) parity: u64,
    pub(crate) tap: u32,
    pub(crate) generation: u32,
    pub(crate) hook: u32,
    pub(crate) direction: u32,
    /// Length of the frame that the file will hold.
    pub(crate) frame_len: u32,
    /// Largest snaplen of the sessions that took it.
    pub(crate) snaplen: u32,
    pub(crate) gso_size: u32,
    pub(crate) caplen: u32,
    /// 1 if the ring had no room, 0 if the bytes could not be read.
    pub(crate) is_lost: u32,
    /// Bytes of records since it was last asked how much is waiting in the ring.
    pub(crate) unasked: u32,
    /// 1 if so much was waiting in the ring, when it was last asked, that sessions are held to their
    /// shares.
    pub(crate) is_tight: u32,
    /// Bytes that the record costs each session.
    pub(crate) charge: u32,
    /// Of the packet's flow.
    pub(crate) hash: u32,
    /// Of a look-back record, as is the next.
    pub(crate) page: u32,
    pub(crate) position: u64,
    /// Sessions whose filters are programs.
    pub(crate) programs: u64,
    /// What typed filters look at.
    pub(crate) flow: Flow,
    /// What runs a program.
    pub(crate) machine: Machine,
}

impl Scratch {
    /// The lowest of the sessions that are left to visit, which it then is no more.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<u32> {
        let left = self.left;
        if left == 0 {
            return None;
        }
        let bit = left & left.wrapping_neg();
        self.left = left ^ bit;
        Some((bit - 1).count_ones() & (SESSION_SLOTS - 1))
    }
}

/// What is done for a session: its slot is the second argument.
pub(crate) type Visit = fn(*mut Scratch, u32);
/// A step of [`each`]: the second argument points to a live stack slot, which points to the scratch
/// that the caller has taken. 1 ends the loop.
pub(crate) type Step = extern "C" fn(u64, *mut *mut Scratch) -> c_long;

/// Calls `visit` for the first session that is left, and `step`, which does the same, for each other: most
/// packets are one session's, and a loop wants the stack, and its steps are indirect calls.
#[inline(always)]
pub(crate) fn each(scratch: *mut Scratch, visit: Visit, step: Step) {
    // SAFETY (both): the scratch is the caller's.
    if let Some(slot) = unsafe { (*scratch).next() } {
        visit(scratch, slot);
    }
    if unsafe { (*scratch).left } != 0 {
        rest(scratch, step);
    }
}

#[inline(always)]
fn rest(scratch: *mut Scratch, step: Step) {
    let mut scratch = scratch;
    // SAFETY: the callback has the type that bpf_loop calls (kernel/bpf/bpf_iter.c, v5.17), and
    // the slot outlives the call.
    unsafe {
        bpf_loop(
            SESSION_SLOTS,
            step as *mut c_void,
            (&raw mut scratch).cast(),
            0,
        );
    }
}

/// One that nobody uses; `L3`: for a cgroup program. It is not cleared.
#[inline(always)]
pub(crate) fn take<const L3: bool>() -> Option<*mut Scratch> {
    if !L3 {
        return table::per_cpu_first(&maps::SCRATCH);
    }
    let mut i = TC_SCRATCH + 1;
    while i < SCRATCHES {
        if let Some(scratch) = table::per_cpu(&maps::SCRATCH, i) {
            // SAFETY: it points into a map value.
            if unsafe { swap(&raw mut (*scratch).busy, 1) } == 0 {
                return Some(scratch);
            }
        }
        i += 1;
    }
    None
}

#[inline(always)]
pub(crate) fn give_back<const L3: bool>(scratch: *mut Scratch) {
    if L3 {
        // SAFETY: it points into a map value.
        unsafe { swap(&raw mut (*scratch).busy, 0) };
    }
}

/// So many programs were interrupted on this CPU that there is nowhere to work: the packet is
/// counted as one that could not be copied, for each session that may have wanted it.
#[inline(never)]
pub(crate) fn none_left(sessions: u64) {
    let mut sessions = sessions;
    // SAFETY: as in `each`.
    unsafe {
        bpf_loop(
            SESSION_SLOTS,
            refuse as extern "C" fn(u64, *mut u64) -> c_long as *mut c_void,
            (&raw mut sessions).cast(),
            0,
        );
    }
}

extern "C" fn refuse(i: u64, sessions: *mut u64) -> c_long {
    // SAFETY: bpf_loop hands on the pointer to the caller's live stack slot.
    let sessions = unsafe { *sessions };
    if sessions >> (i & 63) & 1 != 0
        && let Some(counters) = table::per_cpu(&maps::COUNTERS, i as u32)
    {
        // SAFETY: it points into a map value.
        unsafe {
            fetch_add(&raw mut (*counters).matched, 1);
            fetch_add(&raw mut (*counters).copy_error, 1);
            fetch_add(&raw mut (*counters).untold, 1);
        }
    }
    0
}
