//! Sessions that are made to last longer, by a call or by an alert that joins them.
//!
//! The kernel reads a session's deadline while it is written, byte by byte for all that is promised. So
//! it is written twice, first to have none: of two values of which one has all bits set no mixture is
//! earlier than the other.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use remora_capture::{
    amendment::{Amendment, JoinedAlert},
    evidence::Digest,
    session::{CaptureId, DURATION_MAX, StopReason, Target},
};
use tokio::time::Instant;

use super::Driver;
use crate::session::{
    ExtendError, LookupError, Order, Place, Slot, StartError,
    handle::{Extended, Joined, Looked},
    rates::Beginner,
    running::Running,
};

/// Idempotency keys of joined alerts that are remembered; 32 bytes each and the id.
const JOINED_KEYS_MAX: usize = 16 << 10;

/// Idempotency keys of alerts that joined a capture. The oldest goes first.
#[derive(Debug, Default)]
pub(super) struct JoinedKeys {
    captures: BTreeMap<Digest, CaptureId>,
    order: VecDeque<Digest>,
}

impl JoinedKeys {
    pub(super) fn insert(&mut self, key: &str, id: CaptureId) {
        let key = Digest::of(key.as_bytes());
        if self.captures.insert(key, id).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > JOINED_KEYS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.captures.remove(&oldest);
        }
    }

    fn get(&self, key: &str) -> Option<CaptureId> {
        let key = Digest::of(key.as_bytes());
        self.captures.get(&key).copied()
    }

    /// Its place in the order stays, and goes in its turn.
    fn remove(&mut self, key: &str) {
        let key = Digest::of(key.as_bytes());
        self.captures.remove(&key);
    }
}

/// What became of a session that was to last longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lengthened {
    Yes,
    /// It lasts that long already.
    AsItWas,
    /// Its time was over.
    Over,
}

impl Driver {
    /// What is known of an order before anything is looked up for it.
    pub(super) fn look_at(&mut self, order: &Order) -> Looked {
        if let Some(known) = self.known_or_joined(order) {
            return known;
        }
        match self.may_begin(order) {
            Ok(()) => Looked::New,
            Err(error) => Looked::Refused(error),
        }
    }

    /// The capture that an order's key made or joined, or that it joins now.
    pub(super) fn known_or_joined(&mut self, order: &Order) -> Option<Looked> {
        if let Some(key) = &order.key {
            let by_key = self.registry.by_key(key).map(|state| state.id);
            let known = by_key.or_else(|| self.joined.get(key));
            if let Some(state) = known.and_then(|id| self.fresh(id)) {
                return Some(Looked::Existing(Box::new(state)));
            }
        }
        let slot = self.joins(order)?;
        match self.join(slot, order) {
            Ok(joined) => joined.map(|joined| Looked::Joined(Box::new(joined))),
            Err(error) => Some(Looked::Refused(error)),
        }
    }

    /// The running session that an order joins.
    fn joins(&self, order: &Order) -> Option<Slot> {
        let key = order.coalescing_key.as_deref()?;
        let is_it = |session: &Running| {
            session.coalescing_key.as_deref() == Some(key)
                && session.output.is_some()
                && session.state.spec.takes_what(&order.spec)
                && !session.place.is_past()
                && session.taps.iter().all(|tap| self.taps.is_bound(tap.id))
                && self.targets.still_there(&session.place)
        };
        self.sessions()
            .find(|(_, session)| is_it(session))
            .map(|(slot, _)| slot)
    }

    /// `None`: its time is over.
    fn join(&mut self, slot: Slot, order: &Order) -> Result<Option<Joined>, StartError> {
        let Some(session) = self.session(slot) else {
            return Ok(None);
        };
        let run = (self.now_ns)().saturating_sub(session.begun_ns);
        let wanted = order.spec.limits.duration;
        let total = wanted.map(|wanted| (Duration::from_nanos(run) + wanted).min(DURATION_MAX));
        if self.lengthen(slot, total)? == Lengthened::Over {
            return Ok(None);
        }
        let Some(session) = self.session(slot) else {
            return Ok(None);
        };
        let (state, trigger) = (&session.state, &order.spec.trigger);
        let joined = Joined {
            amendment: Amendment {
                at: Timestamp::now(),
                caller: order.caller.clone(),
                duration: state.spec.limits.duration,
                alert: Some(JoinedAlert::new(
                    &trigger.alert,
                    order.key.as_deref(),
                    trigger.time,
                )),
            },
            state: state.clone(),
        };
        if let Some(key) = &order.key {
            self.joined.insert(key, joined.state.id);
        }
        Ok(Some(joined))
    }

    /// An order has not joined after all: its session ended.
    pub(super) fn unjoin(&mut self, key: &str) {
        self.joined.remove(key);
    }

