//! How the programs hand a packet on, by tail calls.
//!
//! ```text
//! entry ──▶ machine code of the tap's filters ──▶ capture
//!   │         (all sessions of the packet are covered by it)
//!   └─────▶ decide: typed terms, interpreter ───▶ capture
//! ```
//! What they tell each other is in `skb->cb` (five words of a packet that belong to whichever
//! eBPF program runs; the kernel saves them around a cgroup program).

/// `skb->cb` words: sessions that are still in question, low and high half.
pub const WORK_SESSIONS: usize = 0;
/// Tap index.
pub const WORK_TAP: usize = 2;
/// `record::HOOK_*`.
pub const WORK_HOOK: usize = 3;

/// Program array index: filters without machine code.
pub const STAGE_DECIDE: u32 = 0;
/// Program array index: budgets and the record.
pub const STAGE_CAPTURE: u32 = 1;
/// Entries of a stage array.
pub const STAGES: u32 = 2;
