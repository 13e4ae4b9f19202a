//! The objects at the API server: read by a watch, written by server-side apply.
//!
//! Each write is of the object with this uid, or of none: an object of the same name that was made
//! meanwhile is another capture's.

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Error, Resource as _, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use remora_capture::{session::PodRef, text::excerpt};
use remora_crd::{Capture, CaptureStatus, FINALIZER};
use serde_json::{Value, json};

use super::time;

/// Owner of the fields that are written.
const MANAGER: &str = "remora-controller";
/// Longest note of an Event, by the API server's rule.
const NOTE_MAX: usize = 1000;

/// The way to them.
#[derive(Clone)]
pub(super) struct Objects(Client);

impl Objects {
    pub(super) fn new(client: Client) -> Self {
        Self(client)
    }

    pub(super) fn client(&self) -> Client {
        self.0.clone()
    }

    fn of(&self, object: &Capture) -> Api<Capture> {
        Api::namespaced(self.0.clone(), &object.namespace().unwrap_or_default())
    }

    /// Its deletion waits from now on.
    ///
    /// # Errors
    /// The API server's; `None` if the object is not there any more.
    pub(super) async fn hold(&self, object: &Capture) -> Result<Option<Capture>, Error> {
        self.finalizers(object, &[FINALIZER]).await
    }

    /// Its deletion waits no more.
    ///
    /// # Errors
    /// As [`Objects::hold`].
    pub(super) async fn let_go(&self, object: &Capture) -> Result<Option<Capture>, Error> {
        self.finalizers(object, &[]).await
    }

    async fn finalizers(&self, object: &Capture, names: &[&str]) -> Result<Option<Capture>, Error> {
        let patch = applied(object, json!({}), json!({ "finalizers": names }));
        let api = self.of(object);
        let (name, params) = (object.name_any(), params());
        there(api.patch(&name, &params, &Patch::Apply(patch)).await)
    }

    /// Writes its status.
    ///
    /// # Errors
    /// As [`Objects::hold`].
    pub(super) async fn tell(
        &self,
        object: &Capture,
        status: &CaptureStatus,
    ) -> Result<Option<Capture>, Error> {
        let patch = applied(object, json!({ "status": status }), json!({}));
        let api = self.of(object);
        let (name, params) = (object.name_any(), params());
        there(api.patch_status(&name, &params, &Patch::Apply(patch)).await)
    }

    /// # Errors
    /// The API server's.
    pub(super) async fn remove(&self, object: &Capture) -> Result<(), Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: object.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let removed = self.of(object).delete(&object.name_any(), &params).await;
        there(removed.map(drop)).map(drop)
    }

    /// An Event at a pod whose packets were taken. Told twice, it is there once.
    ///
    /// # Errors
    /// The API server's.
    pub(super) async fn event(
        &self,
        object: &Capture,
        pod: &PodRef,
        note: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        let capture = object
            .status
            .as_ref()
            .map(|status| status.capture.to_lowercase());
        let uid: String = pod.uid.iter().flat_map(|uid| uid.chars().take(8)).collect();
        let event = Event {
            metadata: ObjectMeta {
                namespace: Some(pod.namespace.clone()),
                name: Some(format!("remora-{}.{uid}", capture.unwrap_or_default())),
                ..ObjectMeta::default()
            },
            type_: Some("Normal".to_owned()),
            reason: Some("PacketsCaptured".to_owned()),
            action: Some("Capture".to_owned()),
            note: Some(excerpt(note, NOTE_MAX).to_string()),
            event_time: Some(time::micro(now)),
            reporting_controller: Some("remora.dev/controller".to_owned()),
            reporting_instance: Some(MANAGER.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(pod.namespace.clone()),
                name: Some(pod.name.clone()),
                uid: pod.uid.clone(),
                ..ObjectReference::default()
            }),
            related: Some(object.object_ref(&())),
            ..Event::default()
        };
        let api = Api::<Event>::namespaced(self.0.clone(), &pod.namespace);
        match api.create(&PostParams::default(), &event).await {
            // By the other controller, or before this one was restarted.
            Err(Error::Api(status)) if status.code == 409 => Ok(()),
            created => created.map(drop),
        }
    }
}

fn params() -> PatchParams {
    PatchParams::apply(MANAGER).force()
}

fn applied(object: &Capture, with: Value, metadata: Value) -> Value {
    let mut patch = json!({
        "apiVersion": Capture::api_version(&()),
        "kind": Capture::kind(&()),
        "metadata": { "name": object.name_any(), "uid": object.uid() },
    });
    for (into, from) in [(None, with), (Some("metadata"), metadata)] {
        let into = match into {
            Some(field) => &mut patch[field],
            None => &mut patch,
        };
        if let (Value::Object(into), Value::Object(from)) = (into, from) {
            into.extend(from);
        }
    }
    patch
}

/// 404: it is gone. 409: another one has its name.
fn there<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
        Err(error) => Err(error),
    }
}
