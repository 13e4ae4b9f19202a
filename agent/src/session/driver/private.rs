//! How much of its packets each session may take: the privacy level of its target, now.
//!
//! A tap's packets are cut in the kernel as the strictest of its sessions wants it. A level that gets
//! stricter holds for running sessions, too: what cannot be cut ends. While it is not known, what was
//! known last holds.

use std::collections::HashMap;

use remora_capture::session::{LookBackMode, StopReason};

use super::Driver;
use crate::session::{Slot, TapId, running::join};

/// What is said of a session whose target may not be captured any more.
const FORBIDDEN: &str =
    "ended: its namespace has the privacy level `none` by now (label remora.dev/privacy)";
const CUT: &str = "its namespace has the privacy level `headers` by now: later packets are cut after \
    their transport headers";
const WHOLE: &str = "its namespace has the privacy level `payload` by now: later packets are whole";

impl Driver {
    /// The strictest level of each of the taps, by these and by the sessions that are there.
    pub(super) fn levels(
        &self,
        taps: impl Iterator<Item = (TapId, LookBackMode)>,
    ) -> Vec<(TapId, LookBackMode)> {
        let mut levels: HashMap<TapId, LookBackMode> = HashMap::new();
        for (tap, level) in taps {
            let strictest = levels.entry(tap).or_insert(level);
            *strictest = level.max(*strictest);
        }
        for (_, session) in self.sessions() {
            for tap in session.taps.iter() {
                if let Some(strictest) = levels.get_mut(&tap.id) {
                    *strictest = session.place.level.max(*strictest);
                }
            }
        }
        levels.into_iter().collect()
    }

    /// Holds running sessions to the levels of this moment.
    pub(super) fn look_at_levels(&mut self) {
        let changed: Vec<_> = self
            .sessions()
            .filter(|(_, session)| session.output.is_some())
            .filter_map(|(slot, session)| {
                let level = self.targets.level(&session.place)?;
                (level != session.place.level).then_some((slot, level))
            })
            .collect();
        for (slot, level) in changed {
            self.change_level(slot, level);
        }
    }

    fn change_level(&mut self, slot: Slot, level: LookBackMode) {
        let entry = self.slots.get_mut(slot.0 as usize);
        let Some(session) = entry.and_then(|entry| entry.session.as_mut()) else {
            return;
        };
        session.place.level = level;
        let message = match level {
            LookBackMode::Payload => WHOLE,
            LookBackMode::Headers => CUT,
            LookBackMode::Off => FORBIDDEN,
        };
        tracing::info!(capture = %session.state.id, message, "another privacy level");
        if !session.state.message.contains(message) {
            session.state.message = join(&session.state.message, message);
        }
        let taps = std::sync::Arc::clone(&session.taps);
        let levels = self.levels(taps.iter().map(|tap| (tap.id, level)));
        let restricted = self.taps.restrict(&levels);
        if let Err(error) = &restricted {
            tracing::error!(%error, "failed to cut the packets of a session");
        }
        // What cannot be cut is not taken.
        if level == LookBackMode::Off || restricted.is_err() {
            self.end(slot, StopReason::Requested);
        } else if let Some(session) = self
            .slots
            .get(slot.0 as usize)
            .and_then(|e| e.session.as_ref())
        {
            let state = session.state.clone();
            self.registry.update(state.clone());
            self.publish(&state);
        }
    }
}
