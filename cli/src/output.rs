//! Where a capture's bytes go: a file, a pipe, standard output. Whole blocks only.
//!
//! The output is opened before the capture is started, so that a path that cannot be written arms
//! nothing; what stood in the file is cut away only after the start, so that a start that failed
//! loses nothing. A thread of its own writes, as a disk or a pipe may block. After a failure it
//! cuts the file back to its last whole block and only counts the packets that still come.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal as _, Write as _},
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use tokio::{
    io::Interest,
    net::unix::pipe,
    sync::{mpsc, oneshot},
};

use crate::blocks;

/// Messages between the stream and the writer, each of at most a mebibyte. When they are full the
/// stream is read no further, and the agent's own bounded queue counts what it drops.
const QUEUE_MESSAGES: usize = 8;

/// Captures are secret: the owner's alone.
const FILE_MODE: u32 = 0o600;

/// An opened output to which nothing was written yet.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Made by us: a start that fails takes it away again.
    Fresh(PathBuf),
    /// Had stood there before.
    Existing,
    /// A pipe, a device: it has no length.
    Stream,
}

/// What became of the packets.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) packets: u64,
    /// They came, but the output took them no more.
    pub(crate) dropped: u64,
    pub(crate) failure: Option<io::Error>,
}

/// The thread that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) blocks: mpsc::Sender<Bytes>,
    /// Fires when the output fails.
    pub(crate) failed: oneshot::Receiver<()>,
    /// Fires after [`Self::blocks`] is dropped and all is written.
    pub(crate) done: oneshot::Receiver<Written>,
}

impl Output {
    /// Opens `path`, or standard output for `-`.
    ///
    /// # Errors
    /// The file cannot be made or written, or it is a terminal.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let (file, fresh) = if path == Path::new("-") {
            (
                File::from(
                    io::stdout()
                        .as_fd()
                        .try_clone_to_owned()
                        .context("no output")?,
                ),
                false,
            )
        } else {
            open_file(path).with_context(|| {
                format!(
                    "{} cannot be written; is the directory there?",
                    path.display()
                )
            })?
        };
        if file.is_terminal() {
            bail!("packets are binary and this is a terminal; use -w FILE, or -w - | tshark -r -");
        }
        let kind = match file.metadata() {
            Ok(metadata) if !metadata.is_file() => Kind::Stream,
            _ if fresh => Kind::Fresh(path.to_owned()),
            // Standard output into a file may append to it (`>>`).
            _ if path == Path::new("-") => Kind::Stream,
            _ => Kind::Existing,
        };
        Ok(Self { file, kind })
    }

    /// Leaves all as it was before [`Self::open`].
    pub(crate) fn discard(self) {
        if let Kind::Fresh(path) = self.kind {
            let _left_empty = fs::remove_file(path);
        }
    }

    /// Until nobody can read any more what is written; for ever if this is no pipe.
    pub(crate) fn reader_gone(&self) -> impl Future<Output = ()> + use<> {
        let end = self.file.try_clone();
        async move {
            // Nothing is written through it, so the descriptor may stay a blocking one.
            if let Ok(Ok(end)) = end.map(pipe::Sender::from_file_unchecked)
                && end.ready(Interest::ERROR).await.is_ok()
            {
                return;
            }
            std::future::pending::<()>().await;
        }
    }

    /// Starts the writer.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(crate) fn start(self) -> anyhow::Result<Writer> {
        let (blocks, queue) = mpsc::channel(QUEUE_MESSAGES);
        let (failing, failed) = oneshot::channel();
        let (finishing, done) = oneshot::channel();
        thread::Builder::new()
            .name("output".into())
            .spawn(move || {
                let _nobody_waits = finishing.send(self.write(queue, failing));
            })
            .context("no thread for the output")?;
        Ok(Writer {
            blocks,
            failed,
            done,
        })
    }

    fn write(self, mut queue: mpsc::Receiver<Bytes>, failing: oneshot::Sender<()>) -> Written {
        let mut written = Written::default();
        let mut failing = Some(failing);
        let mut position = 0;
        let mut fail = |written: &mut Written, error| {
            written.failure = Some(error);
            if let Some(failing) = failing.take() {
                let _nobody_waits = failing.send(());
            }
        };
        if let Kind::Existing = self.kind
            && let Err(error) = self.file.set_len(0)
        {
            fail(&mut written, error);
        }
        while let Some(message) = queue.blocking_recv() {
            let packets = packets(&message);
            if written.failure.is_some() {
                written.dropped += packets;
                continue;
            }
            match write_all(&self.file, &message) {
                Ok(()) => {
                    written.packets += packets;
                    position += message.len() as u64;
                }
                Err((len, error)) => {
                    let whole = blocks::whole(&message[..len]).unwrap_or_default();
                    written.packets += whole.packets;
                    written.dropped += packets - whole.packets;
                    position += whole.len as u64;
                    if !matches!(self.kind, Kind::Stream) {
                        let _torn_then = self.file.set_len(position);
                    }
                    fail(&mut written, error);
                }
            }
        }
        // Some file systems tell only now that there was no room.
        if !matches!(self.kind, Kind::Stream)
            && written.failure.is_none()
            && let Err(error) = self.file.sync_all()
        {
            fail(&mut written, error);
        }
        written
    }
}

fn packets(message: &[u8]) -> u64 {
    blocks::whole(message).map_or(0, |whole| whole.packets)
}

fn open_file(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.write(true).mode(FILE_MODE);
    match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Ok((options.open(path)?, false))
        }
        result => Ok((result?, true)),
    }
}

/// Like [`io::Write::write_all`], but tells how many bytes went out before it failed.
fn write_all(mut file: &File, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut len = 0;
    while len < bytes.len() {
        match file.write(&bytes[len..]) {
            Ok(0) => return Err((len, io::ErrorKind::WriteZero.into())),
            Ok(n) => len += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((len, error)),
        }
    }
    Ok(())
}
