//! Whatever is done to a set of evidence is found.

use super::*;
use crate::{
    evidence::{
        Cause, Digest, Hold, Link, Release, SecretKey, Tombstone,
        manifest::tests::{capture, key},
    },
    session::Destination,
    sidecar::Sidecar,
};

/// Names and bytes of a directory.
type Files = BTreeMap<String, Vec<u8>>;

struct Evidence {
    files: Files,
    head: Head,
    keys: [PublicKey; 1],
    /// Manifests in the order of the chain.
    manifests: Vec<String>,
}

/// A directory of some captures.
fn evidence(captures: usize) -> Evidence {
    let key = key();
    let mut files = Files::new();
    let mut manifests = Vec::new();
    let mut head = None;
    for n in 0..captures {
        let packets: Vec<u8> = (0..2000 + n).map(|at| (at * 7 + n) as u8).collect();
        let capture = capture(head.as_ref(), &packets, &key);
        let (name, bytes) = capture.last().expect("manifest");
        let manifest = Manifest::unverified(bytes).expect("own");
        head = Some(manifest.chain.head(Digest::of(bytes)));
        manifests.push(name.clone());
        files.extend(capture);
    }
    let head = head.expect("captures");
    files.insert(HEAD.to_owned(), head.to_signed(&key));
    Evidence {
        files,
        head,
        keys: [key.public()],
        manifests,
    }
}

fn inventory(files: &Files) -> Inventory {
    let mut inventory = Inventory::default();
    for (name, bytes) in files {
        let entry = Entry::read(name, bytes.as_slice()).expect("memory");
        inventory.put(name, entry);
    }
    inventory
}

impl Evidence {
    fn report(&self, files: &Files) -> Report {
        verify(
            &inventory(files),
            &self.keys,
            Some(&self.head),
            Scope::Directory,
        )
    }

    #[track_caller]
    fn assert_broken(&self, files: &Files, what: &str) {
        let report = self.report(files);
        assert_eq!(report.verdict(), Verdict::Broken, "{report:?}");
        assert!(
            report.broken.iter().any(|text| text.contains(what)),
            "{what}: {report:?}"
        );
    }

    fn of_capture(&self, n: usize) -> Vec<String> {
        let id = self.manifests[n]
            .strip_suffix(MANIFEST_ENDING)
            .expect("manifest");
        let names = self.files.keys().filter(|name| name.starts_with(id));
        names.cloned().collect()
    }
}

#[test]
fn what_was_not_touched_is_proved() {
    let evidence = evidence(3);
    let report = evidence.report(&evidence.files);
    assert_eq!(report.verdict(), Verdict::Proved, "{report:?}");
    assert_eq!((report.captures, report.proved.len()), (3, 4));
    let without = verify(
        &inventory(&evidence.files),
        &evidence.keys,
        None,
        Scope::Directory,
    );
    assert_eq!(without.verdict(), Verdict::Partly);
    assert!(
        without.unproved[0].contains("nothing came after 3"),
        "{without:?}"
    );
}

/// Numbers that are the same in each run (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn ten_thousand_of_ten_thousand_flipped_bits_are_found() {
    let evidence = evidence(3);
    let names: Vec<_> = evidence.files.keys().cloned().collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let clean = inventory(&evidence.files);
    let mut by_kind = BTreeMap::new();
    let mut found = 0;
    for _ in 0..10_000 {
        // Each kind of file as often as the others, however large it is.
        let name = &names[random.below(names.len())];
        let mut bytes = evidence.files[name].clone();
        let bit = random.below(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let mut inventory = clean.clone();
        let entry = Entry::read(name, bytes.as_slice()).expect("memory");
        inventory.entries.insert(name.clone(), entry);
        let report = verify(
            &inventory,
            &evidence.keys,
            Some(&evidence.head),
            Scope::Directory,
        );
        assert_eq!(report.verdict(), Verdict::Broken, "bit {bit} of {name}");
        found += usize::from(report.verdict() == Verdict::Broken);
        let kind = name.split_once('.').map_or("", |(_, kind)| kind).to_owned();
        *by_kind.entry(kind).or_insert(0) += 1;
    }
    println!("{found} of 10000 found: {by_kind:?}");
    assert_eq!(by_kind.len(), 4);
}

