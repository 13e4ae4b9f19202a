//! The law of alerts, from what was answered, what is counted, and what lies on the disk.
//!
//! ```text
//! controller   received = accepted + coalesced + existing + ignored + refused (by reason)
//! agent        received = accepted + coalesced + existing + refused (by reason)
//! records      accepted = manifests
//!              coalesced = alerts that joined, by the manifests
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use remora_capture::evidence::{Digest, MANIFEST_ENDING, Manifest};
use remora_tests::{agent::TestAgent, wait};

use crate::senders::{Alert, Answer};

const LIMIT: Duration = Duration::from_secs(60);

/// How many of each decision.
pub(crate) fn decisions(answers: &[Answer]) -> BTreeMap<String, u64> {
    let mut decisions = BTreeMap::new();
    for answer in answers {
        let key = match &answer.code {
            Some(code) => format!("{} {code}", answer.decision),
            None => answer.decision.clone(),
        };
        *decisions.entry(key).or_default() += 1;
    }
    decisions
}

/// A counter's value, all its labels that begin so together.
pub(crate) fn counter(metrics: &str, name: &str) -> u64 {
    let values = metrics.lines().filter(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['{', ' ', '"', ',']))
    });
    values
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

fn decided(metrics: &str, name: &str, decision: &str) -> u64 {
    counter(metrics, &format!("{name}{{decision=\"{decision}\"}}"))
}

/// What a program counts of starts or alerts adds up, and is what was answered.
pub(crate) fn counted(
    metrics: &str,
    (received, decided_name, refusals): (&str, &str, &str),
) -> Result<BTreeMap<&'static str, u64>> {
    let of = |decision: &'static str| (decision, decided(metrics, decided_name, decision));
    let all: BTreeMap<_, _> = ["accepted", "coalesced", "existing", "ignored", "refused"]
        .map(of)
        .into();
    let sum: u64 = all.values().sum();
    let received = counter(metrics, received);
    ensure!(received == sum, "{received} received, {all:?}");
    let by_reason = counter(metrics, refusals);
    ensure!(
        by_reason == all["refused"],
        "{by_reason} by reason, {all:?}"
    );
    Ok(all)
}

pub(crate) const OF_AGENT: (&str, &str, &str) = (
    "remora_starts_received_total",
    "remora_starts_total",
    "remora_start_refusals_total",
);
pub(crate) const OF_CONTROLLER: (&str, &str, &str) = (
    "remora_controller_alerts_received_total",
    "remora_controller_alerts_total",
    "remora_controller_refusals_total",
);

/// All manifests, once there is one for each account and no capture is open.
pub(crate) fn manifests(agent: &TestAgent<'_>) -> Result<BTreeMap<String, Manifest>> {
    let ids = |ending: &str| -> Result<BTreeSet<String>> {
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(agent.data_dir())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(id) = name.strip_suffix(ending).filter(|id| !id.contains('.')) {
                ids.insert(id.to_owned());
            }
        }
        Ok(ids)
    };
    let ids = wait::until_some(LIMIT, "a manifest for each capture", || {
        let (open, accounts) = (ids(".open.json")?, ids(".json")?);
        let signed = ids(MANIFEST_ENDING)?;
        Ok((open.is_empty() && accounts == signed).then_some(signed))
    })
    .with_context(|| agent.tail())?;
    ids.into_iter()
        .map(|id| Ok((id.clone(), agent.manifest(&id)?)))
        .collect()
}

/// The alerts of a manifest: the one that began it, and those that joined.
fn alerts(manifest: &Manifest) -> Vec<Digest> {
    let joined = manifest.amendments.kept.iter();
    let joined = joined.filter_map(|one| Some(one.alert.as_ref()?.sha256));
    manifest.alert_sha256.into_iter().chain(joined).collect()
}

/// Every alert that was answered with a capture is in that capture's manifest.
pub(crate) fn kept(
    manifests: &BTreeMap<String, Manifest>,
    sent: &[Alert],
    answers: &[Answer],
) -> Result<()> {
    let known: BTreeMap<&str, BTreeSet<Digest>> = manifests
        .iter()
        .map(|(id, manifest)| (id.as_str(), alerts(manifest).into_iter().collect()))
        .collect();
    for answer in answers {
        let Some(capture) = &answer.capture else {
            continue;
        };
        let of = known
            .get(capture.as_str())
            .with_context(|| format!("no manifest of {capture}: {answer:?}"))?;
        let digest = sent[answer.alert].digest();
        ensure!(
            of.contains(&digest),
            "{capture} does not have it: {answer:?}"
        );
    }
    Ok(())
}

/// How often each alert that was sent is in some manifest.
pub(crate) fn times(
    manifests: &BTreeMap<String, Manifest>,
    sent: &[Alert],
) -> BTreeMap<Digest, usize> {
    let mut times: BTreeMap<_, _> = sent.iter().map(|alert| (alert.digest(), 0)).collect();
    for digest in manifests.values().flat_map(alerts) {
        if let Some(times) = times.get_mut(&digest) {
            *times += 1;
        }
    }
    times
}

/// How many alerts joined, by the manifests.
pub(crate) fn joined(manifests: &BTreeMap<String, Manifest>) -> u64 {
    let joined = manifests.values();
    joined.map(|manifest| manifest.amendments.alerts()).sum()
}
