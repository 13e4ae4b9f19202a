//! Whenever the agent is killed between a capture's end and its place in the chain, the next start
//! makes exactly one valid manifest of it.
//!
//! Each test runs this program again as a child, in which a fail point is armed: the child writes a
//! capture as the agent does, and is killed at the point.

mod deletion;
mod encrypted;
mod holds;
mod uploaded;

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use jiff::Timestamp;
use remora_agent::{
    node::NodeFacts,
    sink::{Store, evidence::Sealer, fail_point},
    writer::Sink as _,
};
use remora_capture::{
    evidence::{
        Digest, Entry, Head, Inventory, MANIFEST_ENDING, Manifest, PublicKey, Scope, Verdict,
        verify,
    },
    pcapng::{self, Finished, Interface, Section, whole_blocks},
    session::{
        CaptureId, CaptureState, Counts, Destination, Files, Phase, SessionSpec, StopReason, Target,
    },
};

/// In the child: the data directory and the fail point.
const DIRECTORY: &str = "REMORA_TEST_DIRECTORY";
const POINT: &str = "REMORA_TEST_POINT";

/// In the order in which they are reached.
const POINTS: [&str; 16] = [
    "files closed",
    "account written",
    "account synced",
    "account renamed",
    "journal removed",
    "files hashed",
    "manifest signed",
    "reserve given free",
    "manifest written",
    "manifest synced",
    "manifest renamed",
    "directory synced",
    "head written",
    "head synced",
    "head renamed",
    "never",
];

fn node() -> NodeFacts {
    NodeFacts {
        name: "node-a".to_owned(),
        kernel: "Linux".to_owned(),
    }
}

fn state(destination: Destination) -> CaptureState {
    let id = CaptureId::generate();
    let mut spec = SessionSpec::new(Target::Pid(1));
    spec.destination = destination;
    spec.trigger.alert = "{\"rule\":\"a rule\"}".to_owned();
    CaptureState {
        id,
        spec,
        phase: Phase::Capturing,
        stop_reason: None,
        message: String::new(),
        counts: Counts::default(),
        started: Timestamp::now(),
        finished: None,
        first_packet: None,
        last_packet: None,
        file: match destination {
            Destination::Store => format!("{id}.pcapng"),
            Destination::Stream => String::new(),
        },
        files: Files::default(),
        taps: Vec::new(),
        node: "node-a".to_owned(),
        caller: String::new(),
        resolved_target: String::new(),
        pod: None,
    }
}

fn header() -> Vec<u8> {
    let mut blocks = pcapng::section_header(&Section {
        hardware: "",
        os: "",
        application: "",
        comments: &[],
    });
    blocks.extend(pcapng::interface_description(&Interface {
        name: "x",
        description: "",
        filter: &Default::default(),
        snaplen: Default::default(),
    }));
    blocks
}

/// A capture from its opening to its account, as a session's end does it.
fn capture(store: &Store) -> CaptureId {
    capture_of(store, state(Destination::Store))
}

fn capture_of(store: &Store, mut state: CaptureState) -> CaptureId {
    let (growth, _, _) = store.prepare(&state).expect("room");
    let mut sink = store.create(&state, growth).expect("file");
    let blocks = header();
    let counted = whole_blocks(&blocks, blocks.len());
    let bytes = blocks.len() as u64;
    sink.append(blocks.into(), counted).expect("written");
    let (files, closed) = sink.finish();
    closed.expect("closed");
    state.phase = Phase::Finished;
    state.stop_reason = Some(StopReason::Requested);
    state.finished = Some(Timestamp::now());
    state.counts.written_bytes = bytes;
    state.files.count = 1;
    store.keep(&state, &files).expect("kept");
    state.id
}

/// Runs a store's sealer until all that is ordered and missing is done.
fn seal(store: &Arc<Store>, key: Option<&Path>) -> PublicKey {
    let keys = store.keys(key).expect("keys");
    let public = keys.signing();
    let origin = node().origin(Digest::of(b"object"));
    let sealer = Sealer::new(Arc::clone(store), keys, origin).expect("the only one");
    let sealer = sealer.encrypting_to(encrypted::recipients());
    store.seals().end();
    thread::spawn(|| sealer.run()).join().expect("no panic");
    public
}

fn open(directory: &Path) -> Arc<Store> {
    Arc::new(Store::open(directory, u64::MAX, node()).expect("store"))
}

/// What a later start does.
fn start_again(directory: &Path) -> (PublicKey, Option<Head>) {
    let store = open(directory);
    store.recover(&[]).expect("recovered");
    let key = seal(&store, None);
    (key, store.seals().head())
}

