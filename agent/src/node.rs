//! What the agent says of the machine it runs on.

use anyhow::Context as _;
use nix::{sys::utsname::uname, unistd::gethostname};

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
