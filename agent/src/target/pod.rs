//! Pods by their names: from a name to a uid, from that to a cgroup, and from a container's name to the
//! cgroup in it.
//!
//! | what is known | what is done |
//! |---|---|
//! | the pod, and its cgroup is there | its cgroup |
//! | the pod, and it is being started | a look again, for [`START_PATIENCE`] at the most |
//! | the uid alone, as the API server is away | its cgroup |
//! | nothing | not found |

use std::{
    thread,
    time::{Duration, Instant},
};

use remora_capture::session::{PodRef, Target};

use super::{
    cgroup::{Cgroup, Walk},
    error::{ResolveError, shown},
    names,
    pods::{NotKnown, Pod, PodPhase, pod_uid},
    residents::Found,
    resolve::{Located, Resolved, Resolver},
};

/// How long a pod is waited for that is known and has no cgroup, no process or no network yet: kubelet takes
/// some hundred milliseconds from the one to the other.
const START_PATIENCE: Duration = Duration::from_secs(2);
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// A pod by what its cgroup is found by.
struct Named {
    cgroup_uid: String,
    /// Not of a pod of which only the uid was said.
    known: Option<Pod>,
    /// The API server has it no more.
    gone: bool,
}

impl Resolver {
    /// The cgroup of a pod, or of its container.
    pub(super) fn locate_pod(&self, target: &PodRef) -> Result<Located, ResolveError> {
        let Named {
            cgroup_uid, known, ..
        } = self.named(target)?;
        let cgroup = self.root.by_pod(&cgroup_uid).map_err(|error| match error {
            ResolveError::NotFound { .. } => no_cgroup(target, known.as_ref()),
            other => other,
        })?;
        let cgroup = match &target.container {
            None => cgroup,
            Some(name) => container_of(&cgroup, target, name, known.as_ref())?,
        };
        Ok(Located::Cgroup { cgroup, part: None })
    }

    /// Looks with `look` until the pod that is meant is there, if it is about to be.
    pub(super) fn once_started<T>(
        &self,
        target: &Target,
        look: impl Fn() -> Result<T, ResolveError>,
        resolved: impl Fn(&T) -> &Resolved,
    ) -> Result<T, ResolveError> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let looked = look();
            let is_there = match &looked {
                Ok(found) => !resolved(found).interfaces.is_empty(),
                Err(ResolveError::NotFound { .. }) => false,
                Err(_) => true,
            };
            if is_there || !self.is_starting(target) || Instant::now() > deadline {
                return looked;
            }
            thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// Of a pod that has gone, or has no process any more: those that lived in its cgroup.
    pub(super) fn residents_of_pod(&self, target: &PodRef) -> Result<Vec<Found>, ResolveError> {
        let Named { cgroup_uid, .. } = match self.named(target) {
            Ok(named) => named,
            Err(ResolveError::NotFound { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        Ok(self.residents.of_pod(&cgroup_uid))
    }

    fn is_starting(&self, target: &Target) -> bool {
        let Target::Pod(target) = target else {
            return false;
        };
        let Ok(Named {
            known: Some(pod),
            gone: false,
            ..
        }) = self.named(target)
        else {
            return false;
        };
        pod.phase == PodPhase::Pending && !pod.host_network && target.container.is_none()
    }

    fn named(&self, target: &PodRef) -> Result<Named, ResolveError> {
        let unknown = || match (&target.uid, self.pods.is_kubernetes()) {
            (Some(uid), _) => Ok(Named {
                cgroup_uid: uid.clone(),
                known: None,
                gone: false,
            }),
            (None, true) if self.pods.is_listed() => Err(ResolveError::not_found(
                format!("pod {target}"),
                "`kubectl get pods -o wide` shows on which node it is; one that was deleted is \
                 known for as long as its look-back is kept",
            )),
            (None, true) => Err(ResolveError::not_found(
                format!("known pod {target}, as the API server has told of none yet,"),
                "name it by its uid, or by a container: container:ID",
            )),
            (None, false) => Err(ResolveError::unsupported(
                format!("the agent knows no pods by name, so not {target}"),
                "start it with --kubeconfig, or name a container of the pod: container:ID",
            )),
        };
        match self.pods.find(target) {
            None | Some(Err(NotKnown::Unknown)) => unknown(),
            Some(Ok((pod, gone))) => Ok(Named {
                cgroup_uid: pod.cgroup_uid.clone(),
                known: Some(pod),
                gone,
            }),
            Some(Err(NotKnown::Another(name))) => Err(ResolveError::not_found(
                format!("pod {target}"),
                format!("that is the uid of {}", shown(&name)),
            )),
            Some(Err(NotKnown::Claimed)) => Err(ResolveError::unsupported(
                format!("more than one pod claims to be from the manifest file of {target}"),
                "name a container of it: container:ID",
            )),
        }
    }
}

/// What is said of a pod without a cgroup.
fn no_cgroup(target: &PodRef, known: Option<&Pod>) -> ResolveError {
    let phase = known.map(|pod| pod.phase);
    let next = match phase {
        Some(PodPhase::Pending) => "kubelet has not started it yet: try again",
        Some(PodPhase::Ended) => "all of its containers have ended",
        Some(PodPhase::Running) => {
            "it has ended just now, or kubelet names its cgroup in no known way"
        }
        None => "it has ended, or is on another node",
    };
    ResolveError::not_found(format!("cgroup of pod {target}"), next)
}

/// The container's own cgroup in that of its pod.
fn container_of(
    cgroup: &Cgroup,
    target: &PodRef,
    name: &str,
    known: Option<&Pod>,
) -> Result<Cgroup, ResolveError> {
    let Some(pod) = known else {
        return Err(ResolveError::unsupported(
            format!(
                "the containers of pod {target} are not known, as the API server has not told of it"
            ),
            "capture the whole pod, or name the container: container:ID",
        ));
    };
    let Some(container) = pod.container(name) else {
        let names: Vec<_> = pod.containers.iter().map(|one| shown(&one.name)).collect();
        return Err(ResolveError::not_found(
            format!("container `{}` in pod {}", shown(name), pod.full_name()),
            format!("it has {}", names.join(", ")),
        ));
    };
    let not_running = || {
        ResolveError::not_found(
            format!(
                "running container `{}` in pod {}",
                shown(name),
                pod.full_name()
            ),
            "it was not started yet, or has ended; it has another cgroup after each restart",
        )
    };
    let id = container.id.as_deref().ok_or_else(not_running)?;
    let mut below = Walk::from(cgroup.clone());
    below
        .find(|cgroup| names::container_id(cgroup.name()) == Some(id))
        .ok_or_else(not_running)
}

/// The path is the directory of the pod with this uid.
pub(super) fn is_cgroup_of(path: &str, cgroup_uid: &str) -> bool {
    let name = path.rsplit_once('/').map_or("", |(_, name)| name);
    pod_uid(name).as_deref() == Some(cgroup_uid)
}
