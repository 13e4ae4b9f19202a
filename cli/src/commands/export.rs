//! `remora export`, and the manifest for `remora show --custody`: evidence from the agent.

use std::path::Path;

use anyhow::{Context as _, bail};
use remora_capture::{
    evidence::{
        DOCUMENT_BYTES_MAX, HOLD_ENDING, Hold, MANIFEST_ENDING, Manifest, PublicKey,
        RECEIPT_ENDING, RELEASE_ENDING, Receipt, Release, TOMBSTONE_ENDING, Tombstone,
    },
    session::CaptureId,
};
use remora_proto::{
    client::AgentAddress,
    v1::{self, capture_client::CaptureClient, evidence_response::Message},
};
use tonic::{Streaming, transport::Channel};

use super::{Outcome, connect, print};
use crate::{
    evidence::Archive,
    failure::{answer, explain},
    render, terminal,
};

/// Writes the archive.
///
/// # Errors
/// A capture has no evidence, or the archive cannot be written; then none is left.
pub(super) async fn run(
    agent: &AgentAddress,
    ids: &[CaptureId],
    path: &Path,
) -> anyhow::Result<Outcome> {
    let mut client = connect(agent).await?;
    // Before there is a file: an id may be unknown, or its capture running.
    let mut files = open(agent, &mut client, first(ids)?, false).await?;
    let mut archive = Archive::create(path, ids)?;
    for (at, id) in ids.iter().enumerate() {
        if at > 0 {
            files = open(agent, &mut client, *id, false).await?;
        }
        while let Some(message) = next(agent, &mut files).await? {
            match message {
                Message::File(v1::EvidenceFile { name, bytes }) => archive.begin(&name, bytes)?,
                Message::Bytes(bytes) => archive.append(&bytes)?,
            }
        }
    }
    archive.finish()?;
    let captures = if ids.len() == 1 {
        "capture"
    } else {
        "captures"
    };
    terminal::note(&format!(
        "{} {captures} in {path}; `remora verify {path} --key PUB` says what it proves",
        ids.len(),
        path = path.display()
    ));
    Ok(Outcome::Done)
}

fn first(ids: &[CaptureId]) -> anyhow::Result<CaptureId> {
    ids.first().copied().context("name a capture")
}

/// Prints what the manifest tells.
///
/// # Errors
/// There is none.
pub(super) async fn custody(agent: &AgentAddress, id: CaptureId) -> anyhow::Result<Outcome> {
    let mut client = connect(agent).await?;
    let mut files = open(agent, &mut client, id, true).await?;
    let (mut name, mut manifest, mut keys) = (String::new(), Vec::new(), Vec::new());
    let (mut tombstone, mut hold, mut receipt) = (Vec::new(), Vec::new(), Vec::new());
    let mut releases: Vec<Vec<u8>> = Vec::new();
    while let Some(message) = next(agent, &mut files).await? {
        match message {
            Message::File(file) => {
                name = file.name;
                if name.ends_with(RELEASE_ENDING) {
                    releases.push(Vec::new());
                }
            }
            Message::Bytes(bytes) if name.ends_with(MANIFEST_ENDING) => {
                append(&mut manifest, &bytes)?;
            }
            Message::Bytes(bytes) if name.ends_with(TOMBSTONE_ENDING) => {
                append(&mut tombstone, &bytes)?;
            }
            Message::Bytes(bytes) if name.ends_with(RECEIPT_ENDING) => {
                append(&mut receipt, &bytes)?;
            }
            Message::Bytes(bytes) if name.ends_with(HOLD_ENDING) => append(&mut hold, &bytes)?,
            Message::Bytes(bytes) if name.ends_with(RELEASE_ENDING) => {
                append(releases.last_mut().context("a file has a name")?, &bytes)?;
            }
            Message::Bytes(bytes) if name.ends_with(".pub") => {
                let pem = str::from_utf8(&bytes).unwrap_or_default();
                keys.extend(PublicKey::from_pem(pem));
            }
            Message::Bytes(_) => {}
        }
    }
    let manifest = Manifest::open(&manifest, &keys).context("the agent's manifest")?;
    let mut later = Vec::new();
    if !receipt.is_empty() {
        let receipt = Receipt::from_signed(&receipt, &keys).context("the agent's receipt")?;
        later.push(receipt.text());
    }
    let opened = releases
        .iter()
        .map(|bytes| Release::from_signed(bytes, &keys));
    let mut releases = opened
        .collect::<Result<Vec<_>, _>>()
        .context("the agent's release")?;
    releases.sort_by_key(|release| release.chain.sequence);
    for release in &releases {
        if let Some(hold) = release.held(&keys).context("the agent's release")? {
            later.push(hold.text());
        }
        later.push(release.text());
    }
    if !hold.is_empty() {
        let hold = Hold::from_signed(&hold, &keys).context("the agent's hold")?;
        later.push(hold.text());
    }
    if !tombstone.is_empty() {
        let tombstone = Tombstone::open(&tombstone, &keys).context("the agent's tombstone")?;
        let number = tombstone.chain.sequence;
        later.push(format!(
            "{}; number {number} of the chain",
            tombstone.text()
        ));
    }
    print(&render::custody(&manifest, &later))
}

pub(super) fn append(document: &mut Vec<u8>, bytes: &[u8]) -> anyhow::Result<()> {
    if document.len() + bytes.len() > DOCUMENT_BYTES_MAX {
        bail!("a document of the agent is too large");
    }
    document.extend_from_slice(bytes);
    Ok(())
}

pub(super) async fn open(
    agent: &AgentAddress,
    client: &mut CaptureClient<Channel>,
    id: CaptureId,
    manifest_only: bool,
) -> anyhow::Result<Streaming<v1::EvidenceResponse>> {
    let request = v1::EvidenceRequest {
        id: id.to_string(),
        manifest_only,
    };
    answer(agent, client.evidence(request)).await
}

pub(super) async fn next(
    agent: &AgentAddress,
    files: &mut Streaming<v1::EvidenceResponse>,
) -> anyhow::Result<Option<Message>> {
    match files.message().await {
        Ok(Some(message)) => Ok(Some(
            message.message.context("the agent's answer is empty")?,
        )),
        Ok(None) => Ok(None),
        Err(status) => Err(explain(agent, &status)),
    }
}
