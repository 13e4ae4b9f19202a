//! The node's pods, those that are gone included for a while. Pure: told what the API server says and
//! when; asked whom a name means.
//!
//! ```text
//!             apply                       delete
//!  unknown ───────────▶ there ─────────────────────────▶ deleted ─▶ forgotten
//!                        │ ▲  absent from a whole list,             (after `keep`, or
//!                        ▼ │  or its name is another's now           for want of room)
//!                      missing ────────────────────────▶ forgotten
//! ```
//! A pod that was deleted never comes back: its uid is nobody's again. One that a list did not have may,
//! for a list can be older than what was told before it.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use super::record::{Pod, PodPhase};

/// Pods that are remembered: kubelets run 110 by default and some thousand at the most.
pub const PODS_MAX: usize = 2048;

/// See the module.
#[derive(Debug)]
pub struct PodStore {
    pods: BTreeMap<String, Entry>,
    /// Uids that the list which is being read has had.
    listing: Option<HashSet<String>>,
    /// A whole list was read at least once.
    listed: bool,
    keep: Duration,
    /// Pods that there was no room for.
    refused: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    pod: Pod,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    There,
    Missing(Instant),
    Deleted(Instant),
}

impl State {
    fn left(self) -> Option<Instant> {
        match self {
            Self::There => None,
            Self::Missing(left) | Self::Deleted(left) => Some(left),
        }
    }
}

/// A pod that a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known<'a> {
    pub pod: &'a Pod,
    /// The API server has it no more.
    pub gone: bool,
}

/// Nobody is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotKnown {
    /// No pod of that name or uid was told of.
    Unknown,
    /// The uid is that of another pod, `namespace/name`.
    Another(String),
    /// Several pods claim the same cgroup.
    Claimed,
}

impl PodStore {
    /// Pods that are gone are remembered for `keep`.
    #[must_use]
    pub fn new(keep: Duration) -> Self {
        Self {
            pods: BTreeMap::new(),
            listing: None,
            listed: false,
            keep,
            refused: 0,
        }
    }

    /// A list begins; what comes until [`PodStore::end_list`] is all there is.
    pub fn begin_list(&mut self) {
        self.listing = Some(HashSet::new());
    }

    /// The list is whole: who was not in it is gone.
    pub fn end_list(&mut self, now: Instant) {
        let Some(listed) = self.listing.take() else {
            return;
        };
        self.listed = true;
        for (uid, entry) in &mut self.pods {
            if entry.state == State::There && !listed.contains(uid) {
                entry.state = State::Missing(now);
            }
        }
        self.forget(now);
    }

    /// A pod is there, or has changed.
    pub fn apply(&mut self, pod: Pod, now: Instant) {
        if let Some(listed) = &mut self.listing
            && listed.len() < PODS_MAX
        {
            listed.insert(pod.uid.clone());
        }
        let deleted =
            |entry: &Entry| matches!(entry.state, State::Deleted(_)) && entry.pod.uid == pod.uid;
        if self.pods.get(&pod.uid).is_some_and(deleted) {
            return;
        }
        if !self.pods.contains_key(&pod.uid) && !self.has_room(now) {
            self.refused += 1;
            return;
        }
        let same_name = self.pods.values_mut().filter(|entry| {
            entry.state == State::There
                && entry.pod.uid != pod.uid
                && entry.pod.namespace == pod.namespace
                && entry.pod.name == pod.name
        });
        let mut state = State::There;
        for other in same_name {
            // The older of the two is what was there before; equal times tell nothing, and then the
            // later word counts.
            if other.pod.created > pod.created {
                state = State::Missing(now);
            } else {
                other.state = State::Missing(now);
            }
        }
        self.pods.insert(pod.uid.clone(), Entry { pod, state });
    }

    /// A pod is gone. Its last state is kept, if it was not known before.
    pub fn delete(&mut self, pod: Pod, now: Instant) {
        let uid = pod.uid.clone();
        self.apply(pod, now);
        if let Some(entry) = self.pods.get_mut(&uid) {
            let left = entry.state.left().unwrap_or(now);
            entry.state = State::Deleted(left);
        }
    }

    /// Forgets who is gone for longer than they are remembered.
    pub fn forget(&mut self, now: Instant) {
        let keep = self.keep;
        self.pods.retain(|_, entry| {
            let left = entry.state.left();
            left.is_none_or(|left| now.saturating_duration_since(left) < keep)
        });
    }

