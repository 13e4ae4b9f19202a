//! Uploads of finished captures: what waits, what is under way, and what the store has verified.
//!
//! ```text
//! signed, with a sink ─▶ waiting (inventory) ─offers─▶ controller ─signed URL─▶ put ─▶ transfer
//!                           ▲                                                           │
//!                           └── <id>.upload.json: written aside, synced, renamed ◀───────┘
//! ```
//! A capture waits until its record says that the store has told the checksum of each file; until then nobody
//! deletes it. Killed anywhere, the next agent asks the store first, and sends only what is not there.

mod body;
mod record;
mod transfer;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use remora_capture::session::CaptureId;

use super::Store;
use crate::{
    node::UploadNumbers,
    upload::{Facts, Offer, Order, Progress, SinkHost, StoreChecksum, UploadError, Uploader},
};
use record::Known;
pub(super) use record::{UPLOAD, kept};
use transfer::{Client, ClientError, Failure, Transfer};

/// Files that are sent at once.
const RUNNING_MAX: usize = 2;
/// Bytes that a store takes in one put: S3's limit, and the others' is no lower but for Azure's 5000 MiB.
const PUT_BYTES_MAX: u64 = 5000 << 20;

/// Runs a transfer.
pub type Spawn = fn(Pin<Box<dyn Future<Output = ()> + Send>>);

/// The uploads of a store's captures. Cheap to clone.
#[derive(Clone)]
pub struct Uploads(Arc<Parts>);

struct Parts {
    store: Arc<Store>,
    client: Client,
    hosts: Vec<SinkHost>,
    spawn: Spawn,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of captures that wait, as far as they were looked at.
    known: BTreeMap<CaptureId, Known>,
    running: BTreeSet<CaptureId>,
    numbers: UploadNumbers,
}

impl Uploads {
    /// `ca`: certificates (PEM) that stores' certificates are signed by, instead of the machine's.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn new(
        store: Arc<Store>,
        hosts: Vec<SinkHost>,
        ca: Option<&std::path::Path>,
        spawn: Spawn,
    ) -> Result<Self, ClientError> {
        Ok(Self(Arc::new(Parts {
            store,
            client: Client::new(ca)?,
            hosts,
            spawn,
            state: Mutex::default(),
        })))
    }

    #[must_use]
    pub fn numbers(&self) -> UploadNumbers {
        let (waiting, waiting_bytes) = self.0.store.seals().inventory().waiting_sum();
        UploadNumbers {
            waiting,
            waiting_bytes,
            ..self.0.state().numbers.clone()
        }
    }
}

impl Parts {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of a capture that waits, read if it was not yet.
    fn load(&self, id: CaptureId) -> Option<Known> {
        if let Some(known) = self.state().known.get(&id) {
            return Some(known.clone());
        }
        let known = match record::read(&self.store, id) {
            Ok(known) => known?,
            Err(error) => {
                tracing::error!(capture = %id, %error, "failed to read what is to be uploaded");
                return None;
            }
        };
        let mut state = self.state();
        Some(state.known.entry(id).or_insert(known).clone())
    }

    async fn transfer(self: Arc<Self>, transfer: Transfer) {
        let (id, name) = (transfer.id, transfer.file.name.clone());
        let sent = self.client.send(&transfer).await;
        let parts = Arc::clone(&self);
        // The record is synced to the disk.
        let ended = tokio::task::spawn_blocking(move || parts.ended(id, &name, sent));
        if let Err(error) = ended.await {
            tracing::error!(capture = %id, %error, "failed to keep what became of an upload");
            self.state().running.remove(&id);
        }
    }

