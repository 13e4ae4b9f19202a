//! The directory of a try.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use remora_capture::evidence::MANIFEST_ENDING;
use remora_proto::client::AgentAddress;

/// Rules for Falco's own lists.
const RULES: &str = include_str!("../../../../deploy/rules/falco.yaml");

#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    /// Nobody asked for it: without captures it goes again.
    is_own: bool,
    own_rules: Option<PathBuf>,
}

impl Place {
    /// The directory that was asked for, or a new one.
    pub(super) fn make(asked: Option<&Path>) -> anyhow::Result<Self> {
        let (directory, is_own) = match asked {
            Some(path) => (path.to_owned(), false),
            None => {
                let name = format!("remora-up-{}", std::process::id());
                (std::env::temp_dir().join(name), true)
            }
        };
        let made = DirBuilder::new()
            .mode(0o700)
            .recursive(!is_own)
            .create(&directory);
        made.with_context(|| format!("{} cannot be made", directory.display()))?;
        let directory = fs::canonicalize(&directory)?;
        if directory.to_str().is_none() {
            bail!(
                "{} is not UTF-8; use another --data-dir",
                directory.display()
            );
        }
        let place = Self {
            directory,
            is_own,
            own_rules: None,
        };
        match DirBuilder::new().mode(0o700).create(place.captures()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("{} cannot be made", place.captures().display()))
            }
            _ => Ok(place),
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    pub(super) fn captures(&self) -> PathBuf {
        self.directory.join("captures")
    }

    /// # Errors
    /// The directory's name is too long for a socket in it.
    pub(super) fn address(&self) -> anyhow::Result<AgentAddress> {
        let address = format!("unix:{}", self.socket().display()).parse();
        address
            .with_context(|| format!("use a shorter --data-dir than {}", self.directory.display()))
    }

    /// The rule files; without any asked for the default set, which stays as it is if it is there.
    pub(super) fn rules(&mut self, asked: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
        if !asked.is_empty() {
            return Ok(asked.to_vec());
        }
        let path = self.directory.join("rules.yaml");
        if !path.exists() {
            fs::write(&path, RULES)
                .with_context(|| format!("{} cannot be written", path.display()))?;
        }
        self.own_rules = Some(path.clone());
        Ok(vec![path])
    }

    pub(super) fn rules_shown(&self) -> String {
        match &self.own_rules {
            Some(path) => format!(
                "{} (for Falco's own lists; read again when changed)",
                path.display()
            ),
            None => "as asked for (read again when changed)".to_owned(),
        }
    }

    /// Where the captures are, once all has ended.
    pub(super) fn farewell(&self) -> String {
        let captures = self.captures();
        let count = fs::read_dir(&captures).map_or(0, |entries| {
            let names = entries.flatten().map(|entry| entry.file_name());
            names
                .filter(|name| name.to_string_lossy().ends_with(MANIFEST_ENDING))
                .count()
        });
        if count == 0 && self.is_own {
            let _left = fs::remove_dir_all(&self.directory);
            return "remora: ended; there was no capture".to_owned();
        }
        let of = if count == 1 { "capture" } else { "captures" };
        format!("remora: ended; {count} {of} in {}", captures.display())
    }
}
