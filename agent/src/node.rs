//! What the agent says of the machine it runs on.

use std::{io, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use nix::{sys::utsname::uname, unistd::gethostname};
use remora_capture::{
    evidence::{Digest, Head, Origin},
    session::{CaptureId, TapInfo},
};

/// What changes while the agent runs.
#[derive(Clone, Debug, Default)]
pub struct NodeNumbers {
    /// Captures that can run at a time.
    pub sessions_limit: u32,
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
    /// Of Kubernetes, if the agent follows it.
    pub pods: Option<PodCounts>,
    /// The last manifest of the chain.
    pub chain_head: Option<Head>,
    /// If the agent listens on the network.
    pub tls: Option<TlsNumbers>,
    pub retention: RetentionNumbers,
    pub uploads: UploadNumbers,
}

/// What became of connections by TLS, and of its certificates.
#[derive(Clone, Debug, Default)]
pub struct TlsNumbers {
    pub accepted: u64,
    /// By reason.
    pub refused: Vec<(&'static str, u64)>,
    pub reloads_loaded: u64,
    pub reloads_refused: u64,
    /// The files are wrong, and older certificates in use.
    pub is_stale: bool,
}

/// What became of captures that are kept.
#[derive(Clone, Debug, Default)]
pub struct RetentionNumbers {
    /// By cause: captures and bytes since the agent's start.
    pub deleted: Vec<(&'static str, u64, u64)>,
    pub held: u64,
    /// Signed and there.
    pub kept: u64,
    pub kept_bytes: u64,
}

/// What became of uploads.
#[derive(Clone, Debug, Default)]
pub struct UploadNumbers {
    /// Tries by their result, since the agent's start.
    pub results: std::collections::BTreeMap<&'static str, u64>,
    /// Of files that were verified.
    pub bytes: u64,
    /// Captures that are not in their sink yet.
    pub waiting: u64,
    pub waiting_bytes: u64,
}

impl UploadNumbers {
    /// All results of tries.
    pub const RESULTS: [&'static str; 7] = [
        "verified",
        "unreachable",
        "refused",
        "differs",
        "unproved",
        "file",
        "too_large",
    ];

    pub fn count(&mut self, result: &'static str) {
        *self.results.entry(result).or_default() += 1;
    }
}

/// What is known of the node's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodCounts {
    /// Those that are gone included, as long as they are remembered.
    pub known: u64,
    /// There was no room for them.
    pub refused: u64,
    /// All pods and namespaces were told at least once.
    pub listed: bool,
    /// Times that a pod's address was found where its cgroup's processes are, and that it was not.
    pub checks_agreed: u64,
    pub checks_differed: u64,
}

/// The files that are evidence of a capture; an error of the kind NotFound if it has no manifest.
pub type AskEvidence = Arc<dyn Fn(CaptureId) -> io::Result<Vec<PathBuf>> + Send + Sync>;

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

    /// What manifests say of who signs them. `bpf_object`: of the eBPF programs.
    #[must_use]
    pub fn origin(&self, bpf_object: Digest) -> Origin {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        Origin {
            node: self.name.clone(),
            boot_id: boot_id.unwrap_or_default().trim().to_owned(),
            bpf_object,
        }
    }
}