#[test]
fn a_file_that_is_missing_cut_longer_added_or_swapped_is_found() {
    let evidence = evidence(3);
    for name in evidence.files.keys() {
        let mut files = evidence.files.clone();
        files.remove(name);
        assert_eq!(
            evidence.report(&files).verdict(),
            Verdict::Broken,
            "{name} is missing"
        );
        for change in [
            |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1),
            |bytes: &mut Vec<u8>| bytes.push(0),
            Vec::clear,
        ] {
            let mut files = evidence.files.clone();
            change(files.get_mut(name).expect("there"));
            assert_eq!(evidence.report(&files).verdict(), Verdict::Broken, "{name}");
        }
        for other in evidence.files.keys().filter(|other| *other != name) {
            let mut files = evidence.files.clone();
            files.insert(name.clone(), evidence.files[other].clone());
            files.insert(other.clone(), evidence.files[name].clone());
            assert_eq!(
                evidence.report(&files).verdict(),
                Verdict::Broken,
                "{name} for {other}"
            );
        }
    }
    let mut files = evidence.files.clone();
    files.insert(
        "01J9ZQ3C7M8N4R5T6V7W8X9YZA.pcapng".to_owned(),
        b"x".to_vec(),
    );
    evidence.assert_broken(&files, "no manifest knows this file");
}

#[test]
fn an_account_of_a_streamed_capture_has_no_manifest_and_is_told_as_unsigned() {
    let evidence = evidence(1);
    let of_stored = evidence.manifests[0].replace(MANIFEST_ENDING, ".json");
    let account = |id: &str, destination| {
        let mut account = Sidecar::from_json(&evidence.files[&of_stored]).expect("an account");
        account.capture.id = id.parse().expect("an id");
        account.capture.spec.destination = destination;
        account.to_json()
    };
    let with = |name: &str, bytes: &[u8]| {
        let mut files = evidence.files.clone();
        files.insert(name.to_owned(), bytes.to_vec());
        files
    };
    let id = "01J9ZQ3C7M8N4R5T6V7W8X9YZA";
    let name = format!("{id}.json");
    let streamed = account(id, Destination::Stream);
    let report = evidence.report(&with(&name, &streamed));
    assert_eq!(report.verdict(), Verdict::Partly, "{report:?}");
    assert!(
        report.unproved.len() == 1 && report.unproved[0].starts_with(&format!("{name}: accounts")),
        "{report:?}"
    );
    // Of no other capture, of one that was stored, of nothing, and no packets.
    for (name, bytes) in [
        ("01J9ZQ3C7M8N4R5T6V7W8X9YZB.json", &streamed[..]),
        (&name, &account(id, Destination::Store)),
        (&name, b"{}"),
        ("01J9ZQ3C7M8N4R5T6V7W8X9YZA.pcapng", &streamed),
    ] {
        evidence.assert_broken(&with(name, bytes), "no manifest knows this file");
    }
    // What was signed stays signed.
    let id = of_stored.trim_end_matches(".json");
    let changed = account(id, Destination::Stream);
    let what = format!("{of_stored}: ");
    evidence.assert_broken(&with(&of_stored, &changed), &what);
}

#[test]
fn captures_that_are_gone_whole_are_found_by_the_chain() {
    let evidence = evidence(4);
    for n in 0..4 {
        let mut files = evidence.files.clone();
        for name in evidence.of_capture(n) {
            files.remove(&name);
        }
        let what = if n == 3 {
            "cut off after 3"
        } else {
            "are missing"
        };
        evidence.assert_broken(&files, what);
    }
}

#[test]
fn a_tail_that_was_cut_with_its_head_is_found_by_the_published_one() {
    let evidence = evidence(3);
    let mut files = evidence.files.clone();
    for name in evidence.of_capture(2) {
        files.remove(&name);
    }
    // An old copy of the head, which the key did sign.
    let second = &evidence.files[&evidence.manifests[1]];
    let link = Manifest::unverified(second).expect("own").chain;
    files.insert(
        HEAD.to_owned(),
        link.head(Digest::of(second)).to_signed(&key()),
    );
    let alone = verify(&inventory(&files), &evidence.keys, None, Scope::Directory);
    assert_eq!(alone.verdict(), Verdict::Partly, "{alone:?}");
    evidence.assert_broken(&files, "cut off after 2; the published head tells of 3");
}

