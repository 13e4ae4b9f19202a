//! Packets that a session's taps looked at while it was armed. The kernel counts them per tap, once
//! for all sessions.

use aya::maps::{MapData, PerCpuArray};

use crate::session::{BoundTap, TapId};

/// One session's share of the taps' counts.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Taps with their counts when the session was armed.
    from: Vec<(TapId, u64)>,
    /// The final sum, once it is disarmed.
    ended: Option<u64>,
}

/// tap index -> packets seen, per CPU.
pub(super) type TapSeen = PerCpuArray<MapData, u64>;

impl Seen {
    pub(super) fn begin(map: &TapSeen, taps: &[BoundTap]) -> Self {
        let from = taps.iter().map(|tap| (tap.id, count(map, tap.id)));
        Self {
            from: from.collect(),
            ended: None,
        }
    }

    /// To be called when no more packets are the session's.
    pub(super) fn end(&mut self, map: &TapSeen) {
        self.ended = Some(self.packets(map));
    }

    pub(super) fn packets(&self, map: &TapSeen) -> u64 {
        self.ended.unwrap_or_else(|| {
            self.from
                .iter()
                .map(|&(tap, before)| count(map, tap).saturating_sub(before))
                .sum()
        })
    }
}

fn count(map: &TapSeen, tap: TapId) -> u64 {
    match map.get(&tap.index, 0) {
        Ok(cpus) => cpus.iter().sum(),
        Err(error) => {
            tracing::error!(%error, "failed to read a tap's counter");
            0
        }
    }
}
