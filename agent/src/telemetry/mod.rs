//! What the agent tells of itself: metrics in Prometheus' text format, and health.

pub mod admin;
mod metrics;

pub use admin::{AdminAddress, AdminParts, AdminSocket};
