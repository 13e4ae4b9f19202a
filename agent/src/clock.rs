//! The kernel's clock against UTC.
//!
//! Packets are stamped with CLOCK_MONOTONIC (`bpf_ktime_get_ns`). Its distance to CLOCK_REALTIME
//! changes only when somebody sets the clock: slewing (adjtime, NTP) moves both alike.

use nix::time::{ClockId, clock_gettime};

/// Samples of which the tightest is taken.
const SAMPLES: u32 = 16;

/// CLOCK_REALTIME minus CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockOffset {
    pub offset_ns: i64,
    /// Half the time that the tightest sample took: how far the offset may be off.
    pub error_ns: i64,
}

impl ClockOffset {
    /// Measures it: REALTIME between two readings of MONOTONIC.
    #[must_use]
    pub fn measure() -> Self {
        (0..SAMPLES)
            .map(|_| {
                let before = read(ClockId::CLOCK_MONOTONIC);
                let real = read(ClockId::CLOCK_REALTIME);
                let after = read(ClockId::CLOCK_MONOTONIC);
                let middle = before + (after - before) / 2;
                Self {
                    offset_ns: real - middle,
                    error_ns: (after - before) / 2 + 1,
                }
            })
            .min_by_key(|sample| sample.error_ns)
            .unwrap_or_default()
    }
}

/// CLOCK_REALTIME, nanoseconds.
#[must_use]
pub fn realtime_ns() -> u64 {
    u64::try_from(read(ClockId::CLOCK_REALTIME)).unwrap_or(0)
}

/// CLOCK_MONOTONIC, nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    u64::try_from(read(ClockId::CLOCK_MONOTONIC)).unwrap_or(0)
}

/// A clock of the machine; both clocks used here always exist.
fn read(clock: ClockId) -> i64 {
    clock_gettime(clock)
        .map(|time| {
            time.tv_sec()
                .saturating_mul(1_000_000_000)
                .saturating_add(time.tv_nsec())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_leads_from_the_kernels_clock_to_utc() {
        let offset = ClockOffset::measure();
        let utc = i128::from(monotonic_ns()) + i128::from(offset.offset_ns);
        let now = jiff::Timestamp::now().as_nanosecond();
        // Between the two readings this thread may have been off its CPU for a while.
        assert!((0..2_000_000_000).contains(&(now - utc + i128::from(offset.error_ns))));
        assert!(offset.error_ns > 0);
    }
}
