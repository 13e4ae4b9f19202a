//! The kernel's clock against UTC.
//!
//! Packets are stamped with CLOCK_MONOTONIC (`bpf_ktime_get_ns`). Its distance to CLOCK_REALTIME
//! changes only when somebody sets the clock: slewing (adjtime, NTP) moves both alike. So the agent
//! goes by one measurement until another contradicts it, and a packet has the same time to the
//! nanosecond in the files of all sessions that took it.

use std::sync::{Mutex, PoisonError};

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

/// What the agent goes by.
static KNOWN: Mutex<Option<ClockOffset>> = Mutex::new(None);

impl ClockOffset {
    /// The offset that the agent goes by: the one from before, unless the clock was set.
    #[must_use]
    pub fn known() -> Self {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let measured = Self::measure();
        let now = known.map_or(measured, |known| known.confirmed_by(measured));
        *known = Some(now);
        now
    }

    /// This one, if both measurements can be right; else the later.
    fn confirmed_by(self, measured: Self) -> Self {
        let apart = self.offset_ns.abs_diff(measured.offset_ns);
        if apart
            <= self
                .error_ns
                .saturating_add(measured.error_ns)
                .unsigned_abs()
        {
            self
        } else {
            measured
        }
    }

    /// Measures it: REALTIME between two readings of MONOTONIC.
    #[must_use]
    fn measure() -> Self {
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
    fn an_offset_is_kept_until_the_clock_was_set() {
        let offset = |offset_ns, error_ns| ClockOffset {
            offset_ns,
            error_ns,
        };
        let known = offset(1000, 10);
        assert_eq!(known.confirmed_by(offset(1015, 5)), known);
        assert_eq!(known.confirmed_by(offset(985, 5)), known);
        let set = offset(1016, 5);
        assert_eq!(known.confirmed_by(set), set);
        let extreme = offset(i64::MIN, 1);
        assert_eq!(offset(i64::MAX, 1).confirmed_by(extreme), extreme);
        assert_eq!(ClockOffset::known(), ClockOffset::known());
    }

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
