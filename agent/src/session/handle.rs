//! What the rest of the agent asks of the driver.

use std::{sync::Arc, time::Duration};

use remora_capture::{
    amendment::Amendment,
    filter::{self, Filter, Meaning, Names},
    session::{CaptureId, CaptureState, Destination, SessionSpec, SpecError, StopReason, Target},
};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    BoundTap, ChunkReceiver, Confirm, Ended, FirstLook, IDEMPOTENCY_KEY_MAX, Outputs, Place, Ready,
    StartError, Stored, Taps, Targets, tally::Tally,
};

/// A request to capture.
#[derive(Clone, Debug)]
pub struct Order {
    pub spec: SessionSpec,
    pub key: Option<String>,
    /// A running capture of this key is lengthened instead, and joined.
    pub coalescing_key: Option<String>,
    /// Who called, as the agent saw it.
    pub caller: String,
}

/// The answer to an [`Order`].
#[derive(Clone, Debug)]
pub struct Started {
    pub state: CaptureState,
    pub how: How,
}

/// How an [`Order`] came to its capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It began.
    New,
    /// The key was known: it is the capture that the first call made or joined.
    Existing,
    /// One that ran was joined.
    Joined,
}

/// A capture that lasts longer, or did already.
#[derive(Clone, Debug)]
pub(super) struct Extended {
    pub(super) state: CaptureState,
    /// To be kept with its files; none if it lasted that long already.
    pub(super) amendment: Option<Amendment>,
}

/// A running capture that an order joins, if its amendment can be kept.
#[derive(Clone, Debug)]
pub(super) struct Joined {
    pub(super) state: CaptureState,
    pub(super) amendment: Amendment,
}

/// What the driver knows of an order.
pub(super) enum Looked {
    New,
    Existing(Box<CaptureState>),
    Joined(Box<Joined>),
    Refused(StartError),
}

/// What became of an order whose place is bound.
pub(super) enum Armed {
    New(CaptureState, Option<Ready>),
    Existing(CaptureState),
    Joined(Box<Joined>),
}

/// A capture cannot be lengthened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtendError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("capture {0} has ended, and lasts no longer; start another")]
    Ended(CaptureId),
    #[error("capture {0} ends by its number of files, whatever its duration; start another")]
    Files(CaptureId),
    #[error("{0}")]
    Kernel(String),
}

/// There is no such capture, or not for this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("capture {0} is not known here; `remora list --all` shows those that are")]
    NotFound(CaptureId),
    #[error("capture {0} is streamed to another reader already")]
    StreamTaken(CaptureId),
    #[error("capture {0} was streamed to its reader; nothing of it is kept here")]
    NotKept(CaptureId),
    #[error("the agent is shutting down")]
    Draining,
}

/// Where the bytes of a capture come from.
pub enum StreamSource {
    /// The one stream of a streamed capture.
    Live(ChunkReceiver),
    /// Files, which may still grow.
    Stored(Stored),
}

