//! Remora's node agent.
//!
//! ```text
//! main -> app -> { api, supervisor, target, kernel, writer, sink, telemetry, watch }
//!                  api -> session         session -> capture and the three traits it defines
//!                  writer -> record       kernel -> agent-common
//! ```
//! - [`session`]: one capture's life; the one task that owns them.
//! - [`kernel`]: the eBPF side; the only place with `unsafe`.
//! - [`target`]: what a name is on this node.
//! - [`writer`], [`record`]: from ring records to pcapng blocks.
//! - [`sink`]: files in the data directory, streams to readers.
//! - [`api`]: the gRPC services. [`telemetry`]: metrics and health.
//! - [`watch`]: the node's interfaces, and who is behind them.
//! - [`app`], [`supervisor`], [`args`], [`doctor`], [`cleanup`], [`prepare`], [`clock`], [`node`],
//!   [`budget`] (memory), [`custody`] (what is done with captures that are kept), [`upload`] (how they are sent on):
//!   the program around them.
#![deny(unsafe_code)]

pub mod api;
pub mod app;
pub mod args;
pub mod budget;
pub mod cleanup;
pub mod clock;
pub mod custody;
pub mod doctor;
#[allow(unsafe_code, reason = "aya's maps, and the membarrier call")]
pub mod kernel;
pub mod node;
pub mod prepare;
pub mod record;
pub mod session;
pub mod sink;
pub mod supervisor;
pub mod target;
pub mod telemetry;
pub mod upload;
pub mod watch;
pub mod writer;
