//! Counters, per CPU, written by the kernel side only.

/// One session's counters on one CPU, in packets.
///
/// What went into the ring is not counted by itself, so that a packet that does costs one addition:
/// it is `matched - lost - over_budget - copy_error`, exact once the session is disarmed and a
/// grace period is over. That so many come out of the ring is checked by the reader.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounters {
    /// Packets that the filter took.
    pub matched: u64,
    /// Matched, but the ring had no room.
    pub lost: u64,
    /// Matched after the packet or byte limit was reached.
    pub over_budget: u64,
    /// Matched, but the packet's bytes could not be read.
    pub copy_error: u64,
    /// Losses (`lost` and `copy_error`) not yet told in a gap record.
    pub untold: u64,
    /// Keeps the value at a whole cache line, so that CPUs never share one.
    pub reserved: [u64; 3],
}

const _: () = assert!(size_of::<SessionCounters>() == 64);