    /// Lets a capture last so long in all, if it does not last longer already.
    pub(super) fn extend(
        &mut self,
        id: CaptureId,
        duration: Duration,
        caller: String,
    ) -> Result<Extended, ExtendError> {
        let known = self.registry.get(id).ok_or(LookupError::NotFound(id))?;
        if known.phase.is_final() {
            return Err(ExtendError::Ended(id));
        }
        let (slot, session) = self.find(id).ok_or(ExtendError::Ended(id))?;
        if session.output.is_none() {
            return Err(ExtendError::Ended(id));
        }
        if let Some(files) = session.state.spec.writing.rotation.duration()
            && duration > files
        {
            return Err(ExtendError::Files(id));
        }
        let lengthened = self
            .lengthen(slot, Some(duration))
            .map_err(|error| ExtendError::Kernel(error.to_string()))?;
        let state = self.fresh(id).ok_or(LookupError::NotFound(id))?;
        match lengthened {
            Lengthened::Over => Err(ExtendError::Ended(id)),
            Lengthened::AsItWas => Ok(Extended {
                state,
                amendment: None,
            }),
            Lengthened::Yes => {
                self.publish(&state);
                let amendment = Amendment {
                    at: Timestamp::now(),
                    caller,
                    duration: state.spec.limits.duration,
                    alert: None,
                };
                Ok(Extended {
                    state,
                    amendment: Some(amendment),
                })
            }
        }
    }

    /// `total`: from its start on; none: without limit.
    fn lengthen(&mut self, slot: Slot, total: Option<Duration>) -> Result<Lengthened, StartError> {
        let Some(session) = self.session(slot) else {
            return Ok(Lengthened::Over);
        };
        let Some(before) = session.state.spec.limits.duration else {
            return Ok(Lengthened::AsItWas);
        };
        if total.is_some_and(|total| total <= before) {
            return Ok(Lengthened::AsItWas);
        }
        let files = session.state.spec.writing.rotation.duration();
        let lasts = total.into_iter().chain(files).min();
        let ends_ns = lasts.map(|lasts| {
            let lasts = u64::try_from(lasts.as_nanos()).unwrap_or(u64::MAX);
            session.begun_ns.saturating_add(lasts)
        });
        if let Some(ended_ns) = session.ends_ns {
            self.taps.set_deadline(slot, None)?;
            let now_ns = (self.now_ns)();
            if now_ns >= ended_ns {
                // Packets may have passed that it did not take.
                self.taps.set_deadline(slot, Some(ended_ns))?;
                self.end(slot, StopReason::Duration);
                return Ok(Lengthened::Over);
            }
            self.taps.set_deadline(slot, ends_ns)?;
            let left = |ends_ns: u64| Duration::from_nanos(ends_ns.saturating_sub(now_ns));
            let deadline = ends_ns.and_then(|ends_ns| Instant::now().checked_add(left(ends_ns)));
            if let Some(session) = self.session_mut(slot) {
                session.ends_ns = ends_ns;
                session.deadline = deadline;
            }
        }
        if let Some(session) = self.session_mut(slot) {
            session.state.spec.limits.duration = total;
            let id = session.state.id;
            self.registry.lasts(id, total);
        }
        Ok(Lengthened::Yes)
    }

    /// An order that comes from an alert may begin a capture now, as far as it is known before its
    /// target is looked up.
    fn may_begin(&mut self, order: &Order) -> Result<(), StartError> {
        if order.coalescing_key.is_none() {
            return Ok(());
        }
        let now_ns = (self.now_ns)();
        self.buckets
            .check(beginner(order, None), now_ns)
            .map_err(StartError::Rate)
    }

    /// An order that comes from an alert begins a capture now: what fails from then on has used its
    /// room.
    pub(super) fn take_token(&mut self, order: &Order, place: &Place) -> Result<(), StartError> {
        if order.coalescing_key.is_none() {
            return Ok(());
        }
        let (now_ns, who) = ((self.now_ns)(), beginner(order, Some(place)));
        self.buckets.check(who, now_ns).map_err(StartError::Rate)?;
        self.buckets.take(who, now_ns);
        Ok(())
    }

    fn session(&self, slot: Slot) -> Option<&Running> {
        self.slots.get(slot.0 as usize)?.session.as_ref()
    }

    fn session_mut(&mut self, slot: Slot) -> Option<&mut Running> {
        self.slots.get_mut(slot.0 as usize)?.session.as_mut()
    }
}

/// By what the node knows of the target, then by what the order says.
fn beginner<'a>(order: &'a Order, place: Option<&'a Place>) -> Beginner<'a> {
    let spec = &order.spec;
    let pod = place.and_then(|place| place.pod.as_deref());
    let namespace = match (pod, &spec.target) {
        (Some(pod), _) => pod.namespace.as_str(),
        (None, Target::Pod(pod)) => pod.namespace.as_str(),
        _ => spec.labels.get("namespace").map_or("", String::as_str),
    };
    Beginner {
        namespace,
        rule: &spec.trigger.rule,
    }
}
