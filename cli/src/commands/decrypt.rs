//! `remora get --identity`: what an encrypted capture holds, decrypted here.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use remora_capture::{
    evidence::{ENCRYPTED_ENDING, FileDigest, MANIFEST_ENDING, Manifest},
    session::CaptureId,
};
use remora_proto::{
    client::AgentAddress,
    v1::{self, evidence_response::Message},
};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    Outcome, connect,
    export::{append, next, open},
};
use crate::{evidence::Identities, terminal};

/// Packets are secret.
const FILE_MODE: u32 = 0o600;
/// Messages between the agent and the decryption, each of at most a mebibyte.
const QUEUE_MESSAGES: usize = 8;

/// # Errors
/// The capture is not encrypted, or to other keys; then nothing is left.
pub(super) async fn run(
    agent: &AgentAddress,
    id: CaptureId,
    path: &Path,
    keys: &Path,
) -> anyhow::Result<Outcome> {
    let keys = Identities::read(keys)?;
    let mut client = connect(agent).await?;
    let mut files = open(agent, &mut client, id, false).await?;
    let (mut name, mut document) = (String::new(), Vec::new());
    let output = Aside::new(path)?;
    let mut running: Option<Decryption> = None;
    let mut done = Vec::new();
    while let Some(message) = next(agent, &mut files).await? {
        match message {
            Message::File(v1::EvidenceFile { name: begun, .. }) => {
                if let Some(one) = running.take() {
                    done.push((std::mem::take(&mut name), one.end().await?));
                }
                if begun.ends_with(ENCRYPTED_ENDING) {
                    running = Some(Decryption::begin(&keys, output.open(done.is_empty())?));
                }
                name = begun;
            }
            Message::Bytes(bytes) => match &mut running {
                Some(one) => one.take(bytes).await,
                None if name.ends_with(MANIFEST_ENDING) => append(&mut document, &bytes)?,
                None => {}
            },
        }
    }
    if let Some(one) = running.take() {
        done.push((name, one.end().await?));
    }
    ensure!(
        !done.is_empty(),
        "capture {id} is not encrypted: `remora get {id} -w FILE` without --identity copies it"
    );
    let manifest = Manifest::unverified(&document).context("the agent's manifest")?;
    for (name, digest) in &done {
        let file = manifest.files.iter().find(|file| file.name == *name);
        if file.and_then(|file| file.readable().1) != Some(*digest) {
            bail!("{name}: decrypted, it is not what its manifest was signed for");
        }
    }
    output.finish()?;
    let bytes: u64 = done.iter().map(|(_, digest)| digest.bytes).sum();
    terminal::note(&format!(
        "{} written packets of {id} in {}, {bytes} bytes as its manifest says",
        manifest.counts.written,
        path.display()
    ));
    Ok(Outcome::Done)
}

/// A file that gets its name when all is in it; standard output for `-`.
struct Aside<'a> {
    path: &'a Path,
    part: Option<PathBuf>,
}

impl<'a> Aside<'a> {
    fn new(path: &'a Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self { path, part: None });
        }
        let part = PathBuf::from(format!("{}.part", path.display()));
        let new = Self {
            path,
            part: Some(part),
        };
        // Refused now rather than after the copy.
        new.open(true)?;
        Ok(new)
    }

    /// Where the next file goes: after those before it.
    fn open(&self, is_first: bool) -> anyhow::Result<Box<dyn Write + Send>> {
        let Some(part) = &self.part else {
            return Ok(Box::new(io::stdout()));
        };
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(is_first)
            .append(!is_first)
            .mode(FILE_MODE)
            .open(part);
        let file = file.with_context(|| format!("{} cannot be written", part.display()))?;
        Ok(Box::new(file))
    }

    fn finish(mut self) -> anyhow::Result<()> {
        if let Some(part) = self.part.take() {
            fs::rename(&part, self.path)
                .with_context(|| format!("{} cannot be written", self.path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            let _left = fs::remove_file(part);
        }
    }
}

/// One file on its way through a thread of its own.
struct Decryption {
    pieces: mpsc::Sender<Bytes>,
    thread: JoinHandle<io::Result<FileDigest>>,
}

impl Decryption {
    fn begin(keys: &Identities, to: impl Write + Send + 'static) -> Self {
        let (pieces, queue) = mpsc::channel(QUEUE_MESSAGES);
        let keys = keys.clone();
        let from = Pieces {
            queue,
            rest: Bytes::new(),
        };
        Self {
            pieces,
            thread: tokio::task::spawn_blocking(move || {
                let mut to = to;
                let digest = keys.decrypt(from, &mut to)?;
                to.flush()?;
                Ok(digest)
            }),
        }
    }

    async fn take(&self, bytes: Bytes) {
        // If it has failed, its end says why.
        let _failed = self.pieces.send(bytes).await;
    }

    async fn end(self) -> anyhow::Result<FileDigest> {
        drop(self.pieces);
        Ok(self.thread.await??)
    }
}

/// Messages as they are read on a thread that may wait.
struct Pieces {
    queue: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.queue.blocking_recv() {
                Some(piece) => self.rest = piece,
                None => return Ok(0),
            }
        }
        let most = bytes.len().min(self.rest.len());
        bytes[..most].copy_from_slice(&self.rest.split_to(most));
        Ok(most)
    }
}
