//! The controller: an alert comes in, rules decide, a capture starts on the agent, the sender has
//! its answer within milliseconds.
//!
//! ```text
//! POST / ──http──▶ Alert ──remora_rules──▶ Plan ──dispatch──▶ StartRequest ──agent──▶ remora-agent
//!    ◀── answer ── Outcome ◀────────────────────────── Start's answer ◀─────────────┘
//! Cluster ──api──▶ selector ──cluster (index)──▶ members ──fleet──▶ the agents of their nodes
//! ```
//! Needs no rights on its host: it holds no capability and reaches packets only through the agents'
//! API. In a cluster it may list and watch pods, ReplicaSets, EndpointSlices and nodes, and carries out the
//! `Capture` objects ([`captures`]).
//!
//! Invariants:
//! - Every alert is counted once when it comes and once when it is decided:
//!   received = accepted + existing + ignored + refused.
//! - No answer waits for a capture, a disk or an upload; only for the agent's word that it is
//!   armed, and for that at most [`agent::START_DEADLINE`].
//! - Nothing that listens is open to other machines without TLS and a proof of who calls.
//! - Alerts are untrusted: bounded, never interpreted as filter text, never printed raw.
#![forbid(unsafe_code)]

pub mod access;
pub mod agent;
pub mod api;
pub mod app;
pub mod args;
pub mod audit;
mod captures;
pub mod cloudevents;
pub mod cluster;
pub mod cluster_side;
pub mod dispatch;
pub mod fleet;
pub mod http;
pub mod ingest;
pub mod metrics;
pub mod network;
pub mod notify;
pub mod outcome;
pub mod reload;
pub mod sigv4;
pub mod sinks;
pub mod talon;
pub mod trigger;
