//! The node's pods, as far as they are known: whom a name means, whose a cgroup is, and how much may be taken
//! of its packets.
//!
//! ```text
//! API server ─▶ kubernetes (watch) ─▶ KnownPods { PodStore, Namespaces } ◀── resolver, look-back, sessions
//! ```
//! Nobody waits for it: what is not known (yet) is answered so at once. Without Kubernetes nothing is known,
//! and nothing is kept from anyone.

mod layout;
mod namespaces;
mod record;
mod store;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use remora_capture::session::{ContainerIdentity, LookBackMode, PodIdentity, PodRef};

use crate::node::PodCounts;

pub use namespaces::{Namespaces, PRIVACY_LABEL, level, word};
pub use record::{Container, ContainerKind, Pod, PodPhase};
pub use store::{Known, NotKnown, PODS_MAX, PodStore};

pub(super) use layout::{candidates, is_pods_root, pod_uid, pods_on};

/// What the node's pods are, for all who ask; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct KnownPods(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    /// Held for microseconds.
    told: Mutex<Told>,
    /// Raised with each change.
    version: AtomicU64,
    checks: Checks,
}

/// What was told.
#[derive(Debug)]
pub struct Told {
    pub pods: PodStore,
    pub namespaces: Namespaces,
}

/// How often two ways to a pod's network agreed.
#[derive(Debug, Default)]
struct Checks {
    agreed: AtomicU64,
    differed: AtomicU64,
}

impl KnownPods {
    /// Of a node of Kubernetes. Pods that are gone are remembered for `keep`; `unlisted`: what
    /// is taken for the strictest level until all namespaces are listed.
    #[must_use]
    pub fn of_kubernetes(keep: Duration, unlisted: LookBackMode) -> Self {
        Self(Some(Arc::new(Shared {
            told: Mutex::new(Told {
                pods: PodStore::new(keep),
                namespaces: Namespaces::new(unlisted),
            }),
            version: AtomicU64::new(0),
            checks: Checks::default(),
        })))
    }

    #[must_use]
    pub fn is_kubernetes(&self) -> bool {
        self.0.is_some()
    }

    /// Raised with each change.
    #[must_use]
    pub fn version(&self) -> u64 {
        let shared = self.0.as_ref();
        shared.map_or(0, |shared| shared.version.load(Ordering::Acquire))
    }

    /// Tells what has changed.
    pub fn change(&self, change: impl FnOnce(&mut Told)) {
        if let Some(shared) = &self.0 {
            change(&mut shared.told.lock().unwrap_or_else(PoisonError::into_inner));
            shared.version.fetch_add(1, Ordering::Release);
        }
    }

    fn ask<T>(&self, ask: impl FnOnce(&Told) -> T) -> Option<T> {
        let shared = self.0.as_ref()?;
        let told = shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        Some(ask(&told))
    }

    /// Whom a name means; outer `None` without Kubernetes. The bool: it is gone.
    pub(super) fn find(&self, pod: &PodRef) -> Option<Result<(Pod, bool), NotKnown>> {
        let PodRef {
            namespace,
            name,
            uid,
            container: _,
        } = pod;
        self.ask(|told| {
            let known = told.pods.find(namespace, name, uid.as_deref())?;
            Ok((known.pod.clone(), known.gone))
        })
    }

    /// All pods of the node were told at least once.
    pub(super) fn is_listed(&self) -> bool {
        self.ask(|told| told.pods.is_listed()).unwrap_or(false)
    }

    /// All namespaces were told at least once.
    #[must_use]
    pub fn has_namespaces(&self) -> bool {
        self.ask(|told| told.namespaces.is_listed())
            .unwrap_or(false)
    }

    /// How much may be taken of the packets of a cgroup; `None` while that is not known. One that holds the
    /// node's pods, or leads through several, is as strict as the strictest of them.
    #[must_use]
    pub fn level_of(&self, path: &str) -> Option<LookBackMode> {
        let level = self.ask(|told| {
            let mut pods = pods_on(path).peekable();
            if pods.peek().is_none() {
                return match path.split('/').any(is_pods_root) {
                    true => told.node_level(),
                    false => Some(LookBackMode::default()),
                };
            }
            // A cluster in a pod has pods that this one's API server knows nothing of.
            let known: Vec<_> = pods.filter_map(|uid| told.level_of_pod(&uid)).collect();
            let known: Option<Vec<_>> = known.into_iter().collect();
            known?.into_iter().max()
        });
        level.unwrap_or(Some(LookBackMode::default()))
    }

