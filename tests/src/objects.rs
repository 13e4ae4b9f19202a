//! A store of objects that checks signatures: versitygw, and boto3 as a reader that knows nothing of Remora.

use std::{
    env, fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    host::Host,
    name,
    run::{self, Place, Proc, Rights},
    wait,
};

/// Path of versitygw, as `cargo xtask test` has built it.
const PROGRAM: &str = "REMORA_VERSITYGW";
/// The one that may do everything.
pub const KEYS: (&str, &str) = ("AKIDREMORASINK", "a-secret-key-of-the-sink");
const START_LIMIT: Duration = Duration::from_secs(20);
const READER: &str = include_str!("objects.py");

/// The bucket that tests use.
pub const BUCKET: &str = "evidence";

/// The store on a node's loopback, with its objects in a directory of its own.
#[derive(Debug)]
pub struct ObjectStore<'a> {
    process: Option<Proc>,
    directory: tempfile::TempDir,
    node: &'a dyn Host,
    starts: u32,
}

impl<'a> ObjectStore<'a> {
    /// Starts it and makes the bucket, whose objects can be locked.
    ///
    /// # Errors
    /// It cannot be started, or versitygw was not built.
    pub fn start(node: &'a dyn Host) -> Result<Self> {
        let directory = name::directory()?;
        for part in ["objects", "versions"] {
            fs::create_dir(directory.path().join(part))?;
        }
        let mut store = Self {
            process: None,
            directory,
            node,
            starts: 0,
        };
        store.start_again()?;
        store.python(&["create", BUCKET])?;
        Ok(store)
    }

    /// As it was, with its objects.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_again(&mut self) -> Result<()> {
        let program = env::var_os(PROGRAM).map(PathBuf::from).with_context(|| {
            format!("{PROGRAM} is not set: `cargo xtask test` builds versitygw and sets it")
        })?;
        let path = |part: &str| self.directory.path().join(part);
        let place = Place {
            netns: Some(self.node.netns()),
            cgroup: None,
            rights: Rights::Root,
        };
        self.starts += 1;
        let mut process = Proc::spawn(
            place
                .command(program)
                .env("ROOT_ACCESS_KEY_ID", KEYS.0)
                .env("ROOT_SECRET_ACCESS_KEY", KEYS.1)
                .args(["--region", "us-east-1", "--port"])
                .arg(Self::address().to_string())
                .args(["posix", "--versioning-dir"])
                .args([path("versions"), path("objects")]),
            self.directory.path(),
            &format!("versitygw-{}", self.starts),
        )?;
        wait::until(START_LIMIT, "a store that listens", || {
            if let Some(status) = process.ended()? {
                bail!("versitygw ended ({status}): {}", process.tail());
            }
            self.node
                .netns()
                .enter(|| Ok(TcpStream::connect_timeout(&Self::address(), START_LIMIT).is_ok()))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Away, as if its machine were.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the store is away already")?;
        process.end_by(Signal::SIGKILL, START_LIMIT)?;
        Ok(())
    }

    /// Where it listens, in the node's network namespace.
    #[must_use]
    pub fn address() -> SocketAddr {
        ([127, 0, 0, 1], 7070).into()
    }

    /// Copies all objects into a directory, each under the last part of its name; what is told of each.
    ///
    /// # Errors
    /// boto3's.
    pub fn fetch(&self, into: &Path) -> Result<Vec<Value>> {
        let told = self.python(&["fetch", BUCKET, &into.display().to_string()])?;
        let told: Value = serde_json::from_str(&told).with_context(|| told.clone())?;
        told.as_array().cloned().context("no list")
    }

    /// Puts an object, as somebody with the keys.
    ///
    /// # Errors
    /// boto3's.
    pub fn put(&self, name: &str, text: &str) -> Result<()> {
        self.python(&["put", BUCKET, name, text]).map(drop)
    }

    /// The names of all objects.
    ///
    /// # Errors
    /// boto3's.
    pub fn names(&self) -> Result<Vec<String>> {
        let directory = name::directory()?;
        let told = self.fetch(directory.path())?;
        Ok(told
            .iter()
            .filter_map(|one| one["name"].as_str().map(str::to_owned))
            .collect())
    }

    fn python(&self, words: &[&str]) -> Result<String> {
        let place = Place {
            netns: Some(self.node.netns()),
            cgroup: None,
            rights: Rights::Root,
        };
        let output = run::finish(
            place
                .command("python3")
                .args(["-c", READER, &format!("http://{}", Self::address())])
                .args([KEYS.0, KEYS.1])
                .args(words),
        )?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(
            output.status.success(),
            "boto3 {words:?}: {}",
            text(&output.stderr)
        );
        Ok(text(&output.stdout))
    }
}
