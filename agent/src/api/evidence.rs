//! A capture's evidence: its files, byte for byte.

use std::{ffi::OsStr, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use remora_capture::{
    evidence::{HOLD_ENDING, MANIFEST_ENDING, RECEIPT_ENDING, RELEASE_ENDING, TOMBSTONE_ENDING},
    session::{CaptureId, CaptureState, Destination},
};
use remora_proto::{
    limits::STREAM_BLOCKS_BYTES_MAX,
    reason::{Reason, status},
    v1::{self, evidence_response::Message},
};
use tokio::{
    fs::File,
    io::AsyncReadExt as _,
    time::{Instant, sleep},
};
use tonic::{Code, Status};

use super::{capture::Sender, error};
use crate::{node::AskEvidence, session::LookupError};

/// How long a manifest that is being made is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// Refuses a capture that has no manifest, nor will have one soon.
pub(super) fn finished(state: &CaptureState) -> Result<(), Status> {
    let id = state.id;
    if state.spec.destination == Destination::Stream {
        return Err(error::lookup(&LookupError::NotKept(id)));
    }
    if !state.phase.is_final() {
        let running = format!("capture {id} runs; `remora stop {id}` ends it");
        return Err(status(
            Code::FailedPrecondition,
            Reason::CaptureRunning,
            running,
        ));
    }
    Ok(())
}

/// The files, once there is a manifest.
pub(super) async fn paths(
    ask: &AskEvidence,
    id: CaptureId,
    manifest_only: bool,
) -> Result<Vec<PathBuf>, Status> {
    let until = Instant::now() + PATIENCE;
    loop {
        let ask = Arc::clone(ask);
        let paths = tokio::task::spawn_blocking(move || ask(id))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        match paths {
            Ok(mut paths) => {
                if manifest_only {
                    let signed = [
                        MANIFEST_ENDING,
                        TOMBSTONE_ENDING,
                        HOLD_ENDING,
                        RELEASE_ENDING,
                        RECEIPT_ENDING,
                    ];
                    let is_of = |name: &str| name.starts_with(&id.to_string());
                    let is_signed = |name: &str| signed.iter().any(|end| name.ends_with(end));
                    paths.retain(|path| !is_of(name(path)) || is_signed(name(path)));
                }
                return Ok(paths);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Status::internal(error.to_string())),
        }
        if Instant::now() >= until {
            return Err(Status::failed_precondition(format!(
                "capture {id} has no manifest yet; the agent's log tells why"
            )));
        }
        sleep(LOOK).await;
    }
}

fn name(path: &std::path::Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

/// Sends the files; the reader's end or an error is the end.
pub(super) async fn send(paths: Vec<PathBuf>, sender: Sender<v1::EvidenceResponse>) {
    for path in paths {
        match send_one(&path, &sender).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                let text = format!("failed to read {}: {error}", path.display());
                let _gone = sender.send(Err(Status::internal(text))).await;
                return;
            }
        }
    }
}

/// False: the reader is gone.
async fn send_one(
    path: &std::path::Path,
    sender: &Sender<v1::EvidenceResponse>,
) -> io::Result<bool> {
    let mut file = File::open(path).await?;
    let bytes = file.metadata().await?.len();
    let mut next = Message::File(v1::EvidenceFile {
        name: name(path).to_owned(),
        bytes,
    });
    loop {
        let message = v1::EvidenceResponse {
            message: Some(next),
        };
        if sender.send(Ok(message)).await.is_err() {
            return Ok(false);
        }
        let mut piece = Vec::new();
        let mut rest = (&mut file).take(STREAM_BLOCKS_BYTES_MAX as u64);
        if rest.read_to_end(&mut piece).await? == 0 {
            return Ok(true);
        }
        next = Message::Bytes(Bytes::from(piece));
    }
}
