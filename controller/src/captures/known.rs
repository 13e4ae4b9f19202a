//! The objects as the watch told them, and when each is worked on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::ResourceExt as _;
use remora_crd::Capture;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::cluster::index::Change;

/// Longest sleep.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);
/// First pause after an object could not be written, doubled up to the longest.
const PAUSE_MIN: Duration = Duration::from_secs(2);

/// Why an object could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The API server would not: somebody has to change something first.
    Refused,
    /// It did not answer, or not now: all is written within seconds of its return.
    Away,
}

impl Fault {
    pub(super) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 => {
                Self::Refused
            }
            _ => Self::Away,
        }
    }

    const fn pause_max(self) -> Duration {
        match self {
            Self::Refused => Duration::from_secs(300),
            Self::Away => Duration::from_secs(8),
        }
    }

    /// After so many failures before this one.
    fn pause(self, failures: u32) -> Duration {
        let doubled = 1u32.checked_shl(failures).unwrap_or(u32::MAX);
        PAUSE_MIN.saturating_mul(doubled).min(self.pause_max())
    }
}

/// By namespace and name.
#[derive(Debug, Default)]
pub(super) struct Known {
    objects: Mutex<HashMap<(String, String), Entry>>,
    changed: Notify,
}

#[derive(Debug)]
struct Entry {
    object: Arc<Capture>,
    /// `None`: when it changes.
    due: Option<Instant>,
    /// It was told by the list that is being read.
    listed: bool,
    /// How often it could not be written, since it last could.
    failures: u32,
}

impl Known {
    pub(super) fn tell(&self, change: Change<Capture>) {
        let mut objects = self.objects();
        match change {
            Change::ListStart => objects.values_mut().for_each(|entry| entry.listed = false),
            Change::Listed(object) | Change::Applied(object) => {
                let before = objects.get(&key(&object));
                let entry = Entry::told(object, before, Instant::now());
                objects.insert(key(&entry.object), entry);
            }
            Change::ListEnd => objects.retain(|_, entry| entry.listed),
            Change::Deleted(object) => {
                objects.remove(&key(&object));
            }
        }
        drop(objects);
        self.changed.notify_one();
    }

    /// What the API server answered to a write; `None`: it is gone.
    pub(super) fn written(&self, object: Option<Capture>) {
        let Some(object) = object else { return };
        let mut objects = self.objects();
        // Deleted meanwhile, it does not come back.
        if let Some(entry) = objects.get_mut(&key(&object))
            && entry.object.uid() == object.uid()
        {
            entry.object = Arc::new(object);
        }
    }

    /// Waits until some are due; they are not due again until [`Known::again`] or a change.
    pub(super) async fn due(&self) -> Vec<Arc<Capture>> {
        loop {
            let changed = self.changed.notified();
            let now = Instant::now();
            let mut next = now + AT_LEAST_EVERY;
            let mut due = Vec::new();
            for entry in self.objects().values_mut() {
                match entry.due {
                    Some(at) if at <= now => {
                        entry.due = None;
                        due.push(Arc::clone(&entry.object));
                    }
                    Some(at) => next = next.min(at),
                    None => {}
                }
            }
            if !due.is_empty() {
                return due;
            }
            tokio::select! {
                () = changed => {}
                () = sleep_until(next) => {}
            }
        }
    }

    /// `object` was worked on.
    pub(super) fn again(&self, object: &Capture, after: Option<Duration>) {
        let mut objects = self.objects();
        let Some(entry) = objects.get_mut(&key(object)) else {
            return;
        };
        entry.failures = 0;
        if let Some(after) = after {
            entry.due_in(after);
        }
    }

    /// `object` could not be written: again after this pause, each longer than the one before.
    pub(super) fn failed(&self, object: &Capture, fault: Fault) -> Duration {
        let mut objects = self.objects();
        let Some(entry) = objects.get_mut(&key(object)) else {
            return PAUSE_MIN;
        };
        let pause = fault.pause(entry.failures);
        entry.failures = entry.failures.saturating_add(1);
        entry.due_in(pause);
        pause
    }

