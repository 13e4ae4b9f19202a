//! What the rest of the agent asks of the driver.

use std::sync::Arc;

use remora_capture::{
    filter::{self, Filter, Meaning, Names},
    session::{CaptureId, CaptureState, SessionSpec, StopReason, Target},
};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    BoundTap, ChunkReceiver, Confirm, FirstLook, IDEMPOTENCY_KEY_MAX, Place, Ready, StartError,
    Stored, Taps, Targets,
};

/// A request to capture.
#[derive(Clone, Debug)]
pub struct Order {
    pub spec: SessionSpec,
    pub key: Option<String>,
    /// Who called, as the agent saw it.
    pub caller: String,
}

/// The answer to an [`Order`].
#[derive(Clone, Debug)]
pub struct Started {
    pub state: CaptureState,
    /// The key was known: it is the capture that the first call made.
    pub existing: bool,
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
    Known {
        key: String,
        reply: oneshot::Sender<Option<CaptureState>>,
    },
    Arm {
        arm: Box<Arm>,
        reply: oneshot::Sender<Result<(Started, Option<Ready>), StartError>>,
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
    taps: &dyn Taps,
    target: Target,
    looked: FirstLook,
) -> Result<(Place, Vec<BoundTap>, Confirm), StartError> {
    let place = match looked {
        FirstLook::Certain(place) => place,
        FirstLook::Presumed(place) => match taps.bind(&place) {
            Ok(bound) => {
                let targets = Arc::clone(targets);
                let confirm = Confirm::presumption(targets, target, place.clone());
                return Ok((place, bound, confirm));
            }
            Err(error) => {
                tracing::debug!(%error, "what was presumed cannot be bound");
                targets.resolve(&target)?
            }
        },
    };
    let bound = taps.bind(&place)?;
    Ok((place, bound, Confirm::nothing()))
}

/// Sends requests to the driver.
#[derive(Clone)]
pub struct DriverHandle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) events: broadcast::Sender<CaptureState>,
    pub(super) taps: Arc<dyn Taps>,
    pub(super) targets: Arc<dyn Targets>,
}

impl DriverHandle {
    /// Starts a capture; armed when this returns.
    ///
    /// # Errors
    /// [`StartError`], and nothing is armed or left behind.
    pub async fn start(&self, mut order: Order) -> Result<Started, StartError> {
        order.spec.validate()?;
        if let Some(key) = &order.key {
            if key.len() > IDEMPOTENCY_KEY_MAX {
                return Err(StartError::IdempotencyKey(key.len()));
            }
            let key = key.clone();
            let known = self.ask(|reply| Request::Known { key, reply }).await;
            if let Some(state) = known.ok_or(StartError::Draining)? {
                return Ok(Started {
                    state,
                    existing: true,
                });
            }
        }
        order.spec.filter = compiled(order.spec.filter).await?;
        match self.begin(order.clone(), Look::First).await {
            Err(StartError::Elsewhere(place)) => {
                tracing::debug!(place = %place.description, "presumed wrongly; begun anew");
                self.begin(order, Look::Done(*place)).await
            }
            begun => begun,
        }
    }

    /// Looks up, binds, arms, and waits until the output is open.
    async fn begin(&self, order: Order, look: Look) -> Result<Started, StartError> {
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
            let bound = bind(&self.targets, self.taps.as_ref(), target, looked)?;
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
        let (started, ready) = self
            .ask(|reply| Request::Arm { arm, reply })
            .await
            .ok_or(StartError::Draining)??;
        // It is armed; the answer waits for the capture to be on the disk's record.
        let opened = match ready {
            None => Ok(()),
            Some(ready) => ready
                .await
                .unwrap_or_else(|_ended| Err(StartError::Output("the writer ended".to_owned()))),
        };
        if let Err(error) = opened {
            let id = started.state.id;
            let _ended = self.lookup(|reply| Request::Abort { id, reply }).await;
            return Err(error);
        }
        if is_past {
            let id = started.state.id;
            // Only an agent that is going down does not take it.
            let _down = self.requests.send(Request::Opened { id }).await;
        }
        Ok(started)
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
