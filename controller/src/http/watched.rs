//! A small file that is read again when it changes.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often the file is looked at, at most.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a file says. One that cannot be used any more leaves what was read before in use.
pub(super) struct Watched<T, E> {
    path: PathBuf,
    read: fn(&Path) -> Result<T, E>,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: T,
    read: Option<Stamp>,
    looked: Instant,
}

/// What changes of a file when its content does.
type Stamp = (u64, u64, u64, [i64; 4]);

impl<T: Clone, E: fmt::Display> Watched<T, E> {
    pub(super) fn load(path: &Path, read: fn(&Path) -> Result<T, E>) -> Result<Self, E> {
        // Before the reading: what changes meanwhile is a change.
        let stamp = stamp(path);
        let state = State {
            value: read(path)?,
            read: stamp,
            looked: Instant::now(),
        };
        Ok(Self {
            path: path.to_owned(),
            read,
            state: Mutex::new(state),
        })
    }

    /// As of the last second.
    pub(super) fn current(&self) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            let now = stamp(&self.path);
            if now != state.read {
                state.read = now;
                match (self.read)(&self.path) {
                    Ok(value) => {
                        state.value = value;
                        tracing::info!(path = %self.path.display(), "a secret was read again");
                    }
                    Err(error) => tracing::error!(
                        %error,
                        "the changed secret cannot be used; the one that was read before stays in use"
                    ),
                }
            }
        }
        state.value.clone()
    }
}

impl<T, E> fmt::Debug for Watched<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    let times = [
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
    ];
    Some((file.dev(), file.ino(), file.size(), times))
}
