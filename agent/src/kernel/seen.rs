//! Packets that a session's taps looked at since it was armed. The kernel counts them per tap, once
//! for all sessions.
//!
//! A packet is counted before its filters are asked, and the final account is read after the grace
//! period: so it is never less than `matched`, and more than was looked at for this session by what
//! passed for others in that period.

use aya::maps::{MapData, PerCpuArray};

use crate::session::{BoundTap, TapId};

/// tap index -> packets looked at, per CPU.
pub(super) type TapSeen = PerCpuArray<MapData, u64>;

/// A session's taps with their counts when it was armed.
#[derive(Debug, Default)]
pub(super) struct Seen(Vec<(TapId, u64)>);

impl Seen {
    pub(super) fn since_now<'a>(map: &TapSeen, taps: impl Iterator<Item = &'a BoundTap>) -> Self {
        Self(taps.map(|tap| (tap.id, count(map, tap.id))).collect())
    }

    /// Since the taps had counted so many.
    pub(super) fn since(taps: impl Iterator<Item = (TapId, u64)>) -> Self {
        Self(taps.collect())
    }

    /// To be read before the taps are released, for an index is used again.
    pub(super) fn packets(&self, map: &TapSeen) -> u64 {
        let Self(from) = self;
        from.iter()
            .map(|&(tap, before)| count(map, tap).saturating_sub(before))
            .sum()
    }
}

pub(super) fn count(map: &TapSeen, tap: TapId) -> u64 {
    match map.get(&tap.index, 0) {
        Ok(cpus) => cpus.iter().sum(),
        Err(error) => {
            tracing::error!(%error, "failed to read a tap's counter");
            0
        }
    }
}
