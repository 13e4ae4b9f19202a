//! The one task that owns the sessions.
//!
//! - [`start`]: how they begin. [`go_on`]: those that an agent before this one began. [`private`]: how much
//!   of its packets each may take. [`longer`]: how they come to last longer, and alerts join them.
//! - Here: what is asked of them, and how they end.

mod go_on;
mod longer;
mod private;
mod start;

use std::{collections::HashMap, sync::Arc, time::Duration};

use remora_agent_common::SESSION_SLOTS;
use remora_capture::session::{CaptureId, CaptureState, Counts, Phase, StopReason};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use self::longer::JoinedKeys;
use super::{
    DRAIN_SLOW, DriverHandle, LookupError, Outputs, Signal, Slot, Standing, StreamSource, Taps,
    Targets,
    handle::{Armed, Reply, Request},
    rates::{Buckets, Rates},
    registry::Registry,
    running::{Afterwards, Drained, Running, SlotState, conclude, join, missed},
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
    /// Captures at a time; at most as many as there are slots.
    pub sessions: u32,
    /// How many captures alerts may begin in a time.
    pub rates: Rates,
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
    sessions: u32,
    waiting: HashMap<CaptureId, Vec<Reply<CaptureState>>>,
    draining: Option<Vec<oneshot::Sender<()>>>,
    /// Sessions with files stay for the next agent.
    leaving: bool,
    /// Sessions of the agent before this one that are to be ended first of all.
    ending: Vec<(Slot, StopReason)>,
    watch: ShareWatch,
    joined: JoinedKeys,
    buckets: Buckets,
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
            sessions,
            rates,
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
            outputs: Arc::clone(&outputs),
            tally: Arc::default(),
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
            sessions,
            slots: (0..SESSION_SLOTS).map(|_| SlotState::default()).collect(),
            waiting: HashMap::new(),
            draining: None,
            leaving: false,
            ending: Vec::new(),
            joined: JoinedKeys::default(),
            buckets: Buckets::new(rates),
        };
        for session in standing {
            driver.go_on(session);
        }
        (driver, handle)
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
            Request::Look { order, reply } => {
                let _gone = reply.send(self.look_at(&order));
            }
            Request::Unjoin { key } => self.unjoin(&key),
            Request::Arm { arm, reply } => {
                let armed = self.arm(*arm);
                if let Err(Ok(Armed::New(state, _))) = reply.send(armed) {
                    // Nobody knows of it: it would run for nothing.
                    self.stop_id(state.id, StopReason::ReaderGone);
                }
            }
            Request::Extend {
                id,
                duration,
                caller,
                reply,
            } => {
                let _gone = reply.send(self.extend(id, duration, caller));
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

        if session.state.pod.is_none() {
            // The API server may have told of it meanwhile.
            session.state.pod = self.targets.pod(&session.place);
        }
        let mut state = session.state.clone();
        let afterwards = session.afterwards;
        let bound = Arc::clone(&session.taps);
        let meter = Arc::clone(&session.meter);
        let (taps, outputs) = (Arc::clone(&self.taps), Arc::clone(&self.outputs));
        let (targets, place) = (Arc::clone(&self.targets), session.place.clone());
        let done = self.drained.0.clone();
        self.registry.update(state.clone());
        self.publish(&state);
        tokio::task::spawn_blocking(move || {
            let begun = std::time::Instant::now();
            taps.grace();
            let closed = output.close(taps.counts(slot));
            taps.release(&bound);
            let files = conclude(&mut state, closed, &meter);
            if place.is_taken_at_interfaces() {
                let packets = targets.bypassed(&place);
                state.message = join(&state.message, &missed(packets));
            }
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
            self.note_end_of_container(slot);
            self.end(slot, StopReason::TargetGone);
        }
        self.look_at_levels();
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

    /// A container that is started again has another cgroup.
    fn note_end_of_container(&mut self, slot: Slot) {
        let entry = self.slots.get_mut(slot.0 as usize);
        let Some(session) = entry.and_then(|entry| entry.session.as_mut()) else {
            return;
        };
        let Some(pod) = session.place.pod.as_deref() else {
            return;
        };
        if let Some(container) = &pod.container
            && session.output.is_some()
        {
            let message = format!(
                "container `{container}` of pod {} has ended; when it is started again it has another \
                 cgroup, which a new capture takes",
                pod.full_name()
            );
            session.state.message = join(&session.state.message, &message);
        }
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
