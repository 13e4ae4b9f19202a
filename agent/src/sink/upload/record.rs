//! `<id>.upload.json`: how far a capture's upload is, beside the capture.

use std::{fs, io};

use remora_capture::{
    evidence::{Digester, MANIFEST_ENDING, Manifest},
    session::CaptureId,
    upload::{UPLOAD_BYTES_MAX, Upload},
};

use super::Facts;
use crate::sink::{
    Store,
    evidence::{read_up_to, sync_directory},
    fail_point::reach,
    store::write_anew,
};

pub(in crate::sink) const UPLOAD: &str = "upload.json";
const UPLOAD_PART: &str = "upload.part";

/// What is known of a capture that waits.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) upload: Upload,
    pub(super) facts: Facts,
}

/// Of its manifest, and of its record if there is one; `None` if it has no sink.
pub(super) fn read(store: &Store, id: CaptureId) -> io::Result<Option<Known>> {
    let path = store.directory.join(format!("{id}{MANIFEST_ENDING}"));
    let bytes = read_up_to(&path, remora_capture::evidence::DOCUMENT_BYTES_MAX)?;
    let manifest = Manifest::unverified(&bytes).map_err(io::Error::other)?;
    let Some(sink) = manifest.sink.clone() else {
        return Ok(None);
    };
    let mut digester = Digester::default();
    digester.update(&bytes);
    let mut upload = Upload::new(sink, &manifest, digester.finish());
    match kept(store, id) {
        // Of the same files, which a record that was put there need not be.
        Ok(kept) if kept.is_of(&upload) => upload = kept,
        Ok(_) => tracing::warn!(capture = %id, "its upload's record is of other files; made anew"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(capture = %id, %error, "its upload's record cannot be read; made anew");
        }
    }
    let pod = manifest.pod.as_deref();
    let label = |name: &str| manifest.labels.get(name).cloned().unwrap_or_default();
    let facts = Facts {
        node: manifest.node.clone(),
        namespace: pod.map_or_else(|| label("namespace"), |pod| pod.namespace.clone()),
        pod: pod.map_or_else(|| label("pod"), |pod| pod.name.clone()),
        rule: manifest.trigger.rule.clone(),
    };
    Ok(Some(Known { upload, facts }))
}

/// The record as it lies there.
pub(in crate::sink) fn kept(store: &Store, id: CaptureId) -> io::Result<Upload> {
    let bytes = read_up_to(&store.file(id, UPLOAD), UPLOAD_BYTES_MAX)?;
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}

pub(super) fn keep(store: &Store, upload: &Upload) -> io::Result<()> {
    let id = upload.capture_id;
    let bytes = serde_json::to_vec(upload).map_err(io::Error::other)?;
    let aside = store.file(id, UPLOAD_PART);
    let file = write_anew(&aside, &bytes)?;
    reach("upload's record written");
    file.sync_all()?;
    fs::rename(&aside, store.file(id, UPLOAD))?;
    reach("upload's record renamed");
    sync_directory(&store.directory)
}

impl Store {
    /// The store of objects has all of it, as its record says.
    pub(in crate::sink) fn is_uploaded(&self, id: CaptureId) -> bool {
        kept(self, id).is_ok_and(|upload| upload.is_verified())
    }
}
