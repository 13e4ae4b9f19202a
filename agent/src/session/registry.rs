//! Captures that the node knows: running ones, and finished ones up to a bound.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use remora_capture::session::{CaptureId, CaptureState};

/// Finished captures that `list --all` and `show` still know.
const FINISHED_MAX: usize = 1024;
/// Idempotency keys that are remembered: those of the captures that are known.
const KEYS_MAX: usize = FINISHED_MAX + 64;

/// Known captures by id, which is by time.
#[derive(Debug, Default)]
pub(super) struct Registry {
    entries: BTreeMap<CaptureId, CaptureState>,
    finished: VecDeque<CaptureId>,
    keys: HashMap<String, CaptureId>,
    key_order: VecDeque<String>,
}

impl Registry {
    pub(super) fn insert(&mut self, state: CaptureState, key: Option<String>) {
        if let Some(key) = key {
            self.key_order.push_back(key.clone());
            self.keys.insert(key, state.id);
            if self.key_order.len() > KEYS_MAX
                && let Some(oldest) = self.key_order.pop_front()
            {
                self.keys.remove(&oldest);
            }
        }
        self.update(state);
    }

    /// Takes the newest state; forgets the oldest finished captures beyond the bound.
    pub(super) fn update(&mut self, state: CaptureState) {
        let id = state.id;
        let ends = state.phase.is_final();
        let before = self.entries.insert(id, state);
        if ends && before.is_none_or(|before| !before.phase.is_final()) {
            self.finished.push_back(id);
            if self.finished.len() > FINISHED_MAX
                && let Some(oldest) = self.finished.pop_front()
            {
                self.entries.remove(&oldest);
            }
        }
    }

    /// A running capture lasts so long in all.
    pub(super) fn lasts(&mut self, id: CaptureId, duration: Option<Duration>) {
        if let Some(state) = self.entries.get_mut(&id) {
            state.spec.limits.duration = duration;
        }
    }

    /// Forgets a capture that did not start.
    pub(super) fn remove(&mut self, id: CaptureId) {
        self.entries.remove(&id);
    }

    pub(super) fn get(&self, id: CaptureId) -> Option<&CaptureState> {
        self.entries.get(&id)
    }

    pub(super) fn by_key(&self, key: &str) -> Option<&CaptureState> {
        self.keys.get(key).and_then(|id| self.entries.get(id))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &CaptureState> {
        self.entries.values()
    }
}