#[test]
fn another_chain_of_the_same_key_is_no_part_of_this_one() {
    let (one, two) = (evidence(2), evidence(2));
    // Manifest 2 of one directory in the other's place: all is signed, nothing fits.
    let mut files = one.files.clone();
    for name in one.of_capture(1) {
        files.remove(&name);
    }
    for name in two.of_capture(1) {
        files.insert(name.clone(), two.files[&name].clone());
    }
    one.assert_broken(&files, "cut off after 1");
    one.assert_broken(&files, "manifests 1 to 1 are missing");
}

#[test]
fn what_another_key_signed_is_found() {
    let mut evidence = evidence(2);
    let foreign = SecretKey::from_random(&[1; 32]);
    let forged = capture(Some(&evidence.head), b"forged", &foreign);
    let mut files = evidence.files.clone();
    files.extend(forged);
    evidence.assert_broken(&files, "is not among those given");
    let rightful = evidence.keys;
    evidence.keys = [foreign.public()];
    evidence.assert_broken(&evidence.files.clone(), "is not among those given");
    // After a rotation both keys are given.
    let keys = [rightful[0], foreign.public()];
    let head = {
        let (_, bytes) = files
            .iter()
            .find(|(name, _)| name.ends_with(MANIFEST_ENDING) && !evidence.manifests.contains(name))
            .expect("forged");
        Manifest::unverified(bytes)
            .expect("manifest")
            .chain
            .head(Digest::of(bytes))
    };
    files.insert(HEAD.to_owned(), head.to_signed(&foreign));
    let report = verify(&inventory(&files), &keys, Some(&head), Scope::Directory);
    assert_eq!(report.verdict(), Verdict::Proved, "{report:?}");
}

#[test]
fn a_selection_is_proved_without_its_neighbours() {
    let evidence = evidence(3);
    let chosen = evidence.of_capture(1);
    let mut files: Files = evidence.files.clone();
    files.retain(|name, _| chosen.contains(name));
    let check =
        |files: &Files| verify(&inventory(files), &evidence.keys, None, Scope::Selection).verdict();
    assert_eq!(check(&files), Verdict::Proved);
    for name in &chosen {
        let mut less = files.clone();
        less.remove(name);
        assert_eq!(check(&less), Verdict::Broken, "{name}");
    }
}

#[test]
fn names_that_leave_the_directory_are_faults() {
    let evidence = evidence(1);
    for name in [
        "../x",
        "/etc/passwd",
        "a/b",
        "..",
        "",
        "a\u{1b}b",
        ".hidden",
        "a\\b",
    ] {
        let mut inventory = inventory(&evidence.files);
        inventory.put(name, Entry::read(name, &b"x"[..]).expect("memory"));
        let report = verify(
            &inventory,
            &evidence.keys,
            Some(&evidence.head),
            Scope::Directory,
        );
        assert_eq!(report.verdict(), Verdict::Broken, "{name:?}");
        assert!(report.broken.iter().all(|text| !text.contains('\u{1b}')));
    }
}

#[test]
fn a_running_capture_is_said_to_be_unproved() {
    let evidence = evidence(1);
    let mut files = evidence.files.clone();
    for ending in ["open.json", "pcapng.part", "reserve"] {
        files.insert(
            format!("01J9ZQ3C7M8N4R5T6V7W8X9YZA.{ending}"),
            b"x".to_vec(),
        );
    }
    let report = evidence.report(&files);
    assert_eq!(
        (report.verdict(), report.unproved.len()),
        (Verdict::Partly, 3),
        "{report:?}"
    );
}

/// The second of three captures is deleted, and one more made afterwards; the third is held.
fn with_a_tombstone() -> Evidence {
    let mut evidence = evidence(3);
    let key = key();
    let name = evidence.manifests[1].clone();
    let bytes = &evidence.files[&name];
    let manifest = Manifest::unverified(bytes).expect("own");
    let link = Link::after(Some(&evidence.head));
    let tombstone = Tombstone::new(
        (&manifest, Digest::of(bytes)),
        "node-a",
        link.clone(),
        key.public().id(),
        jiff::Timestamp::UNIX_EPOCH,
        (Cause::Requested, "the case\u{1b} is closed", "uid=0"),
    );
    let signed = tombstone.sign(&key).expect("signed");
    let head = link.head(Digest::of(&signed));
    for file in manifest.records() {
        evidence.files.remove(&file.name);
    }
    let id = manifest.capture_id;
    evidence
        .files
        .insert(format!("{id}{TOMBSTONE_ENDING}"), signed);
    let last = capture(Some(&head), b"later", &key);
    let (name, bytes) = last.last().expect("manifest");
    evidence.head = Manifest::unverified(bytes)
        .expect("own")
        .chain
        .head(Digest::of(bytes));
    evidence.manifests.push(name.clone());
    evidence.files.extend(last);
    let held = evidence.manifests[2].strip_suffix(MANIFEST_ENDING);
    let held = held.expect("manifest");
    let hold = Hold {
        capture_id: held.parse().expect("id"),
        chain: None,
        since: jiff::Timestamp::UNIX_EPOCH,
        why: String::new(),
        by: "uid=0".to_owned(),
    };
    let signed = hold.to_signed(&key).expect("signed");
    evidence
        .files
        .insert(format!("{held}{HOLD_ENDING}"), signed);
    let head = evidence.head.to_signed(&key);
    evidence.files.insert(HEAD.to_owned(), head);
    evidence
}

