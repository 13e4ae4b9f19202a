//! Sessions: one capture's life on this node, owned by one task ([`driver`]).
//!
//! ```text
//! api ──request──▶ driver ──▶ Taps    (kernel: bind, arm, disarm, count)
//!                    │  ▲     Targets (target: what a name is on this node)
//!                    │  │     Outputs (writer and sink: where the packets go)
//!                    │  └──── Signal: limit reached, output broke, tap gone
//!                    └─watch─▶ CaptureState of each capture
//! ```
//! The driver is the only one that changes a session; everybody else sends it requests or reads
//! what it published. It knows kernel, target and sink only by the three traits here.

pub mod driver;
mod handle;
pub mod meter;
mod place;
mod rates;
mod registry;
mod running;
mod share;
mod standing;
mod tally;

use std::{fmt, io, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use remora_capture::{
    amendment::Amendment,
    filter::FilterError,
    pcapng::Finished,
    session::{
        CaptureId, CaptureState, Counts, LookBackMode, PodIdentity, SessionSpec, StopReason, Target,
    },
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use driver::{Driver, DriverParts};
pub use handle::{DriverHandle, ExtendError, How, LookupError, Order, Started, StreamSource};
pub use meter::Meter;
pub use place::{
    BoundTap, CgroupPlace, CgroupScope, InterfacePlace, LeftTap, LinkEnd, Place, Takes, TapHook,
    View,
};
pub use rates::{Limited, Of, Rate, RateError, Rates};
pub use standing::{Away, Standing};
pub use tally::{Receipt, Settled, StartNumbers, Tally};

/// One of the node's session slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One of the kernel's tap indexes, as it is bound now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TapId {
    pub index: u32,
    pub generation: u32,
}

/// How an agent finds a session of the agent before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StillArmed {
    Yes,
    /// It has reached a limit.
    LimitReached,
    /// It was being ended.
    No,
}

/// What the kernel is told of a session.
#[derive(Clone, Debug)]
pub struct Arming {
    pub slot: Slot,
    pub generation: u32,
    pub spec: Arc<SessionSpec>,
    /// Bytes of packet blocks that may be submitted.
    pub byte_limit: Option<u64>,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub deadline_ns: Option<u64>,
}

/// The kernel's counters of a session, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCounts {
    pub seen: u64,
    pub matched: u64,
    pub submitted: u64,
    pub lost: u64,
    pub over_budget: u64,
    pub copy_error: u64,
}

impl KernelCounts {
    /// Puts the kernel's part into `counts`.
    pub fn fill(&self, counts: &mut Counts) {
        let Self {
            seen,
            matched,
            submitted,
            lost,
            over_budget,
            copy_error,
        } = *self;
        counts.seen = seen;
        counts.matched = matched;
        counts.submitted = submitted;
        counts.lost = lost;
        counts.over_budget = over_budget;
        counts.copy_error = copy_error;
    }
}

