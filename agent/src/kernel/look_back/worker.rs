//! The thread that makes rings, empties them, and lets them go.
//!
//! It does one thing after another, what others wait for first: each may take a grace period, some
//! ten milliseconds. Rings of the dead are the next pods' rings, so that a node whose pods come and go
//! makes none.

use std::sync::{Arc, PoisonError};

use remora_capture::session::LookBackMode;

use super::{
    KernelError, Shared, Slots, State,
    budget::{Budget, SPARES},
    failed, grace, log_failure,
    ring::{Ring, made},
};
use crate::session::TapId;

/// Rings that lie ready at the most: so many pods are recorded without a ring being made for them.
const READY_MAX: u64 = 32;
/// The part of the budget that they may take, beyond the spares.
const READY_PART: u64 = 8;

/// What is to be done next.
enum Step {
    /// Rings are frozen, or indices rest.
    Collect,
    Empty(Ring),
    LetGo(Ring),
    /// To a tap that waits.
    Give(Ring),
    /// One of so many pages.
    Make(u32),
    /// From a tap that has more than its share, while others have none.
    Withdraw(TapId),
    Nothing,
}

impl Shared {
    /// Until it is closed.
    pub(super) fn run(&self) {
        loop {
            let none = |state: &mut State| !state.work && !state.closed;
            let state = self.came.wait_while(self.state(), none);
            let mut state = state.unwrap_or_else(PoisonError::into_inner);
            if state.closed {
                return;
            }
            state.work = false;
            drop(state);
            while self.step().unwrap_or_else(|error| {
                // Again when something comes, at the latest with the next tidying up.
                log_failure(Err(error));
                false
            }) {}
        }
    }

    /// Does what is next; whether there was something.
    fn step(&self) -> Result<bool, KernelError> {
        let next = self.next(&mut self.state());
        match next {
            Step::Collect => self.collect()?,
            Step::Empty(mut ring) => match ring.empty(self.options.flow_cutoff) {
                Ok(()) => self.give(&mut self.state(), ring)?,
                Err(error) => {
                    self.let_go(ring)?;
                    return Err(error);
                }
            },
            Step::LetGo(ring) => self.let_go(ring)?,
            Step::Give(ring) => self.give(&mut self.state(), ring)?,
            Step::Make(pages) => {
                let ring = self.ring(pages)?;
                let mut state = self.state();
                match state.waiting().or_else(|| state.misfit(pages)) {
                    Some(tap) => {
                        state.replace(tap, ring)?;
                        self.count(&state)?;
                    }
                    None => state.ready.push(ring),
                }
            }
            Step::Withdraw(tap) => {
                let mut state = self.state();
                state.withdraw(tap)?;
                self.count(&state)?;
            }
            Step::Nothing => return Ok(false),
        }
        Ok(true)
    }

    fn next(&self, state: &mut State) -> Step {
        if state.closed {
            return Step::Nothing;
        }
        if !state.frozen.is_empty() || !state.resting.is_empty() {
            return Step::Collect;
        }
        let budget = &self.options.budget;
        let pods = state.followed.values();
        let pods = pods.filter(|pod| pod.mode != LookBackMode::Off).count();
        let share = budget.share(pods);
        if let Some(ring) = state.used.pop() {
            let is_wanted = state.waiting().is_some() || state.ready.len() < self.ready_max(share);
            return if is_wanted && !Budget::is_wrong(ring.pages, share) {
                Step::Empty(ring)
            } else {
                Step::LetGo(ring)
            };
        }
        let surplus = state.ready.iter().position(|ring| ring.pages > share);
        if let Some(surplus) = surplus {
            return Step::LetGo(state.ready.swap_remove(surplus));
        }
        if share == 0 {
            return Step::Nothing;
        }
        let has_room = budget.has_room(state.pages, share);
        if state.waiting().is_some() {
            if has_room {
                return Step::Make(share);
            }
            if let Some(ring) = state.ready.pop() {
                return Step::Give(ring);
            }
            // All memory is in rings: without it who came last would never be recorded.
            if let Some(tap) = state.too_large(share) {
                return Step::Withdraw(tap);
            }
        }
        if has_room && (state.misfit(share).is_some() || state.ready.len() < SPARES) {
            return Step::Make(share);
        }
        Step::Nothing
    }

    /// Waits once for all programs that may still write a ring or for a tap that are theirs no more,
    /// and copies those rings.
    fn collect(&self) -> Result<(), KernelError> {
        let (frozen, rested) = {
            let mut state = self.state();
            (std::mem::take(&mut state.frozen), state.resting.clone())
        };
        grace::wait();
        self.state().resting.retain(|index| !rested.contains(index));
        let mut failed = Ok(());
        for frozen in frozen {
            if let Err(error) = self.copy(&frozen) {
                failed = Err(error);
                self.state().frozen.push(Arc::clone(&frozen));
            }
        }
        failed
    }

    /// Rings that may lie ready.
    fn ready_max(&self, share: u32) -> usize {
        let beyond = self.options.budget.pages() / READY_PART / u64::from(share.max(1));
        let beyond = usize::try_from(beyond.min(READY_MAX)).unwrap_or(usize::MAX);
        beyond.max(SPARES)
    }

    /// A new ring in a slot of its own.
    fn ring(&self, pages: u32) -> Result<Ring, KernelError> {
        let map = made(pages, self.options.flow_cutoff)?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots
            .free
            .pop()
            .ok_or_else(|| KernelError::Scope("all look-back slots are in use".to_owned()))?;
        if let Err(error) = slots.outer.set(slot, &map, 0) {
            slots.free.push(slot);
            return Err(failed("LOOK_BACK")(error));
        }
        self.state().pages += u64::from(pages);
        Ok(Ring::new(map, slot, pages))
    }

    /// Empties a slot. Afterwards no program has its ring.
    fn let_go(&self, ring: Ring) -> Result<(), KernelError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let Slots { outer, none, free } = &mut *slots;
        outer.set(ring.slot, none, 0).map_err(failed("LOOK_BACK"))?;
        free.push(ring.slot);
        self.state().pages -= u64::from(ring.pages);
        Ok(())
    }
}

impl State {
    /// A tap whose ring has more than its share.
    fn too_large(&self, share: u32) -> Option<TapId> {
        let large = |ring: &Ring| ring.pages > share;
        let mut taps = self.followed.values();
        let tap = taps.find(|followed| followed.ring.as_ref().is_some_and(large));
        tap.map(|followed| followed.tap)
    }

    /// A tap whose ring has the wrong size.
    fn misfit(&self, share: u32) -> Option<TapId> {
        let wrong = |ring: &Ring| Budget::is_wrong(ring.pages, share);
        let mut taps = self.followed.values();
        let misfit = taps.find(|followed| followed.ring.as_ref().is_some_and(wrong));
        misfit.map(|followed| followed.tap)
    }
}
