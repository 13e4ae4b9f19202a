//! Captures that the nodes keep: deleted, held, let go.

use remora_capture::evidence::WHY_BYTES_MAX;
use remora_proto::{
    reason::{Reason, status},
    v1,
};
use tonic::{Code, Request, Status};

use super::{
    access::Verb,
    error::invalid,
    service::{ClusterService, Found},
};
use crate::fleet::{
    Deed,
    whole::{self, Told},
};

impl ClusterService {
    /// What became of each part.
    ///
    /// # Errors
    /// There is no such capture, the caller may not, or nothing of it may be deleted now.
    pub(super) async fn keep<T>(
        &self,
        request: &Request<T>,
        id: &str,
        deed: &Deed,
    ) -> Result<Vec<v1::CustodyPart>, Status> {
        let verb = match deed {
            Deed::Delete { .. } => Verb::Delete,
            Deed::Hold { .. } => Verb::Hold,
            Deed::Release => Verb::Release,
        };
        let Found {
            caller,
            told,
            silent,
            ..
        } = self.found(request, id, verb).await?;
        check(deed, &told)?;
        tracing::info!(caller = %caller.name, capture = %id, parts = told.len(), ?verb, "custody");
        let parts = self.fleet.keep(told, &silent, deed, &caller.name).await;
        Ok(parts)
    }
}

/// Before anything is done: half a deletion would be no answer to "it may not be deleted". Pure.
fn check(deed: &Deed, told: &[Told]) -> Result<(), Status> {
    let why = match deed {
        Deed::Delete { why, .. } | Deed::Hold { why } => why.as_str(),
        Deed::Release => "",
    };
    if why.len() > WHY_BYTES_MAX {
        return Err(invalid(format!(
            "the reason has {} bytes; {WHY_BYTES_MAX} are kept: shorten it",
            why.len()
        )));
    }
    if !matches!(deed, Deed::Delete { .. }) {
        return Ok(());
    }
    let refused = |reason, text: String| Err(status(Code::FailedPrecondition, reason, text));
    for Told { node, state } in told {
        if !whole::is_final(state.phase()) {
            let text = format!("its part on {node} runs: stop the capture first");
            return refused(Reason::CaptureRunning, text);
        }
        if let Some(hold) = &state.hold {
            let text = format!(
                "its part on {node} is held by {}: `kubectl remora release ID` lets it go, for whom that is allowed",
                remora_capture::text::shown(&hold.by)
            );
            return refused(Reason::CaptureHeld, text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use remora_proto::reason::reason_of;

    use super::*;

    fn told(node: &str, phase: v1::Phase, hold: Option<v1::LegalHold>) -> Told {
        let state = v1::CaptureState {
            phase: phase.into(),
            hold,
            ..Default::default()
        };
        Told {
            node: node.into(),
            state,
        }
    }

    #[test]
    fn nothing_is_deleted_while_a_part_runs_or_is_held() {
        let delete = Deed::Delete {
            why: "old".into(),
            not_uploaded: false,
        };
        let over = || told("a", v1::Phase::Finished, None);
        let reason = |parts: &[Told]| reason_of(&check(&delete, parts).unwrap_err());
        assert!(check(&delete, &[over(), told("b", v1::Phase::Failed, None)]).is_ok());
        let runs = told("b", v1::Phase::Capturing, None);
        assert_eq!(
            reason(&[over(), runs.clone()]),
            Some(Reason::CaptureRunning)
        );
        let held = told("b", v1::Phase::Finished, Some(v1::LegalHold::default()));
        assert_eq!(reason(&[over(), held]), Some(Reason::CaptureHeld));
        // What runs may be held.
        let why = String::new();
        assert!(check(&Deed::Hold { why }, std::slice::from_ref(&runs)).is_ok());
        assert!(check(&Deed::Release, &[runs]).is_ok());
        let why = "x".repeat(WHY_BYTES_MAX + 1);
        assert!(check(&Deed::Hold { why }, &[]).is_err());
    }
}
