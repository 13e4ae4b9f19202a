//! `kubectl remora delete`, `hold` and `release`.

use anyhow::Context as _;
use remora_capture::session::CaptureId;
use remora_proto::v1;

use super::{access::Access, failure::Right};
use crate::{
    commands::Outcome,
    render::{shown, unit},
    terminal,
};

/// Deletes one after the other; what cannot be is told, and the others go all the same.
///
/// # Errors
/// Standard output failed.
pub(super) async fn delete(
    access: &Access,
    ids: &[CaptureId],
    (reason, not_uploaded): (&str, bool),
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::Done;
    for id in ids {
        let request = v1::ClusterDeleteRequest {
            id: id.to_string(),
            why: reason.to_owned(),
            not_uploaded,
        };
        let right = Right::to_keep(Some(&access.namespace));
        let call = access
            .controllers
            .call(right, request, async |client, request| {
                client.delete(request).await
            });
        match call.await {
            Ok(answer) => outcome = worse(outcome, tell(*id, "deleted", answer.parts)?),
            Err(error) => {
                terminal::error(&error);
                outcome = Outcome::Faulty;
            }
        }
    }
    Ok(outcome)
}

/// # Errors
/// The controller refused.
pub(super) async fn hold(access: &Access, id: CaptureId, reason: &str) -> anyhow::Result<Outcome> {
    let request = v1::ClusterHoldRequest {
        id: id.to_string(),
        why: reason.to_owned(),
    };
    let right = Right::to_keep(Some(&access.namespace));
    let call = access
        .controllers
        .call(right, request, async |client, request| {
            client.hold(request).await
        });
    tell(id, "held", call.await?.parts)
}

/// # Errors
/// The controller refused.
pub(super) async fn release(access: &Access, id: CaptureId) -> anyhow::Result<Outcome> {
    let request = v1::ClusterReleaseRequest { id: id.to_string() };
    let right = Right::to_keep(Some(&access.namespace));
    let call = access
        .controllers
        .call(right, request, async |client, request| {
            client.release(request).await
        });
    tell(id, "released", call.await?.parts)
}

/// A line for each part; those that are as they were on standard error.
fn tell(id: CaptureId, done: &str, parts: Vec<v1::CustodyPart>) -> anyhow::Result<Outcome> {
    let (mut did, mut failed) = (false, false);
    for part in parts {
        let v1::CustodyPart {
            node,
            capture,
            error,
            deleted,
            hold,
        } = part;
        let node = shown(&node);
        if !error.is_empty() {
            failed = true;
            let what = match capture.is_empty() {
                true => "it is not known whether it has a part".to_owned(),
                false => format!("{} was not {done}", shown(&capture)),
            };
            terminal::note(&format!(
                "remora: {id} on {node}: {what}: {}",
                shown(&error)
            ));
            continue;
        }
        did = true;
        let capture = shown(&capture);
        let more = match (deleted, hold) {
            (Some(deleted), _) => format!(
                ", {} files of {}; chain head {}",
                deleted.files,
                unit::bytes(deleted.bytes),
                shown(&deleted.chain_head)
            ),
            (None, Some(hold)) if done == "held" => format!(" by {}", shown(&hold.by)),
            (None, _) => String::new(),
        };
        let line = format!("{id} on {node}: {capture} {done}{more}\n");
        terminal::print(&line).context("standard output failed")?;
    }
    Ok(match (did, failed) {
        (_, false) => Outcome::Done,
        (true, true) => Outcome::Partly,
        (false, true) => Outcome::Faulty,
    })
}

fn worse(a: Outcome, b: Outcome) -> Outcome {
    match (a, b) {
        (Outcome::Faulty, _) | (_, Outcome::Faulty) => Outcome::Faulty,
        (Outcome::Partly, _) | (_, Outcome::Partly) => Outcome::Partly,
        (Outcome::Done, Outcome::Done) => Outcome::Done,
    }
}