fn inventory(directory: &Path) -> Inventory {
    let mut inventory = Inventory::default();
    for entry in fs::read_dir(directory).expect("directory") {
        let entry = entry.expect("entry");
        if entry.path().is_file() {
            let name = entry.file_name().into_string().expect("UTF-8");
            let file = fs::File::open(entry.path()).expect("file");
            inventory.put(&name, Entry::read(&name, file).expect("read"));
        }
    }
    inventory
}

/// Ids with a file of this ending.
fn ids(directory: &Path, ending: &str) -> BTreeSet<String> {
    let names = fs::read_dir(directory).expect("directory");
    names
        .filter_map(|entry| entry.expect("entry").file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(ending).map(str::to_owned))
        .filter(|id| id.parse::<CaptureId>().is_ok())
        .collect()
}

#[track_caller]
fn assert_proved(directory: &Path, keys: &[PublicKey], head: Option<Head>, captures: usize) {
    let report = verify(&inventory(directory), keys, head.as_ref(), Scope::Directory);
    assert_eq!(report.verdict(), Verdict::Proved, "{report:?}");
    assert_eq!(report.captures, captures);
    let manifests = ids(directory, MANIFEST_ENDING);
    assert_eq!(manifests.len(), captures);
    assert_eq!(ids(directory, ".json"), manifests);
    assert_eq!(ids(directory, ".pcapng"), manifests);
    assert!(ids(directory, ".seal.reserve").is_empty());
}

/// Not a test by itself: what the children of the tests do.
#[test]
fn child() {
    let (Ok(directory), Ok(point)) = (env::var(DIRECTORY), env::var(POINT)) else {
        return;
    };
    let point = POINTS
        .iter()
        .chain(&deletion::POINTS)
        .chain(&encrypted::POINTS)
        .chain(&holds::HOLD_POINTS)
        .chain(&holds::RELEASE_POINTS)
        .chain(&uploaded::POINTS)
        .find(|known| **known == point)
        .expect("a point");
    if env::var(deletion::DELETES).is_ok() {
        return deletion::delete_oldest(Path::new(&directory), point);
    }
    if let Ok(what) = env::var(holds::HOLDS) {
        return holds::hold_or_release(Path::new(&directory), point, &what);
    }
    if let Ok(store) = env::var(uploaded::UPLOADS) {
        return uploaded::upload_oldest(Path::new(&directory), point, &store);
    }
    let store = open(Path::new(&directory));
    store.recover(&[]).expect("recovered");
    fail_point::arm(point);
    capture(&store);
    seal(&store, None);
}

/// Runs a child to its end or its death.
fn run_child(directory: &Path, point: &str) {
    run_child_with(directory, point, &[]);
}

