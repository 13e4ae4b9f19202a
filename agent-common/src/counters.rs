//! Per-session, per-CPU counters, written by the kernel side only.

/// One session's counters on one CPU, in packets unless said otherwise.
///
/// Law K, summed over CPUs after the session is disarmed and a grace period has passed:
/// `matched = submitted + lost + over_budget + copy_error`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounters {
    /// Packets of the session's taps that were looked at.
    pub seen: u64,
    /// Packets that the filter took.
    pub matched: u64,
    /// Records that were put into the ring for this session.
    pub submitted: u64,
    /// Matched, but the ring had no room.
    pub lost: u64,
    /// Matched after the packet or byte limit was reached.
    pub over_budget: u64,
    /// Matched, but the packet's bytes could not be read.
    pub copy_error: u64,
    /// Losses (`lost` and `copy_error`) not yet told in a gap record.
    pub untold: u64,
    /// Keeps the value at a whole cache line, so that CPUs never share one.
    pub reserved: u64,
}

const _: () = assert!(size_of::<SessionCounters>() == 64);