pub(super) enum Request {
    Look {
        order: Box<Order>,
        reply: oneshot::Sender<Looked>,
    },
    /// The capture that this key joined has ended before.
    Unjoin {
        key: String,
    },
    Arm {
        arm: Box<Arm>,
        reply: oneshot::Sender<Result<Armed, StartError>>,
    },
    Extend {
        id: CaptureId,
        duration: Duration,
        caller: String,
        reply: oneshot::Sender<Result<Extended, ExtendError>>,
    },
    /// The output could not be opened.
    Abort {
        id: CaptureId,
        reply: Reply<CaptureState>,
    },
    Stop {
        id: CaptureId,
        reason: StopReason,
        reply: Reply<CaptureState>,
    },
    Get {
        id: CaptureId,
        reply: Reply<CaptureState>,
    },
    List {
        reply: oneshot::Sender<Vec<CaptureState>>,
    },
    Stream {
        id: CaptureId,
        reply: Reply<StreamSource>,
    },
    /// Its output is open: if its target is gone, that is all.
    Opened {
        id: CaptureId,
    },
    /// Wait for the final state.
    Wait {
        id: CaptureId,
        reply: Reply<CaptureState>,
    },
    Drain {
        reply: oneshot::Sender<()>,
    },
    /// The agent goes, and its sessions stay.
    Leave {
        reply: oneshot::Sender<()>,
    },
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, LookupError>>;

pub(super) struct Arm {
    pub(super) order: Order,
    pub(super) place: Place,
    pub(super) taps: Vec<BoundTap>,
    pub(super) confirm: Confirm,
}

/// What is known of an order's target.
enum Look {
    First,
    Done(Place),
}

/// A first look that finds what has gone, too, if its past is asked for.
fn look_first(targets: &dyn Targets, spec: &SessionSpec) -> Result<FirstLook, StartError> {
    let looked = targets.presume(&spec.target);
    let is_nowhere = match &looked {
        Ok(FirstLook::Presumed(_)) => false,
        Ok(FirstLook::Certain(place)) => place.interfaces.is_empty(),
        Err(StartError::TargetNotFound(_)) => true,
        Err(_) => false,
    };
    if is_nowhere && let Some(place) = targets.departed(&spec.target)? {
        if !spec.look_back.is_zero() {
            return Ok(FirstLook::Certain(place));
        }
        if let Err(StartError::TargetNotFound(message)) = looked {
            return Err(StartError::TargetNotFound(format!(
                "{message}; its last packets are kept for a while: add --look-back 30s"
            )));
        }
    }
    looked
}

/// Binds the place that was found. One that was only presumed and cannot be bound is looked at
/// whole: its interface may be gone.
fn bind(
    targets: &Arc<dyn Targets>,
    taps: &Arc<dyn Taps>,
    target: Target,
    looked: FirstLook,
) -> Result<(Place, Vec<BoundTap>, Confirm), StartError> {
    let current = |bound: &Vec<BoundTap>, place: &Place| {
        Confirm::taps(Arc::clone(taps), bound.clone(), place.clone())
    };
    let as_taken = |place: Place| {
        let cgroup = place.cgroup.as_ref();
        match cgroup.and_then(|cgroup| taps.scope(cgroup.id)) {
            Some(scope) => place.taken_as(scope),
            None => place,
        }
    };
    let place = match looked {
        FirstLook::Certain(place) => place,
        FirstLook::Presumed(presumed) => match taps.bind(&presumed) {
            Ok(bound) => {
                let confirm = current(&bound, &presumed).and_presumption(
                    Arc::clone(targets),
                    target,
                    presumed.clone(),
                );
                return Ok((presumed, bound, confirm));
            }
            Err(error) => {
                tracing::debug!(%error, "what was presumed cannot be bound");
                targets.resolve(&target)?
            }
        },
    };
    let place = as_taken(place);
    let bound = taps.bind(&place)?;
    let confirm = if place.is_past() {
        Confirm::nothing()
    } else {
        current(&bound, &place)
    };
    Ok((place, bound, confirm))
}

/// Sends requests to the driver.
#[derive(Clone)]
pub struct DriverHandle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) events: broadcast::Sender<CaptureState>,
    pub(super) taps: Arc<dyn Taps>,
    pub(super) targets: Arc<dyn Targets>,
    pub(super) outputs: Arc<dyn Outputs>,
    pub(super) tally: Arc<Tally>,
}

/// How often a capture may end just before it is joined.
const JOIN_TRIES: u32 = 4;

/// A stream is its reader's.
const STREAM_JOINED: &str = "a stream has one reader, so no alert can join it: leave out the \
    coalescing key";

impl Started {
    fn existing(state: CaptureState) -> Self {
        Self {
            state,
            how: How::Existing,
        }
    }
}

