//! Captures that are held and released: whenever the agent is killed over it, the chain tells which they are.

use remora_agent::{custody::Custodian as _, sink::evidence::Retention};
use remora_capture::evidence::{HOLD_ENDING, RELEASE_ENDING};

use super::{
    deletion::{Keeping, files_of, oldest, run_with},
    *,
};

/// In the child: it holds the oldest capture, or releases it.
pub(super) const HOLDS: &str = "REMORA_TEST_HOLDS";

/// In the order in which they are reached; from the fourth on it is held.
pub(super) const HOLD_POINTS: [&str; 9] = [
    "hold signed",
    "hold written",
    "hold synced",
    "hold renamed",
    "directory synced",
    "head written",
    "head synced",
    "head renamed",
    "never",
];
/// Likewise; from the fourth on it is released.
pub(super) const RELEASE_POINTS: [&str; 10] = [
    "release signed",
    "release written",
    "release synced",
    "release renamed",
    "directory synced",
    "head written",
    "head synced",
    "head renamed",
    "hold removed",
    "never",
];

/// What the child does.
pub(super) fn hold_or_release(directory: &Path, point: &'static str, what: &str) {
    let keeping = Keeping::start(directory, Retention::default());
    let id = oldest(directory);
    fail_point::arm(point);
    let done = match what {
        "hold" => keeping.store.hold(id, "uid=0", "case 42"),
        _ => keeping.store.release(id, "uid=1"),
    };
    done.expect("done");
}

fn has(directory: &Path, ending: &str) -> usize {
    let files = files_of(directory, oldest(directory));
    files.iter().filter(|name| name.ends_with(ending)).count()
}

#[track_caller]
fn assert_told(directory: &Path, sequence: u64, [holds, releases]: [usize; 2]) {
    let keys = open(directory).keys(None).expect("keys");
    let lying = verify(
        &inventory(directory),
        &[keys.signing()],
        None,
        Scope::Directory,
    );
    assert!(lying.broken.is_empty(), "{lying:?}");
    let (key, head) = start_again(directory);
    let report = verify(
        &inventory(directory),
        &[key],
        head.as_ref(),
        Scope::Directory,
    );
    assert_eq!(report.verdict(), Verdict::Proved, "{report:?}");
    assert_eq!(head.expect("head").sequence, sequence);
    let found = [has(directory, HOLD_ENDING), has(directory, RELEASE_ENDING)];
    assert_eq!(found, [holds, releases]);
}

#[test]
fn killed_between_any_two_steps_a_capture_is_held_or_not_and_the_chain_holds() {
    for (at, point) in HOLD_POINTS.iter().enumerate() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path();
        run_child(path, "never");
        run_with(path, point, (HOLDS, "hold"));
        let is_held = at >= 3;
        let sequence = 1 + u64::from(is_held);
        assert_told(path, sequence, [usize::from(is_held), 0]);
        // The chain goes on.
        run_child(path, "never");
        assert_told(path, sequence + 1, [usize::from(is_held), 0]);
    }
}

#[test]
fn killed_between_any_two_steps_a_capture_is_released_or_held_and_the_chain_holds() {
    for (at, point) in RELEASE_POINTS.iter().enumerate() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path();
        run_child(path, "never");
        run_with(path, "never", (HOLDS, "hold"));
        run_with(path, point, (HOLDS, "release"));
        let released = usize::from(at >= 3);
        let sequence = 2 + released as u64;
        assert_told(path, sequence, [1 - released, released]);
        run_child(path, "never");
        assert_told(path, sequence + 1, [1 - released, released]);
    }
}

#[test]
fn who_asks_again_gets_the_answer_that_was_lost_and_nobody_else_does() {
    let directory = tempfile::tempdir().expect("directory");
    let keeping = Keeping::start(directory.path(), Retention::default());
    let store = &keeping.store;
    let id = keeping.captured();
    assert_eq!(store.released(id, "uid=1"), None);
    assert!(store.deleted(id, "uid=0", "").is_none());
    for why in ["case 42", "case 43"] {
        let held = store.hold(id, "uid=0", why).expect("held");
        assert_eq!(store.hold(id, "uid=1", "").expect("as it was"), held);
        assert_eq!(store.release(id, "uid=1").expect("released"), held);
        assert_eq!(store.released(id, "uid=1"), Some(held));
        assert_eq!(store.released(id, "uid=0"), None);
    }
    let (stone, head) = store.delete(id, "uid=0", "closed", false).expect("deleted");
    assert_eq!(store.deleted(id, "uid=0", "closed"), Some((stone, head)));
    for (by, why) in [("uid=1", "closed"), ("uid=0", "")] {
        assert!(store.deleted(id, by, why).is_none(), "{by}: {why}");
    }
}

#[test]
fn a_capture_can_be_held_again_and_what_is_no_hold_of_ours_is_released_too() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path();
    {
        let keeping = Keeping::start(path, Retention::default());
        let id = keeping.captured();
        for n in 1..=3 {
            keeping.store.hold(id, "uid=0", "case 42").expect("held");
            keeping.store.release(id, "uid=1").expect("released");
            assert_eq!(has(path, RELEASE_ENDING), n);
        }
        fs::write(path.join(format!("{id}{HOLD_ENDING}")), "somebody's").expect("written");
        assert!(keeping.store.delete(id, "uid=0", "", false).is_err());
        keeping.store.release(id, "uid=1").expect("released");
        let paths = keeping.store.evidence(id).expect("evidence");
        let releases = paths.iter().filter(|path| {
            let name = path.to_string_lossy();
            name.ends_with(RELEASE_ENDING)
        });
        assert_eq!(releases.count(), 4);
        keeping
            .store
            .delete(id, "uid=0", "", false)
            .expect("deleted");
    }
    let (key, head) = start_again(path);
    let report = verify(&inventory(path), &[key], head.as_ref(), Scope::Directory);
    assert_eq!(report.verdict(), Verdict::Proved, "{report:?}");
    assert_eq!(head.expect("head").sequence, 1 + 3 * 2 + 1 + 1);
}
