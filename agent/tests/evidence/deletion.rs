//! Captures that go: whenever the agent is killed over it, all of one is there, or its tombstone is and
//! nothing else.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

use remora_agent::{
    custody::{Custodian as _, CustodyError, Mark},
    session::StartError,
    sink::evidence::Retention,
};
use remora_capture::{
    evidence::{Cause, HOLD_ENDING, Link, RELEASE_ENDING, SecretKey, TOMBSTONE_ENDING, Tombstone},
    session::PodIdentity,
};

use super::*;

/// In the child: it deletes the oldest capture.
pub(super) const DELETES: &str = "REMORA_TEST_DELETES";
const LIMIT: Duration = Duration::from_secs(60);

/// In the order in which they are reached; from the fourth on it is deleted.
pub(super) const POINTS: [&str; 11] = [
    "tombstone signed",
    "tombstone written",
    "tombstone synced",
    "tombstone renamed",
    "directory synced",
    "head written",
    "head synced",
    "head renamed",
    "file removed",
    "removal synced",
    "never",
];

/// A store whose thread runs until it is dropped.
pub(super) struct Keeping {
    pub(super) store: Arc<Store>,
    thread: Option<JoinHandle<()>>,
    key: PublicKey,
}

impl Keeping {
    pub(super) fn start(directory: &Path, retention: Retention) -> Self {
        let store = Store::open(directory, u64::MAX, node()).expect("store");
        let store = Arc::new(store.retaining(retention));
        store.recover(&[]).expect("recovered");
        let keys = store.keys(None).expect("keys");
        let key = keys.signing();
        let origin = node().origin(Digest::of(b"object"));
        let sealer = Sealer::new(Arc::clone(&store), keys, origin).expect("the only one");
        let thread = Some(thread::spawn(|| sealer.run()));
        Self { store, thread, key }
    }