impl DriverHandle {
    /// What counts the starts.
    #[must_use]
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Starts a capture, or joins one; armed when this returns.
    ///
    /// # Errors
    /// [`StartError`], and nothing is armed or left behind.
    pub async fn start(&self, mut order: Order) -> Result<Started, StartError> {
        order.spec.validate()?;
        for (what, key) in [
            ("idempotency", &order.key),
            ("coalescing", &order.coalescing_key),
        ] {
            if let Some(len) = key.as_ref().map(String::len)
                && len > IDEMPOTENCY_KEY_MAX
            {
                return Err(StartError::Key { what, len });
            }
        }
        if order.coalescing_key.is_some() && order.spec.destination == Destination::Stream {
            return Err(SpecError::Writing(STREAM_JOINED).into());
        }
        for _ in 0..JOIN_TRIES {
            if let Some(started) = self.start_or_join(&mut order).await? {
                return Ok(started);
            }
            if let Some(key) = order.key.clone() {
                // Only an agent that is going down does not take it.
                let _down = self.requests.send(Request::Unjoin { key }).await;
            }
        }
        Err(StartError::Output(format!(
            "captures of this coalescing key ended {JOIN_TRIES} times before they could be joined"
        )))
    }

    /// `None` if it joined a capture that ended before that was certain.
    async fn start_or_join(&self, order: &mut Order) -> Result<Option<Started>, StartError> {
        if order.key.is_some() || order.coalescing_key.is_some() {
            let asked = Box::new(order.clone());
            let looked = self.ask(|reply| Request::Look {
                order: asked,
                reply,
            });
            match looked.await.ok_or(StartError::Draining)? {
                Looked::New => {}
                Looked::Existing(state) => return Ok(Some(Started::existing(*state))),
                Looked::Joined(joined) => return Ok(self.joined(*joined).await),
                Looked::Refused(error) => return Err(error),
            }
        }
        let filter = std::mem::take(&mut order.spec.filter);
        order.spec.filter = compiled(filter).await?;
        match self.begin(order.clone(), Look::First).await {
            Err(StartError::Elsewhere(place)) => {
                tracing::debug!(place = %place.description, "presumed wrongly; begun anew");
                self.begin(order.clone(), Look::Done(*place)).await
            }
            begun => begun,
        }
    }

    /// Keeps the order with the capture that it joins; `None` if that has ended.
    async fn joined(&self, joined: Joined) -> Option<Started> {
        let Joined { state, amendment } = joined;
        self.outputs.amend(state.id, amendment).await.ok()?;
        Some(Started {
            state,
            how: How::Joined,
        })
    }

    /// Lets a running capture last so long in all, if it does not last longer already: its state, and
    /// whether it lasts longer now.
    ///
    /// # Errors
    /// [`ExtendError`].
    pub async fn extend(
        &self,
        id: CaptureId,
        duration: Duration,
        caller: String,
    ) -> Result<(CaptureState, bool), ExtendError> {
        let asked = self.ask(|reply| Request::Extend {
            id,
            duration,
            caller,
            reply,
        });
        let Extended { state, amendment } = asked.await.ok_or(LookupError::Draining)??;
        let Some(amendment) = amendment else {
            return Ok((state, false));
        };
        let amended = self.outputs.amend(id, amendment).await;
        amended.map_err(|Ended| ExtendError::Ended(id))?;
        Ok((state, true))
    }

