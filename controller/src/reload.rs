//! Rules that change while alerts come.
//!
//! ```text
//! SIGHUP ────────────────▶ read ──right──▶ in use for the next alert
//! files changed, then ──▶      └─wrong──▶ logged, counted; the old rules stay
//! stayed as they are
//! ```
//! A file that is being written looks like one that ends early, so a change is read only once it
//! has stayed the same for a [`LOOK_EVERY`]; SIGHUP says that it is whole. Files are looked at by
//! their metadata, through symbolic links: a ConfigMap's files are swapped by one.

use std::{os::unix::fs::MetadataExt as _, path::PathBuf, sync::Arc, time::Duration};

use remora_rules::{RuleError, Rules};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::metrics::Metrics;

/// How often the files are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What came of reading changed files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reload {
    Loaded,
    Refused,
}

impl Reload {
    pub(crate) const ALL: [Self; 2] = [Self::Loaded, Self::Refused];

    /// The word, as in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Refused => "refused",
        }
    }
}

/// What the captures of rules can be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Knows {
    /// Of the one agent's host.
    Host,
    Cluster,
}

/// The rule files, the rules in use, and what tells of a change.
#[derive(Debug)]
pub(crate) struct RuleFiles {
    paths: Vec<PathBuf>,
    knows: Knows,
    rules: watch::Sender<Arc<Rules>>,
    hangup: Signal,
    /// The files as they were when they were last read.
    read: Stamps,
}

/// What changes of a file when its content does; `None` where there is none.
type Stamps = Vec<Option<Stamp>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl RuleFiles {
    /// Reads the rules for the first time. From now on SIGHUP does not end the process.
    ///
    /// # Errors
    /// A file is wrong, or SIGHUP cannot be waited for.
    pub(crate) fn load(paths: Vec<PathBuf>, knows: Knows) -> Result<Self, LoadError> {
        let hangup = signal(SignalKind::hangup()).map_err(LoadError::Signal)?;
        // Before the reading: what changes meanwhile is a change.
        let read = stamps(&paths);
        let rules = Rules::load(&paths)?;
        tell(&rules, knows);
        Ok(Self {
            paths,
            knows,
            rules: watch::Sender::new(Arc::new(rules)),
            hangup,
            read,
        })
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Rules>> {
        self.rules.subscribe()
    }

    /// Follows the files for ever.
    pub(crate) async fn follow(mut self, metrics: Arc<Metrics>) -> std::convert::Infallible {
        metrics.rules(self.rules.borrow().len());
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = self.read.clone();
        loop {
            let is_asked = tokio::select! {
                Some(()) = self.hangup.recv() => true,
                _ = looks.tick() => false,
            };
            let now = self.blocking(|paths| stamps(&paths)).await;
            let is_settled = now == before;
            before.clone_from(&now);
            if is_asked || (is_settled && now != self.read) {
                self.read = now;
                self.reload(&metrics).await;
            }
        }
    }

    async fn reload(&self, metrics: &Metrics) {
        // Told when it is so.
        match self.blocking(|paths| Rules::load(&paths)).await {
            Ok(rules) => {
                let rules = Arc::new(rules);
                self.rules.send_replace(rules.clone());
                metrics.rules(rules.len());
                metrics.reload(Reload::Loaded);
                tell(&rules, self.knows);
                tracing::info!(rules = rules.len(), "the rule files were read again");
            }
            Err(error) => {
                metrics.reload(Reload::Refused);
                tracing::error!(
                    %error,
                    rules = self.rules.borrow().len(),
                    "the rule files are wrong; the rules that were read before stay in use"
                );
            }
        }
    }

    /// Files may be slow, and many templates take a while.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Vec<PathBuf>) -> T + Send + 'static,
    ) -> T {
        let paths = self.paths.clone();
        tokio::task::spawn_blocking(move || work(paths))
            .await
            .expect("looking at files does not panic")
    }
}

/// What of the rules will start nothing.
fn tell(rules: &Rules, knows: Knows) {
    if rules.is_empty() {
        tracing::warn!("the files hold no rule: every alert will be ignored");
    }
    if knows == Knows::Cluster {
        return;
    }
    for what in rules.waiting_for_cluster() {
        tracing::warn!("{what} needs the cluster part; its alerts will be refused");
    }
}

fn stamps(paths: &[PathBuf]) -> Stamps {
    let stamp = |path: &PathBuf| {
        let file = std::fs::metadata(path).ok()?;
        Some(Stamp {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    };
    paths.iter().map(stamp).collect()
}

/// The rules cannot be had at the start.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Rules(#[from] RuleError),
    #[error("cannot wait for SIGHUP")]
    Signal(#[source] std::io::Error),
}