    fn ended(
        &self,
        id: CaptureId,
        name: &str,
        sent: Result<remora_capture::upload::StoredObject, Failure>,
    ) {
        let now = Timestamp::now();
        let mut state = self.state();
        let State {
            known,
            running: _,
            numbers,
        } = &mut *state;
        let upload = known.get_mut(&id).map(|known| {
            match &sent {
                Ok(object) => {
                    tracing::info!(capture = %id, file = name, url = object.url, "uploaded and verified");
                    let file = known.upload.files.iter().find(|file| file.name == name);
                    numbers.bytes += file.map_or(0, |file| file.bytes);
                    known.upload.verified(name, object.clone());
                }
                Err(failure) => {
                    tracing::warn!(capture = %id, file = name, error = %failure, "failed to upload; tried again");
                    known.upload.failed(&failure.to_string(), now);
                }
            }
            known.upload.clone()
        });
        numbers.count(sent.as_ref().map_or_else(Failure::word, |_| "verified"));
        drop(state);
        if let Some(upload) = upload {
            if let Err(error) = record::keep(&self.store, &upload) {
                // The store is asked again by the next agent.
                tracing::error!(capture = %id, %error, "failed to write how far its upload is");
            }
            if upload.is_verified() {
                // Before retention may delete it.
                self.store.seals().receipt(id);
                self.store.seals().inventory().uploaded(id);
                self.state().known.remove(&id);
                tracing::info!(capture = %id, sink = %upload.sink, "all of it is in its sink");
            }
        }
        // Last: until then nobody is offered its next file.
        self.state().running.remove(&id);
    }
}

impl Uploader for Uploads {
    fn offers(&self) -> Vec<Offer> {
        let parts = &self.0;
        let waiting = parts.store.seals().inventory().waiting();
        let (running, mut free) = {
            let mut state = parts.state();
            let still: BTreeSet<_> = waiting.iter().copied().collect();
            // What was deleted meanwhile.
            state.known.retain(|id, _| still.contains(id));
            let running = state.running.clone();
            let free = RUNNING_MAX.saturating_sub(running.len());
            (running, free)
        };
        let now = Timestamp::now();
        let mut offers = Vec::new();
        for id in waiting.into_iter().filter(|id| !running.contains(id)) {
            if free == 0 {
                break;
            }
            let Some(Known { upload, facts }) = parts.load(id) else {
                continue;
            };
            let Some(file) = upload.next(now) else {
                continue;
            };
            if file.bytes > PUT_BYTES_MAX {
                let error = format!(
                    "{} has {} bytes, and one put takes at most {PUT_BYTES_MAX}: it stays here; `remora get` copies \
                     it, and captures with rotation (-C) have smaller files",
                    file.name, file.bytes
                );
                parts.fail(id, &error, now);
                continue;
            }
            offers.push(Offer {
                id,
                sink: upload.sink.to_string(),
                file: file.name.clone(),
                bytes: file.bytes,
                sha256: *file.sha256.as_bytes(),
                facts,
            });
            free -= 1;
        }
        offers
    }

    fn put(&self, order: Order) -> Result<(), UploadError> {
        let parts = &self.0;
        for request in [&order.put, &order.check] {
            transfer::check_host(&request.url, &parts.hosts)?;
        }
        let mut state = parts.state();
        let not_waiting = || UploadError::NotWaiting {
            id: order.id,
            file: remora_capture::text::one_line(&order.file, 200),
        };
        if state.running.contains(&order.id) {
            return Err(not_waiting());
        }
        let known = state.known.get(&order.id).ok_or_else(not_waiting)?;
        let next = known.upload.next(Timestamp::now());
        let file = next.filter(|file| file.name == order.file).cloned();
        let file = file.ok_or_else(not_waiting)?;
        if state.running.len() >= RUNNING_MAX {
            return Err(UploadError::Busy(RUNNING_MAX));
        }
        state.running.insert(order.id);
        drop(state);
        let path: PathBuf = parts.store.directory.join(&file.name);
        let transfer = Transfer {
            id: order.id,
            path,
            file,
            put: order.put,
            check: order.check,
            checksum: order.checksum,
        };
        (parts.spawn)(Box::pin(Arc::clone(parts).transfer(transfer)));
        Ok(())
    }

    fn progress(&self, id: CaptureId) -> Option<Progress> {
        let parts = &self.0;
        let is_waiting = parts.store.seals().inventory().is_waiting(id);
        let upload = if is_waiting {
            parts.load(id)?.upload
        } else {
            record::kept(&parts.store, id).ok()?
        };
        let is_running = parts.state().running.contains(&id);
        Some(Progress { upload, is_running })
    }
}

impl Parts {
    fn fail(&self, id: CaptureId, error: &str, now: Timestamp) {
        let mut state = self.state();
        state.numbers.count("too_large");
        if let Some(known) = state.known.get_mut(&id) {
            known.upload.failed(error, now);
        }
    }
}
