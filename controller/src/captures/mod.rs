//! Carries out the objects of `captures.remora.dev`.
//!
//! ```text
//! watch ─▶ Known ─due─▶ Step ─▶ Fleet: start, look, stop ─▶ Report ─server-side apply─▶ status
//!            ▲                                                          │
//!            └──── again when it changes, and every two seconds ◀───────┘
//! ```
//! Every controller carries out every object: its capture's id and its parts' keys follow from its uid,
//! so doing it twice is doing it once, and one controller may die. What is decided is in
//! [`step`], what is asked for in [`ask`], what is told in [`report`]: all pure.
//!
//! Whoever may create the object in a namespace may capture its pods: the API server has asked. The
//! privacy level of the namespace is the agents' to keep.

mod ask;
mod files;
mod known;
mod objects;
mod report;
mod step;
mod time;

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use jiff::Timestamp;
use kube::{Api, Client, ResourceExt as _, runtime::watcher};
use remora_capture::session::CaptureId;
use remora_crd::{Capture, CaptureStatus};
use remora_proto::v1;
use tokio::time::Instant;

use crate::{
    cluster::{
        index::NoMembers,
        watches::{self, ApiServer},
    },
    dispatch::ClusterDispatch,
    fleet::{
        CALL_DEADLINE, joining,
        whole::{self, Told},
    },
};
use ask::{Ask, Wrong};
use known::{Fault, Known};
use objects::Objects;
use report::Report;
use step::Step;

/// How often a capture that runs is asked for, and one that waits is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Objects that are worked on at a time.
const AT_ONCE: usize = 16;

/// The objects, and those who capture.
pub(crate) struct Captures {
    objects: Objects,
    dispatch: ClusterDispatch,
    known: Known,
}

/// When an object is worked on again without having changed.
type Again = Option<Duration>;

impl Captures {
    pub(crate) fn new(server: &ApiServer, dispatch: ClusterDispatch) -> Self {
        Self {
            objects: Objects::new(server.client()),
            dispatch,
            known: Known::default(),
        }
    }

    /// For ever.
    pub(crate) async fn run(&self) {
        let client: Client = self.objects.client();
        let watch = watches::follow_kind(
            "captures.remora.dev",
            watcher::watcher(Api::<Capture>::all(client), watches::config("")),
            |change| self.known.tell(change),
            Some,
        );
        tokio::join!(watch, self.work());
    }

    async fn work(&self) {
        loop {
            let due = self.known.due().await;
            let works = due
                .into_iter()
                .map(|object| self.work_on(object).boxed())
                .collect::<Vec<_>>();
            stream::iter(works)
                .buffer_unordered(AT_ONCE)
                .collect::<()>()
                .await;
        }
    }

    async fn work_on(&self, object: Arc<Capture>) {
        match self.step(&object).await {
            Ok(again) => self.known.again(&object, again),
            Err(error) => {
                let pause = self.known.failed(&object, Fault::of(&error));
                let (namespace, name) = (object.namespace(), object.name_any());
                tracing::warn!(
                    namespace, name, %error, again_in = ?pause,
                    "the capture's object could not be written; may this controller patch captures \
                     and captures/status?"
                );
            }
        }
    }

    async fn step(&self, object: &Arc<Capture>) -> Result<Again, kube::Error> {
        let now = Timestamp::now();
        match Step::of(object, now) {
            Step::Rest(None) => Ok(None),
            Step::Rest(Some(at)) => Ok(Some(ask::since(now, at))),
            Step::Hold => {
                self.known.written(self.objects.hold(object).await?);
                Ok(Some(Duration::ZERO))
            }
            Step::LetGo => {
                self.known.written(self.objects.let_go(object).await?);
                Ok(None)
            }
            Step::Remove => {
                self.objects.remove(object).await?;
                Ok(None)
            }
            Step::Never => self.tell(object, Report { object, now }.never()).await,
            Step::Start => self.start(object, now).await,
            Step::Look => self.look(object, now).await,
            Step::Stop => self.stop(object, now).await,
        }
    }

    /// Writes a status that is not what the object has.
    async fn tell(&self, object: &Capture, status: CaptureStatus) -> Result<Again, kube::Error> {
        let is_final = status.phase.is_some_and(remora_crd::CapturePhase::is_final);
        if object.status.as_ref() != Some(&status) {
            self.known
                .written(self.objects.tell(object, &status).await?);
        }
        // One that is over may have to be let go, or removed one day.
        Ok(Some(if is_final { Duration::ZERO } else { LOOK_EVERY }))
    }