    /// Looks up, binds, arms, and waits until the output is open.
    async fn begin(&self, order: Order, look: Look) -> Result<Option<Started>, StartError> {
        // Looking up and, where nothing is attached yet, attaching block. Here and not on another thread:
        // to wake one and be woken by it takes about as long, on a machine that was idle.
        let (place, bound, confirm) = tokio::task::block_in_place(|| {
            let begun = std::time::Instant::now();
            let looked = match look {
                Look::First => look_first(self.targets.as_ref(), &order.spec)?,
                Look::Done(place) => FirstLook::Certain(place),
            };
            let found = begun.elapsed();
            let target = order.spec.target.clone();
            let bound = bind(&self.targets, &self.taps, target, looked)?;
            tracing::debug!(?found, bound = ?begun.elapsed() - found, "found the target");
            Ok::<_, StartError>(bound)
        })?;
        let is_past = place.is_past();
        let arm = Box::new(Arm {
            order,
            place,
            taps: bound,
            confirm,
        });
        let armed = self.ask(|reply| Request::Arm { arm, reply }).await;
        let (state, ready) = match armed.ok_or(StartError::Draining)?? {
            Armed::New(state, ready) => (state, ready),
            Armed::Existing(state) => return Ok(Some(Started::existing(state))),
            Armed::Joined(joined) => return Ok(self.joined(*joined).await),
        };
        // It is armed; the answer waits for the capture to be on the disk's record.
        let opened = match ready {
            None => Ok(()),
            Some(ready) => ready
                .await
                .unwrap_or_else(|_ended| Err(StartError::Output("the writer ended".to_owned()))),
        };
        if let Err(error) = opened {
            let id = state.id;
            let _ended = self.lookup(|reply| Request::Abort { id, reply }).await;
            return Err(error);
        }
        if is_past {
            let id = state.id;
            // Only an agent that is going down does not take it.
            let _down = self.requests.send(Request::Opened { id }).await;
        }
        Ok(Some(Started {
            state,
            how: How::New,
        }))
    }

    /// Stops a capture; its counts are final when this returns.
    ///
    /// # Errors
    /// [`LookupError`].
    pub async fn stop(
        &self,
        id: CaptureId,
        reason: StopReason,
    ) -> Result<CaptureState, LookupError> {
        self.lookup(|reply| Request::Stop { id, reason, reply })
            .await
    }

    /// # Errors
    /// [`LookupError`].
    pub async fn get(&self, id: CaptureId) -> Result<CaptureState, LookupError> {
        self.lookup(|reply| Request::Get { id, reply }).await
    }

    /// The final state, when there is one.
    ///
    /// # Errors
    /// [`LookupError`].
    pub async fn wait(&self, id: CaptureId) -> Result<CaptureState, LookupError> {
        self.lookup(|reply| Request::Wait { id, reply }).await
    }

    /// All captures that are known, oldest first.
    pub async fn list(&self) -> Vec<CaptureState> {
        self.ask(|reply| Request::List { reply })
            .await
            .unwrap_or_default()
    }

    /// Where the capture's bytes come from.
    ///
    /// # Errors
    /// [`LookupError`].
    pub async fn stream(&self, id: CaptureId) -> Result<StreamSource, LookupError> {
        self.lookup(|reply| Request::Stream { id, reply }).await
    }

    /// Every change of phase of every capture from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<CaptureState> {
        self.events.subscribe()
    }

    /// Ends every capture; returns when all their counts are final.
    pub async fn drain(&self) {
        let _ended = self.ask(|reply| Request::Drain { reply }).await;
    }

    /// Ends the captures that cannot outlive the agent; returns when their counts are final.
    pub async fn leave(&self) {
        let _ended = self.ask(|reply| Request::Leave { reply }).await;
    }

    async fn lookup<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, LookupError> {
        self.ask(request).await.ok_or(LookupError::Draining)?
    }

    /// `None` when the driver has ended.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// Compiles a filter that came as text alone. The agent looks no name up: who asks is somewhere
/// else, and a node's name service is nothing that a capture may wait for.
async fn compiled(filter: Filter) -> Result<Filter, StartError> {
    if *filter.meaning() != Meaning::Unread {
        return Ok(filter);
    }
    // Takes some milliseconds.
    let compile = || {
        let text = filter.text().to_owned();
        filter
            .compiled(filter::compiler(Names::Refused))
            .map_err(|error| StartError::Filter {
                pointer: error.pointer(&text),
                error,
            })
    };
    tokio::task::spawn_blocking(compile)
        .await
        .map_err(|error| StartError::Kernel(error.to_string()))?
}
