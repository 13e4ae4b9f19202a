//! One kind of object, followed for ever.
//!
//! ```text
//!   list, in pages ──▶ watch from there ◀──┐ ended in order, or broke
//!     ▲       │ failed     │     └─────────┘ (paused)
//!     │◀──────┘ (paused)   │ 410: too old, as an event or as the answer; or not understood
//!     └────────────────────┘
//! ```
//! Unlike kube's own watcher it begins anew when the answer to a watch is the status 410, notices a list that
//! never comes, and pauses between watches that end at once: there are thousands of agents, and one API server.

use std::{
    fmt::Debug,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

use futures_util::StreamExt as _;
use kube::{
    Api, Resource, ResourceExt as _,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

/// The server ends a watch after so many seconds; the next goes on where it ended.
const WATCH_SECONDS: u32 = 30;
/// Nothing at all for so long means that the connection is dead: a watch would have ended.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
/// How long a connection may take: where packets go nowhere, the next try comes soon.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a page of a list, or the answer to a watch, may take; what the server asks to wait for included.
const ANSWER: Duration = Duration::from_secs(30);
/// Objects in a page of a list.
const PAGE: u32 = 500;
/// First pause after a failure, doubled up to the longest: the cluster is known again within seconds of its
/// return.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(4);
/// Between the beginnings of two watches.
const WATCH_APART: Duration = Duration::from_secs(1);

/// What follows from a list or an event.
pub(super) enum Change<K> {
    /// What comes until the end is all there is.
    Begin,
    There(K),
    End,
    Gone(K),
}

/// Why a list or a watch failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Server(#[from] kube::Error),
    #[error("no answer within {ANSWER:?}")]
    Silence,
    #[error("the server's answer has no resource version")]
    NoVersion,
    /// Only a list tells what was missed.
    #[error("what was seen last is too old for the server")]
    TooOld,
}

/// What is known of the server, for the log: each failure once.
struct Standing {
    what: &'static str,
    pause: Duration,
    failing: bool,
}

/// Lists and watches all objects that the field selector takes.
pub(super) async fn follow<K>(
    what: &'static str,
    api: Api<K>,
    fields: Option<&str>,
    mut change: impl FnMut(Change<K>),
) where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut standing = Standing {
        what,
        pause: PAUSE_MIN,
        failing: false,
    };
    loop {
        let mut version = match list(&api, fields, &mut change).await {
            Ok(version) => version,
            Err(failure) => {
                standing.failed(&failure).await;
                continue;
            }
        };
        standing.works();
        loop {
            let begun = Instant::now();
            let ended = watch(&api, fields, &mut version, &mut change).await;
            match ended {
                Ok(()) => {
                    standing.works();
                    tokio::time::sleep_until(begun + WATCH_APART).await;
                }
                Err(failure) => {
                    standing.failed(&failure).await;
                    if failure.begins_anew() {
                        break;
                    }
                }
            }
        }
    }
}

impl Failure {
    /// The next watch from there would fail, too.
    fn begins_anew(&self) -> bool {
        match self {
            Self::TooOld | Self::NoVersion => true,
            Self::Server(error) => match error {
                kube::Error::Api(status) => status.code == 410,
                // An event was not understood: a watch from there has it again.
                kube::Error::SerdeError(_) => true,
                _ => false,
            },
            Self::Silence => false,
        }
    }

    /// For how long the server asks to be left alone.
    fn asked(&self) -> Duration {
        match self {
            Self::Server(kube::Error::Api(status)) => {
                let details = status.details.as_ref();
                let seconds = details.map_or(0, |details| details.retry_after_seconds);
                Duration::from_secs(seconds.into()).min(ANSWER)
            }
            _ => Duration::ZERO,
        }
    }
}

impl Standing {
    fn works(&mut self) {
        if self.failing {
            tracing::info!(what = self.what, "the API server tells of them again");
        }
        self.failing = false;
        self.pause = PAUSE_MIN;
    }

    async fn failed(&mut self, failure: &Failure) {
        if matches!(failure, Failure::TooOld) {
            tracing::debug!(what = self.what, "listing anew");
        } else if self.failing {
            tracing::debug!(what = self.what, error = %failure, "still not told by the API server");
        } else {
            tracing::warn!(
                what = self.what, error = %failure,
                "the API server does not tell of them; going on with those that are known"
            );
            self.failing = true;
        }
        sleep(spread(self.pause).max(failure.asked())).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

/// Between three quarters of it and all: agents that fail together do not ask together.
fn spread(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    let share = (random % 256) as u32;
    pause - pause / 4 * share / 256
}

async fn in_time<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match timeout(ANSWER, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_elapsed) => Err(Failure::Silence),
    }
}

/// # Returns
/// The version that the list is of.
async fn list<K>(
    api: &Api<K>,
    fields: Option<&str>,
    change: &mut impl FnMut(Change<K>),
) -> Result<String, Failure>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut params = ListParams::default().limit(PAGE);
    params.field_selector = fields.map(str::to_owned);
    // Told only when its first page is there: until then all that is known holds.
    let mut page = in_time(api.list(&params)).await?;
    change(Change::Begin);
    loop {
        let version = page.metadata.resource_version.take();
        for object in page.items {
            change(Change::There(object));
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => {
                change(Change::End);
                return version
                    .filter(|version| !version.is_empty())
                    .ok_or(Failure::NoVersion);
            }
        }
        page = in_time(api.list(&params)).await?;
    }
}

/// Until the server ends it. `version` goes on with each event.
async fn watch<K>(
    api: &Api<K>,
    fields: Option<&str>,
    version: &mut String,
    change: &mut impl FnMut(Change<K>),
) -> Result<(), Failure>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut params = WatchParams::default().timeout(WATCH_SECONDS);
    params.field_selector = fields.map(str::to_owned);
    let events = in_time(api.watch(&params, version)).await?;
    let mut events = std::pin::pin!(events);
    loop {
        let event = match timeout(READ_TIMEOUT, events.next()).await {
            Ok(Some(event)) => event?,
            Ok(None) => return Ok(()),
            Err(_elapsed) => return Err(Failure::Silence),
        };
        let (object, is_there) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, true),
            WatchEvent::Deleted(object) => (object, false),
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                continue;
            }
            WatchEvent::Error(status) if status.code == 410 => return Err(Failure::TooOld),
            WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
        };
        *version = object.resource_version().ok_or(Failure::NoVersion)?;
        change(if is_there {
            Change::There(object)
        } else {
            Change::Gone(object)
        });
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16) -> Failure {
        let status = Status::failure("no", "Expired").with_code(code);
        kube::Error::Api(status.boxed()).into()
    }

    #[test]
    fn only_what_is_too_old_or_not_understood_is_listed_anew() {
        assert!(api(410).begins_anew());
        assert!(Failure::TooOld.begins_anew());
        assert!(!api(429).begins_anew());
        assert!(!api(500).begins_anew());
        assert!(!Failure::Silence.begins_anew());
    }

    #[test]
    fn a_pause_is_spread_over_its_last_quarter() {
        for _ in 0..1000 {
            let pause = spread(PAUSE_MAX);
            assert!(
                pause <= PAUSE_MAX && pause >= PAUSE_MAX * 3 / 4,
                "{pause:?}"
            );
        }
    }
}
