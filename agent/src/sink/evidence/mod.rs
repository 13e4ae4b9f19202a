//! From a finished capture to its signed manifest.
//!
//! ```text
//! account kept ─▶ files hashed, encrypted if so asked ─▶ <id>.manifest.json: written aside, synced, renamed
//!   (told)                          ─▶ directory synced ─▶ chain.head: likewise ─▶ next capture
//! ```
//! One thread does it, after the capture's end was told: it alone has the chain. A manifest is made
//! of what lies on the disk, so whatever is missing after a crash is made at the next start, and what
//! finds no room is tried again. A manifest is the head of the chain as soon as it has its name;
//! `chain.head` says so again.

mod ahead;
mod deletion;
mod encrypt;
mod holds;
mod keys;
mod receipts;
mod retention;
pub(super) mod room;
mod sealer;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use remora_capture::{
    evidence::{Head, Hold, Tombstone},
    session::CaptureId,
};
use tokio::sync::watch;

pub use encrypt::{Recipients, RecipientsError};
pub use keys::Keys;
pub(super) use keys::public_files;
pub use retention::Retention;
pub use sealer::Sealer;
pub(super) use sealer::{HEAD, read_up_to};

use super::store::StoreError;
use crate::{custody::CustodyError, session::Growth};
use retention::Inventory;

/// Orders that wait. What finds no place is found in the directory later.
const ORDERS: usize = 1024;

/// What the thread is told.
enum Order {
    /// Its files grow: large ones are hashed meanwhile.
    Watch(CaptureId, watch::Receiver<Growth>),
    /// Its account is there.
    Seal(CaptureId),
    /// It did not start, or its account found no room.
    Forget(CaptureId),
    /// Its files shall go.
    Delete {
        id: CaptureId,
        /// Also if it waits to be uploaded.
        not_uploaded: bool,
        why: String,
        by: String,
        reply: Reply<(Tombstone, Head)>,
    },
    Hold {
        id: CaptureId,
        why: String,
        by: String,
        reply: Reply<Hold>,
    },
    Release {
        id: CaptureId,
        by: String,
        reply: Reply<Hold>,
    },
    /// All of it is in its store of objects.
    Receipt(CaptureId),
    /// There will be no more.
    End,
}

type Reply<T> = SyncSender<Result<T, CustodyError>>;

/// Tells the thread what to do; waits for nothing.
#[derive(Debug)]
pub struct Seals {
    orders: SyncSender<Order>,
    waiting: Mutex<Option<Receiver<Order>>>,
    told: Arc<Told>,
}

/// What is told of the chain.
#[derive(Debug, Default)]
struct Told {
    head: Mutex<Option<Head>>,
    /// Locked for moments, never while a disk is waited for.
    inventory: Mutex<Inventory>,
    /// An order found no place.
    missed: std::sync::atomic::AtomicBool,
}

impl Told {
    fn head(&self) -> Option<Head> {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inventory(&self) -> MutexGuard<'_, Inventory> {
        let inventory = self.inventory.lock();
        inventory.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Seals {
    fn default() -> Self {
        let (orders, waiting) = sync_channel(ORDERS);
        Self {
            orders,
            waiting: Mutex::new(Some(waiting)),
            told: Arc::default(),
        }
    }
}

impl Seals {
    fn order(&self, order: Order) {
        if self.orders.try_send(order).is_err() {
            let missed = &self.told.missed;
            missed.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    pub(super) fn watch(&self, id: CaptureId, growth: watch::Receiver<Growth>) {
        self.order(Order::Watch(id, growth));
    }

    pub(super) fn seal(&self, id: CaptureId) {
        self.order(Order::Seal(id));
    }

    pub(super) fn forget(&self, id: CaptureId) {
        self.order(Order::Forget(id));
    }

    pub(super) fn receipt(&self, id: CaptureId) {
        self.order(Order::Receipt(id));
    }

    /// Ends the thread when all that was ordered is done.
    pub fn end(&self) {
        self.order(Order::End);
    }

    /// The last manifest.
    #[must_use]
    pub fn head(&self) -> Option<Head> {
        self.told.head()
    }

    pub(super) fn inventory(&self) -> MutexGuard<'_, Inventory> {
        self.told.inventory()
    }

    pub(super) fn delete(
        &self,
        id: CaptureId,
        by: &str,
        (why, not_uploaded): (&str, bool),
    ) -> Result<(Tombstone, Head), CustodyError> {
        let (by, why) = (by.to_owned(), why.to_owned());
        self.ask(|reply| Order::Delete {
            id,
            not_uploaded,
            why,
            by,
            reply,
        })
    }

    pub(super) fn hold(&self, id: CaptureId, by: &str, why: &str) -> Result<Hold, CustodyError> {
        let (by, why) = (by.to_owned(), why.to_owned());
        self.ask(|reply| Order::Hold { id, why, by, reply })
    }

    pub(super) fn release(&self, id: CaptureId, by: &str) -> Result<Hold, CustodyError> {
        let by = by.to_owned();
        self.ask(|reply| Order::Release { id, by, reply })
    }

    /// Waits for the answer.
    fn ask<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, CustodyError> {
        let (reply, answer) = sync_channel(1);
        let sent = self.orders.try_send(order(reply));
        sent.map_err(|_full| CustodyError::Busy)?;
        answer.recv().map_err(|_ended| CustodyError::Busy)?
    }

    fn take(&self) -> Option<Receiver<Order>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.take()
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path: PathBuf = path.to_owned();
    move |source| StoreError::Io {
        action,
        path,
        source,
    }
}

/// Names in a directory are on the disk after this.
pub(super) fn sync_directory(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}