/// The kernel side.
pub trait Taps: Send + Sync + 'static {
    /// Binds every point of a place, attaching where nothing is attached yet. Blocks for some
    /// milliseconds if it must attach, for microseconds otherwise.
    ///
    /// # Errors
    /// [`StartError::Kernel`], and nothing is bound.
    fn bind(&self, place: &Place) -> Result<Vec<BoundTap>, StartError>;

    /// How a cgroup is bound, if it is: the same for all its sessions.
    fn scope(&self, cgroup: u64) -> Option<CgroupScope>;

    /// Fills the session's slot, then sets its bit on each tap: from the last of these writes on,
    /// packets are captured.
    ///
    /// # Errors
    /// [`StartError::Kernel`], or [`StartError::Quota`] if there is no room for its filter, and nothing
    /// is armed.
    fn arm(&self, arming: &Arming, taps: &[BoundTap]) -> Result<(), StartError>;

    /// From now on packets of the taps are cut after their transport headers, or are whole. To be called
    /// before a session is armed there. `Off` is as `Headers`.
    ///
    /// # Errors
    /// [`StartError::Kernel`], and nothing is certain.
    fn restrict(&self, taps: &[(TapId, LookBackMode)]) -> Result<(), StartError>;

    /// The session ends then, by CLOCK_MONOTONIC in nanoseconds. Packets meanwhile may see any mixture of
    /// the bytes of this deadline and the one before; `None` is all ones.
    ///
    /// # Errors
    /// [`StartError::Kernel`], and it is not certain which deadline holds.
    fn set_deadline(&self, slot: Slot, deadline_ns: Option<u64>) -> Result<(), StartError>;

    /// Clears the session's bit everywhere. Programs already running may still submit: see
    /// [`Taps::grace`].
    fn disarm(&self, slot: Slot, taps: &[BoundTap]);

    /// Waits until every program that ran when it was called has ended. Blocks for milliseconds.
    fn grace(&self);

    fn counts(&self, slot: Slot) -> KernelCounts;

    /// Packets that taps have looked at so far, in their order.
    fn seen(&self, taps: &[BoundTap]) -> Vec<u64>;

    /// What of a session that outlived its agent is still so in the kernel.
    fn still_armed(&self, slot: Slot) -> StillArmed;

    /// Gives the points back; those nobody else uses are unbound (but stay attached).
    fn release(&self, taps: &[BoundTap]);

    /// False once a tap's interface or cgroup was unbound because it is gone.
    fn is_bound(&self, tap: TapId) -> bool;

    /// The taps of interfaces are of those that have their indexes now. One that is gone may have left its index
    /// to another before that was told, and its tap is the one's who was behind it: it is let go of. Blocks for
    /// milliseconds.
    fn are_current(&self, taps: &[BoundTap]) -> bool;
}

/// What a first look at a target found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstLook<P = Place> {
    /// Very likely so: good enough to take packets, not to write them ([`Targets::confirm`]).
    Presumed(P),
    Certain(P),
}

/// What a name is on this node.
pub trait Targets: Send + Sync + 'static {
    /// Looks in well under a millisecond at most targets.
    ///
    /// # Errors
    /// [`StartError::TargetNotFound`] or [`StartError::TargetUnsupported`].
    fn presume(&self, target: &Target) -> Result<FirstLook, StartError>;

    /// Looks at everything, and so blocks for milliseconds.
    ///
    /// # Errors
    /// [`StartError::TargetNotFound`] or [`StartError::TargetUnsupported`].
    fn resolve(&self, target: &Target) -> Result<Place, StartError>;

    /// Where the target is if that is not where it was presumed to be. Blocks as
    /// [`Targets::resolve`] does.
    ///
    /// # Errors
    /// As [`Targets::resolve`].
    fn confirm(&self, target: &Target, presumed: &Place) -> Result<Option<Place>, StartError>;

    /// Where the packets of a target passed that is gone, or has no process any more, as far as it is
    /// remembered; `None` if it is not. May look at every cgroup.
    ///
    /// # Errors
    /// [`StartError::TargetUnsupported`]: its packets cannot be told from those of others.
    fn departed(&self, target: &Target) -> Result<Option<Place>, StartError>;

    /// How much of the packets of the place may be taken now; `None` while that is not known.
    fn level(&self, place: &Place) -> Option<LookBackMode>;

    /// The pod that the place is, or is a part of, as it is known now.
    fn pod(&self, place: &Place) -> Option<Box<PodIdentity>>;

    /// The cgroup or an interface of the place still exists.
    fn still_there(&self, place: &Place) -> bool;

    /// Packets that have come into the place's pod past its interfaces since they exist; 0 where that is not
    /// known.
    fn bypassed(&self, place: &Place) -> u64;

    /// Which of the places have interfaces that somebody else is behind by now: the place's
    /// number, and who, for a person. Blocks for milliseconds.
    ///
    /// # Errors
    /// Why that is not known, for a person.
    fn shared(&self, places: &[Place]) -> Result<Vec<(usize, String)>, String>;
}

