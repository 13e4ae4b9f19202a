//! The one task that owns the sessions.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use remora_agent_common::SESSION_SLOTS;
use remora_capture::session::{CaptureId, CaptureState, Counts, Phase, StopReason};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    Arming, BoundTap, Confirm, DRAIN_SLOW, DriverHandle, LookupError, Meter, Opening, Outputs,
    Place, Ready, Signal, Slot, Standing, StartError, Started, StillArmed, StreamSource, Taps,
    Targets,
    handle::{Arm, Reply, Request},
    registry::Registry,
    running::{Afterwards, Drained, Running, SlotState, conclude, join, notes},
    share::{ShareWatch, Shared},
};

/// Requests that wait for the driver, each of which it answers in microseconds.
const REQUESTS: usize = 256;
/// Signals that wait: a session sends at most one of each kind.
const SIGNALS: usize = 8 * SESSION_SLOTS as usize;
/// Changes of phase that a slow watcher may be behind.
const EVENTS: usize = 1024;
/// How often running sessions' targets are looked for.
const LOOK: Duration = Duration::from_millis(500);
/// A streamed capture that nobody reads ends after this.
const READER_PATIENCE: Duration = Duration::from_secs(10);

/// What the driver is made of.
pub struct DriverParts {
    pub taps: Arc<dyn Taps>,
    pub targets: Arc<dyn Targets>,
    pub outputs: Arc<dyn Outputs>,
    pub node: String,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub now_ns: fn() -> u64,
    /// Captures of earlier runs, oldest first.
    pub known: Vec<CaptureState>,
    /// Sessions that outlived their agent: their taps are bound, their slots filled.
    pub standing: Vec<Standing>,
    pub signals: mpsc::Receiver<Signal>,
}

/// The task's state.
pub struct Driver {
    taps: Arc<dyn Taps>,
    targets: Arc<dyn Targets>,
    outputs: Arc<dyn Outputs>,
    node: String,
    now_ns: fn() -> u64,
    requests: mpsc::Receiver<Request>,
    signals: mpsc::Receiver<Signal>,
    drained: (mpsc::Sender<Drained>, mpsc::Receiver<Drained>),
    events: broadcast::Sender<CaptureState>,
    registry: Registry,
    slots: Vec<SlotState>,
    waiting: HashMap<CaptureId, Vec<Reply<CaptureState>>>,
    draining: Option<Vec<oneshot::Sender<()>>>,
    /// Sessions with files stay for the next agent.
    leaving: bool,
    /// Sessions of the agent before this one that are to be ended first of all.
    ending: Vec<(Slot, StopReason)>,
    watch: ShareWatch,
}

/// A channel for [`Signal`]s, to be made before the driver: outputs are given its sender.
#[must_use]
pub fn signals() -> (mpsc::Sender<Signal>, mpsc::Receiver<Signal>) {
    mpsc::channel(SIGNALS)
}

impl Driver {
    #[must_use]
    pub fn new(parts: DriverParts) -> (Self, DriverHandle) {
        let DriverParts {
            taps,
            targets,
            outputs,
            node,
            now_ns,
            known,
            standing,
            signals,
        } = parts;
        let (sender, requests) = mpsc::channel(REQUESTS);
        let (events, _) = broadcast::channel(EVENTS);
        let mut registry = Registry::default();
        for state in known {
            registry.insert(state, None);
        }
        let handle = DriverHandle {
            requests: sender,
            events: events.clone(),
            taps: Arc::clone(&taps),
            targets: Arc::clone(&targets),
        };
        let mut driver = Self {
            watch: ShareWatch::new(Arc::clone(&targets)),
            taps,
            targets,
            outputs,
            node,
            now_ns,
            requests,
            signals,
            drained: mpsc::channel(SESSION_SLOTS as usize),
            events,
            registry,
            slots: (0..SESSION_SLOTS).map(|_| SlotState::default()).collect(),
            waiting: HashMap::new(),
            draining: None,
            leaving: false,
            ending: Vec::new(),
        };
        for session in standing {
            driver.go_on(session);
        }
        (driver, handle)
    }