    fn has_room(&mut self, now: Instant) -> bool {
        if self.pods.len() < PODS_MAX {
            return true;
        }
        self.forget(now);
        while self.pods.len() >= PODS_MAX {
            let gone = self.pods.iter().filter_map(|(uid, entry)| {
                let left = entry.state.left()?;
                Some((left, uid.clone()))
            });
            let Some((_, oldest)) = gone.min() else {
                return false;
            };
            self.pods.remove(&oldest);
        }
        true
    }

    /// Whom a name means: the pod that is there, else the one that was there last. With a uid, that pod
    /// alone.
    ///
    /// # Errors
    /// [`NotKnown`].
    pub fn find(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<Known<'_>, NotKnown> {
        let fits = |entry: &&Entry| entry.pod.namespace == namespace && entry.pod.name == name;
        let entry = match uid {
            Some(uid) => {
                // The uid of a pod from a manifest file may be told in both of its forms.
                let entry = self.pods.get(uid).or_else(|| {
                    let mut pods = self.pods.values();
                    pods.find(|entry| entry.pod.cgroup_uid == uid)
                });
                let entry = entry.ok_or(NotKnown::Unknown)?;
                if !fits(&entry) {
                    return Err(NotKnown::Another(entry.pod.full_name()));
                }
                entry
            }
            None => {
                let pods = self.pods.values().filter(fits);
                let latest = pods.max_by_key(|entry| {
                    let left = entry.state.left();
                    (left.is_none(), left, entry.pod.created)
                });
                latest.ok_or(NotKnown::Unknown)?
            }
        };
        if self.claims(&entry.pod.cgroup_uid) > 1 {
            return Err(NotKnown::Claimed);
        }
        Ok(Known {
            pod: &entry.pod,
            gone: entry.state.left().is_some(),
        })
    }

    /// The pods whose cgroup has this uid in its name: one, unless a pod claims to be from another's
    /// manifest.
    pub fn of_cgroup<'a>(&'a self, cgroup_uid: &'a str) -> impl Iterator<Item = &'a Pod> {
        let own = self.pods.get(cgroup_uid).map(|entry| &entry.pod);
        let own = own.filter(|pod| !pod.is_static());
        // Only a pod from a manifest file has another uid than its cgroup's, and that has no dashes.
        let may_be_static = !cgroup_uid.contains('-');
        let claimed = self
            .pods
            .values()
            .map(|entry| &entry.pod)
            .filter(move |pod| may_be_static && pod.is_static() && pod.cgroup_uid == cgroup_uid);
        own.into_iter().chain(claimed)
    }

    fn claims(&self, cgroup_uid: &str) -> usize {
        let there = |pod: &&Pod| {
            let entry = self.pods.get(&pod.uid);
            entry.is_some_and(|entry| entry.state == State::There)
        };
        self.of_cgroup(cgroup_uid).filter(there).count()
    }

    /// Pods that are there.
    pub fn there(&self) -> impl Iterator<Item = &Pod> {
        let there = self.pods.values();
        there
            .filter(|entry| entry.state == State::There && entry.pod.phase != PodPhase::Ended)
            .map(|entry| &entry.pod)
    }

    /// A whole list was read at least once.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// Pods that are known, those included that are gone.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// Pods that there was no room for.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEEP: Duration = Duration::from_secs(120);

    fn pod(uid: &str, name: &str) -> Pod {
        Pod {
            uid: uid.to_owned(),
            cgroup_uid: uid.to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            ..Pod::default()
        }
    }

    fn created(mut pod: Pod, second: i64) -> Pod {
        pod.created = Some(Timestamp::from_second(second).unwrap());
        pod
    }

    use jiff::Timestamp;

    fn store() -> (PodStore, Instant) {
        (PodStore::new(KEEP), Instant::now())
    }

    fn found(store: &PodStore, name: &str) -> Option<(String, bool)> {
        let known = store.find("shop", name, None).ok()?;
        Some((known.pod.uid.clone(), known.gone))
    }

    #[test]
    fn a_name_that_comes_again_is_another_pod() {
        let (mut store, now) = store();
        store.apply(created(pod("1", "cart"), 1), now);
        store.delete(created(pod("1", "cart"), 1), now);
        assert_eq!(found(&store, "cart"), Some(("1".to_owned(), true)));
        store.apply(created(pod("2", "cart"), 2), now);
        assert_eq!(found(&store, "cart"), Some(("2".to_owned(), false)));
        let first = store.find("shop", "cart", Some("1")).unwrap();
        assert!(first.gone);
        assert_eq!(
            store.find("shop", "other", Some("1")),
            Err(NotKnown::Another("shop/cart".to_owned()))
        );
        // Its deletion was never told.
        store.apply(created(pod("3", "cart"), 3), now);
        assert_eq!(found(&store, "cart"), Some(("3".to_owned(), false)));
        assert!(store.find("shop", "cart", Some("2")).unwrap().gone);
        // An older one that is told of late is not the one that is there.
        store.apply(created(pod("0", "cart"), 0), now);
        assert_eq!(found(&store, "cart"), Some(("3".to_owned(), false)));
    }

