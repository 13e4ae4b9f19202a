//! Whether manifests and tombstones are a chain.

use std::collections::BTreeMap;

use ulid::Ulid;

use super::{Head, Report, Scope};
use crate::{
    evidence::{Digest, Link},
    session::CaptureId,
};

/// Where a document is in its chain.
pub(super) struct Place {
    /// Of its file.
    pub(super) file: Digest,
    pub(super) link: Link,
    pub(super) id: CaptureId,
    pub(super) kind: Kind,
}

/// What a place is taken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Manifest,
    Tombstone,
    Hold,
    Release,
    Receipt,
}

impl Kind {
    const fn plural(self) -> &'static str {
        match self {
            Self::Manifest => "manifests",
            Self::Tombstone => "tombstones",
            Self::Hold => "holds",
            Self::Release => "releases",
            Self::Receipt => "receipts",
        }
    }
}

/// Documents by their number.
pub(super) type Chain = BTreeMap<u64, Place>;

/// Puts a document in its place, where none else may be.
pub(super) fn put(
    chains: &mut BTreeMap<Ulid, Chain>,
    name: &str,
    place: Place,
    report: &mut Report,
) {
    let chain = chains.entry(place.link.chain).or_default();
    if let Some(twin) = chain.insert(place.link.sequence, place) {
        let (of, sequence) = (twin.id, twin.link.sequence);
        report.broken.push(format!(
            "{name}: {of} has its place in the chain, {sequence}, too"
        ));
    }
}

/// Each document follows the one before it, and the heads are among them.
pub(super) fn follow(
    chain: Ulid,
    places: &Chain,
    [own, published]: [Option<&Head>; 2],
    scope: Scope,
    report: &mut Report,
) {
    let before = report.broken.len();
    let mut last: Option<Head> = None;
    for Place { file, link, id, .. } in places.values() {
        let sequence = link.sequence;
        let expected = last.map_or(1, |last| last.sequence.saturating_add(1));
        if sequence != expected {
            if scope == Scope::Directory {
                let until = sequence.saturating_sub(1);
                report.broken.push(format!(
                    "chain {chain}: manifests {expected} to {until} are missing, or tombstones, holds, releases or receipts"
                ));
            }
        } else if last.map_or(link.previous.is_some(), |last| !link.follows(&last)) {
            report.broken.push(format!(
                "chain {chain}: {sequence} ({id}) does not follow the one before it"
            ));
        }
        last = Some(link.head(*file));
    }
    let Some(last) = last else {
        return;
    };
    for (name, head) in [("chain.head", own), ("the published head", published)] {
        let Some(head) = head else {
            continue;
        };
        match places.get(&head.sequence) {
            Some(place) if place.file == head.manifest => {}
            Some(_) => report.broken.push(format!(
                "chain {chain}: {name} has another manifest {}",
                head.sequence
            )),
            None if scope == Scope::Directory && head.sequence > last.sequence => {
                report.broken.push(format!(
                    "chain {chain}: cut off after {}; {name} tells of {}",
                    last.sequence, head.sequence
                ));
            }
            None => {}
        }
    }
    if scope == Scope::Selection {
        return;
    }
    match (own, published) {
        // The agent may have been killed between a manifest and its head: one may be ahead.
        (None, _) => report
            .broken
            .push(format!("chain {chain}: chain.head is missing")),
        (Some(own), _) if own.sequence.saturating_add(1) < last.sequence => {
            report.broken.push(format!(
                "chain {chain}: chain.head tells of {}, but {} is here",
                own.sequence, last.sequence
            ));
        }
        (Some(_), None) => report.unproved.push(format!(
            "chain {chain}: that nothing came after {}; give the head that was published (--head)",
            last.sequence
        )),
        (Some(_), Some(head)) if head.sequence < last.sequence => report.unproved.push(format!(
            "chain {chain}: that nothing came after {}; the published head is of {}",
            last.sequence, head.sequence
        )),
        (Some(_), Some(_)) => {}
    }
    if report.broken.len() == before {
        let kinds = [
            Kind::Manifest,
            Kind::Tombstone,
            Kind::Hold,
            Kind::Release,
            Kind::Receipt,
        ];
        let counted: Vec<_> = kinds
            .into_iter()
            .map(|kind| (kind, places.values().filter(|p| p.kind == kind).count()))
            .filter(|(kind, count)| *count > 0 || *kind == Kind::Manifest)
            .map(|(kind, count)| format!("{count} {}", kind.plural()))
            .collect();
        let counted = counted.join(" and ");
        report.proved.push(format!(
            "chain {chain}: {counted} from the first to {last}, none missing, \
             each in its place"
        ));
    }
}
