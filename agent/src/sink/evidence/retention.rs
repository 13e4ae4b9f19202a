//! Which capture goes next. Decides, and does nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use jiff::Timestamp;
use remora_capture::{
    evidence::{Cause, Manifest},
    session::CaptureId,
};

use crate::node::RetentionNumbers;

/// How long and how much is kept; `None`: no such limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Since a capture's end.
    pub age: Option<Duration>,
    /// Of all captures' files, running ones included.
    pub bytes: Option<u64>,
    /// Of the signed captures of one namespace. Makes room only beside `bytes`.
    pub namespace: Option<u64>,
}

/// A signed capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) finished: Timestamp,
    /// Of its packets' files.
    pub(super) bytes: u64,
    /// If its pod was known.
    pub(super) namespace: Option<String>,
    /// It is not in its sink yet, and stays until it is.
    pub(super) waits: bool,
}

/// What a namespace's captures take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::sink) struct Use {
    pub(in crate::sink) bytes: u64,
    /// Of them those that are held, or wait for their upload.
    pub(in crate::sink) held: u64,
}

/// All signed captures that are there, oldest first, and all holds.
#[derive(Debug, Default)]
pub(in crate::sink) struct Inventory {
    kept: BTreeMap<(Timestamp, CaptureId), Kept>,
    finished: HashMap<CaptureId, Timestamp>,
    held: BTreeSet<CaptureId>,
    /// They could not be deleted.
    stuck: BTreeSet<CaptureId>,
    namespaces: HashMap<String, Use>,
    bytes: u64,
    /// Of those that wait for their upload.
    waiting: BTreeMap<CaptureId, u64>,
    deleted: BTreeMap<Cause, (u64, u64)>,
}

impl Kept {
    pub(super) fn of(manifest: &Manifest, waits: bool) -> Self {
        let files = manifest.files.iter();
        Self {
            finished: manifest.finished.unwrap_or(manifest.started),
            bytes: files.filter_map(|file| Some(file.digest?.bytes)).sum(),
            namespace: manifest.pod.as_ref().map(|pod| pod.namespace.clone()),
            waits,
        }
    }
}

impl Inventory {
    pub(super) fn put(&mut self, id: CaptureId, kept: Kept) {
        self.take(id);
        self.bytes += kept.bytes;
        if let Some(namespace) = &kept.namespace {
            let taken = self.namespaces.entry(namespace.clone()).or_default();
            taken.bytes += kept.bytes;
            if kept.waits || self.held.contains(&id) {
                taken.held += kept.bytes;
            }
        }
        if kept.waits {
            self.waiting.insert(id, kept.bytes);
        }
        self.finished.insert(id, kept.finished);
        self.kept.insert((kept.finished, id), kept);
    }

    fn take(&mut self, id: CaptureId) -> Option<Kept> {
        let finished = self.finished.remove(&id)?;
        let kept = self.kept.remove(&(finished, id))?;
        self.bytes -= kept.bytes;
        self.waiting.remove(&id);
        let is_held = kept.waits || self.held.contains(&id);
        if let Some(namespace) = &kept.namespace
            && let Some(taken) = self.namespaces.get_mut(namespace)
        {
            taken.bytes -= kept.bytes;
            if is_held {
                taken.held -= kept.bytes;
            }
            if *taken == Use::default() {
                self.namespaces.remove(namespace);
            }
        }
        Some(kept)
    }

    /// It was deleted.
    pub(super) fn deleted(&mut self, id: CaptureId, cause: Cause) {
        self.stuck.remove(&id);
        let bytes = self.take(id).map_or(0, |kept| kept.bytes);
        let (captures, sum) = self.deleted.entry(cause).or_default();
        *captures += 1;
        *sum += bytes;
    }

