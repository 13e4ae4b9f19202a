//! From a selector to its pods, and from a pod to the captures that it joins.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use remora_capture::{
    session::{PodRef, Selector, WorkloadKind},
    text::shown,
};

use super::{
    Index, Namespace,
    labels::{LabelSelector, LabelsError},
    pod::{Life, OwnerKind, Pod},
};

/// Most pods of a capture where nothing else is said.
pub const MEMBERS_DEFAULT: usize = 100;
/// Most pods that a capture may have, whatever is said.
pub const MEMBERS_MAX: usize = 1000;

/// Names that are shown where one was not found.
const NEAR_MAX: usize = 3;

/// Who is captured, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    pub node: String,
    /// `None`: the node itself.
    pub pod: Option<PodRef>,
}

impl Member {
    /// What makes it the one it is within a capture: the pod's uid, or `node`.
    #[must_use]
    pub fn key(&self) -> &str {
        let uid = self.pod.as_ref().map(|pod| pod.uid.as_deref());
        uid.map_or("node", Option::unwrap_or_default)
    }
}

/// Who a selector selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Sorted, each once.
    pub placed: Vec<Member>,
    /// Pods that have no node yet.
    pub pending: Vec<String>,
}

/// A selector selects nobody, or too many.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoMembers {
    /// Says nothing of other namespaces, of whose names the caller may have no right to know.
    #[error("there is nothing in namespace `{namespace}`; -n NAME names another one")]
    Namespace { namespace: String },
    #[error("there is no {what} `{name}` in namespace `{namespace}`{near}")]
    Name {
        what: &'static str,
        name: String,
        namespace: String,
        near: Near,
    },
    #[error("no pod in namespace `{namespace}` has labels {labels}; it has {pods} pods")]
    Labelled {
        namespace: String,
        labels: String,
        pods: usize,
    },
    #[error("there is no node `{name}`{near}")]
    Node { name: String, near: Near },
    #[error("{selector} in namespace `{namespace}` has no pod that runs{pending}")]
    Empty {
        selector: String,
        namespace: String,
        pending: Pending,
    },
    #[error(
        "{selector} has {found} pods; at most {most} are captured at once: select fewer, or raise \
         --members-max (at most {MEMBERS_MAX})"
    )]
    TooMany {
        selector: String,
        found: usize,
        most: usize,
    },
    #[error(transparent)]
    Labels(#[from] LabelsError),
}

/// Names like the one that was not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Near(Vec<String>);

impl std::fmt::Display for Near {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0[..] {
            [] => Ok(()),
            [names @ .., last] => {
                f.write_str("; there is ")?;
                for name in names {
                    write!(f, "`{name}`, ")?;
                }
                write!(f, "`{last}`")
            }
        }
    }
}

/// Pods that wait for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending(usize);

impl std::fmt::Display for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str(" (one has no node yet)"),
            n => write!(f, " ({n} have no node yet)"),
        }
    }
}