#[test]
fn a_deleted_capture_is_said_to_be_by_whom_and_why() {
    let evidence = with_a_tombstone();
    let report = evidence.report(&evidence.files);
    assert_eq!(report.verdict(), Verdict::Proved, "{report:?}");
    let told = |what: &str| report.proved.iter().any(|text| text.contains(what));
    assert!(told(
        "by uid=0, because it was asked for: the case\\u{1b} is closed"
    ));
    assert!(told("4 manifests and 1 tombstones from the first"));
    assert!(told("held since 1970-01-01T00:00:00Z by uid=0"));
    // Alone, too: an archive of it, or its manifest with what lies beside it.
    let chosen = evidence.of_capture(1);
    assert_eq!(chosen.len(), 2);
    let mut files = evidence.files.clone();
    files.retain(|name, _| chosen.contains(name));
    let alone = verify(&inventory(&files), &evidence.keys, None, Scope::Selection);
    assert_eq!(alone.verdict(), Verdict::Proved, "{alone:?}");
}

#[test]
fn flipped_bits_of_tombstones_holds_and_all_around_them_are_found() {
    let evidence = with_a_tombstone();
    let names: Vec<_> = evidence.files.keys().cloned().collect();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let clean = inventory(&evidence.files);
    let mut by_kind = BTreeMap::new();
    for _ in 0..2000 {
        let name = &names[random.below(names.len())];
        let mut bytes = evidence.files[name].clone();
        let bit = random.below(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let mut inventory = clean.clone();
        let entry = Entry::read(name, bytes.as_slice()).expect("memory");
        inventory.entries.insert(name.clone(), entry);
        let head = Some(&evidence.head);
        let report = verify(&inventory, &evidence.keys, head, Scope::Directory);
        assert_eq!(report.verdict(), Verdict::Broken, "bit {bit} of {name}");
        let kind = name.split_once('.').map_or("", |(_, kind)| kind).to_owned();
        *by_kind.entry(kind).or_insert(0) += 1;
    }
    println!("2000 of 2000 found: {by_kind:?}");
    assert_eq!(by_kind.len(), 6);
}

#[test]
fn a_tombstone_that_is_missing_cut_swapped_or_elsewhere_is_found() {
    let evidence = with_a_tombstone();
    let is_stone = |name: &&String| name.ends_with(TOMBSTONE_ENDING);
    let stone = evidence.files.keys().find(is_stone).expect("there").clone();
    let mut files = evidence.files.clone();
    let bytes = files.remove(&stone).expect("there");
    evidence.assert_broken(&files, "missing, ");
    evidence.assert_broken(&files, "manifests 4 to 4 are missing");
    // For another capture, whose files are taken away.
    let other = evidence.of_capture(0);
    let id = other[0].split('.').next().expect("id");
    for name in other.iter().filter(|name| !name.ends_with(MANIFEST_ENDING)) {
        files.remove(name);
    }
    files.insert(format!("{id}{TOMBSTONE_ENDING}"), bytes.clone());
    evidence.assert_broken(&files, "it is the tombstone of");
    evidence.assert_broken(&files, &format!("missing, {id} has it"));
    // Without its manifest.
    let mut files = evidence.files.clone();
    files.remove(&evidence.manifests[1]);
    evidence.assert_broken(&files, "the manifest of what was deleted is missing");
    for change in [
        |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1),
        |bytes: &mut Vec<u8>| bytes.push(b' '),
        Vec::clear,
    ] {
        let mut files = evidence.files.clone();
        change(files.get_mut(&stone).expect("there"));
        assert_eq!(evidence.report(&files).verdict(), Verdict::Broken);
    }
    // In the place of the manifest, and the other way round.
    let mut files = evidence.files.clone();
    let manifest = files.insert(evidence.manifests[1].clone(), bytes);
    files.insert(stone, manifest.expect("there"));
    evidence.assert_broken(&files, "is not what its name says");
}

