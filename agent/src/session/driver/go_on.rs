//! Sessions of the agent before this one (`--pin`).

use std::{sync::Arc, time::Duration};

use remora_capture::session::StopReason;
use tokio::time::Instant;

use super::Driver;
use crate::session::{
    BoundTap, Meter, Slot, Standing, StillArmed,
    running::{Afterwards, Running, join},
};

impl Driver {
    /// Takes up a session of the agent before this one. To be called before the ring is read.
    pub(super) fn go_on(&mut self, mut standing: Standing) {
        let slot = Slot(standing.slot);
        let taps: Arc<[BoundTap]> = standing.taps.as_slice().into();
        let meter = Arc::new(Meter::default());
        let output = self.outputs.go_on(&mut standing, &taps, Arc::clone(&meter));
        let output = match output {
            Ok(output) => output,
            Err(problem) => {
                let id = standing.state.id;
                tracing::error!(capture = %id, %problem, "failed to go on with a capture");
                self.taps.disarm(slot, &taps);
                self.taps.grace();
                self.taps.release(&taps);
                return;
            }
        };
        let Standing {
            mut state,
            key,
            generation,
            place,
            deadline_ns,
            begun_ns,
            coalescing_key,
            joined,
            away,
            ..
        } = standing;
        if let Some(away) = away {
            state.message = join(&state.message, &away.text());
        }
        let now_ns = (self.now_ns)();
        let deadline = deadline_ns.and_then(|deadline_ns| {
            Instant::now().checked_add(Duration::from_nanos(deadline_ns.saturating_sub(now_ns)))
        });
        let (is_past, is_stored) = (place.is_past(), output.stored().is_some());
        let Some(entry) = self.slots.get_mut(standing.slot as usize) else {
            return;
        };
        entry.generation = generation;
        entry.session = Some(Running {
            state: state.clone(),
            afterwards: Afterwards::Keep,
            place,
            shared: false,
            taps,
            stream: None,
            stored: output.stored(),
            output: Some(output),
            meter,
            armed: Instant::now(),
            deadline,
            begun_ns,
            ends_ns: deadline_ns,
            coalescing_key,
        });
        for key in joined {
            self.joined.insert(&key, state.id);
        }
        tracing::info!(capture = %state.id, target = %state.resolved_target, "capturing again");
        self.registry.insert(state, key);
        match self.taps.still_armed(slot) {
            _ if !is_stored => self.end_at_start(slot, StopReason::ReaderGone),
            StillArmed::Yes if is_past => self.end_at_start(slot, StopReason::TargetGone),
            StillArmed::Yes => {}
            // `conclude` tells which of the limits.
            StillArmed::LimitReached => self.end_at_start(slot, StopReason::FileBytes),
            StillArmed::No => self.end_at_start(slot, StopReason::CrashRecovered),
        }
    }

    /// As a signal, which is looked at when the driver runs and the ring is read.
    fn end_at_start(&mut self, slot: Slot, reason: StopReason) {
        self.ending.push((slot, reason));
    }
}
