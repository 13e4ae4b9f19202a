//! The audit log: what is not on the disk was not decided.
//!
//! ```text
//! record ──queue──▶ thread: all that wait ─▶ one write, one fdatasync ─▶ each is answered
//!                        └─ no room: the file is cut to its last whole line, all are refused
//! ```
//! So a thousand decisions a second cost as many syncs as the disk can do, each shared by those that came
//! meanwhile. `FILE` is rotated to `FILE.1`, `FILE.2`, …; the chain goes on over them, and the oldest goes.
//!
//! Invariants:
//! - A decision is told to nobody before its line is on the disk.
//! - A log that cannot be written lets nothing happen, and goes on by itself when it can.
//! - One controller writes a log; a second is refused at its start.

mod file;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use remora_capture::audit::Entry;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use file::LogFile;
pub use file::{OpenError, Rotation};

/// Most entries that wait. Each is some hundred bytes, and none waits longer than [`RECORD_TIMEOUT`].
pub const WAITING_MAX: usize = 4096;
/// How long an entry may take to be on the disk.
pub const RECORD_TIMEOUT: Duration = Duration::from_secs(2);

/// Most entries of one write.
const BATCH_MAX: usize = 1024;

/// An entry is not in the log, so what it says must not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    #[error(
        "the audit log {} cannot be written ({reason}), and nothing is done that is not in it; make \
         room or mend the disk, it goes on by itself",
        path.display()
    )]
    Disk { path: PathBuf, reason: String },
    #[error(
        "the audit log {} did not take the entry within {RECORD_TIMEOUT:?}, and nothing is done that is \
         not in it; is its disk slow? try again",
        .0.display()
    )]
    Late(PathBuf),
}

struct Order {
    entry: Entry,
    done: oneshot::Sender<Result<(), String>>,
}

/// Writes the log; without a file, writes nothing. Cheap to clone.
#[derive(Clone)]
pub struct Audit(Option<Arc<Open>>);

struct Open {
    path: PathBuf,
    is_failing: Arc<AtomicBool>,
    orders: mpsc::Sender<Order>,
}

impl Audit {
    /// No log was asked for.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Goes on with the log at `path`, or begins it.
    ///
    /// # Errors
    /// It is another's, it is broken, or it cannot be written.
    pub fn open(path: &Path, rotation: Rotation) -> Result<Self, OpenError> {
        let file = LogFile::open(path, rotation)?;
        tracing::info!(path = %path.display(), head = %file.head(), "the audit log goes on");
        let (orders, waiting) = mpsc::channel(WAITING_MAX);
        let is_failing = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_failing);
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write(file, waiting, &told))
            .map_err(|source| OpenError::Io {
                action: "start the writer of",
                path: path.to_owned(),
                source,
            })?;
        Ok(Self(Some(Arc::new(Open {
            path: path.to_owned(),
            is_failing,
            orders,
        }))))
    }

    /// The last entry could not be written.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|open| open.is_failing.load(Ordering::Relaxed))
    }

    /// Returns when the entry is on the disk.
    ///
    /// # Errors
    /// It is not: what it says must not happen.
    pub async fn record(&self, entry: Entry) -> Result<(), AuditError> {
        let Some(open) = &self.0 else {
            return Ok(());
        };
        let recorded = async {
            let (done, answer) = oneshot::channel();
            let gone = |_gone| "its writer has ended".to_owned();
            let order = Order { entry, done };
            open.orders.send(order).await.map_err(|_gone| gone(()))?;
            answer.await.map_err(|_gone| gone(()))?
        };
        match timeout(RECORD_TIMEOUT, recorded).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(AuditError::Disk {
                path: open.path.clone(),
                reason,
            }),
            Err(_elapsed) => Err(AuditError::Late(open.path.clone())),
        }
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.as_ref().map(|open| &open.path);
        f.debug_tuple("Audit").field(&path).finish()
    }
}

/// Ends when nobody can send any more.
fn write(mut file: LogFile, mut waiting: mpsc::Receiver<Order>, is_failing: &AtomicBool) {
    while let Some(first) = waiting.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(order) = waiting.try_recv()
        {
            batch.push(order);
        }
        // Who has given up was refused: nothing is to be written of him as allowed.
        batch.retain(|order| !order.done.is_closed());
        if batch.is_empty() {
            continue;
        }
        let written = file.append(batch.iter().map(|order| &order.entry));
        told(&written, is_failing, &file);
        let written = written.map_err(|error| error.to_string());
        for order in batch {
            let _given_up = order.done.send(written.clone());
        }
    }
    tracing::info!(head = %file.head(), "the audit log ends");
}

/// Once when it begins to fail, once when it goes on.
fn told(written: &io::Result<()>, is_failing: &AtomicBool, file: &LogFile) {
    let was_failing = is_failing.swap(written.is_err(), Ordering::Relaxed);
    match written {
        Err(error) if !was_failing => {
            tracing::error!(%error, "the audit log cannot be written: everything is refused");
        }
        Ok(()) if was_failing => {
            tracing::info!(head = %file.head(), "the audit log is written again");
        }
        _ => {}
    }
}
