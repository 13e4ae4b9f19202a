//! A machine as the programs on it see it: a node of the test bed, or one of a cluster.

use std::{ffi::OsStr, fmt, path::Path, process::Command};

use anyhow::Result;

use crate::{
    netns::Netns,
    run::{Proc, Rights},
};

/// Where an agent can run.
pub trait Host: fmt::Debug + Sync {
    /// What the node is called.
    fn name(&self) -> &str;

    fn netns(&self) -> &Netns;

    /// For logs and files of the test.
    fn directory(&self) -> &Path;

    /// A command in its namespaces.
    fn place(&self, rights: Rights, program: &OsStr) -> Command;

    /// Starts such a command; the process is the program's own, whatever leads to it.
    ///
    /// # Errors
    /// It cannot be started.
    fn start(&self, command: &mut Command, directory: &Path, name: &str) -> Result<Proc> {
        Proc::spawn(command, directory, name)
    }
}