/// All that an output needs to begin.
pub struct Opening<'a> {
    pub slot: Slot,
    pub generation: u32,
    /// As it will be published once it is armed.
    pub state: &'a CaptureState,
    pub taps: &'a [BoundTap],
    pub notes: &'a [String],
    pub meter: Arc<Meter>,
    pub confirm: Confirm,
    /// How it is gone on with when the agent dies, for outputs that outlive it.
    pub standing: &'a dyn Fn() -> Standing,
}

/// To be called before anything is written, on a thread that may block: packets that came meanwhile
/// may be written only if it succeeds.
pub struct Confirm(Box<dyn FnOnce() -> Result<(), StartError> + Send>);

impl Confirm {
    /// What is certain already.
    #[must_use]
    pub fn nothing() -> Self {
        Self(Box::new(|| Ok(())))
    }

    /// That the taps which were bound for a place are of what is there.
    #[must_use]
    pub fn taps(taps: Arc<dyn Taps>, bound: Vec<BoundTap>, place: Place) -> Self {
        Self(Box::new(move || match taps.are_current(&bound) {
            true => Ok(()),
            false => Err(StartError::Elsewhere(Box::new(place))),
        }))
    }

    /// First, what is presumed of a target.
    #[must_use]
    pub fn and_presumption(
        self,
        targets: Arc<dyn Targets>,
        target: Target,
        presumed: Place,
    ) -> Self {
        Self(Box::new(move || {
            match targets.confirm(&target, &presumed)? {
                None => self.now(),
                Some(place) => Err(StartError::Elsewhere(Box::new(place))),
            }
        }))
    }

    /// # Errors
    /// [`StartError::Elsewhere`], or what [`Targets::confirm`] says.
    pub fn now(self) -> Result<(), StartError> {
        (self.0)()
    }
}

impl fmt::Debug for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confirm")
    }
}

/// Where packets of sessions go.
pub trait Outputs: Send + Sync + 'static {
    /// Makes the output ready to take records of `opening.slot`. Waits for no disk: whether the
    /// file could be made is what [`Output::take_ready`] tells.
    ///
    /// # Errors
    /// [`StartError::Quota`] or [`StartError::Output`], and nothing is left behind.
    fn open(&self, opening: Opening<'_>) -> Result<Box<dyn Output>, StartError>;

    /// Goes on with the output of a session that outlived its agent. Reads its files.
    ///
    /// # Errors
    /// Why that is not possible, for a person; its files are closed then.
    fn go_on(
        &self,
        standing: &mut Standing,
        taps: &[BoundTap],
        meter: Arc<Meter>,
    ) -> Result<Box<dyn Output>, String>;

    /// Keeps what is asked of a running capture with its files; done when it is certain to be in its
    /// account, or counted there. Writes to the page cache.
    fn amend(&self, id: CaptureId, amendment: Amendment) -> Amended<'_>;

    /// Removes what was made for a capture that did not start.
    fn forget(&self, id: CaptureId);

    /// Keeps the final account of a capture with its files. Blocks.
    ///
    /// # Errors
    /// Why it could not be kept, for a person.
    fn keep(&self, state: &CaptureState, files: &Finished) -> Result<(), String>;

    /// The files of a capture that is finished.
    fn stored(&self, id: CaptureId) -> Stored;
}

/// Whether an amendment will be in the account.
pub type Amended<'a> = Pin<Box<dyn Future<Output = Result<(), Ended>> + Send + 'a>>;

/// The capture has ended, or did not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the capture has ended")]
pub struct Ended;

/// One session's output, from its opening to its close.
pub trait Output: Send {
    /// Bytes of the file that are not packets' (header and closing blocks).
    fn overhead_bytes(&self) -> u64;

    /// The name that its (first) file will have in the store, if it has one.
    fn file(&self) -> Option<String>;

