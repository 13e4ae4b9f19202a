//! `captures.remora.dev`: a packet capture as an object of Kubernetes, in the namespace of its pods.
//!
//! These types are the source of the schema that the API server checks objects by
//! (`deploy/helm/remora/files/captures.remora.dev.yaml`, by `cargo xtask codegen`). They say what may be
//! asked; whether it is carried out, and how, is the controller's.
//!
//! Bounds are those of `remora-capture`, which a test holds them against. The API server refuses what is
//! out of them when the object is written, so nothing wrong waits for the controller.
#![forbid(unsafe_code)]

#[allow(
    clippy::duplicated_attributes,
    unreachable_pub,
    reason = "each column of kube's has a type, and kube's derive writes each struct again where nobody \
              reaches it"
)]
mod spec;
mod status;

pub use spec::{
    Capture, CaptureSpec, Direction, Limits, PodSelection, STORE, Selection, WorkloadKind,
    WorkloadSelection,
};
pub use status::{CaptureFile, CapturePhase, CaptureStatus, NodeCapture, PacketCounts};

/// Keeps a capture's object until its packets have stopped being taken.
pub const FINALIZER: &str = "remora.dev/capture";