    /// Takes up a session of the agent before this one. To be called before the ring is read.
    fn go_on(&mut self, mut standing: Standing) {
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
        });
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

    /// Runs until every handle is gone.
    pub async fn run(mut self) {
        for (slot, reason) in std::mem::take(&mut self.ending) {
            self.end(slot, reason);
        }
        // Before it is looked whether their targets are gone, which may have been later.
        self.end_overdue();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => self.request(request),
                    None => return,
                },
                Some(signal) = self.signals.recv() => self.signal(signal),
                Some(drained) = self.drained.1.recv() => self.finished(drained),
                () = until(deadline) => self.end_overdue(),
                shared = self.watch.found() => self.note_shared(shared),
                _ = look.tick(), if self.any_running() => self.look_for_targets(),
            }
        }
    }

    fn request(&mut self, request: Request) {
        // A requester that went away meanwhile needs no answer.
        match request {
            Request::Known { key, reply } => {
                let state = self.registry.by_key(&key).map(|state| state.id);
                let _gone = reply.send(state.and_then(|id| self.fresh(id)));
            }
            Request::Arm { arm, reply } => {
                let started = self.arm(*arm);
                if let Err(Ok((started, _))) = reply.send(started)
                    && !started.existing
                {
                    // Nobody knows of it: it would run for nothing.
                    self.stop_id(started.state.id, StopReason::ReaderGone);
                }
            }
            Request::Abort { id, reply } => self.abort(id, reply),
            Request::Stop { id, reason, reply } => {
                self.stop_id(id, reason);
                self.answer_when_final(id, reply);
            }
            Request::Get { id, reply } => {
                let _gone = reply.send(self.fresh(id).ok_or(LookupError::NotFound(id)));
            }
            Request::List { reply } => {
                let ids: Vec<_> = self.registry.iter().map(|state| state.id).collect();
                let states = ids.into_iter().filter_map(|id| self.fresh(id)).collect();
                let _gone = reply.send(states);
            }
            Request::Stream { id, reply } => {
                let _gone = reply.send(self.stream(id));
            }
            Request::Opened { id } => self.end_if_past(id),
            Request::Wait { id, reply } => self.answer_when_final(id, reply),
            Request::Drain { reply } => {
                self.draining.get_or_insert_default().push(reply);
                for slot in self.running_slots() {
                    self.end(slot, StopReason::Shutdown);
                }
                self.answer_drained();
            }
            Request::Leave { reply } => {
                self.leaving = true;
                self.draining.get_or_insert_default().push(reply);
                let ends = |(_, session): &(Slot, &Running)| !session.outlives_agent();
                let ending: Vec<_> = self.sessions().filter(ends).map(|(slot, _)| slot).collect();
                for slot in ending {
                    self.end(slot, StopReason::Shutdown);
                }
                self.answer_drained();
            }
        }
    }

    fn arm(&mut self, arm: Arm) -> Result<(Started, Option<Ready>), StartError> {
        let Arm {
            order,
            place,
            taps,
            confirm,
        } = arm;
        // A second call with the same key may have been on its way at the same time.
        let known = order
            .key
            .as_deref()
            .and_then(|key| self.registry.by_key(key))
            .map(|state| state.id)
            .and_then(|id| self.fresh(id));
        if let Some(state) = known {
            self.taps.release(&taps);
            let started = Started {
                state,
                existing: true,
            };
            return Ok((started, None));
        }
        let key = order.key.clone();
        match self.arm_new(order, place, &taps, confirm) {
            Ok((state, ready)) => {
                self.registry.insert(state.clone(), key);
                self.publish(&state);
                Ok((
                    Started {
                        state,
                        existing: false,
                    },
                    ready,
                ))
            }
            Err(error) => {
                self.taps.release(&taps);
                Err(error)
            }
        }
    }

    /// Ends a capture whose output could not be opened; it leaves nothing behind.
    fn abort(&mut self, id: CaptureId, reply: Reply<CaptureState>) {
        if let Some(session) = self
            .slots
            .iter_mut()
            .filter_map(|entry| entry.session.as_mut())
            .find(|session| session.state.id == id)
        {
            session.afterwards = Afterwards::Forget;
        }
        self.stop_id(id, StopReason::IoError);
        self.answer_when_final(id, reply);
    }

    fn arm_new(
        &mut self,
        order: super::Order,
        place: Place,
        taps: &[BoundTap],
        confirm: Confirm,
    ) -> Result<(CaptureState, Option<Ready>), StartError> {
        if self.draining.is_some() {
            return Err(StartError::Draining);
        }
        let (slot, entry) = (0..)
            .map(Slot)
            .zip(&mut self.slots)
            .find(|(_, entry)| entry.session.is_none())
            .ok_or(StartError::SessionLimit(SESSION_SLOTS))?;
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
        };
        let begun = std::time::Instant::now();
        let limits = state.spec.limits;
        // A number of files that rotate by time alone is an end, too.
        let duration = limits
            .duration
            .into_iter()
            .chain(state.spec.writing.rotation.duration())
            .min();
        let deadline_ns = duration.map(|duration| {
            let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
            (self.now_ns)().saturating_add(duration_ns)
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
            standing: Standing {
                state: state.clone(),
                key: order.key,
                slot: slot.0,
                generation,
                place: place.clone(),
                taps: taps.to_vec(),
                seen: self.taps.seen(taps),
                notes: notes.clone(),
                deadline_ns,
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
        if let Err(error) = self.taps.arm(&arming, taps) {
            // Blocks for as long as an empty file takes to close: this is the rare way.
            let _closed = output.close(super::KernelCounts::default());
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
        };
        if let Some(entry) = self.slots.get_mut(slot.0 as usize) {
            entry.session = Some(session);
        }
        tracing::debug!(?opened, armed = ?begun.elapsed() - opened, "opened and armed");
        tracing::info!(capture = %state.id, target = %state.resolved_target, "capturing");
        Ok((state, ready))
    }

    /// Begins a session's end, unless it has begun.
    fn end(&mut self, slot: Slot, reason: StopReason) {
        let Some(session) = self
            .slots
            .get_mut(slot.0 as usize)
            .and_then(|s| s.session.as_mut())
        else {
            return;
        };
        let Some(mut output) = session.output.take() else {
            return;
        };
        session.state.phase = Phase::Draining;
        session.state.stop_reason = Some(reason);
        session.deadline = None;
        output.disarming((self.now_ns)());
        self.taps.disarm(slot, &session.taps);
        // An unread stream ends with its session.
        session.stream = None;

        let mut state = session.state.clone();
        let afterwards = session.afterwards;
        let bound = Arc::clone(&session.taps);
        let meter = Arc::clone(&session.meter);
        let (taps, outputs) = (Arc::clone(&self.taps), Arc::clone(&self.outputs));
        let done = self.drained.0.clone();
        self.registry.update(state.clone());
        self.publish(&state);
        tokio::task::spawn_blocking(move || {
            let begun = std::time::Instant::now();
            taps.grace();
            let closed = output.close(taps.counts(slot));
            taps.release(&bound);
            let files = conclude(&mut state, closed, &meter);
            if afterwards == Afterwards::Forget {
                outputs.forget(state.id);
            } else if let Err(problem) = outputs.keep(&state, &files) {
                tracing::error!(capture = %state.id, %problem, "the capture's account is not kept");
                state.message = join(&state.message, &problem);
            }
            if begun.elapsed() > DRAIN_SLOW {
                tracing::warn!(capture = %state.id, took = ?begun.elapsed(), "slow to finish");
            }
            // The driver outlives its sessions.
            let _gone = done.blocking_send(Drained {
                slot,
                afterwards,
                state,
            });
        });
    }

    fn finished(&mut self, drained: Drained) {
        let Drained {
            slot,
            afterwards,
            state,
        } = drained;
        if let Some(entry) = self.slots.get_mut(slot.0 as usize) {
            entry.session = None;
        }
        let Counts { written, .. } = state.counts;
        let missing = state.counts.missing();
        let reason = state.stop_reason.map_or("", StopReason::text);
        if missing == 0 {
            tracing::info!(capture = %state.id, written, reason, "finished");
        } else {
            tracing::error!(capture = %state.id, written, missing, reason, "finished with losses");
        }
        match afterwards {
            Afterwards::Keep => self.registry.update(state.clone()),
            Afterwards::Forget => self.registry.remove(state.id),
        }
        self.publish(&state);
        for reply in self.waiting.remove(&state.id).unwrap_or_default() {
            let _gone = reply.send(Ok(state.clone()));
        }
        self.answer_drained();
    }

    fn signal(
        &mut self,
        Signal {
            slot,
            generation,
            reason,
        }: Signal,
    ) {
        let current = self
            .slots
            .get(slot.0 as usize)
            .is_some_and(|s| s.generation == generation);
        if current {
            self.end(slot, reason);
        }
    }

    fn stop_id(&mut self, id: CaptureId, reason: StopReason) {
        if let Some((slot, _)) = self.find(id) {
            self.end(slot, reason);
        }
    }

    /// Nothing more comes from a target that is gone. A stream stays open until it is read.
    fn end_if_past(&mut self, id: CaptureId) {
        if let Some((slot, session)) = self.find(id)
            && session.place.is_past()
            && session.stream.is_none()
        {
            self.end(slot, StopReason::TargetGone);
        }
    }

    fn end_overdue(&mut self) {
        let now = Instant::now();
        let overdue: Vec<_> = self
            .sessions()
            .filter(|(_, session)| session.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(slot, _)| slot)
            .collect();
        for slot in overdue {
            self.end(slot, StopReason::Duration);
        }
    }

    /// Ends sessions that nobody reads, or whose target is gone.
    fn look_for_targets(&mut self) {
        let unread: Vec<_> = self
            .sessions()
            .filter(|(_, s)| s.stream.is_some() && s.armed.elapsed() > READER_PATIENCE)
            .map(|(slot, _)| slot)
            .collect();
        for slot in unread {
            self.end(slot, StopReason::ReaderGone);
        }
        let gone: Vec<_> = self
            .sessions()
            .filter(|(_, session)| !(session.place.is_past() && session.stream.is_some()))
            .filter(|(_, session)| {
                // One lost tap is the end: what passes there now is seen by nobody, and counted by
                // nobody.
                let unbound = session.taps.iter().any(|tap| !self.taps.is_bound(tap.id));
                unbound || !self.targets.still_there(&session.place)
            })
            .map(|(slot, _)| slot)
            .collect();
        for slot in gone {
            self.end(slot, StopReason::TargetGone);
        }
        let places = (0..)
            .map(Slot)
            .zip(&self.slots)
            .filter_map(|(slot, entry)| {
                let session = entry.session.as_ref()?;
                let running = session.output.is_some() && !session.shared;
                running.then_some((slot, entry.generation, &session.place))
            });
        self.watch.look(places);
    }

    /// Says in the accounts of sessions that somebody else is behind their interfaces by now. They
    /// go on: a pod's interface is the pod's whoever looks in, and a responder who does would end
    /// the evidence.
    fn note_shared(&mut self, shared: Vec<Shared>) {
        for Shared {
            slot,
            generation,
            message,
        } in shared
        {
            let entry = self.slots.get_mut(slot.0 as usize);
            let Some(session) = entry
                .filter(|entry| entry.generation == generation)
                .and_then(|entry| entry.session.as_mut())
                .filter(|session| session.output.is_some())
            else {
                continue;
            };
            tracing::warn!(capture = %session.state.id, %message, "its target is shared");
            session.shared = true;
            session.state.message = join(&session.state.message, &message);
            let state = session.state.clone();
            self.registry.update(state.clone());
            self.publish(&state);
        }
    }

    fn stream(&mut self, id: CaptureId) -> Result<StreamSource, LookupError> {
        let outputs = Arc::clone(&self.outputs);
        if let Some((slot, _)) = self.find(id)
            && let Some(session) = self
                .slots
                .get_mut(slot.0 as usize)
                .and_then(|entry| entry.session.as_mut())
        {
            if let Some(stored) = &session.stored {
                return Ok(StreamSource::Stored(stored.clone()));
            }
            let taken = session.stream.take();
            self.end_if_past(id);
            return taken
                .map(StreamSource::Live)
                .ok_or(LookupError::StreamTaken(id));
        }
        let state = self.registry.get(id).ok_or(LookupError::NotFound(id))?;
        if state.file.is_empty() {
            return Err(LookupError::NotKept(id));
        }
        Ok(StreamSource::Stored(outputs.stored(id)))
    }

    fn answer_when_final(&mut self, id: CaptureId, reply: Reply<CaptureState>) {
        match self.registry.get(id) {
            None => {
                let _gone = reply.send(Err(LookupError::NotFound(id)));
            }
            Some(state) if state.phase.is_final() => {
                let _gone = reply.send(Ok(state.clone()));
            }
            Some(_) => self.waiting.entry(id).or_default().push(reply),
        }
    }

    fn answer_drained(&mut self) {
        let goes_on = |entry: &SlotState| {
            let session = entry.session.as_ref();
            session.is_none_or(|session| self.leaving && session.outlives_agent())
        };
        if self.slots.iter().all(goes_on)
            && let Some(waiting) = &mut self.draining
        {
            for reply in waiting.drain(..) {
                let _gone = reply.send(());
            }
        }
    }

    /// A capture's state with the counts of this moment.
    fn fresh(&self, id: CaptureId) -> Option<CaptureState> {
        let mut state = self.registry.get(id)?.clone();
        if let Some((slot, session)) = self.find(id) {
            self.taps.counts(slot).fill(&mut state.counts);
            session.meter.fill(&mut state.counts);
            state.first_packet = session.meter.first_packet();
            state.last_packet = session.meter.last_packet();
        }
        Some(state)
    }

    fn publish(&self, state: &CaptureState) {
        // Nobody watching is fine.
        let _nobody = self.events.send(state.clone());
    }

    fn find(&self, id: CaptureId) -> Option<(Slot, &Running)> {
        self.sessions().find(|(_, session)| session.state.id == id)
    }

    fn sessions(&self) -> impl Iterator<Item = (Slot, &Running)> {
        (0..)
            .map(Slot)
            .zip(&self.slots)
            .filter_map(|(slot, entry)| entry.session.as_ref().map(|session| (slot, session)))
    }

    fn running_slots(&self) -> Vec<Slot> {
        self.sessions().map(|(slot, _)| slot).collect()
    }

    fn any_running(&self) -> bool {
        self.sessions().next().is_some()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.sessions()
            .filter_map(|(_, session)| session.deadline)
            .min()
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
