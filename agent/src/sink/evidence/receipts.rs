//! What says that a store of objects has a capture.
//!
//! ```text
//! <id>.upload.json says that all is verified ─▶ <id>.receipt.json, a link of the chain: as a hold is written
//! ```
//! Killed before it has its name, the next start makes it of the upload's record.

use std::io;

use remora_capture::{
    evidence::{Link, RECEIPT_ENDING, Receipt},
    session::CaptureId,
};

use super::{Sealer, holds::Steps};
use crate::sink::upload::{UPLOAD, kept};

pub(super) const RECEIPT: &str = "receipt.json";
pub(super) const RECEIPT_PART: &str = "receipt.part";

const STEPS: Steps = Steps {
    signed: "receipt signed",
    written: "receipt written",
    synced: "receipt synced",
    renamed: "receipt renamed",
};

impl Sealer {
    /// Uploads that were verified when an agent was killed.
    pub(super) fn missing_receipts(&self) -> io::Result<()> {
        for id in self.store.ids(UPLOAD).map_err(io::Error::other)? {
            self.receipt(id);
        }
        Ok(())
    }

    /// Signs that all of it is uploaded, if it is and that was not said yet.
    pub(super) fn receipt(&self, id: CaptureId) {
        if let Err(error) = self.try_receipt(id) {
            tracing::error!(capture = %id, %error, "failed to write the upload's receipt; the next start does");
        }
    }

    fn try_receipt(&self, id: CaptureId) -> io::Result<()> {
        let name = format!("{id}{RECEIPT_ENDING}");
        let upload = kept(&self.store, id)?;
        let Some(uploaded) = upload.verified_at() else {
            return Ok(());
        };
        if self.store.directory.join(&name).exists() {
            return Ok(());
        }
        let link = Link::after(self.told.head().as_ref());
        let receipt = Receipt {
            capture_id: id,
            chain: link.clone(),
            sink: upload.sink,
            uploaded,
            files: upload.files,
        };
        let signed = receipt.to_signed(&self.keys.secret);
        self.keep_link(id, (RECEIPT_PART, &name), &link, signed, STEPS, || {})?;
        tracing::info!(capture = %id, receipt = receipt.text(), "signed");
        Ok(())
    }
}
