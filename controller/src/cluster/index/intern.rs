//! Texts that many pods share, kept once.

use std::{borrow::Borrow, collections::HashSet, hash::Hash, sync::Arc};

/// Entries below which nothing is thrown away.
const ENTRIES_MIN: usize = 1024;

/// One copy of each; those that nobody uses any more go when the table has doubled.
#[derive(Debug)]
pub(super) struct Interned<T: ?Sized> {
    kept: HashSet<Arc<T>>,
    limit: usize,
}

impl<T: ?Sized> Default for Interned<T> {
    fn default() -> Self {
        Self {
            kept: HashSet::new(),
            limit: ENTRIES_MIN,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Interned<T> {
    pub(super) fn get(&mut self, value: &T) -> Arc<T>
    where
        Arc<T>: Borrow<T> + for<'a> From<&'a T>,
    {
        if let Some(kept) = self.kept.get(value) {
            return kept.clone();
        }
        if self.kept.len() >= self.limit {
            self.kept.retain(|kept| Arc::strong_count(kept) > 1);
            self.limit = (2 * self.kept.len()).max(ENTRIES_MIN);
        }
        let new: Arc<T> = value.into();
        self.kept.insert(new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_uses_goes() {
        let mut texts = Interned::<str>::default();
        let used = texts.get("used");
        for n in 0..10 * ENTRIES_MIN {
            texts.get(&n.to_string());
        }
        assert!(texts.kept.len() <= ENTRIES_MIN + 1, "{}", texts.kept.len());
        assert!(Arc::ptr_eq(&used, &texts.get("used")));
    }
}