fn run_child_with(directory: &Path, point: &str, more: &[(&str, &str)]) {
    let status = Command::new(env::current_exe().expect("program"))
        .args(["--exact", "child", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(POINT, point)
        .envs(more.iter().copied())
        .output()
        .expect("child");
    let expected = (point != "never").then_some(9);
    assert_eq!(status.status.signal(), expected, "{point}: {status:?}");
}

#[test]
fn killed_between_any_two_steps_each_capture_has_one_manifest_and_the_chain_holds() {
    for point in POINTS {
        let directory = tempfile::tempdir().expect("directory");
        // One that was signed before, one that is killed over, and one after that.
        run_child(directory.path(), "never");
        run_child(directory.path(), point);
        let (key, head) = start_again(directory.path());
        assert_proved(directory.path(), &[key], head, 2);
        run_child(directory.path(), "never");
        let (key, head) = start_again(directory.path());
        assert_proved(directory.path(), &[key], head, 3);
        assert_eq!(head.expect("head").sequence, 3, "{point}");
    }
}

#[test]
fn killed_twice_in_a_row_at_any_two_steps_nothing_is_signed_twice() {
    for (at, first) in POINTS.iter().enumerate().take(POINTS.len() - 1) {
        let directory = tempfile::tempdir().expect("directory");
        run_child(directory.path(), first);
        // What the second start makes is killed at another step.
        run_child(directory.path(), POINTS[(at * 7 + 3) % (POINTS.len() - 1)]);
        let (key, head) = start_again(directory.path());
        assert_proved(directory.path(), &[key], head, 2);
    }
}

#[test]
fn a_capture_that_was_open_when_the_agent_died_is_signed_as_recovered() {
    let directory = tempfile::tempdir().expect("directory");
    let store = open(directory.path());
    let state = state(Destination::Store);
    let (growth, _, _) = store.prepare(&state).expect("room");
    let mut sink = store.create(&state, growth).expect("file");
    let mut blocks = header();
    let counted = whole_blocks(&blocks, blocks.len());
    sink.append(std::mem::take(&mut blocks).into(), counted)
        .expect("written");
    drop((sink, store));
    let (key, head) = start_again(directory.path());
    assert_proved(directory.path(), &[key], head, 1);
    let path = directory
        .path()
        .join(format!("{}{MANIFEST_ENDING}", state.id));
    let manifest = Manifest::open(&fs::read(path).expect("manifest"), &[key]).expect("own");
    assert!(manifest.recovered.is_some() && !manifest.complete);
    assert_eq!(manifest.stop_reason, Some(StopReason::CrashRecovered));
}

#[test]
fn streams_have_no_manifest_and_captures_of_an_agent_without_a_key_get_one_later() {
    let directory = tempfile::tempdir().expect("directory");
    let store = open(directory.path());
    let mut streamed = state(Destination::Stream);
    streamed.phase = Phase::Finished;
    store.keep(&streamed, &Finished::default()).expect("kept");
    capture(&store);
    drop(store);
    let store = open(directory.path());
    seal(&store, None);
    assert_eq!(ids(directory.path(), MANIFEST_ENDING).len(), 1);
    assert_eq!(store.seals().head().expect("head").sequence, 1);
}

#[test]
fn a_key_that_changes_leaves_old_manifests_verifiable_and_keys_are_secret() {
    let directory = tempfile::tempdir().expect("directory");
    let store = open(directory.path());
    capture(&store);
    let old = seal(&store, None);
    drop(store);
    let secret = directory.path().join("keys/node.key");
    let mode = |path: &PathBuf| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&secret), 0o600);
    let elsewhere = tempfile::tempdir().expect("directory");
    let given = elsewhere.path().join("mounted.pem");
    let key = remora_capture::evidence::SecretKey::from_random(&[5; 32]);
    fs::write(&given, key.to_pem()).expect("key");
    let store = open(directory.path());
    capture(&store);
    let new = seal(&store, Some(&given));
    assert_eq!(new, key.public());
    let head = store.seals().head();
    assert_proved(directory.path(), &[old, new], head, 2);
    for public in [old, new] {
        let path = directory.path().join(format!("keys/{}.pub", public.id()));
        let pem = fs::read_to_string(path).expect("public key");
        assert_eq!(PublicKey::from_pem(&pem), Ok(public));
    }
    let broken = elsewhere.path().join("broken.pem");
    fs::write(&broken, "x").expect("file");
    let error = store.keys(Some(&broken)).expect_err("no key");
    assert!(error.to_string().contains("openssl genpkey"), "{error}");
    assert!(store.keys(Some(&elsewhere.path().join("none"))).is_err());
}

#[test]
fn a_head_that_is_gone_or_broken_is_made_anew_and_no_number_is_used_twice() {
    let directory = tempfile::tempdir().expect("directory");
    let store = open(directory.path());
    capture(&store);
    capture(&store);
    seal(&store, None);
    drop(store);
    let path = directory.path().join("chain.head");
    for broken in [None, Some("x")] {
        match broken {
            None => fs::remove_file(&path).expect("removed"),
            Some(text) => fs::write(&path, text).expect("written"),
        }
        let (key, head) = start_again(directory.path());
        assert_proved(directory.path(), &[key], head, 2);
    }
    // Whoever takes the last manifest away does not get its number for another one.
    let (_, head) = start_again(directory.path());
    let last = ids(directory.path(), MANIFEST_ENDING)
        .into_iter()
        .find(|id| {
            let path = directory.path().join(format!("{id}{MANIFEST_ENDING}"));
            let manifest = Manifest::unverified(&fs::read(path).expect("manifest")).expect("own");
            manifest.chain.sequence == 2
        });
    let last = last.expect("the last manifest");
    for ending in [MANIFEST_ENDING, ".json", ".pcapng"] {
        fs::remove_file(directory.path().join(format!("{last}{ending}"))).expect("removed");
    }
    let store = open(directory.path());
    capture(&store);
    seal(&store, None);
    let later = store.seals().head().expect("head");
    assert!(later.sequence > head.expect("head").sequence);
}

#[test]
fn a_file_that_is_gone_before_it_was_hashed_is_told() {
    let directory = tempfile::tempdir().expect("directory");
    let store = open(directory.path());
    let id = capture(&store);
    fs::remove_file(directory.path().join(format!("{id}.pcapng"))).expect("removed");
    let key = seal(&store, None);
    let head = store.seals().head();
    let report = verify(
        &inventory(directory.path()),
        &[key],
        head.as_ref(),
        Scope::Directory,
    );
    assert_eq!(report.verdict(), Verdict::Partly, "{report:?}");
    assert!(report.unproved[0].contains("gone when the manifest was made"));
}