    /// Its files as they grow, if it has some.
    fn stored(&self) -> Option<Stored>;

    /// Tells once whether the file, its account and its header are on the disk. Until then, and
    /// if not, packets are taken and queued, or counted as dropped.
    fn take_ready(&mut self) -> Option<Ready>;

    /// Its session is armed, by a bit that was set after `time_ns` (kernel time): now it may open
    /// its file and look back. If that is never said, nothing is left behind.
    fn armed(&mut self, time_ns: u64);

    /// Its session will be disarmed: packets from `time_ns` (kernel time) on do not see its bit any
    /// more, and are not of the past.
    fn disarming(&mut self, time_ns: u64);

    /// Its stream, which can be taken once.
    fn take_stream(&mut self) -> Option<ChunkReceiver>;

    /// Reads what is in the ring, writes what is queued, closes the file. To be called after the
    /// session is disarmed and a grace period is over. Blocks until done.
    fn close(self: Box<Self>, kernel: KernelCounts) -> Closed;
}

/// The files of a stored capture.
#[derive(Clone)]
pub struct Stored {
    /// Those that are there now, oldest first; the name of one that is being written ends in
    /// `.part`, and they sort by their names without it. Blocks.
    pub list: Arc<dyn Fn() -> io::Result<Vec<PathBuf>> + Send + Sync>,
    /// How they grow; `None` when all are closed. The sender is gone when there will be no more.
    pub growth: Option<watch::Receiver<Growth>>,
}

/// How far the file that is being written is.
#[derive(Clone, Debug, Default)]
pub struct Growth {
    /// As it will be when it is closed; empty before the first is there.
    pub name: String,
    /// Bytes up to the end of its last whole block.
    pub bytes: u64,
}

/// Whole pcapng blocks on their way to a stream's reader.
pub type ChunkReceiver = tokio::sync::mpsc::Receiver<bytes::Bytes>;

/// Whether an output could be opened.
pub type Ready = tokio::sync::oneshot::Receiver<Result<(), StartError>>;

/// How an output ended.
#[derive(Debug)]
pub struct Closed {
    pub counts: Counts,
    pub files: Finished,
    /// Packet blocks that were written.
    pub blocks: u64,
    /// What went wrong, for a person.
    pub problem: Option<String>,
    /// What is to be known besides.
    pub notes: Vec<String>,
}

/// What others tell the driver about a running session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    pub slot: Slot,
    pub generation: u32,
    pub reason: StopReason,
}

/// Why a session was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Spec(#[from] remora_capture::session::SpecError),
    /// With the two lines of [`FilterError::pointer`].
    #[error("{error}\n{pointer}")]
    Filter { error: FilterError, pointer: String },
    #[error("{0}")]
    TargetNotFound(String),
    #[error("{0}")]
    TargetUnsupported(String),
    /// The session is to begin anew, at this place.
    #[error("its packets pass elsewhere than presumed; start it again")]
    Elsewhere(Box<Place>),
    #[error(
        "all {0} sessions of this node are in use; stop one (`remora list`, `remora stop ID`) or wait"
    )]
    SessionLimit(u32),
    #[error("the {what} key has {len} bytes; at most 128 are taken")]
    Key { what: &'static str, len: usize },
    /// Alerts begin too many captures.
    #[error("{0}")]
    Rate(Limited),
    /// The privacy level of its namespace forbids it.
    #[error("{0}")]
    Private(String),
    #[error("{0}")]
    Quota(String),
    #[error("{0}")]
    Output(String),
    #[error("{0}")]
    Kernel(String),
    #[error("the agent is shutting down")]
    Draining,
}

/// Longest idempotency key and coalescing key, in bytes.
pub const IDEMPOTENCY_KEY_MAX: usize = 128;

/// How long a capture's end may take before the agent says so in its log.
pub const DRAIN_SLOW: Duration = Duration::from_secs(2);
