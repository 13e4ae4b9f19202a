//! Captures that are kept: deleted, held, let go.

use std::sync::Arc;

use remora_capture::{evidence::WHY_BYTES_MAX, session::CaptureId, text::escape};
use remora_proto::{
    reason::{Reason, status},
    v1,
};
use tonic::{Code, Status};

use super::{error, uploads};
use crate::{
    custody::{Custodian, CustodyError, Mark},
    upload::Uploader,
};

/// Asks who keeps captures; what it does waits for a disk.
#[derive(Clone)]
pub(super) struct Custody {
    pub(super) custodian: Arc<dyn Custodian>,
    pub(super) uploader: Arc<dyn Uploader>,
}

impl Custody {
    pub(super) async fn delete(
        &self,
        id: CaptureId,
        caller: String,
        (why, not_uploaded): (String, bool),
        again: bool,
    ) -> Result<v1::DeleteResponse, Status> {
        bounded(&why)?;
        let deleted =
            self.ask(
                move |custodian| match custodian.delete(id, &caller, &why, not_uploaded) {
                    Err(error @ CustodyError::Deleted(_)) if again => {
                        custodian.deleted(id, &caller, &why).ok_or(error)
                    }
                    deleted => deleted,
                },
            );
        let (tombstone, head) = deleted.await?;
        Ok((&tombstone, &head).into())
    }

    pub(super) async fn hold(
        &self,
        id: CaptureId,
        caller: String,
        why: String,
    ) -> Result<v1::HoldResponse, Status> {
        bounded(&why)?;
        let held = self.ask(move |custodian| custodian.hold(id, &caller, &why));
        let hold = Some((&held.await?).into());
        Ok(v1::HoldResponse { hold })
    }

    pub(super) async fn release(
        &self,
        id: CaptureId,
        caller: String,
        again: bool,
    ) -> Result<v1::ReleaseResponse, Status> {
        let held = self.ask(move |custodian| match custodian.release(id, &caller) {
            Err(error @ CustodyError::NotHeld(_)) if again => {
                custodian.released(id, &caller).ok_or(error)
            }
            released => released,
        });
        let hold = Some((&held.await?).into());
        Ok(v1::ReleaseResponse { hold })
    }

    /// Refuses what was deleted; answers with the hold, if there is one.
    pub(super) async fn here(
        &self,
        id: CaptureId,
    ) -> Result<(Option<v1::LegalHold>, Option<v1::Upload>), Status> {
        let uploader = Arc::clone(&self.uploader);
        let hold = match self.ask(move |custodian| Ok(custodian.mark(id))).await? {
            Mark::None => Ok(None),
            Mark::Held(hold) => Ok(Some(hold.as_ref().into())),
            Mark::Deleted(stone) => Err(error::custody(&CustodyError::Deleted(stone))),
        }?;
        let upload = self.ask(move |_| Ok(uploads::told(uploader.as_ref(), id)));
        Ok((hold, upload.await?))
    }

    /// Without those that were deleted, and each with its hold and its upload.
    pub(super) async fn marked(
        &self,
        captures: Vec<(CaptureId, v1::CaptureState)>,
    ) -> Result<Vec<v1::CaptureState>, Status> {
        let uploader = Arc::clone(&self.uploader);
        self.ask(move |custodian| {
            let marked = captures.into_iter().filter_map(|(id, mut state)| {
                match custodian.mark(id) {
                    Mark::None => {}
                    Mark::Held(hold) => state.hold = Some(hold.as_ref().into()),
                    Mark::Deleted(_) => return None,
                }
                let has_sink = state
                    .spec
                    .as_ref()
                    .is_some_and(|spec| !spec.sink.is_empty());
                if has_sink {
                    state.upload = uploads::told(uploader.as_ref(), id);
                }
                Some(state)
            });
            Ok(marked.collect())
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Custodian) -> Result<T, CustodyError> + Send + 'static,
    ) -> Result<T, Status> {
        let custodian = Arc::clone(&self.custodian);
        let asked = tokio::task::spawn_blocking(move || question(custodian.as_ref()));
        let answer = asked.await.unwrap_or(Err(CustodyError::Busy));
        answer.map_err(|error| error::custody(&error))
    }
}

/// Longest name of somebody whom a caller asks for, in bytes.
const REQUESTER_BYTES_MAX: usize = 512;

/// Who asks, and by whom.
///
/// # Errors
/// INVALID_ARGUMENT: the name is too long.
pub(super) fn on_behalf(requester: &str, caller: String) -> Result<String, Status> {
    match requester.len() {
        0 => Ok(caller),
        1..=REQUESTER_BYTES_MAX => Ok(format!("{}, by {caller}", escape(requester))),
        bytes => Err(status(
            Code::InvalidArgument,
            Reason::InvalidSpec,
            format!("requester has {bytes} bytes; {REQUESTER_BYTES_MAX} are kept"),
        )),
    }
}

fn bounded(why: &str) -> Result<(), Status> {
    if why.len() <= WHY_BYTES_MAX {
        return Ok(());
    }
    Err(status(
        Code::InvalidArgument,
        Reason::InvalidSpec,
        format!(
            "the reason has {} bytes; {WHY_BYTES_MAX} are kept: shorten it",
            why.len()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_another_is_named_beside_him() {
        let caller = || "san=remora-controller".to_owned();
        assert_eq!(on_behalf("", caller()).unwrap(), caller());
        assert_eq!(
            on_behalf("alice\n", caller()).unwrap(),
            r"alice\n, by san=remora-controller"
        );
        assert!(on_behalf(&"a".repeat(513), caller()).is_err());
    }
}
