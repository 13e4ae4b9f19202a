//! Which agents an alert's captures are started on. Nobody is asked but agents: what is known of the
//! cluster is in memory.

use std::sync::Arc;

use futures_util::future::join_all;
use jiff::Timestamp;
use remora_capture::{
    alert::{Alert, mapping},
    session::{CaptureId, Part, Selector, SessionSpec, Target, WorkloadKind},
    text::shown,
};
use remora_proto::v1;
use remora_rules::{Plan, Whose};
use tokio::time::Instant;
use tonic::Code;

use crate::{
    agent::Agent,
    cluster::{
        View,
        index::{Member, NoMembers},
    },
    fleet::{
        AgentError, Fleet, Order, StartedPart,
        joining::{Joining, Start},
    },
    outcome::{Outcome, Refusal, RefusalCode},
    trigger::{self, ClusterTrigger, Source},
};

/// Who starts captures.
#[derive(Debug)]
pub enum Dispatch {
    /// The one agent of this host.
    One(Agent),
    Cluster(ClusterDispatch),
}

impl From<Agent> for Dispatch {
    fn from(agent: Agent) -> Self {
        Self::One(agent)
    }
}

impl Dispatch {
    pub(crate) async fn start(
        &self,
        plan: Plan<'_>,
        source: Source<'_>,
        deadline: Instant,
    ) -> Outcome {
        match self {
            Self::One(agent) => match trigger::request(plan, source) {
                Ok(request) => agent.start(&request, deadline).await,
                Err(refusal) => Outcome::Refused(refusal),
            },
            Self::Cluster(cluster) => match trigger::in_cluster(plan, source) {
                Ok(wanted) => cluster.start(wanted, source.alert, deadline).await,
                Err(refusal) => Outcome::Refused(refusal),
            },
        }
    }
}

impl Dispatch {
    /// What [`Dispatch::start`] would refuse, without asking an agent.
    pub(crate) fn check(&self, plan: Plan<'_>, source: Source<'_>) -> Outcome {
        let checked = match self {
            Self::One(_) => trigger::request(plan, source).map(|_| ()),
            Self::Cluster(_) => trigger::in_cluster(plan, source).map(|_| ()),
        };
        match checked {
            Ok(()) => Outcome::Ignored("a dry run".to_owned()),
            Err(refusal) => Outcome::Refused(refusal),
        }
    }
}

/// The agents of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterDispatch {
    pub view: Arc<View>,
    pub fleet: Arc<Fleet>,
    pub joining: Arc<Joining>,
    /// Most pods of a capture.
    pub members_max: usize,
}

/// A part to start.
struct Piece {
    node: String,
    /// The member's, for who joins later.
    key: String,
    request: v1::StartRequest,
}

impl ClusterDispatch {
    async fn start(&self, wanted: ClusterTrigger, alert: &Alert, deadline: Instant) -> Outcome {
        let id = CaptureId::derived(wanted.time, wanted.key.as_bytes());
        let (order, pieces) = match self.pieces(id, &wanted, alert) {
            Ok(pieces) => pieces,
            Err(refusal) => return Outcome::Refused(refusal),
        };
        let began = Timestamp::now();
        let coalescing_key = &wanted.coalescing_key;
        let starts = pieces.into_iter().map(|mut piece| async move {
            piece.request.coalescing_key.clone_from(coalescing_key);
            let started = self
                .fleet
                .start_one(&piece.node, piece.request, deadline)
                .await;
            (piece.key, started)
        });
        let answers = join_all(starts).await;
        let asked = answers.iter().map(|(key, answer)| {
            let start = if answer.is_ok() {
                Start::Made
            } else {
                Start::Failed
            };
            (key.clone(), start)
        });
        let asked: Vec<_> = asked.collect();
        let outcome = outcome(id, answers.into_iter().map(|(_, answer)| answer));
        // What was joined is another capture, which is followed already.
        if outcome.capture() == Some(id) {
            self.joining.follow(&order, asked, began);
        }
        outcome
    }

    /// Who is captured where, by what is known now.
    fn pieces(
        &self,
        id: CaptureId,
        wanted: &ClusterTrigger,
        alert: &Alert,
    ) -> Result<(Order, Vec<Piece>), Refusal> {
        let mut spec = v1::CaptureSpec::from(&wanted.spec);
        (spec.target, spec.part) = (None, None);
        let mut order = Order {
            id,
            selector: self.selector(wanted, alert)?,
            // What the alert names stays what it is; a deployment's or service's pods come and go.
            fixed: matches!(wanted.whose, Whose::Target | Whose::Node),
            spec,
        };
        let mut pieces = match wanted.whose {
            Whose::Target | Whose::Node => {
                let node = self.node(alert)?;
                if let (Whose::Node, Selector::Node { name }) = (&wanted.whose, &mut order.selector)
                {
                    name.clone_from(&node);
                }
                vec![Piece {
                    node,
                    key: "alert".to_owned(),
                    request: alone(&order, &wanted.spec),
                }]
            }
            Whose::Deployment(_) | Whose::Service(_) => {
                let look_back = wanted.spec.look_back;
                let members = self
                    .view
                    .members(&order.selector, look_back, self.members_max)
                    .map_err(|error| self.nobody(&error))?;
                let piece = |member: Member| Piece {
                    key: member.key().to_owned(),
                    request: order.request(&member),
                    node: member.node,
                };
                members.placed.into_iter().map(piece).collect()
            }
        };
        pieces.extend(self.other_end(&order, wanted));
        Ok((order, pieces))
    }

