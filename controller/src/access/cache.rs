//! Answers that hold for a while. Bounded; time comes in.

use std::{collections::HashMap, hash::Hash, time::Duration};

use tokio::time::Instant;

/// A map whose entries end by themselves.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    entries: HashMap<K, (V, Instant)>,
    most: usize,
}

impl<K: Clone + Eq + Hash, V: Clone> Cache<K, V> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            entries: HashMap::new(),
            most,
        }
    }

    pub(super) fn get(&self, key: &K, now: Instant) -> Option<V> {
        let (value, until) = self.entries.get(key)?;
        (now < *until).then(|| value.clone())
    }

    /// Keeps `value` until `now + lasts`; what ends first goes for it if there is no room.
    pub(super) fn put(&mut self, key: K, value: V, now: Instant, lasts: Duration) {
        if self.entries.len() >= self.most && !self.entries.contains_key(&key) {
            self.entries.retain(|_, (_, until)| now < *until);
            if self.entries.len() >= self.most {
                let first = self.entries.iter().min_by_key(|(_, (_, until))| *until);
                if let Some(first) = first.map(|(key, _)| key.clone()) {
                    self.entries.remove(&first);
                }
            }
        }
        self.entries.insert(key, (value, now + lasts));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is put in whichever order: never too many, never too old, never another's.
        #[test]
        fn an_answer_is_never_older_than_it_lasts(
            steps in proptest::collection::vec((0u8..12, 0u64..4, 0u64..3), 1..200)
        ) {
            let begin = Instant::now();
            let (mut cache, mut now) = (Cache::new(8), begin);
            let mut last = HashMap::new();
            for (key, lasts, passes) in steps {
                cache.put(key, (key, now), now, Duration::from_secs(lasts));
                last.insert(key, (now, lasts));
                now += Duration::from_secs(passes);
                prop_assert!(cache.len() <= 8);
                for key in 0u8..12 {
                    if let Some((of, at)) = cache.get(&key, now) {
                        let (put, lasts) = last[&key];
                        prop_assert_eq!(of, key);
                        prop_assert_eq!(at, put);
                        prop_assert!(now < put + Duration::from_secs(lasts));
                    }
                }
            }
        }
    }
}
