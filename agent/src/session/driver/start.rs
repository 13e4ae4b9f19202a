//! From an order whose place is bound to a session that is armed.

use std::sync::Arc;

use jiff::Timestamp;
use remora_capture::session::{CaptureId, CaptureState, Counts, Phase};
use tokio::time::Instant;

use super::Driver;
use crate::session::{
    Arming, BoundTap, Confirm, KernelCounts, Meter, Opening, Order, Place, Ready, Slot, Standing,
    StartError,
    handle::{Arm, Armed, Looked},
    running::{Afterwards, Running, notes},
};

impl Driver {
    pub(super) fn arm(&mut self, arm: Arm) -> Result<Armed, StartError> {
        let Arm {
            order,
            place,
            taps,
            confirm,
        } = arm;
        // A second call with the same key may have been on its way at the same time.
        match self.known_or_joined(&order) {
            None => {}
            Some(known) => {
                self.taps.release(&taps);
                return match known {
                    Looked::Existing(state) => Ok(Armed::Existing(*state)),
                    Looked::Joined(joined) => Ok(Armed::Joined(joined)),
                    Looked::Refused(error) => Err(error),
                    Looked::New => Err(StartError::Draining),
                };
            }
        }
        let key = order.key.clone();
        let armed = self
            .take_token(&order, &place)
            .and_then(|()| self.arm_new(order, place, &taps, confirm));
        match armed {
            Ok((state, ready)) => {
                self.registry.insert(state.clone(), key);
                self.publish(&state);
                Ok(Armed::New(state, ready))
            }
            Err(error) => {
                self.taps.release(&taps);
                Err(error)
            }
        }
    }

    fn arm_new(
        &mut self,
        order: Order,
        place: Place,
        taps: &[BoundTap],
        confirm: Confirm,
    ) -> Result<(CaptureState, Option<Ready>), StartError> {
        if self.draining.is_some() {
            return Err(StartError::Draining);
        }
        let used = self.slots.iter().filter(|entry| entry.session.is_some());
        let full = StartError::SessionLimit(self.sessions);
        if used.count() >= self.sessions as usize {
            return Err(full);
        }
        let (slot, entry) = (0..)
            .map(Slot)
            .zip(&mut self.slots)
            .find(|(_, entry)| entry.session.is_none())
            .ok_or(full)?;
        entry.generation = entry.generation.wrapping_add(1);
        let generation = entry.generation;

        let mut state = CaptureState {
            id: CaptureId::generate(),
            spec: order.spec,
            phase: Phase::Capturing,
            stop_reason: None,
            message: String::new(),
            counts: Counts::default(),
            started: Timestamp::now(),
            finished: None,
            first_packet: None,
            last_packet: None,
            file: String::new(),
            files: Default::default(),
            taps: taps.iter().map(|tap| tap.info.clone()).collect(),
            node: self.node.clone(),
            caller: order.caller,
            resolved_target: place.description.clone(),
            pod: place.pod.clone(),
        };
        let begun = std::time::Instant::now();
        let limits = state.spec.limits;
        // A number of files that rotate by time alone is an end, too.
        let duration = limits
            .duration
            .into_iter()
            .chain(state.spec.writing.rotation.duration())
            .min();
        let begun_ns = (self.now_ns)();
        let deadline_ns = duration.map(|duration| {
            let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
            begun_ns.saturating_add(duration_ns)
        });
        let meter = Arc::new(Meter::default());
        let notes = notes(&place, &state.spec.filter, taps);
        let mut output = self.outputs.open(Opening {
            slot,
            generation,
            state: &state,
            taps,
            notes: &notes,
            meter: Arc::clone(&meter),
            confirm,
            standing: &|| Standing {
                state: state.clone(),
                key: order.key.clone(),
                slot: slot.0,
                generation,
                from: 0,
                place: place.clone(),
                taps: taps.to_vec(),
                seen: self.taps.seen(taps),
                notes: notes.clone(),
                deadline_ns,
                begun_ns,
                coalescing_key: order.coalescing_key.clone(),
                joined: Vec::new(),
                offset_ns: 0,
                away: None,
            },
        })?;
        state.file = output.file().unwrap_or_default();
        let arming = Arming {
            slot,
            generation,
            spec: Arc::new(state.spec.clone()),
            byte_limit: limits
                .file_bytes
                .map(|bytes| bytes.get().saturating_sub(output.overhead_bytes())),
            deadline_ns,
        };
        let opened = begun.elapsed();
        let armed = Instant::now();
        let armed_ns = (self.now_ns)();
        let level = place.level;
        let levels = self.levels(taps.iter().map(|tap| (tap.id, level)));
        let restricted = self.taps.restrict(&levels);
        if let Err(error) = restricted.and_then(|()| self.taps.arm(&arming, taps)) {
            // Blocks for as long as an empty file takes to close: this is the rare way.
            let _closed = output.close(KernelCounts::default());
            self.outputs.forget(state.id);
            return Err(error);
        }
        output.armed(armed_ns);
        let ready = output.take_ready();
        let session = Running {
            state: state.clone(),
            afterwards: Afterwards::Keep,
            place,
            shared: false,
            taps: taps.into(),
            stream: output.take_stream(),
            stored: output.stored(),
            output: Some(output),
            meter,
            armed,
            deadline: duration.and_then(|duration| armed.checked_add(duration)),
            begun_ns,
            ends_ns: deadline_ns,
            coalescing_key: order.coalescing_key,
        };
        if let Some(entry) = self.slots.get_mut(slot.0 as usize) {
            entry.session = Some(session);
        }
        tracing::debug!(?opened, armed = ?begun.elapsed() - opened, "opened and armed");
        tracing::info!(capture = %state.id, target = %state.resolved_target, "capturing");
        Ok((state, ready))
    }
}