    /// It is held, or not any more.
    pub(super) fn hold(&mut self, id: CaptureId, is_held: bool) {
        // Its bytes go over to the other sum.
        let kept = self.take(id);
        if is_held {
            self.held.insert(id);
        } else {
            self.held.remove(&id);
        }
        if let Some(kept) = kept {
            self.put(id, kept);
        }
    }

    /// Its sink has it.
    pub(in crate::sink) fn uploaded(&mut self, id: CaptureId) {
        if let Some(kept) = self.take(id) {
            let waits = false;
            self.put(id, Kept { waits, ..kept });
        }
    }

    /// Those that wait for their upload, oldest first: ids sort by time.
    pub(in crate::sink) fn waiting(&self) -> Vec<CaptureId> {
        self.waiting.keys().copied().collect()
    }

    pub(in crate::sink) fn is_waiting(&self, id: CaptureId) -> bool {
        self.waiting.contains_key(&id)
    }

    /// Their number and bytes.
    pub(in crate::sink) fn waiting_sum(&self) -> (u64, u64) {
        (self.waiting.len() as u64, self.waiting.values().sum())
    }

    /// It could not be deleted, and others go before it until [`Inventory::try_again`].
    pub(super) fn stuck(&mut self, id: CaptureId) {
        self.stuck.insert(id);
    }

    pub(super) fn try_again(&mut self) {
        self.stuck.clear();
    }

    pub(in crate::sink) fn namespace(&self, name: &str) -> Use {
        self.namespaces.get(name).copied().unwrap_or_default()
    }

    /// The capture that goes next, and why. `used`: bytes that all captures take, those included that
    /// run. The newest stays whatever room it takes: it is the one that somebody just asked for.
    pub(super) fn next(
        &self,
        limits: Retention,
        used: u64,
        now: Timestamp,
    ) -> Option<(CaptureId, Cause)> {
        let oldest = self.free().next();
        if let (Some(age), Some((id, kept))) = (limits.age, oldest)
            && now.duration_since(kept.finished).unsigned_abs() > age
            && kept.finished < now
        {
            return Some((id, Cause::Age));
        }
        let most = limits.bytes?;
        let newest = self.kept.keys().next_back().map(|(_, id)| *id);
        if used > most
            && let Some((id, _)) = oldest
            && Some(id) != newest
        {
            return Some((id, Cause::Room));
        }
        let quota = limits.namespace?;
        let full = self
            .namespaces
            .iter()
            .filter(|(_, taken)| taken.bytes > quota);
        full.filter_map(|(namespace, _)| {
            let is_of = |kept: &Kept| kept.namespace.as_ref() == Some(namespace);
            let newest = self.kept.iter().rfind(|(_, kept)| is_of(kept))?;
            let (id, kept) = self.free().find(|(_, kept)| is_of(kept))?;
            (newest.0.1 != id).then_some((kept.finished, id))
        })
        .min()
        .map(|(_, id)| (id, Cause::NamespaceRoom))
    }

    /// Those that may go.
    fn free(&self) -> impl Iterator<Item = (CaptureId, &Kept)> {
        self.kept
            .iter()
            .map(|((_, id), kept)| (*id, kept))
            .filter(|(id, kept)| !kept.waits && !self.held.contains(id) && !self.stuck.contains(id))
    }

