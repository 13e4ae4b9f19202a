//! A session as the agent after this one finds it (`--pin`).
//!
//! ```text
//! Start ─▶ kept with its files, before it is answered ─▶ … agent dies … ─▶ Driver::new goes on with it
//!                                                                            kept again, with Away
//! ```
//! What changes while it runs is not in it: the kernel's maps have the counters and the limits, the
//! checkpoint how far it was read, its files what was written.

use std::time::Duration;

use jiff::Timestamp;
use remora_capture::session::CaptureState;
use serde::{Deserialize, Serialize};

use super::{BoundTap, Place};

/// All that is needed to go on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Standing {
    /// As it was when it was armed.
    pub state: CaptureState,
    pub key: Option<String>,
    pub slot: u32,
    pub generation: u32,
    /// Where its records begin in the ring.
    #[serde(default)]
    pub from: u64,
    pub place: Place,
    pub taps: Vec<BoundTap>,
    /// Packets that these had looked at before.
    pub seen: Vec<u64>,
    /// What its file says of what cannot be seen.
    pub notes: Vec<String>,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub deadline_ns: Option<u64>,
    /// When it began, likewise.
    #[serde(default)]
    pub begun_ns: u64,
    /// The key by which alerts join it.
    #[serde(default)]
    pub coalescing_key: Option<String>,
    /// Idempotency keys of alerts that have joined it; not kept here.
    #[serde(skip)]
    pub joined: Vec<String>,
    /// UTC minus CLOCK_MONOTONIC as its file has it, nanoseconds.
    pub offset_ns: i64,
    pub away: Option<Away>,
}

/// When no agent was there, and its packets waited in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Away {
    pub times: u64,
    /// Of the last time: the last sign of life of the agent that went, and when the next was there.
    pub from: Timestamp,
    pub until: Timestamp,
}

impl Standing {
    /// It lasts so long in all; none: without limit.
    pub fn last(&mut self, duration: Option<Duration>) {
        let before = self.state.spec.limits.duration;
        if let (Some(deadline_ns), Some(before)) = (self.deadline_ns, before) {
            self.deadline_ns = duration.map(|duration| {
                let more = duration.saturating_sub(before).as_nanos();
                deadline_ns.saturating_add(u64::try_from(more).unwrap_or(u64::MAX))
            });
        }
        self.state.spec.limits.duration = duration;
    }

    /// Its deadline is this one, which the kernel has.
    pub fn ends_at(&mut self, deadline_ns: u64) {
        if let Some(before) = self.deadline_ns.replace(deadline_ns)
            && let Some(duration) = &mut self.state.spec.limits.duration
        {
            *duration += Duration::from_nanos(deadline_ns.saturating_sub(before));
        }
    }

    /// No agent was there once more.
    pub fn was_away(&mut self, from: Timestamp, until: Timestamp) {
        let times = self.away.map_or(0, |away| away.times) + 1;
        self.away = Some(Away { times, from, until });
    }
}

impl Away {
    /// For a person.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { times, from, until } = self;
        let times = match times {
            1 => String::new(),
            times => format!("{times} times, the last time "),
        };
        format!(
            "the agent was away {times}from {from} until {until}; packets went on into the kernel's \
             ring, and `lost` counts those that it had no room for"
        )
    }
}
