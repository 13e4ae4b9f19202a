//! `remora.v1.Uploads`.

use std::sync::Arc;

use remora_capture::session::CaptureId;
use remora_proto::{
    convert::ConvertError,
    reason::{Reason, status},
    v1::{self, uploads_server::Uploads},
};
use tonic::{Code, Request, Response, Status};

use super::PeerPolicy;
use crate::upload::{Offer, Order, Progress, SignedRequest, StoreChecksum, UploadError, Uploader};

/// Most headers of a signed request.
const HEADERS_MAX: usize = 32;

pub(super) struct UploadsService {
    pub(super) uploader: Arc<dyn Uploader>,
    pub(super) peers: PeerPolicy,
}

#[tonic::async_trait]
impl Uploads for UploadsService {
    async fn offers(
        &self,
        request: Request<v1::OffersRequest>,
    ) -> Result<Response<v1::OffersResponse>, Status> {
        self.peers.check(&request)?;
        let uploader = Arc::clone(&self.uploader);
        let offers = tokio::task::spawn_blocking(move || uploader.offers()).await;
        let offers = offers.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(v1::OffersResponse {
            offers: offers.into_iter().map(offer).collect(),
        }))
    }

    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let caller = self.peers.check(&request)?;
        let order = order(request.into_inner())?;
        tracing::debug!(%caller, capture = %order.id, file = order.file, "put");
        self.uploader.put(order).map_err(|error| refused(&error))?;
        Ok(Response::new(v1::PutResponse {}))
    }
}

/// What `Get` and `List` tell of an upload.
pub(super) fn told(uploader: &dyn Uploader, id: CaptureId) -> Option<v1::Upload> {
    let Progress { upload, is_running } = uploader.progress(id)?;
    let phase = if upload.is_verified() {
        v1::UploadPhase::Verified
    } else if is_running {
        v1::UploadPhase::Running
    } else {
        v1::UploadPhase::Waiting
    };
    let done = || upload.files.iter().filter(|file| file.object.is_some());
    let last = upload.files.last().and_then(|file| file.object.as_ref());
    let time = |time: jiff::Timestamp| prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    };
    Some(v1::Upload {
        sink: upload.sink.to_string(),
        phase: phase.into(),
        files: upload.files.len() as u64,
        files_verified: done().count() as u64,
        bytes: upload.files.iter().map(|file| file.bytes).sum(),
        bytes_verified: done().map(|file| file.bytes).sum(),
        failures: upload.failures,
        next_try: upload.next_try.map(time),
        url: last.map(|object| object.url.clone()).unwrap_or_default(),
        verified: last.map(|object| time(object.at)),
        error: upload.error,
    })
}

fn offer(offer: Offer) -> v1::UploadOffer {
    let Offer {
        id,
        sink,
        file,
        bytes,
        sha256,
        facts,
    } = offer;
    v1::UploadOffer {
        id: id.to_string(),
        sink,
        file,
        bytes,
        sha256: sha256.to_vec().into(),
        node: facts.node,
        namespace: facts.namespace,
        pod: facts.pod,
        rule: facts.rule,
    }
}

fn order(request: v1::PutRequest) -> Result<Order, Status> {
    let v1::PutRequest {
        id,
        file,
        put,
        check,
        checksum,
    } = request;
    let checksum = match v1::StoreChecksum::try_from(checksum) {
        Ok(v1::StoreChecksum::S3Sha256) => StoreChecksum::S3Sha256,
        Ok(v1::StoreChecksum::GoogleMd5) => StoreChecksum::GoogleMd5,
        Ok(v1::StoreChecksum::ContentMd5) => StoreChecksum::ContentMd5,
        Ok(v1::StoreChecksum::Unspecified) | Err(_) => return Err(wrong("checksum")),
    };
    Ok(Order {
        id: id.parse().map_err(ConvertError::Id)?,
        file,
        put: signed("put", put)?,
        check: signed("check", check)?,
        checksum,
    })
}

fn signed(field: &str, request: Option<v1::SignedRequest>) -> Result<SignedRequest, Status> {
    let v1::SignedRequest { url, headers } = request.ok_or_else(|| wrong(field))?;
    if headers.len() > HEADERS_MAX {
        return Err(wrong(field));
    }
    Ok(SignedRequest {
        url,
        headers: headers.into_iter().collect(),
    })
}

fn wrong(field: &str) -> Status {
    let text = format!("{field}: missing, unknown or too large; do the versions fit?");
    status(Code::InvalidArgument, Reason::InvalidSpec, text)
}

fn refused(error: &UploadError) -> Status {
    let (code, reason) = match error {
        UploadError::NotWaiting { .. } => (Code::NotFound, Reason::CaptureNotFound),
        UploadError::Busy(_) => (Code::ResourceExhausted, Reason::SessionLimit),
        UploadError::Host(_) => (Code::PermissionDenied, Reason::PermissionDenied),
    };
    status(code, reason, error.to_string())
}