/// Who belongs to a selector, told of one pod.
enum Rule<'a> {
    Name(&'a str),
    Owner(WorkloadKind, &'a str),
    /// ReplicaSets of the deployment.
    Deployment(BTreeSet<&'a str>),
    Behind(std::collections::HashSet<&'a str>),
    Labels(LabelSelector),
}

impl Rule<'_> {
    fn takes(&self, pod: &Pod) -> bool {
        let owner = |kind| {
            let owner = pod
                .owner
                .as_ref()
                .filter(|(of, _)| *of == OwnerKind::Known(kind));
            owner.map(|(_, name)| name.as_ref())
        };
        match self {
            Self::Name(name) => *pod.name == **name,
            Self::Owner(kind, name) => owner(*kind) == Some(*name),
            Self::Deployment(sets) => {
                owner(WorkloadKind::ReplicaSet).is_some_and(|set| sets.contains(set))
            }
            Self::Behind(names) => names.contains(pod.name.as_ref()),
            Self::Labels(labels) => labels.takes(&pod.labels),
        }
    }
}

impl Index {
    /// Who a selector selects now, and who left it in the last `since` (the look-back of the capture:
    /// their last packets are on their nodes still).
    ///
    /// # Errors
    /// [`NoMembers`], which says what was looked for and what is near.
    pub fn members(
        &self,
        selector: &Selector,
        since: Duration,
        now: Duration,
        most: usize,
    ) -> Result<Members, NoMembers> {
        let most = most.min(MEMBERS_MAX);
        if let Selector::Node { name } = selector {
            return self.node_member(name);
        }
        let namespace_name = selector.namespace().unwrap_or_default();
        let rule = self.rule(selector, namespace_name)?;
        let container = match selector {
            Selector::Pod { container, .. } => container.as_deref(),
            _ => None,
        };
        let here = self.namespaces.get(namespace_name);
        let here = here
            .into_iter()
            .flat_map(|namespace| namespace.pods.values());
        let is_pod = matches!(selector, Selector::Pod { .. });
        // Of a pod that is named, its past is what can be had when it is over.
        let here: Vec<_> = here
            .map(|(_, pod)| pod)
            .filter(|pod| (is_pod || pod.life == Life::Running) && rule.takes(pod))
            .collect();
        let gone: Vec<_> = self
            .departed
            .iter()
            .filter(|departed| now.saturating_sub(departed.at) < since)
            .map(|departed| &departed.pod)
            .filter(|pod| *pod.namespace == *namespace_name && rule.takes(pod))
            .collect();
        // A pod's name alone means who is there, or else who was there last.
        let chosen: Vec<&Arc<Pod>> = if !is_pod {
            here.into_iter().chain(gone).collect()
        } else if here.is_empty() {
            self.last_of(namespace_name, &rule).into_iter().collect()
        } else {
            here
        };
        let members = members(&chosen, container);
        if members.placed.is_empty() {
            return Err(self.nobody(selector, namespace_name, members.pending.len()));
        }
        if members.placed.len() > most {
            return Err(NoMembers::TooMany {
                selector: selector.to_string(),
                found: members.placed.len(),
                most,
            });
        }
        Ok(members)
    }

    /// The selector takes this pod, as far as is known now: it joins the captures that run with it.
    #[must_use]
    pub fn joins(&self, pod: &PodRef, selector: &Selector) -> bool {
        if selector.namespace() != Some(&pod.namespace) {
            return false;
        }
        let there = self.namespaces.get(pod.namespace.as_str());
        let there = there.and_then(|namespace| namespace.pods.get(pod.name.as_str()));
        let Some((_, there)) = there else {
            return false;
        };
        there.life == Life::Running
            && pod.uid.as_ref().is_none_or(|uid| *there.uid == **uid)
            && self
                .rule(selector, &pod.namespace)
                .is_ok_and(|rule| rule.takes(there))
    }

    /// What owns the pod, for a person's words `deployment` and the like: `None` where nothing does.
    #[must_use]
    pub fn deployment_of(&self, pod: &PodRef) -> Option<String> {
        let namespace = self.namespaces.get(pod.namespace.as_str())?;
        let here = namespace.pods.get(pod.name.as_str()).map(|(_, pod)| pod);
        let gone = || {
            let departed = self.departed.iter().rev().map(|departed| &departed.pod);
            departed
                .into_iter()
                .find(|there| *there.namespace == *pod.namespace && *there.name == *pod.name)
        };
        let (kind, set) = here.or_else(gone)?.owner.as_ref()?;
        if *kind != OwnerKind::Known(WorkloadKind::ReplicaSet) {
            return None;
        }
        let (_, deployment) = namespace.replica_sets.get(set.as_ref())?;
        Some(deployment.as_ref().to_owned())
    }

    /// The services that the pod is behind, by name.
    #[must_use]
    pub fn services_of(&self, pod: &PodRef) -> Vec<String> {
        let namespace = self.namespaces.get(pod.namespace.as_str());
        let slices = namespace.into_iter().flat_map(|n| n.slices.values());
        let names: BTreeSet<_> = slices
            .filter(|(_, slice)| slice.pods.iter().any(|name| **name == *pod.name))
            .map(|(_, slice)| slice.service.as_ref())
            .collect();
        names.into_iter().map(str::to_owned).collect()
    }

    fn node_member(&self, name: &str) -> Result<Members, NoMembers> {
        if !self.nodes.contains_key(name) {
            return Err(NoMembers::Node {
                name: name.to_owned(),
                near: near(name, self.nodes()),
            });
        }
        let node = Member {
            node: name.to_owned(),
            pod: None,
        };
        Ok(Members {
            placed: vec![node],
            pending: Vec::new(),
        })
    }

    fn rule<'a>(&'a self, selector: &'a Selector, namespace: &str) -> Result<Rule<'a>, NoMembers> {
        Ok(match selector {
            Selector::Pod { name, .. } => Rule::Name(name),
            Selector::Workload {
                kind: WorkloadKind::Deployment,
                name,
                ..
            } => Rule::Deployment(self.sets_of(namespace, name)),
            Selector::Workload { kind, name, .. } => Rule::Owner(*kind, name),
            Selector::Service { name, .. } => {
                Rule::Behind(self.behind(namespace, name).unwrap_or_default())
            }
            Selector::Labels { labels, .. } => Rule::Labels(LabelSelector::parse(labels)?),
            Selector::Node { .. } => Rule::Behind(Default::default()),
        })
    }

    fn sets_of<'a>(&'a self, namespace: &str, deployment: &str) -> BTreeSet<&'a str> {
        let sets = self
            .namespaces
            .get(namespace)
            .map(|n| n.replica_sets.iter());
        sets.into_iter()
            .flatten()
            .filter(|(_, (_, owner))| **owner == *deployment)
            .map(|(name, _)| name.as_ref())
            .collect()
    }

    /// Who left last.
    fn last_of(&self, namespace: &str, rule: &Rule<'_>) -> Option<&Arc<Pod>> {
        let departed = self.departed.iter().rev().map(|departed| &departed.pod);
        departed
            .into_iter()
            .find(|pod| *pod.namespace == *namespace && rule.takes(pod))
    }

    /// Why nobody is selected.
    fn nobody(&self, selector: &Selector, namespace_name: &str, pending: usize) -> NoMembers {
        let namespace_name = namespace_name.to_owned();
        let Some(namespace) = self.namespaces.get(namespace_name.as_str()) else {
            return NoMembers::Namespace {
                namespace: namespace_name,
            };
        };
        let absent = |what, name: &str, names: BTreeSet<&str>| {
            (pending == 0 && !names.contains(name)).then(|| NoMembers::Name {
                what,
                name: shown(name).to_string(),
                namespace: namespace_name.clone(),
                near: near(name, names.into_iter()),
            })
        };
        let absent = match selector {
            Selector::Pod { name, .. } => absent(
                "pod",
                name,
                namespace.pods.keys().map(AsRef::as_ref).collect(),
            ),
            Selector::Workload { kind, name, .. } => {
                absent(word(*kind), name, workloads(namespace, *kind))
            }
            Selector::Service { name, .. } => {
                absent("service", name, self.services(&namespace_name))
            }
            Selector::Labels { labels, .. } => (pending == 0).then(|| NoMembers::Labelled {
                namespace: namespace_name.clone(),
                labels: shown(labels).to_string(),
                pods: namespace.pods.len(),
            }),
            Selector::Node { .. } => None,
        };
        absent.unwrap_or_else(|| NoMembers::Empty {
            selector: selector.to_string(),
            namespace: namespace_name,
            pending: Pending(pending),
        })
    }
}