    #[track_caller]
    pub(super) fn until(&self, what: &str, is: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is() {
            assert!(begun.elapsed() < LIMIT, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A signed one.
    pub(super) fn captured(&self) -> CaptureId {
        self.signed(state(Destination::Store))
    }

    /// Likewise, and it is to be uploaded.
    pub(super) fn captured_for(&self, sink: &str) -> CaptureId {
        let mut state = state(Destination::Store);
        state.spec.sink = Some(sink.parse().expect("a name"));
        self.signed(state)
    }

    fn signed(&self, state: CaptureState) -> CaptureId {
        let before = self.store.seals().head();
        let id = capture_of(&self.store, state);
        self.until("signed", || self.store.seals().head() != before);
        id
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.store.seals().end();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

pub(super) fn files_of(directory: &Path, id: CaptureId) -> BTreeSet<String> {
    let names = fs::read_dir(directory).expect("directory");
    names
        .filter_map(|entry| entry.expect("entry").file_name().into_string().ok())
        .filter_map(|name| name.strip_prefix(&id.to_string()).map(str::to_owned))
        .collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn whole() -> BTreeSet<String> {
    set(&[".json", MANIFEST_ENDING, ".pcapng"])
}

fn buried() -> BTreeSet<String> {
    set(&[MANIFEST_ENDING, TOMBSTONE_ENDING])
}

pub(super) fn oldest(directory: &Path) -> CaptureId {
    let ids = ids(directory, ".pcapng");
    ids.first().expect("a capture").parse().expect("id")
}

/// What the child does.
pub(super) fn delete_oldest(directory: &Path, point: &'static str) {
    let keeping = Keeping::start(directory, Retention::default());
    let id = oldest(directory);
    fail_point::arm(point);
    let deleted = keeping
        .store
        .delete(id, "uid=0", "the case is closed", false);
    deleted.expect("deleted");
}

/// Runs a child that does what the variable says.
pub(super) fn run_with(directory: &Path, point: &str, (variable, value): (&str, &str)) {
    let status = Command::new(env::current_exe().expect("program"))
        .args(["--exact", "child", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(POINT, point)
        .env(variable, value)
        .output()
        .expect("child");
    let expected = (point != "never").then_some(9);
    assert_eq!(status.status.signal(), expected, "{point}: {status:?}");
}

#[test]
fn killed_between_any_two_steps_a_capture_is_there_or_has_its_tombstone() {
    for (at, point) in POINTS.iter().enumerate() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path();
        run_child(path, "never");
        run_child(path, "never");
        let id = oldest(path);
        run_with(path, point, (DELETES, "1"));
        // As it lies there, nothing is wrong with it.
        let keys = open(path).keys(None).expect("keys");
        let report = verify(&inventory(path), &[keys.signing()], None, Scope::Directory);
        assert!(report.broken.is_empty(), "{point}: {report:?}");

        let (key, head) = start_again(path);
        let is_deleted = at >= 3;
        let expected = if is_deleted { buried() } else { whole() };
        assert_eq!(files_of(path, id), expected, "{point}");
        let check = |head: Option<Head>, captures: usize| {
            let report = verify(&inventory(path), &[key], head.as_ref(), Scope::Directory);
            assert_eq!(report.verdict(), Verdict::Proved, "{point}: {report:?}");
            assert_eq!(report.captures, captures);
            let told = report
                .proved
                .iter()
                .any(|text| text.contains("the case is closed"));
            assert_eq!(told, is_deleted, "{point}");
            head.expect("head").sequence
        };
        assert_eq!(check(head, 2), 2 + u64::from(is_deleted), "{point}");
        // The chain goes on.
        run_child(path, "never");
        let (_, head) = start_again(path);
        assert_eq!(check(head, 3), 3 + u64::from(is_deleted), "{point}");
    }
}

#[test]
fn what_is_held_runs_is_unknown_or_gone_is_not_deleted() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path();
    let id = {
        let keeping = Keeping::start(path, Retention::default());
        let id = keeping.captured();
        let held = keeping.store.hold(id, "uid=0", "case 42").expect("held");
        let again = keeping.store.hold(id, "uid=1", "case 43").expect("held");
        assert_eq!(held, again);
        let refused = keeping.store.delete(id, "uid=0", "", false);
        let error = refused.expect_err("held").to_string();
        assert!(
            error.contains("case 42") && error.contains("remora release"),
            "{error}"
        );
        id
    };
    // After a restart, whatever asks.
    let all = Retention {
        age: Some(Duration::ZERO),
        bytes: Some(0),
        namespace: Some(0),
    };
    let keeping = Keeping::start(path, all);
    let other = keeping.captured();
    keeping.until("deleted by age", || {
        matches!(keeping.store.mark(other), Mark::Deleted(_))
    });
    assert!(matches!(keeping.store.mark(id), Mark::Held(_)));
    let mut expected = whole();
    expected.insert(HOLD_ENDING.to_owned());
    assert_eq!(files_of(path, id), expected);
    assert_eq!(keeping.store.retention_numbers().held, 1);

    let running = state(Destination::Store);
    let (growth, _, _) = keeping.store.prepare(&running).expect("room");
    let sink = keeping.store.create(&running, growth).expect("file");
    let refused = keeping.store.delete(running.id, "", "", false);
    assert!(
        matches!(refused, Err(CustodyError::Running(_))),
        "{refused:?}"
    );
    drop(sink);
    let unknown = keeping.store.delete(CaptureId::generate(), "", "", false);
    assert!(
        matches!(unknown, Err(CustodyError::NotFound(_))),
        "{unknown:?}"
    );
    let twice = keeping.store.delete(other, "", "", false);
    assert!(matches!(twice, Err(CustodyError::Deleted(_))), "{twice:?}");
    let deleted = keeping.store.hold(other, "", "");
    assert!(
        matches!(deleted, Err(CustodyError::Deleted(_))),
        "{deleted:?}"
    );
    let mut streamed = state(Destination::Stream);
    streamed.phase = Phase::Finished;
    let files = Finished::default();
    keeping.store.keep(&streamed, &files).expect("kept");
    let stream = keeping.store.delete(streamed.id, "", "", false);
    assert!(
        matches!(stream, Err(CustodyError::NotKept(_))),
        "{stream:?}"
    );
    let not_held = keeping.store.release(running.id, "");
    assert!(
        matches!(not_held, Err(CustodyError::NotHeld(_))),
        "{not_held:?}"
    );

    keeping.store.release(id, "uid=0").expect("released");
    // Its number: after the two manifests, the hold, and the tombstone of the other.
    let mut expected = buried();
    expected.insert(format!(".5{RELEASE_ENDING}"));
    keeping.until("deleted by age", || files_of(path, id) == expected);
}

#[test]
fn the_oldest_make_room_and_the_quota_gets_their_bytes_back() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path();
    let ids: Vec<_> = {
        let keeping = Keeping::start(path, Retention::default());
        (0..20).map(|_| keeping.captured()).collect()
    };
    let bytes = open(path).used_bytes();
    let one = bytes / 20;
    let keeping = Keeping::start(
        path,
        Retention {
            bytes: Some(3 * one),
            ..Retention::default()
        },
    );
    keeping.until("room", || keeping.store.used_bytes() <= 3 * one);
    for (at, id) in ids.iter().enumerate() {
        let expected = if at < 17 { buried() } else { whole() };
        keeping.until("removed", || files_of(path, *id) == expected);
    }
    let numbers = keeping.store.retention_numbers();
    assert_eq!((numbers.kept, numbers.kept_bytes), (3, 3 * one));
    assert!(
        numbers.deleted.contains(&("room", 17, 17 * one)),
        "{numbers:?}"
    );
    assert_eq!(keeping.store.used_bytes(), 3 * one);
    let key = keeping.key;
    drop(keeping);
    let (_, head) = start_again(path);
    let report = verify(&inventory(path), &[key], head.as_ref(), Scope::Directory);
    assert_eq!(report.verdict(), Verdict::Proved, "{report:?}");
    assert_eq!(head.expect("head").sequence, 37);
}

fn of_namespace(namespace: &str) -> CaptureState {
    let mut state = state(Destination::Store);
    state.pod = Some(Box::new(PodIdentity {
        namespace: namespace.to_owned(),
        ..PodIdentity::default()
    }));
    state
}

#[test]
fn a_namespace_beyond_its_quota_is_refused_or_makes_room() {
    for makes_room in [false, true] {
        let directory = tempfile::tempdir().expect("directory");
        let retention = Retention {
            age: None,
            bytes: makes_room.then_some(u64::MAX - 1),
            namespace: Some(1),
        };
        let keeping = Keeping::start(directory.path(), retention);
        let store = &keeping.store;
        let sealed = |n: u64| {
            let id = capture_of(store, of_namespace("shop"));
            keeping.until("signed", || {
                let numbers = store.retention_numbers();
                let gone: u64 = numbers
                    .deleted
                    .iter()
                    .map(|(_, captures, _)| captures)
                    .sum();
                numbers.kept + gone >= n
            });
            id
        };
        let first = sealed(1);
        let other = store.prepare(&of_namespace("bank"));
        assert!(other.is_ok());
        let refused = store.prepare(&of_namespace("shop"));
        if makes_room {
            assert!(refused.is_ok());
            sealed(2);
            keeping.until("room", || matches!(store.mark(first), Mark::Deleted(_)));
            let held = sealed(3);
            store.hold(held, "", "").expect("held");
        }
        let refused = store.prepare(&of_namespace("shop"));
        let Err(StartError::Quota(text)) = refused else {
            panic!("it was not refused for its quota");
        };
        assert!(
            text.contains("shop") && text.contains("--namespace-quota"),
            "{text}"
        );
    }
}

#[test]
fn a_tombstone_of_another_key_removes_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path();
    let (id, key, head) = {
        let keeping = Keeping::start(path, Retention::default());
        let id = keeping.captured();
        (id, keeping.key, keeping.store.seals().head())
    };
    let bytes = fs::read(path.join(format!("{id}{MANIFEST_ENDING}"))).expect("manifest");
    let manifest = Manifest::open(&bytes, &[key]).expect("own");
    let foreign = SecretKey::from_random(&[3; 32]);
    let forged = Tombstone::new(
        (&manifest, Digest::of(&bytes)),
        "node-a",
        Link::after(head.as_ref()),
        foreign.public().id(),
        Timestamp::now(),
        (Cause::Requested, "", ""),
    );
    let stone = path.join(format!("{id}{TOMBSTONE_ENDING}"));
    fs::write(&stone, forged.sign(&foreign).expect("signed")).expect("written");
    let (_, again) = start_again(path);
    assert_eq!(again, head);
    fs::remove_file(stone).expect("removed");
    assert_eq!(files_of(path, id), whole());
}
