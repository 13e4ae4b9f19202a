//! What the agent says of the machine it runs on.

use std::sync::Arc;

use anyhow::Context as _;
use nix::{sys::utsname::uname, unistd::gethostname};
use remora_capture::session::TapInfo;

/// What changes while the agent runs.
#[derive(Clone, Debug, Default)]
pub struct NodeNumbers {
    pub ring_bytes: u64,
    pub store_bytes: u64,
    pub store_quota_bytes: u64,
    /// Ring records of no running session.
    pub records_stale: u64,
    pub records_malformed: u64,
    /// Programs of machine code made of taps' filters, and how often that failed.
    pub filters_loaded: u64,
    pub filters_refused: u64,
    /// Interfaces that programs are attached to.
    pub taps: Vec<TapInfo>,
}

/// Asks for the numbers of this moment.
pub type AskNumbers = Arc<dyn Fn() -> NodeNumbers + Send + Sync>;

/// Names for files and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    pub name: String,
    /// "Linux 6.18.44".
    pub kernel: String,
}

impl NodeFacts {
    /// The machine's own facts; `name` overrides the host name.
    ///
    /// # Errors
    /// The machine does not tell.
    pub fn of_this_machine(name: Option<String>) -> anyhow::Result<Self> {
        let facts = uname().context("failed to ask for the kernel's name")?;
        let kernel = format!(
            "{} {}",
            facts.sysname().display(),
            facts.release().display()
        );
        let name = match name {
            Some(name) => name,
            None => gethostname()
                .context("failed to ask for the host name")?
                .to_string_lossy()
                .into_owned(),
        };
        Ok(Self { name, kernel })
    }
}
