//! What a capture is, from the request to its final state.
//!
//! ```text
//!            armed                 limit, stop, target gone, …        counts final
//! Start ───────────────▶ Capturing ───────────────────────▶ Draining ─────────────▶ Finished
//!   └─ refused (an error, no capture)                           └─ a sink broke ──▶ Failed
//! ```

mod counts;
mod identity;
mod look_back;
mod pod;
mod selector;
mod spec;
mod state;
mod target;
mod writing;

pub use counts::Counts;
pub use identity::{ContainerIdentity, PodIdentity};
pub use look_back::{LookBackMode, NoMode};
pub use pod::{PodError, PodRef};
pub use selector::{Part, Selector, SelectorError, WorkloadKind};
pub use spec::{
    DURATION_MAX, Destination, Direction, LABELS_MAX, Limits, NAMES_MAX, NameHint, SNAPLEN_MAX,
    SessionSpec, Snaplen, SpecError, Trigger,
};
pub use state::{
    CaptureId, CaptureState, Files, IdError, LookBackRing, Phase, Removed, StopReason, TapInfo,
};
pub use target::{Target, TargetError};
pub use writing::{Compression, Durability, ROTATION_BYTES_MIN, Rotation, SuperPackets, Writing};
