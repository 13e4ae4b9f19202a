//! Where a capture's bytes go: a file, a set of files, a pipe, standard output. Whole blocks only.
//!
//! The output is opened before the capture is started, so that a path that cannot be written arms
//! nothing; what stood in the file is cut away only after the start, so that a start that failed
//! loses nothing. A thread of its own writes, as a disk or a pipe may block, and compresses. After
//! a failure the file ends on its last whole block, and packets that still come are only counted.

use std::{
    fs::{self, File},
    io,
    path::Path,
    thread,
    time::Instant,
};

use anyhow::Context as _;
use jiff::Timestamp;
use remora_capture::{
    pcapng::{FileSet, Finished, Unsynced},
    session::{Compression, Durability, Writing},
};
use tokio::{
    io::Interest,
    net::unix::pipe,
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::timeout_at,
};

use crate::{
    blocks::Message,
    place::{Place, cannot_be_written},
};

/// Messages between the stream and the writer, each of at most a mebibyte. When they are full the
/// stream is read no further, and the agent's own bounded queue counts what it drops.
const QUEUE_MESSAGES: usize = 8;

/// An opened output to which nothing was written yet.
#[derive(Debug)]
pub(crate) struct Output {
    files: FileSet<Place>,
    /// Its other descriptor, if it is a stream.
    stream: Option<File>,
    durability: Durability,
}

/// What became of the packets.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) packets: u64,
    /// They came, but the output took them no more.
    pub(crate) dropped: u64,
    pub(crate) files: Finished,
    pub(crate) failure: Option<io::Error>,
}

/// The thread that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) blocks: mpsc::Sender<Message>,
    /// Fires when the output fails.
    pub(crate) failed: oneshot::Receiver<()>,
    /// Fires after [`Self::blocks`] is dropped and all is written.
    pub(crate) done: oneshot::Receiver<Written>,
}

/// What a file of this name is compressed as.
pub(crate) fn compression_of(path: &Path) -> Compression {
    match path.extension() {
        Some(extension) if extension == "zst" => Compression::Zstd,
        _ => Compression::None,
    }
}

impl Output {
    /// Opens `path` or, if it rotates, the first file of that name with a number; standard output
    /// for `-`.
    ///
    /// # Errors
    /// The file cannot be made or written, or it is a terminal.
    pub(crate) fn open(path: &Path, writing: Writing) -> anyhow::Result<Self> {
        let Writing {
            rotation,
            compression,
            durability,
        } = writing;
        let place = Place::of(path, rotation.is_on())?;
        let stream = place.stream();
        let now = u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0);
        let files = FileSet::new(place, rotation, compression, now)
            .with_context(|| cannot_be_written(path))?;
        Ok(Self {
            files,
            stream,
            durability,
        })
    }

    /// Leaves all as it was before [`Self::open`].
    pub(crate) fn discard(mut self) {
        let Some((name, _)) = self.files.current() else {
            return;
        };
        let name = name.to_owned();
        if let Some(path) = self.files.shelf().fresh(&name) {
            let _left_empty = fs::remove_file(path);
        }
    }

    /// Until nobody can read any more what is written; for ever if this is no pipe.
    pub(crate) fn reader_gone(&mut self) -> impl Future<Output = ()> + use<> {
        let end = self.stream.take();
        async move {
            // Nothing is written through it, so the descriptor may stay a blocking one.
            if let Some(Ok(end)) = end.map(pipe::Sender::from_file_unchecked)
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
        let runtime = Handle::current();
        thread::Builder::new()
            .name("output".into())
            .spawn(move || {
                let _nobody_waits = finishing.send(self.write(queue, failing, runtime));
            })
            .context("no thread for the output")?;
        Ok(Writer {
            blocks,
            failed,
            done,
        })
    }

    fn write(
        mut self,
        mut queue: mpsc::Receiver<Message>,
        failing: oneshot::Sender<()>,
        runtime: Handle,
    ) -> Written {
        let mut failure = None;
        let mut came = 0;
        let mut failing = Some(failing);
        let mut unsynced = Unsynced::default();
        loop {
            let result = match next(&runtime, &mut queue, unsynced.due()) {
                Next::Message(Message { blocks, packets }) => {
                    came += packets;
                    if failure.is_some() {
                        continue;
                    }
                    if self.durability == Durability::Synced {
                        unsynced.written(blocks.len() as u64, Instant::now());
                    }
                    self.files.append(&blocks)
                }
                Next::SyncDue => {
                    unsynced.synced();
                    self.files.sync()
                }
                Next::End => break,
            };
            if let Err(error) = result {
                failure = Some(error);
                unsynced.synced();
                if let Some(failing) = failing.take() {
                    let _nobody_waits = failing.send(());
                }
            }
        }
        // Some file systems tell only now that there was no room.
        let (files, closed) = self.files.finish();
        let packets = self.files.totals().packets;
        Written {
            packets,
            dropped: came - packets,
            files,
            failure: failure.or(closed.err()),
        }
    }
}

/// What the writer does next.
enum Next {
    Message(Message),
    SyncDue,
    End,
}

fn next(runtime: &Handle, queue: &mut mpsc::Receiver<Message>, due: Option<Instant>) -> Next {
    let message = match due {
        None => Ok(queue.blocking_recv()),
        // Also when messages never end: what is due comes first.
        Some(due) if due <= Instant::now() => return Next::SyncDue,
        Some(due) => runtime.block_on(async { timeout_at(due.into(), queue.recv()).await }),
    };
    match message {
        Ok(Some(message)) => Next::Message(message),
        Ok(None) => Next::End,
        Err(_elapsed) => Next::SyncDue,
    }
}