#[test]
fn a_forged_tombstone_explains_nothing() {
    let evidence = evidence(2);
    let foreign = SecretKey::from_random(&[1; 32]);
    let name = &evidence.manifests[1];
    let manifest = Manifest::unverified(&evidence.files[name]).expect("own");
    let tombstone = Tombstone::new(
        (&manifest, Digest::of(&evidence.files[name])),
        "node-a",
        Link::after(Some(&evidence.head)),
        foreign.public().id(),
        jiff::Timestamp::UNIX_EPOCH,
        (Cause::Age, "", "agent"),
    );
    let mut files = evidence.files.clone();
    for file in manifest.records() {
        files.remove(&file.name);
    }
    let stone = format!("{}{TOMBSTONE_ENDING}", manifest.capture_id);
    files.insert(stone, tombstone.sign(&foreign).expect("signed"));
    evidence.assert_broken(&files, "is not among those given");
    evidence.assert_broken(&files, "missing, ");
}

#[test]
fn a_tombstone_before_its_manifest_is_found() {
    // All is signed by the right key, as a node that lies could do it: yet the order is wrong.
    let (key, mut files) = (key(), Files::new());
    let later = capture(None, b"packets", &key);
    let (name, bytes) = later.last().expect("manifest");
    let manifest = Manifest::unverified(bytes).expect("own");
    let tombstone = Tombstone::new(
        (&manifest, Digest::of(bytes)),
        "node-a",
        manifest.chain.clone(),
        key.public().id(),
        jiff::Timestamp::UNIX_EPOCH,
        (Cause::Age, "", "agent"),
    );
    files.insert(name.clone(), bytes.clone());
    let stone = format!("{}{TOMBSTONE_ENDING}", manifest.capture_id);
    files.insert(stone, tombstone.sign(&key).expect("signed"));
    let report = verify(&inventory(&files), &[key.public()], None, Scope::Selection);
    let told = report
        .broken
        .iter()
        .any(|text| text.contains("is before its manifest"));
    assert!(told, "{report:?}");
}

#[test]
fn what_is_still_there_or_was_put_back_after_its_deletion_is_told() {
    let evidence = with_a_tombstone();
    let bytes: Vec<u8> = (0..2001).map(|at| (at * 7 + 1) as u8).collect();
    let id = evidence.manifests[1].strip_suffix(MANIFEST_ENDING);
    let name = format!("{}.pcapng", id.expect("manifest"));
    let mut files = evidence.files.clone();
    files.insert(name.clone(), bytes);
    let report = evidence.report(&files);
    assert_eq!(report.verdict(), Verdict::Partly, "{report:?}");
    assert!(report.unproved[0].contains("still here"), "{report:?}");
    files.insert(name, b"something else".to_vec());
    evidence.assert_broken(&files, "it was deleted, and is here with other bytes");
}

#[test]
fn a_hold_that_is_forged_of_another_capture_or_of_none_is_found() {
    let evidence = with_a_tombstone();
    let is_hold = |name: &&String| name.ends_with(HOLD_ENDING);
    let hold = evidence.files.keys().find(is_hold).expect("there").clone();
    let bytes = evidence.files[&hold].clone();
    let id = |n: usize| {
        evidence.manifests[n]
            .strip_suffix(MANIFEST_ENDING)
            .expect("id")
    };
    let mut files = evidence.files.clone();
    files.insert(format!("{}{HOLD_ENDING}", id(0)), bytes.clone());
    evidence.assert_broken(&files, "it is the hold of");
    let of = |n: usize, key: &SecretKey| {
        let hold = Hold {
            capture_id: id(n).parse().expect("id"),
            chain: None,
            since: jiff::Timestamp::UNIX_EPOCH,
            why: String::new(),
            by: String::new(),
        };
        hold.to_signed(key).expect("signed")
    };
    files.insert(hold, of(2, &SecretKey::from_random(&[1; 32])));
    evidence.assert_broken(&files, "is not among those given");
    let mut files = evidence.files.clone();
    files.insert(format!("{}{HOLD_ENDING}", id(1)), of(1, &key()));
    evidence.assert_broken(&files, "it was deleted, and is held");
}