    fn objects(&self) -> MutexGuard<'_, HashMap<(String, String), Entry>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// As the watch tells it: due at once, but for one that could not be written and is as it was: what a list
    /// repeats is no reason to try again sooner.
    fn told(object: Capture, before: Option<&Self>, now: Instant) -> Self {
        let waits = before.filter(|before| {
            before.failures > 0
                && before.object.uid() == object.uid()
                && before.object.resource_version() == object.resource_version()
        });
        Self {
            due: waits.map_or(Some(now), |before| before.due),
            failures: waits.map_or(0, |before| before.failures),
            object: Arc::new(object),
            listed: true,
        }
    }

    fn due_in(&mut self, after: Duration) {
        let at = Instant::now() + after.min(Duration::from_secs(365 * 24 * 3600));
        // A change meanwhile is due at once.
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
}

fn key(object: &Capture) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::ask::tests::object, *};

    #[tokio::test(start_paused = true)]
    async fn an_object_is_due_when_it_changes_and_when_its_time_comes() {
        let known = Known::default();
        let one = object(json!({"selector": {"service": "cart"}}));
        known.tell(Change::Applied(one.clone()));
        assert_eq!(known.due().await.len(), 1);
        known.again(&one, Some(Duration::from_secs(2)));
        let before = Instant::now();
        assert_eq!(known.due().await.len(), 1);
        assert_eq!(before.elapsed(), Duration::from_secs(2));
        // Told while it was worked on: at once, however late it says.
        known.tell(Change::Applied(one.clone()));
        known.again(&one, Some(Duration::from_secs(3600)));
        let before = Instant::now();
        assert_eq!(known.due().await.len(), 1);
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_written_is_tried_ever_more_seldom_until_it_changes() {
        let known = Known::default();
        let mut one = object(json!({"selector": {"service": "cart"}}));
        one.metadata.resource_version = Some("1".into());
        known.tell(Change::Applied(one.clone()));
        let mut pauses = Vec::new();
        for _ in 0..40 {
            let before = Instant::now();
            assert_eq!(known.due().await.len(), 1);
            pauses.push(before.elapsed());
            let told = known.failed(&one, Fault::Refused);
            assert!(told <= Fault::Refused.pause_max());
            // The list that follows a broken watch says nothing new.
            known.tell(Change::Listed(one.clone()));
        }
        assert_eq!(
            pauses[..4]
                .iter()
                .map(Duration::as_secs)
                .collect::<Vec<_>>(),
            [0, 2, 4, 8]
        );
        assert_eq!(pauses.last(), Some(&Fault::Refused.pause_max()));
        // Changed, it may be another matter.
        one.metadata.resource_version = Some("2".into());
        known.tell(Change::Applied(one.clone()));
        let before = Instant::now();
        assert_eq!(known.due().await.len(), 1);
        assert_eq!(before.elapsed(), Duration::ZERO);
        assert_eq!(known.failed(&one, Fault::Refused), PAUSE_MIN);
        // Written, it is as any other.
        known.again(&one, None);
        assert_eq!(known.failed(&one, Fault::Refused), PAUSE_MIN);
    }

    #[test]
    fn a_server_that_is_back_is_not_kept_waiting() {
        let status = |code| {
            let status = kube::core::Status::failure("no", "Because").with_code(code);
            Fault::of(&kube::Error::Api(status.boxed()))
        };
        for code in [400, 403, 422] {
            assert_eq!(status(code), Fault::Refused);
        }
        for code in [429, 500, 503] {
            assert_eq!(status(code), Fault::Away);
        }
        for failures in [0, 1, 5, 40, u32::MAX] {
            assert!(Fault::Away.pause(failures) <= Duration::from_secs(8));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_list_does_not_have_is_gone() {
        let known = Known::default();
        let mut other = object(json!({"selector": {"service": "cart"}}));
        known.tell(Change::Applied(other.clone()));
        other.metadata.name = Some("other".into());
        known.tell(Change::ListStart);
        known.tell(Change::Listed(other.clone()));
        known.tell(Change::ListEnd);
        let due = known.due().await;
        assert_eq!(
            due.iter().map(|o| o.name_any()).collect::<Vec<_>>(),
            ["other"]
        );
        // Gone, it does not come back by an answer to a write.
        known.tell(Change::Deleted(other.clone()));
        known.written(Some(other));
        assert!(known.objects().is_empty());
    }
}