    #[test]
    fn a_pod_that_was_deleted_is_not_brought_back_by_an_older_list() {
        let (mut store, now) = store();
        store.apply(pod("1", "cart"), now);
        store.delete(pod("1", "cart"), now);
        store.begin_list();
        store.apply(pod("1", "cart"), now);
        store.end_list(now);
        assert_eq!(found(&store, "cart"), Some(("1".to_owned(), true)));
    }

    #[test]
    fn a_pod_that_a_list_lacks_is_gone_and_may_be_back_in_the_next() {
        let (mut store, now) = store();
        assert!(!store.is_listed());
        store.apply(pod("1", "cart"), now);
        store.begin_list();
        store.apply(pod("2", "web"), now);
        assert_eq!(found(&store, "cart"), Some(("1".to_owned(), false)));
        store.end_list(now);
        assert!(store.is_listed());
        assert_eq!(found(&store, "cart"), Some(("1".to_owned(), true)));
        store.begin_list();
        store.apply(pod("1", "cart"), now);
        store.end_list(now);
        assert_eq!(found(&store, "cart"), Some(("1".to_owned(), false)));
        assert_eq!(found(&store, "web"), Some(("2".to_owned(), true)));
    }

    #[test]
    fn who_is_gone_is_remembered_for_its_time_and_then_forgotten() {
        let (mut store, now) = store();
        store.delete(pod("1", "cart"), now);
        store.forget(now + KEEP / 2);
        assert!(found(&store, "cart").is_some());
        store.forget(now + KEEP);
        assert!(store.is_empty());
    }

    #[test]
    fn there_is_room_for_so_many_and_those_that_are_gone_make_it() {
        let (mut store, now) = store();
        store.delete(pod("gone", "gone"), now);
        for i in 0..PODS_MAX {
            store.apply(pod(&format!("{i}"), &format!("p{i}")), now);
        }
        assert_eq!((store.len(), store.refused()), (PODS_MAX, 0));
        assert!(found(&store, "gone").is_none());
        store.apply(pod("more", "more"), now);
        assert_eq!((store.len(), store.refused()), (PODS_MAX, 1));
    }

    #[test]
    fn a_cgroup_that_two_pods_claim_is_taken_for_neither() {
        let (mut store, now) = store();
        let hash = "0123456789abcdef0123456789abcdef";
        let of_file = |uid: &str, name: &str| Pod {
            cgroup_uid: hash.to_owned(),
            ..pod(uid, name)
        };
        store.apply(of_file("1", "proxy"), now);
        assert_eq!(found(&store, "proxy"), Some(("1".to_owned(), false)));
        assert!(store.find("shop", "proxy", Some(hash)).is_ok());
        store.apply(of_file("2", "claims-to-be"), now);
        assert_eq!(store.of_cgroup(hash).count(), 2);
        for name in ["proxy", "claims-to-be"] {
            assert_eq!(store.find("shop", name, None), Err(NotKnown::Claimed));
        }
    }

    proptest! {
        /// Whatever is told in whatever order: who was deleted stays so, and at most one of a name is
        /// there.
        #[test]
        fn a_name_is_one_pod_s_at_a_time(
            events in proptest::collection::vec((0u8..5, 0i64..4, 0u8..2), 0..60),
        ) {
            let (mut store, now) = store();
            let mut deleted = HashSet::new();
            for (event, generation, name) in events {
                let uid = format!("{name}-{generation}");
                let pod = created(pod(&uid, &format!("n{name}")), generation);
                match event {
                    0 | 1 => store.apply(pod, now),
                    2 => {
                        store.delete(pod, now);
                        deleted.insert(uid);
                    }
                    3 => store.begin_list(),
                    _ => store.end_list(now),
                }
                let mut names = HashSet::new();
                for pod in store.there() {
                    prop_assert!(names.insert(pod.name.clone()));
                    prop_assert!(!deleted.contains(&pod.uid));
                }
                for name in names {
                    prop_assert!(!store.find("shop", &name, None).unwrap().gone);
                }
            }
        }
    }
}
