//! How the programs hand a packet on, by tail calls.
//!
//! ```text
//! entry (is it a tap's?) ──▶ decide (whose filters take it?) ──▶ capture (limits, the record)
//!      │                                                         └─ its tap's packets are cut ─▶ capture headers
//!      │           or instead: the tap's program (as decide) ────┘
//!      └─ its tap is recorded ─▶ look-back ─ sessions? ─▶ either
//! ```
//! A tap's program is made of its sessions' filters by user space, and called by the tap's index.
//!
//! What they tell each other is in `skb->cb`: five words of scratch that belong to whichever eBPF
//! program runs (`struct __sk_buff` of linux/bpf.h; `struct qdisc_skb_cb`, v6.18). The kernel saves
//! them around a cgroup program. At TC they keep what was written: a later program of the chain
//! that expects an earlier one's words there does not find them for a packet of a tap with
//! sessions.

/// `skb->cb` words: sessions that are still in question, low and high half.
pub const WORK_SESSIONS: usize = 0;
/// Tap index.
pub const WORK_TAP: usize = 2;
/// `record::HOOK_*`.
pub const WORK_HOOK: usize = 3;
/// Slot of the tap's look-back ring, with `look_back::HEADERS_ONLY`.
pub const WORK_RING: usize = 4;

/// Program array index: filters.
pub const STAGE_DECIDE: u32 = 0;
/// Program array index: limits and the record.
pub const STAGE_CAPTURE: u32 = 1;
/// Program array index: limits and the record, headers only.
pub const STAGE_CAPTURE_HEADERS: u32 = 2;
/// Program array index, of TC alone: the tap's look-back ring.
pub const STAGE_LOOK_BACK: u32 = 3;
/// Program array index, of TC alone: the same, headers only.
pub const STAGE_LOOK_BACK_HEADERS: u32 = 4;
/// Entries of a stage array.
pub const STAGES: u32 = 5;
