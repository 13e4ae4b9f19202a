//! Places where a test kills the process, to see what the next start makes of it.
//!
//! Nothing in the product arms one: no flag, no environment variable.

use std::sync::OnceLock;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

static ARMED: OnceLock<&'static str> = OnceLock::new();

/// The process is killed (SIGKILL) when it first gets to `point`.
pub fn arm(point: &'static str) {
    let _already = ARMED.set(point);
}

pub(super) fn reach(point: &'static str) {
    if ARMED.get() == Some(&point) {
        let _dying = kill(Pid::this(), Signal::SIGKILL);
    }
}
