//! What was made of files, made anew when they change.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{files::TlsError, refused::TlsCounts};

/// How often files are looked at, at most.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What changes of a file when its content does, through symbolic links, by which a Secret's files
/// are swapped; `None` where there is none.
type Stamps = Vec<Option<(u64, u64, u64, [i64; 4])>>;

/// A value made of files.
pub(super) struct Reloading<T> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    counts: Arc<TlsCounts>,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Arc<T>,
    /// The files when they were last read, whatever came of it.
    read: Stamps,
    looked: Instant,
}

impl<T: Send + Sync + 'static> Reloading<T> {
    pub(super) fn new(
        files: Vec<PathBuf>,
        counts: Arc<TlsCounts>,
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        // Before the reading: what changes meanwhile is a change.
        let read = stamps(&files);
        let value = Arc::new(make()?);
        Ok(Self {
            files,
            make: Box::new(make),
            counts,
            state: Mutex::new(State {
                value,
                read,
                looked: Instant::now(),
            }),
        })
    }

    /// The value of now. Looks at the files unless somebody just has.
    pub(super) async fn current(self: &Arc<Self>) -> Arc<T> {
        {
            let mut state = self.state();
            if self.files.is_empty() || state.looked.elapsed() < LOOK_EVERY {
                return Arc::clone(&state.value);
            }
            state.looked = Instant::now();
        }
        // A file system may be slow; other connections must not wait for it.
        let this = Arc::clone(self);
        if let Err(error) = tokio::task::spawn_blocking(move || this.look()).await {
            tracing::error!(%error, "looking at the certificates broke off");
        }
        Arc::clone(&self.state().value)
    }

    fn look(&self) {
        let now = stamps(&self.files);
        if self.state().read == now {
            return;
        }
        let made = (self.make)();
        let mut state = self.state();
        state.read = now;
        match made {
            Ok(value) => {
                state.value = Arc::new(value);
                self.counts.reload(true);
                tracing::info!(files = ?self.files, "certificates were read again");
            }
            Err(error) => {
                self.counts.reload(false);
                tracing::error!(
                    %error,
                    "changed certificates cannot be used; those that were read before stay in use"
                );
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamps(files: &[PathBuf]) -> Stamps {
    let stamp = |path: &PathBuf| {
        let file = fs::metadata(path).ok()?;
        let times = [
            file.mtime(),
            file.mtime_nsec(),
            file.ctime(),
            file.ctime_nsec(),
        ];
        Some((file.dev(), file.ino(), file.size(), times))
    };
    files.iter().map(stamp).collect()
}
