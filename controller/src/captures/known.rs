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
}

impl Known {
    pub(super) fn tell(&self, change: Change<Capture>) {
        let mut objects = self.objects();
        match change {
            Change::ListStart => objects.values_mut().for_each(|entry| entry.listed = false),
            Change::Listed(object) | Change::Applied(object) => {
                objects.insert(key(&object), Entry::due_now(object));
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
        let Some(after) = after else { return };
        let mut objects = self.objects();
        if let Some(entry) = objects.get_mut(&key(object)) {
            let at = Instant::now() + after.min(Duration::from_secs(365 * 24 * 3600));
            // A change meanwhile is due at once.
            entry.due = Some(entry.due.map_or(at, |due| due.min(at)));
        }
    }

    fn objects(&self) -> MutexGuard<'_, HashMap<(String, String), Entry>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn due_now(object: Capture) -> Self {
        Self {
            object: Arc::new(object),
            due: Some(Instant::now()),
            listed: true,
        }
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
