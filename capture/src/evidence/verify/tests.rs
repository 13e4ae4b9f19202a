//! Whatever is done to a set of evidence is found.

use super::*;
use crate::evidence::{
    SecretKey,
    manifest::tests::{capture, key},
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
