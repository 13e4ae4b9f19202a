//! Killed between any two steps of an encryption: one manifest, and nothing in the open when the next agent has
//! started.

use remora_agent::sink::evidence::Recipients;
use remora_capture::evidence::Entry;

use super::*;

/// In the child: the public key.
pub(super) const RECIPIENT: &str = "REMORA_TEST_RECIPIENT";
pub(super) const POINTS: [&str; 3] = ["encrypted", "encrypted file renamed", "plain file removed"];

pub(super) fn recipients() -> Recipients {
    let given: Vec<_> = env::var(RECIPIENT).into_iter().collect();
    Recipients::read(&given).expect("a key")
}

fn seal_to(store: &Arc<Store>, recipients: Recipients) -> PublicKey {
    let keys = store.keys(None).expect("keys");
    let public = keys.signing();
    let origin = node().origin(Digest::of(b"object"));
    let sealer = Sealer::new(Arc::clone(store), keys, origin).expect("the only one");
    store.seals().end();
    let sealer = sealer.encrypting_to(recipients);
    thread::spawn(|| sealer.run()).join().expect("no panic");
    public
}

#[test]
fn killed_over_an_encryption_nothing_stays_in_the_open() {
    let secret = age::x25519::Identity::generate();
    let recipient = secret.to_public().to_string();
    for point in super::POINTS
        .iter()
        .chain(&POINTS)
        .filter(|point| **point != "never")
    {
        let directory = tempfile::tempdir().expect("directory");
        run_child_with(directory.path(), point, &[(RECIPIENT, &recipient)]);
        let store = open(directory.path());
        store.recover(&[]).expect("recovered");
        let recipients = Recipients::read(std::slice::from_ref(&recipient)).expect("key");
        let key = seal_to(&store, recipients);
        let manifests = ids(directory.path(), MANIFEST_ENDING);
        assert_eq!(manifests.len(), 1, "{point}");
        assert!(ids(directory.path(), ".pcapng").is_empty(), "{point}");
        assert_eq!(ids(directory.path(), ".pcapng.age"), manifests, "{point}");
        let head = store.seals().head();
        let inventory = inventory(directory.path());
        let report = verify(&inventory, &[key], head.as_ref(), Scope::Directory);
        assert_eq!(report.verdict(), Verdict::Proved, "{point}: {report:?}");
        // What it holds is what the manifest says, and the quota knows what lies there.
        let id = manifests.first().expect("one");
        let manifest = fs::read(directory.path().join(format!("{id}{MANIFEST_ENDING}")));
        let manifest = Manifest::open(&manifest.expect("manifest"), &[key]).expect("own");
        let file = manifest.files.first().expect("a file");
        let stored = fs::read(directory.path().join(&file.name)).expect("stored");
        let plain = age::decrypt(&secret, &stored).expect("decrypted");
        let entry = Entry::read("x.pcapng", &*plain).expect("read");
        let told = file.plain.as_ref().expect("encrypted").digest;
        assert_eq!(entry.digest(), told, "{point}");
        // What a repair adds to a file is not counted.
        if manifest.recovered.is_none() {
            assert_eq!(store.used_bytes(), stored.len() as u64, "{point}");
        }
    }
}

#[test]
fn an_agent_that_is_to_encrypt_no_more_signs_what_lies_there() {
    let recipient = age::x25519::Identity::generate().to_public().to_string();
    let directory = tempfile::tempdir().expect("directory");
    let point = "encrypted file renamed";
    run_child_with(directory.path(), point, &[(RECIPIENT, &recipient)]);
    assert_eq!(ids(directory.path(), ".pcapng.age").len(), 1);
    let (key, head) = start_again(directory.path());
    assert_proved(directory.path(), &[key], head, 1);
    assert!(ids(directory.path(), ".pcapng.age").is_empty());
}
