//! `remora-agent prepare`: directories that somebody else made become the agent's.
//!
//! Kubernetes makes the node's directories as root's, and the agent is nobody's user there. So a
//! container that is root, and has CAP_CHOWN but no other right over files, runs this first.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, bail, ensure};

use crate::args::PrepareArgs;

const MODE: u32 = 0o700;

/// Gives each directory to the owner, for him alone.
///
/// # Errors
/// One is none, is a third user's, or cannot be given away.
pub fn run(args: &PrepareArgs) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    for directory in &args.directories {
        let shown = directory.display();
        let given = give(directory, args.owner).with_context(|| format!("{shown}"))?;
        let what = if given { "given to" } else { "is of" };
        writeln!(out, "{shown}: {what} user {}", args.owner)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Was there anything to do?
fn give(directory: &Path, owner: u32) -> anyhow::Result<bool> {
    let found = fs::symlink_metadata(directory)?;
    ensure!(found.is_dir(), "not a directory");
    let is_own = found.uid() == owner;
    if is_own && found.mode() & 0o777 == MODE {
        return Ok(false);
    }
    // Whoever changes the mode must be the owner still.
    let me = fs::metadata("/proc/self")?.uid();
    if found.uid() != me {
        bail!(
            "belongs to user {}, and what is in it may, too: look at it, then give it to {owner} by \
             chown -R, with mode {MODE:o}",
            found.uid()
        );
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(MODE))?;
    chown(directory, Some(owner), Some(owner)).context("giving it away needs CAP_CHOWN")?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_closed_to_others_once_and_then_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let me = fs::metadata(directory.path()).unwrap().uid();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(give(directory.path(), me).unwrap());
        let mode = fs::metadata(directory.path()).unwrap().mode();
        assert_eq!(mode & 0o777, MODE);
        assert!(!give(directory.path(), me).unwrap());
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        let error = give(&link, 65532).unwrap_err();
        assert!(error.to_string().contains("not a directory"), "{error}");
    }
}
