//! What several test programs of this crate share.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod cbpf;
pub(crate) mod frames;
pub(crate) mod pcapng;
pub(crate) mod random;

use std::process::Command;

/// Whether a tool is installed; says so when a test has to do without it.
pub(crate) fn installed(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        println!("SKIPPED: `{tool}` is not installed");
    }
    found
}