/// Of three captures the first was held and released, the second is held.
fn with_holds() -> Evidence {
    let mut evidence = evidence(3);
    let key = key();
    let id = |name: &String| -> crate::session::CaptureId {
        let id = name.strip_suffix(MANIFEST_ENDING).expect("manifest");
        id.parse().expect("id")
    };
    let ids: Vec<_> = evidence.manifests.iter().map(id).collect();
    let hold = |capture_id, head: &Head| Hold {
        capture_id,
        chain: Some(Link::after(Some(head))),
        since: jiff::Timestamp::UNIX_EPOCH,
        why: "case 42".to_owned(),
        by: "uid=0".to_owned(),
    };
    let follow = |link: Option<Link>, bytes: &[u8]| link.expect("place").head(Digest::of(bytes));
    let first = hold(ids[0], &evidence.head);
    let first_file = first.to_signed(&key).expect("signed");
    let head = follow(first.chain.clone(), &first_file);
    let second = hold(ids[1], &head);
    let second_file = second.to_signed(&key).expect("signed");
    let head = follow(second.chain, &second_file);
    let release = Release {
        capture_id: ids[0],
        chain: Link::after(Some(&head)),
        released: jiff::Timestamp::UNIX_EPOCH,
        by: "uid=1".to_owned(),
        hold: Some(String::from_utf8(first_file).expect("JSON")),
    };
    let signed = release.to_signed(&key).expect("signed");
    evidence.head = follow(Some(release.chain.clone()), &signed);
    let files = &mut evidence.files;
    files.insert(release.file_name(), signed);
    files.insert(format!("{}{HOLD_ENDING}", ids[1]), second_file);
    files.insert(HEAD.to_owned(), evidence.head.to_signed(&key));
    evidence
}

#[test]
fn holds_and_releases_are_told_and_have_their_places() {
    let evidence = with_holds();
    let report = evidence.report(&evidence.files);
    assert_eq!(report.verdict(), Verdict::Proved, "{report:?}");
    let told = |what: &str| report.proved.iter().any(|text| text.contains(what));
    assert!(told(
        "held since 1970-01-01T00:00:00Z by uid=0: case 42; released on 1970-01-01T00:00:00Z by uid=1"
    ));
    assert!(told(
        "3 manifests and 2 holds and 1 releases from the first"
    ));
}

#[test]
fn a_hold_or_a_release_that_is_taken_away_changed_or_put_back_is_found() {
    let evidence = with_holds();
    let named = |end: &str| {
        let mut names = evidence.files.keys().filter(|name| name.ends_with(end));
        names.next().expect("there").clone()
    };
    let (hold, release) = (named(HOLD_ENDING), named(RELEASE_ENDING));
    for (name, number) in [(&hold, "5 to 5"), (&release, "cut off after 5")] {
        let mut files = evidence.files.clone();
        files.remove(name);
        evidence.assert_broken(&files, number);
        let clean = inventory(&evidence.files);
        for bit in (0..evidence.files[name].len() * 8).step_by(11) {
            let mut bytes = evidence.files[name].clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut inventory = clean.clone();
            let entry = Entry::read(name, bytes.as_slice()).expect("memory");
            inventory.entries.insert(name.clone(), entry);
            let head = Some(&evidence.head);
            let report = verify(&inventory, &evidence.keys, head, Scope::Directory);
            assert_eq!(report.verdict(), Verdict::Broken, "bit {bit} of {name}");
        }
    }
    // Under another name, and of another capture.
    let mut files = evidence.files.clone();
    let bytes = files.remove(&release).expect("there");
    files.insert(release.replace(".6.", ".7."), bytes);
    evidence.assert_broken(&files, "it is the file");
    // As an agent leaves it that is killed over it.
    let mut files = evidence.files.clone();
    let read = Release::from_signed(&files[&release], &evidence.keys).expect("own");
    let held = format!("{}{HOLD_ENDING}", read.capture_id);
    files.insert(held.clone(), read.hold.expect("hold").into_bytes());
    let report = evidence.report(&files);
    assert_eq!(report.verdict(), Verdict::Partly, "{report:?}");
    // What was released is put back by somebody else.
    files.insert(held, b"{}".to_vec());
    evidence.assert_broken(&files, "signed envelope");
}