    pub(in crate::sink) fn numbers(&self) -> RetentionNumbers {
        let deleted = |cause: Cause| {
            let (captures, bytes) = self.deleted.get(&cause).copied().unwrap_or_default();
            (cause.word(), captures, bytes)
        };
        RetentionNumbers {
            deleted: Cause::ALL.map(deleted).to_vec(),
            held: self.held.len() as u64,
            kept: self.kept.len() as u64,
            kept_bytes: self.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    /// Captures that ended at these seconds, of 10 bytes each.
    fn inventory(ends: &[(i64, &str)]) -> (Inventory, Vec<CaptureId>) {
        let mut inventory = Inventory::default();
        let mut ids = Vec::new();
        for (second, namespace) in ends {
            let id = CaptureId::generate();
            let kept = Kept {
                finished: at(*second),
                bytes: 10,
                namespace: Some((*namespace).to_owned()),
                waits: false,
            };
            inventory.put(id, kept);
            ids.push(id);
        }
        (inventory, ids)
    }

    #[test]
    fn without_limits_all_stay() {
        let (inventory, _) = inventory(&[(1, "a"), (2, "a")]);
        let next = inventory.next(Retention::default(), u64::MAX, at(1_000_000));
        assert_eq!(next, None);
    }

    #[test]
    fn what_is_older_goes_and_a_clock_that_went_back_deletes_nothing() {
        let (mut inventory, ids) = inventory(&[(100, "a"), (50, "a"), (150, "a")]);
        let limits = Retention {
            age: Some(Duration::from_secs(60)),
            ..Retention::default()
        };
        assert_eq!(inventory.next(limits, 0, at(110)), None);
        assert_eq!(
            inventory.next(limits, 0, at(111)),
            Some((ids[1], Cause::Age))
        );
        assert_eq!(inventory.next(limits, 0, at(-1_000_000)), None);
        inventory.deleted(ids[1], Cause::Age);
        assert_eq!(inventory.next(limits, 0, at(160)), None);
        assert_eq!(
            inventory.next(limits, 0, at(161)),
            Some((ids[0], Cause::Age))
        );
        inventory.hold(ids[0], true);
        assert_eq!(inventory.next(limits, 0, at(161)), None);
        assert_eq!(
            inventory.next(limits, 0, at(300)),
            Some((ids[2], Cause::Age))
        );
    }

    #[test]
    fn the_oldest_that_is_not_held_makes_room_and_the_newest_stays() {
        let (mut inventory, ids) = inventory(&[(1, "a"), (2, "a"), (3, "a")]);
        let limits = Retention {
            bytes: Some(15),
            ..Retention::default()
        };
        assert_eq!(inventory.next(limits, 15, at(9)), None);
        inventory.hold(ids[0], true);
        assert_eq!(
            inventory.next(limits, 30, at(9)),
            Some((ids[1], Cause::Room))
        );
        inventory.stuck(ids[1]);
        assert_eq!(inventory.next(limits, 30, at(9)), None);
        inventory.try_again();
        inventory.deleted(ids[1], Cause::Room);
        assert_eq!(inventory.next(limits, 20, at(9)), None);
        inventory.hold(ids[0], false);
        assert_eq!(
            inventory.next(limits, 20, at(9)),
            Some((ids[0], Cause::Room))
        );
        let numbers = inventory.numbers();
        assert!(numbers.deleted.contains(&("room", 1, 10)));
        assert_eq!((numbers.held, numbers.kept, numbers.kept_bytes), (0, 2, 20));
    }

    #[test]
    fn what_waits_for_its_upload_stays_whatever_its_age_and_the_room() {
        let (mut inventory, ids) = inventory(&[(1, "a"), (2, "a"), (3, "a")]);
        let kept = Kept {
            finished: at(1),
            bytes: 10,
            namespace: Some("a".to_owned()),
            waits: true,
        };
        inventory.put(ids[0], kept);
        let limits = Retention {
            age: Some(Duration::from_secs(10)),
            bytes: Some(5),
            namespace: Some(5),
        };
        assert_eq!(inventory.waiting(), [ids[0]]);
        assert_eq!(inventory.waiting_sum(), (1, 10));
        assert_eq!(inventory.namespace("a").held, 10);
        let next = inventory.next(limits, 30, at(100));
        assert_eq!(next, Some((ids[1], Cause::Age)));
        inventory.deleted(ids[1], Cause::Age);
        inventory.deleted(ids[2], Cause::Age);
        assert_eq!(inventory.next(limits, 30, at(100)), None);
        inventory.hold(ids[0], true);
        inventory.hold(ids[0], false);
        assert!(inventory.is_waiting(ids[0]));
        inventory.uploaded(ids[0]);
        assert_eq!(inventory.waiting_sum(), (0, 0));
        assert_eq!(inventory.namespace("a").held, 0);
        let next = inventory.next(limits, 30, at(100));
        assert_eq!(next, Some((ids[0], Cause::Age)));
    }

    #[test]
    fn a_namespace_that_is_full_gives_of_its_own() {
        let (mut inventory, ids) = inventory(&[(1, "a"), (2, "b"), (3, "b"), (4, "a"), (5, "b")]);
        let limits = Retention {
            bytes: Some(1000),
            namespace: Some(20),
            ..Retention::default()
        };
        let next = inventory.next(limits, 50, at(9));
        assert_eq!(next, Some((ids[1], Cause::NamespaceRoom)));
        let alone = Retention {
            bytes: None,
            ..limits
        };
        assert_eq!(inventory.next(alone, 50, at(9)), None);
        inventory.hold(ids[1], true);
        assert_eq!(
            inventory.namespace("b"),
            Use {
                bytes: 30,
                held: 10
            }
        );
        let next = inventory.next(limits, 50, at(9));
        assert_eq!(next, Some((ids[2], Cause::NamespaceRoom)));
        inventory.deleted(ids[2], Cause::NamespaceRoom);
        assert_eq!(inventory.next(limits, 40, at(9)), None);
        inventory.deleted(ids[1], Cause::Requested);
        inventory.deleted(ids[4], Cause::Requested);
        assert_eq!(inventory.namespace("b"), Use::default());
    }

    /// Whatever is put in, held, let go and deleted in whatever order: sums fit, what is held stays, what
    /// goes is the oldest that may, and it comes to an end.
    #[test]
    fn any_course_of_captures_and_holds_keeps_the_sums_and_the_held() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |n: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % n
        };
        for _ in 0..200 {
            let mut inventory = Inventory::default();
            let mut held = BTreeSet::new();
            let mut all: BTreeMap<(i64, CaptureId), u64> = BTreeMap::new();
            for _ in 0..random(40) {
                let (id, second) = (CaptureId::generate(), random(100) as i64);
                let bytes = random(50);
                let namespace = (random(3) > 0).then(|| format!("n{}", random(3)));
                let kept = Kept {
                    finished: at(second),
                    bytes,
                    namespace,
                    waits: false,
                };
                if random(4) == 0 {
                    inventory.hold(id, true);
                    held.insert(id);
                }
                inventory.put(id, kept);
                all.insert((second, id), bytes);
            }
            let limits = Retention {
                age: (random(2) > 0).then(|| Duration::from_secs(random(100))),
                bytes: (random(2) > 0).then(|| random(600)),
                namespace: (random(2) > 0).then(|| random(200)),
            };
            loop {
                let used: u64 = all.values().sum();
                assert_eq!(inventory.numbers().kept_bytes, used);
                let Some((id, cause)) = inventory.next(limits, used, at(100)) else {
                    let free = all.keys().filter(|(_, id)| !held.contains(id));
                    let newest = all.keys().next_back();
                    let over = limits.bytes.is_some_and(|most| used > most);
                    assert!(!over || free.clone().all(|key| Some(key) == newest));
                    let old = |second: i64| {
                        limits
                            .age
                            .is_some_and(|age| 100 - second > age.as_secs() as i64)
                    };
                    assert!(!free.clone().any(|(second, _)| old(*second)));
                    break;
                };
                assert!(!held.contains(&id));
                let key = *all.keys().find(|(_, other)| *other == id).expect("there");
                if cause != Cause::NamespaceRoom {
                    let oldest = all.keys().find(|(_, id)| !held.contains(id));
                    assert_eq!(oldest, Some(&key));
                }
                all.remove(&key);
                inventory.deleted(id, cause);
            }
        }
    }
}