fn members(chosen: &[&Arc<Pod>], container: Option<&str>) -> Members {
    let mut members = Members::default();
    for pod in chosen {
        match &pod.node {
            Some(node) => members.placed.push(Member {
                node: node.as_ref().to_owned(),
                pod: Some(pod.reference(container)),
            }),
            None => members.pending.push(pod.name.as_ref().to_owned()),
        }
    }
    members.placed.sort_unstable();
    members.placed.dedup();
    members.pending.sort_unstable();
    members
}

/// Workloads of a kind, as the pods and ReplicaSets of a namespace tell them.
fn workloads(namespace: &Namespace, kind: WorkloadKind) -> BTreeSet<&str> {
    if kind == WorkloadKind::Deployment {
        let sets = namespace.replica_sets.values();
        return sets.map(|(_, deployment)| deployment.as_ref()).collect();
    }
    let owners = namespace
        .pods
        .values()
        .filter_map(|(_, pod)| pod.owner.as_ref());
    owners
        .filter(|(of, _)| *of == OwnerKind::Known(kind))
        .map(|(_, name)| name.as_ref())
        .collect()
}

fn word(kind: WorkloadKind) -> &'static str {
    match kind {
        WorkloadKind::Deployment => "deployment",
        WorkloadKind::StatefulSet => "stateful set",
        WorkloadKind::DaemonSet => "daemon set",
        WorkloadKind::Job => "job",
        WorkloadKind::ReplicaSet => "replica set",
    }
}

/// The most alike, the best first.
fn near<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Near {
    let mut scored: Vec<_> = names
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .collect();
    scored.sort_by(|(a, x), (b, y)| b.total_cmp(a).then(x.cmp(y)));
    let best = scored.into_iter().take(NEAR_MAX);
    Near(best.map(|(_, other)| shown(other).to_string()).collect())
}
