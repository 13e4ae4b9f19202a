//! `remora delete`, `remora hold` and `remora release`.

use anyhow::Context as _;
use remora_capture::session::CaptureId;
use remora_proto::{client::AgentAddress, v1};

use super::{Outcome, connect};
use crate::{
    failure::answer,
    render::{shown, unit},
    terminal,
};

/// Deletes one after the other; what cannot be is told, and the others go all the same.
///
/// # Errors
/// There is no agent.
pub(super) async fn delete(
    agent: &AgentAddress,
    ids: &[CaptureId],
    (reason, not_uploaded): (&str, bool),
) -> anyhow::Result<Outcome> {
    let mut client = connect(agent).await?;
    let mut outcome = Outcome::Done;
    for id in ids {
        let request = v1::DeleteRequest {
            id: id.to_string(),
            why: reason.to_owned(),
            not_uploaded,
            ..v1::DeleteRequest::default()
        };
        match answer(agent, client.delete(request)).await {
            Ok(v1::DeleteResponse {
                files,
                bytes,
                chain_head,
                deleted: _,
            }) => {
                say(&format!(
                    "{id}: deleted, {files} files of {}; chain head {}",
                    unit::bytes(bytes),
                    shown(&chain_head)
                ))?;
            }
            Err(error) => {
                terminal::error(&error);
                outcome = Outcome::Faulty;
            }
        }
    }
    Ok(outcome)
}

/// # Errors
/// The agent refused.
pub(super) async fn hold(
    agent: &AgentAddress,
    id: CaptureId,
    reason: &str,
) -> anyhow::Result<Outcome> {
    let mut client = connect(agent).await?;
    let request = v1::HoldRequest {
        id: id.to_string(),
        why: reason.to_owned(),
        ..v1::HoldRequest::default()
    };
    let held = answer(agent, client.hold(request)).await?.hold;
    let held = held.context("the agent's answer is empty")?;
    say(&format!(
        "{id}: held by {}; `remora release {id}` lets it go",
        shown(&held.by)
    ))
}

/// # Errors
/// The agent refused.
pub(super) async fn release(agent: &AgentAddress, id: CaptureId) -> anyhow::Result<Outcome> {
    let mut client = connect(agent).await?;
    let request = v1::ReleaseRequest {
        id: id.to_string(),
        ..v1::ReleaseRequest::default()
    };
    answer(agent, client.release(request)).await?;
    say(&format!("{id}: released; it may be deleted now"))
}

fn say(line: &str) -> anyhow::Result<Outcome> {
    terminal::print(&format!("{line}\n")).context("standard output failed")?;
    Ok(Outcome::Done)
}