    async fn start(&self, object: &Capture, now: Timestamp) -> Result<Again, kube::Error> {
        let report = Report { object, now };
        let ask = match Ask::of(object) {
            Ok(ask) => ask,
            Err(wrong) => return self.tell(object, report.failed(&wrong)).await,
        };
        let ClusterDispatch {
            view,
            fleet,
            joining,
            members_max,
        } = &self.dispatch;
        let order = ask.order_at(now);
        let waits = |why: Wrong| match now >= ask.gives_up() {
            true => report.failed(&why),
            false => report.pending(&why),
        };
        if !view.is_synced() {
            let why = Wrong::new(
                "NotSynced",
                "the controller does not know the cluster's pods yet",
            );
            return self.tell(object, report.pending(&why)).await;
        }
        let members = match view.members(&order.selector, ask.look_back, *members_max) {
            Ok(members) => members,
            Err(error @ (NoMembers::TooMany { .. } | NoMembers::Labels(_))) => {
                let why = Wrong::new("Selector", error.to_string());
                return self.tell(object, report.failed(&why)).await;
            }
            Err(error) => {
                let why = Wrong::new("NoPods", error.to_string());
                return self.tell(object, waits(why)).await;
            }
        };
        let deadline = Instant::now() + CALL_DEADLINE;
        let started = fleet.start(&order, &members.placed, deadline).await;
        if started.errors.len() == members.placed.len() {
            let why = started
                .errors
                .first()
                .map_or_else(String::new, ToString::to_string);
            return self
                .tell(object, waits(Wrong::new("NotStarted", why)))
                .await;
        }
        joining.follow(&order, joining::asked(&started.capture), now);
        tracing::info!(
            capture = %order.id, selector = %order.selector, object = %object.name_any(),
            parts = members.placed.len(), missing = started.errors.len(), "start"
        );
        let status = report.going(order.id, &started.capture, false, Vec::new());
        self.tell(object, status).await
    }

    async fn stop(&self, object: &Capture, now: Timestamp) -> Result<Again, kube::Error> {
        let Some(id) = id(object) else {
            return self.look(object, now).await;
        };
        // Before its parts end, so that none joins.
        self.dispatch.joining.leave(id);
        let (told, _) = self.dispatch.fleet.parts(Some(id), false).await;
        if !told.is_empty() {
            tracing::info!(capture = %id, object = %object.name_any(), parts = told.len(), "stop");
            self.dispatch.fleet.stop(told).await;
        }
        self.look(object, now).await
    }

    async fn look(&self, object: &Capture, now: Timestamp) -> Result<Again, kube::Error> {
        let report = Report { object, now };
        let (Some(id), Ok(ask)) = (id(object), Ask::of(object)) else {
            return self.tell(object, report.lost()).await;
        };
        let fleet = &self.dispatch.fleet;
        let (told, silent) = fleet.known_parts(id).await;
        let status = object.status.as_ref();
        let started = status.and_then(|status| status.start_time.as_ref());
        let started = started.map_or(ask.made, time::read);
        let given_up = step::is_given_up(&ask, started, now);
        let Some(capture) = whole::whole(&id.to_string(), told.clone(), &silent) else {
            if given_up {
                return self.tell(object, report.lost()).await;
            }
            return Ok(Some(LOOK_EVERY));
        };
        // To the nanosecond; the object has it in seconds.
        let began = capture.started;
        let began = began.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
        self.lengthen(&ask, began.unwrap_or(started), &told).await;
        let is_over = whole::is_over(&capture) && (silent.is_empty() || given_up);
        let (files, are_all) = self.files(&told).await;
        let is_over = is_over && (are_all || given_up);
        let status = report.going(id, &capture, is_over, files);
        if is_over {
            self.tell_pods(object, &capture, &status, now).await;
        }
        self.tell(object, status).await
    }

    /// Lets parts last as long as the object says now.
    async fn lengthen(&self, ask: &Ask, started: Timestamp, told: &[Told]) {
        for Told { node, state } in told {
            let longer = step::lengthened(ask, started, state);
            let Some(duration) = longer.filter(|_| state.phase() == v1::Phase::Capturing) else {
                continue;
            };
            let extended = match self.dispatch.fleet.agent(node) {
                Ok(agent) => agent.extend(&state.id, duration).await,
                Err(error) => Err(error),
            };
            if let Err(error) = extended {
                // Asked again with the next look.
                tracing::warn!(capture = %ask.order.id, node, %error, "a part was not lengthened");
            }
        }
    }

    /// Files of the parts that have ended, and whether those are all: some may not be sealed yet.
    async fn files(&self, told: &[Told]) -> (Vec<remora_crd::CaptureFile>, bool) {
        let is_over = |told: &&Told| whole::is_final(told.state.phase());
        let ended: Vec<_> = told.iter().filter(is_over).cloned().collect();
        let asked = stream::iter(ended).map(|told| async move {
            let agent = self.dispatch.fleet.agent(&told.node);
            match agent {
                Ok(agent) => files::of(&agent, &told).await,
                Err(_gone) => None,
            }
        });
        let answers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
        let all = answers.iter().all(Option::is_some);
        let mut files: Vec<_> = answers.into_iter().flatten().flatten().collect();
        files.sort_by(|a, b| (&a.node, &a.name).cmp(&(&b.node, &b.name)));
        (files, all)
    }

    /// An Event at each pod.
    async fn tell_pods(
        &self,
        object: &Capture,
        capture: &v1::ClusterCapture,
        status: &CaptureStatus,
        now: Timestamp,
    ) {
        for part in capture.parts.iter().take(files::EVENTS_MAX) {
            let pod = part
                .pod
                .clone()
                .map(remora_capture::session::PodRef::try_from);
            let Some(Ok(pod)) = pod else { continue };
            let note = files::note(part, &capture.id, &status.files);
            if let Err(error) = self.objects.event(object, &pod, &note, now).await {
                tracing::warn!(capture = %capture.id, pod = %pod, %error, "no Event at the pod");
            }
        }
    }
}

fn id(object: &Capture) -> Option<CaptureId> {
    object.status.as_ref()?.capture.parse().ok()
}