    /// How much may be taken where all of the node's pods pass; `None` while that is not known.
    #[must_use]
    pub fn node_level(&self) -> Option<LookBackMode> {
        let level = self.ask(Told::node_level);
        level.unwrap_or(Some(LookBackMode::default()))
    }

    /// The strictest that what is not known could turn out to be.
    #[must_use]
    pub fn strictest(&self) -> LookBackMode {
        let strictest = self.ask(|told| told.namespaces.strictest());
        strictest.unwrap_or_default()
    }

    /// The pod that a cgroup is or lies in: of several around it the outermost that is known.
    pub(super) fn of_path(&self, path: &str) -> Option<Pod> {
        self.ask(|told| {
            pods_on(path).find_map(|uid| {
                let mut pods = told.pods.of_cgroup(&uid);
                match (pods.next(), pods.next()) {
                    (Some(pod), None) => Some(pod.clone()),
                    _ => None,
                }
            })
        })?
    }

    /// Two ways to a pod's network were compared.
    pub(super) fn checked(&self, agreed: bool) {
        if let Some(Shared { checks, .. }) = self.0.as_deref() {
            let count = if agreed {
                &checks.agreed
            } else {
                &checks.differed
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets who is gone for long enough.
    pub fn forget(&self, now: Instant) {
        if let Some(shared) = &self.0 {
            let mut told = shared.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.pods.forget(now);
        }
    }

    /// `None` without Kubernetes.
    #[must_use]
    pub fn numbers(&self) -> Option<PodCounts> {
        let shared = self.0.as_ref()?;
        self.ask(|told| PodCounts {
            known: told.pods.len() as u64,
            refused: told.pods.refused(),
            listed: told.pods.is_listed() && told.namespaces.is_listed(),
            checks_agreed: shared.checks.agreed.load(Ordering::Relaxed),
            checks_differed: shared.checks.differed.load(Ordering::Relaxed),
        })
    }
}

impl Told {
    /// Outer `None`: no such pod is known; inner: its namespace is not.
    fn level_of_pod(&self, cgroup_uid: &str) -> Option<Option<LookBackMode>> {
        let levels = self.pods.of_cgroup(cgroup_uid);
        let levels: Vec<_> = levels
            .map(|pod| self.namespaces.of(&pod.namespace))
            .collect();
        let known: Option<Vec<_>> = levels.into_iter().collect();
        match known {
            Some(levels) => levels.into_iter().max().map(Some),
            None => Some(None),
        }
    }

    fn node_level(&self) -> Option<LookBackMode> {
        if !self.pods.is_listed() || !self.namespaces.is_listed() {
            return None;
        }
        let levels = self.pods.there().map(|pod| {
            let level = self.namespaces.of(&pod.namespace);
            level.unwrap_or_else(|| self.namespaces.strictest())
        });
        Some(levels.max().unwrap_or_default())
    }
}

/// For files and accounts. `container`: the one that is captured.
pub(super) fn identity(pod: &Pod, container: Option<&str>) -> PodIdentity {
    let kind = |kind| match kind {
        ContainerKind::Regular => "",
        ContainerKind::Init => "init",
        ContainerKind::Sidecar => "sidecar",
        ContainerKind::Ephemeral => "ephemeral",
    };
    let containers = pod.containers.iter().map(|container| ContainerIdentity {
        name: container.name.clone(),
        kind: kind(container.kind).to_owned(),
        id: container.id.clone().unwrap_or_default(),
        image: container.image.clone(),
        image_id: container.image_id.clone(),
        restarts: container.restarts,
    });
    let identity = PodIdentity {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        container: container.map(str::to_owned),
        host_network: pod.host_network,
        addresses: pod.ips.clone(),
        labels: pod.labels.clone(),
        containers: containers.collect(),
    };
    identity.bounded()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "a65ca62e-5639-44ba-b2a1-a3cf1580c82c";
    const OTHER: &str = "b65ca62e-5639-44ba-b2a1-a3cf1580c82c";

    fn pod(uid: &str, namespace: &str) -> Pod {
        Pod {
            uid: uid.to_owned(),
            cgroup_uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            name: format!("p-{uid}"),
            ..Pod::default()
        }
    }

    fn known(pods: &[(&str, &str)], namespaces: &[(&str, Option<&str>)]) -> KnownPods {
        let known = KnownPods::of_kubernetes(Duration::from_secs(60), LookBackMode::Off);
        known.change(|told| {
            told.namespaces.begin_list();
            for (name, label) in namespaces {
                told.namespaces.apply((*name).to_owned(), *label);
            }
            told.namespaces.end_list();
            told.pods.begin_list();
            for (uid, namespace) in pods {
                told.pods.apply(pod(uid, namespace), Instant::now());
            }
            told.pods.end_list(Instant::now());
        });
        known
    }

    #[test]
    fn without_kubernetes_nothing_is_kept_from_anyone() {
        let none = KnownPods::default();
        let path = format!("/kubepods/pod{UID}");
        assert_eq!(none.level_of(&path), Some(LookBackMode::Payload));
        assert_eq!(none.strictest(), LookBackMode::Payload);
        assert_eq!(none.node_level(), Some(LookBackMode::Payload));
        assert_eq!(none.numbers(), None);
    }

    #[test]
    fn a_cgroup_s_level_is_its_pod_s_namespace_s() {
        let known = known(
            &[(UID, "bank"), (OTHER, "new")],
            &[("bank", Some("headers")), ("shop", None)],
        );
        for path in [
            format!("/kubepods/pod{UID}"),
            format!("/kubepods/besteffort/pod{UID}/0f"),
            format!(
                "/kubepods.slice/kubepods-pod{}.slice/x.scope",
                UID.replace('-', "_")
            ),
            // A cgroup that a workload made and named after another's pod.
            format!("/kubepods/pod{UID}/0f/pod00000000-0000-0000-0000-000000000000"),
            "/kubepods/burstable".to_owned(),
        ] {
            assert_eq!(known.level_of(&path), Some(LookBackMode::Headers), "{path}");
        }
        // Its namespace was not told yet, or it was not.
        assert_eq!(known.level_of(&format!("/kubepods/pod{OTHER}")), None);
        let stranger = "/kubepods/pod00000000-0000-0000-0000-000000000000";
        assert_eq!(known.level_of(stranger), None);
        assert_eq!(
            known.level_of("/system.slice/nginx.service"),
            Some(LookBackMode::Payload)
        );
        assert_eq!(known.strictest(), LookBackMode::Headers);
    }

    #[test]
    fn where_all_pods_pass_the_strictest_of_them_holds() {
        let open = known(&[(UID, "shop")], &[("bank", Some("none")), ("shop", None)]);
        assert_eq!(open.node_level(), Some(LookBackMode::Payload));
        let strict = known(&[(UID, "bank")], &[("bank", Some("none"))]);
        assert_eq!(strict.node_level(), Some(LookBackMode::Off));
        let unlisted = KnownPods::of_kubernetes(Duration::from_secs(60), LookBackMode::Off);
        assert_eq!(unlisted.node_level(), None);
        assert_eq!(unlisted.strictest(), LookBackMode::Off);
    }

    #[test]
    fn a_pod_that_claims_another_s_cgroup_makes_it_nobody_s() {
        let hash = "0123456789abcdef0123456789abcdef";
        let known = known(&[], &[("bank", Some("headers")), ("shop", None)]);
        let claim = |uid: &str, namespace: &str| {
            let pod = Pod {
                cgroup_uid: hash.to_owned(),
                ..pod(uid, namespace)
            };
            known.change(|told| told.pods.apply(pod, Instant::now()));
        };
        claim("1", "bank");
        let path = format!("/kubepods/pod{hash}");
        assert_eq!(known.of_path(&path).unwrap().namespace, "bank");
        claim("2", "shop");
        assert_eq!(known.of_path(&path), None);
        assert_eq!(known.level_of(&path), Some(LookBackMode::Headers));
    }
}