    fn selector(&self, wanted: &ClusterTrigger, alert: &Alert) -> Result<Selector, Refusal> {
        let unknown = |what: &str, pod: &remora_capture::session::PodRef| {
            if self.view.is_synced() {
                let reason = format!("pod {}/{} {what}", shown(&pod.namespace), shown(&pod.name));
                return Refusal::new(RefusalCode::NoTarget, reason);
            }
            not_synced()
        };
        match &wanted.whose {
            Whose::Deployment(pod) => {
                let name = self.view.read(|index| index.deployment_of(pod));
                Ok(Selector::Workload {
                    namespace: pod.namespace.clone(),
                    kind: WorkloadKind::Deployment,
                    name: name.ok_or_else(|| unknown("is of no deployment", pod))?,
                })
            }
            Whose::Service(pod) => {
                let names = self.view.read(|index| index.services_of(pod));
                // Of several the first by name.
                let name = names.into_iter().next();
                Ok(Selector::Service {
                    namespace: pod.namespace.clone(),
                    name: name.ok_or_else(|| unknown("is behind no service", pod))?,
                })
            }
            Whose::Target => {
                if let Some(pod) = mapping::named_pod(alert) {
                    return Ok(Selector::Pod {
                        namespace: pod.namespace,
                        name: pod.name,
                        container: None,
                    });
                }
                Ok(Selector::Node {
                    name: self.node(alert)?,
                })
            }
            Whose::Node => Ok(Selector::Node {
                name: self.node(alert)?,
            }),
        }
    }

    /// The alert's node: as it says itself, or where its pod is.
    fn node(&self, alert: &Alert) -> Result<String, Refusal> {
        let roster = self.fleet.roster();
        let hostname = alert.hostname.as_deref();
        if let Some(node) = hostname.filter(|node| roster.address(node).is_some()) {
            return Ok(node.to_owned());
        }
        let pod = mapping::named_pod(alert);
        let place = pod.and_then(|pod| self.view.read(|index| index.place(&pod)));
        if let Some(Member { node, .. }) = place {
            return Ok(node);
        }
        let reason = match hostname {
            Some(node) => format!("node `{}` has no agent that runs", shown(node)),
            None => {
                "the alert does not tell its node (`hostname`), and its pod is not known".to_owned()
            }
        };
        Err(Refusal::new(RefusalCode::AgentAway, reason))
    }

    /// The capture at the connection's other end, if a pod is there.
    fn other_end(&self, order: &Order, wanted: &ClusterTrigger) -> Option<Piece> {
        let (address, filter) = wanted.other_end.as_ref()?;
        let member = self.view.at_address(*address)?;
        let mut request = order.request(&member);
        let spec = request.spec.as_mut()?;
        let filtered = v1::CaptureSpec::from(&SessionSpec {
            filter: filter.clone(),
            ..wanted.spec.clone()
        });
        (spec.filter, spec.programs) = (filtered.filter, filtered.programs);
        Some(Piece {
            node: member.node.clone(),
            key: member.key().to_owned(),
            request,
        })
    }

    fn nobody(&self, error: &NoMembers) -> Refusal {
        match error {
            NoMembers::TooMany { .. } => Refusal::new(RefusalCode::InvalidSpec, error.to_string()),
            _ if !self.view.is_synced() => not_synced(),
            _ => Refusal::new(RefusalCode::NoTarget, error.to_string()),
        }
    }
}

/// The request for what the alert itself names.
fn alone(order: &Order, spec: &SessionSpec) -> v1::StartRequest {
    let part = Part {
        capture: order.id,
        selector: order.selector.clone(),
        fixed: order.fixed,
    };
    let target: &Target = &spec.target;
    v1::StartRequest {
        spec: Some(v1::CaptureSpec {
            target: Some(target.into()),
            part: Some((&part).into()),
            ..order.spec.clone()
        }),
        idempotency_key: format!("{}/alert", order.id),
        coalescing_key: String::new(),
    }
}

fn not_synced() -> Refusal {
    let reason = "the cluster is not known yet: the API server has not answered since this \
                  controller started";
    Refusal::new(RefusalCode::NeedsCluster, reason)
}

/// One capture is what its parts are, the best of them.
fn outcome(
    id: CaptureId,
    answers: impl Iterator<Item = Result<StartedPart, AgentError>>,
) -> Outcome {
    let (mut started, mut is_new, mut joined, mut failed) = (false, false, None, None);
    for answer in answers {
        match answer {
            Ok(part) => {
                started = true;
                is_new |= !part.existing;
                if part.coalesced || (part.existing && part.whole() != Some(id)) {
                    let whole = part.whole().unwrap_or(id);
                    joined = joined.or(Some((whole, part.coalesced)));
                }
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match (started, is_new, joined, failed) {
        (true, true, ..) => Outcome::Accepted(id),
        (true, false, Some((whole, true)), _) => Outcome::Coalesced(whole),
        (true, false, Some((whole, false)), _) => Outcome::Existing(whole),
        (true, false, None, _) => Outcome::Existing(id),
        (false, _, _, Some(error)) => Outcome::Refused(refusal(error)),
        (false, _, _, None) => Outcome::Refused(Refusal::new(
            RefusalCode::NoTarget,
            "nothing is left to capture",
        )),
    }
}

fn refusal(error: AgentError) -> Refusal {
    let code = match (error.reason, error.code) {
        (Some(reason), _) => RefusalCode::Agent(reason),
        (None, Code::Unavailable) => RefusalCode::AgentAway,
        (None, Code::DeadlineExceeded) => RefusalCode::AgentTimeout,
        (None, _) => RefusalCode::AgentFailed,
    };
    Refusal::new(code, error.text)
}
