//! Who is where in the cluster, as far as captures ask: pods, their owners, what is behind a service,
//! nodes. Pure: watches tell it, and it answers.
//!
//! ```text
//! Pod ─owner─▶ ReplicaSet ─owner─▶ Deployment        Service ◀─ EndpointSlice ─▶ Pod
//!  └─owner─▶ StatefulSet, DaemonSet, Job              labels ─▶ Pod ─▶ node, address
//! ```
//! A pod that was deleted is remembered for [`DEPARTED_KEPT`]: the agent of its node has its last
//! packets. Events of different kinds come in any order; an answer is of what was told so far.

mod intern;
mod labels;
mod pod;
mod select;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use intern::Interned;
pub use labels::LabelsError;
pub use pod::{Life, PodFacts, PodNetwork};
use pod::{OwnerKind, Pod, addresses};
use remora_capture::session::PodRef;
pub use select::{MEMBERS_DEFAULT, MEMBERS_MAX, Member, Members, NoMembers};

/// How long a deleted pod is remembered: as long as an agent keeps what it kept of the dead.
pub const DEPARTED_KEPT: Duration = Duration::from_secs(120);
/// Most that are remembered.
const DEPARTED_MAX: usize = 16_384;

/// What a watch tells of a kind of object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// All of them follow as `Listed`; what is not among them is gone at `ListEnd`.
    ListStart,
    Listed(T),
    ListEnd,
    Applied(T),
    Deleted(T),
}

/// A ReplicaSet and the Deployment that owns it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaSetFacts {
    pub namespace: String,
    pub name: String,
    pub deployment: Option<String>,
}

/// An EndpointSlice: pods behind a service, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceFacts {
    pub namespace: String,
    pub name: String,
    pub service: String,
    pub pods: Vec<String>,
}

/// Objects of one kind within a namespace, each with the listing that it was last told in.
type Told<T> = BTreeMap<Box<str>, (u32, T)>;

#[derive(Debug, Default)]
struct Namespace {
    pods: Told<Arc<Pod>>,
    /// Their deployments.
    replica_sets: Told<Arc<str>>,
    slices: Told<Slice>,
}

impl Namespace {
    fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.replica_sets.is_empty() && self.slices.is_empty()
    }
}

#[derive(Debug)]
struct Slice {
    service: Arc<str>,
    pods: Box<[Box<str>]>,
}

#[derive(Debug)]
struct Departed {
    pod: Arc<Pod>,
    /// By the index's clock.
    at: Duration,
}

/// How often each kind was listed.
#[derive(Debug, Default)]
struct Listings {
    pods: u32,
    replica_sets: u32,
    slices: u32,
    nodes: u32,
}

/// The index. Times are by any clock that goes on, the same for all calls.
#[derive(Debug, Default)]
pub struct Index {
    namespaces: HashMap<Arc<str>, Namespace>,
    nodes: BTreeMap<Box<str>, u32>,
    by_address: HashMap<IpAddr, Arc<Pod>>,
    departed: VecDeque<Departed>,
    listings: Listings,
    texts: Interned<str>,
    label_sets: Interned<labels::Labels>,
    /// Raised by each change that may change what a selector selects.
    version: u64,
}

impl Index {
    /// Changes whenever an answer may.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Pods that are there.
    #[must_use]
    pub fn pods(&self) -> usize {
        self.namespaces.values().map(|n| n.pods.len()).sum()
    }

    /// Nodes of the cluster.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(AsRef::as_ref)
    }

    /// Takes what the watch of pods tells.
    pub fn pod(&mut self, change: Change<PodFacts>, now: Duration) {
        self.version += 1;
        match change {
            Change::ListStart => self.listings.pods += 1,
            Change::Listed(facts) | Change::Applied(facts) => self.put_pod(&facts, now),
            Change::Deleted(facts) => {
                let pods = self.namespaces.get_mut(facts.namespace.as_str());
                let pods = pods.map(|namespace| &mut namespace.pods);
                // Another of its name may have come in its place.
                let is_it = |(_, pod): &(u32, Arc<Pod>)| *pod.uid == *facts.uid;
                if let Some(pods) = pods
                    && pods.get(facts.name.as_str()).is_some_and(is_it)
                    && let Some((_, pod)) = pods.remove(facts.name.as_str())
                {
                    self.depart(pod, now);
                }
                self.forget_if_empty(&facts.namespace);
            }
            Change::ListEnd => {
                let listing = self.listings.pods;
                let mut gone = Vec::new();
                for namespace in self.namespaces.values_mut() {
                    namespace.pods.retain(|_, (told, pod)| {
                        let stays = *told == listing;
                        if !stays {
                            gone.push(pod.clone());
                        }
                        stays
                    });
                }
                for pod in gone {
                    self.depart(pod, now);
                }
                self.forget_empty();
            }
        }
    }

    fn put_pod(&mut self, facts: &PodFacts, now: Duration) {
        let pod = Arc::new(self.kept(facts));
        let listing = self.listings.pods;
        let namespace = self.namespaces.entry(pod.namespace.clone()).or_default();
        let told = (listing, pod.clone());
        let before = match namespace.pods.get_mut(&pod.name) {
            Some(there) => Some(std::mem::replace(there, told).1),
            None => namespace
                .pods
                .insert(pod.name.clone(), told)
                .map(|(_, pod)| pod),
        };
        if let Some(before) = before {
            if before.uid == pod.uid {
                self.forget_addresses(&before);
            } else {
                self.depart(before, now);
            }
        }
        for address in pod.own_addresses() {
            self.by_address.insert(address, pod.clone());
        }
    }

    fn kept(&mut self, facts: &PodFacts) -> Pod {
        let PodFacts {
            namespace,
            name,
            uid,
            node,
            owner,
            labels,
            addresses: all,
            network,
            life,
        } = facts;
        let texts = &mut self.texts;
        let mut labels: Vec<_> = labels
            .iter()
            .map(|(key, value)| (texts.get(key.as_str()), texts.get(value.as_str())))
            .collect();
        labels.sort_unstable();
        Pod {
            namespace: texts.get(namespace.as_str()),
            name: name.as_str().into(),
            uid: uid.as_str().into(),
            node: node.as_ref().map(|node| texts.get(node.as_str())),
            owner: owner
                .as_ref()
                .map(|(kind, name)| (OwnerKind::of(kind), texts.get(name.as_str()))),
            labels: self.label_sets.get(&labels[..]),
            addresses: addresses(all),
            network: *network,
            life: *life,
        }
    }

    fn depart(&mut self, pod: Arc<Pod>, now: Duration) {
        self.forget_addresses(&pod);
        let is_kept = |departed: &Departed| now.saturating_sub(departed.at) <= DEPARTED_KEPT;
        while self.departed.len() >= DEPARTED_MAX
            || self.departed.front().is_some_and(|first| !is_kept(first))
        {
            self.departed.pop_front();
        }
        self.departed.push_back(Departed { pod, at: now });
    }

    fn forget_addresses(&mut self, pod: &Pod) {
        for address in pod.own_addresses() {
            if self
                .by_address
                .get(&address)
                .is_some_and(|there| there.uid == pod.uid)
            {
                self.by_address.remove(&address);
            }
        }
    }

    /// Takes what the watch of ReplicaSets tells.
    pub fn replica_set(&mut self, change: Change<ReplicaSetFacts>) {
        self.version += 1;
        match change {
            Change::ListStart => self.listings.replica_sets += 1,
            Change::Listed(facts) | Change::Applied(facts) => {
                let listing = self.listings.replica_sets;
                let deployment = facts.deployment.map(|name| self.texts.get(name.as_str()));
                let namespace = self.texts.get(facts.namespace.as_str());
                let sets = &mut self.namespaces.entry(namespace).or_default().replica_sets;
                match deployment {
                    Some(deployment) => {
                        sets.insert(facts.name.into(), (listing, deployment));
                    }
                    None => {
                        sets.remove(facts.name.as_str());
                    }
                }
            }
            Change::Deleted(facts) => {
                if let Some(namespace) = self.namespaces.get_mut(facts.namespace.as_str()) {
                    namespace.replica_sets.remove(facts.name.as_str());
                }
                self.forget_if_empty(&facts.namespace);
            }
            Change::ListEnd => {
                let listing = self.listings.replica_sets;
                for namespace in self.namespaces.values_mut() {
                    namespace
                        .replica_sets
                        .retain(|_, (told, _)| *told == listing);
                }
                self.forget_empty();
            }
        }
    }

    /// Takes what the watch of EndpointSlices tells.
    pub fn slice(&mut self, change: Change<SliceFacts>) {
        self.version += 1;
        match change {
            Change::ListStart => self.listings.slices += 1,
            Change::Listed(facts) | Change::Applied(facts) => {
                let listing = self.listings.slices;
                let slice = Slice {
                    service: self.texts.get(facts.service.as_str()),
                    pods: facts.pods.into_iter().map(Into::into).collect(),
                };
                let namespace = self.texts.get(facts.namespace.as_str());
                let slices = &mut self.namespaces.entry(namespace).or_default().slices;
                slices.insert(facts.name.into(), (listing, slice));
            }
            Change::Deleted(facts) => {
                if let Some(namespace) = self.namespaces.get_mut(facts.namespace.as_str()) {
                    namespace.slices.remove(facts.name.as_str());
                }
                self.forget_if_empty(&facts.namespace);
            }
            Change::ListEnd => {
                let listing = self.listings.slices;
                for namespace in self.namespaces.values_mut() {
                    namespace.slices.retain(|_, (told, _)| *told == listing);
                }
                self.forget_empty();
            }
        }
    }

    /// Takes what the watch of nodes tells: their names.
    pub fn node(&mut self, change: Change<String>) {
        self.version += 1;
        match change {
            Change::ListStart => self.listings.nodes += 1,
            Change::Listed(name) | Change::Applied(name) => {
                self.nodes.insert(name.into(), self.listings.nodes);
            }
            Change::Deleted(name) => {
                self.nodes.remove(name.as_str());
            }
            Change::ListEnd => {
                let listing = self.listings.nodes;
                self.nodes.retain(|_, told| *told == listing);
            }
        }
    }

    fn forget_empty(&mut self) {
        self.namespaces.retain(|_, namespace| !namespace.is_empty());
    }

    fn forget_if_empty(&mut self, name: &str) {
        if self.namespaces.get(name).is_some_and(Namespace::is_empty) {
            self.namespaces.remove(name);
        }
    }

    /// The pod that has this address as its own.
    #[must_use]
    pub fn at_address(&self, address: IpAddr) -> Option<Member> {
        let pod = self.by_address.get(&address)?;
        Some(Member {
            node: pod.node.as_ref()?.as_ref().to_owned(),
            pod: Some(pod.reference(None)),
        })
    }

    /// Where a pod is, or was: by its name, and by its uid where that is given.
    #[must_use]
    pub fn place(&self, pod: &PodRef) -> Option<Member> {
        let is_it = |there: &Pod| pod.uid.as_ref().is_none_or(|uid| *there.uid == **uid);
        let here = self.namespaces.get(pod.namespace.as_str());
        let here = here.and_then(|namespace| namespace.pods.get(pod.name.as_str()));
        let here = here.map(|(_, there)| there).filter(|there| is_it(there));
        let gone = || {
            let departed = self.departed.iter().rev().map(|departed| &departed.pod);
            departed
                .filter(|there| *there.namespace == *pod.namespace && *there.name == *pod.name)
                .find(|there| is_it(there))
        };
        let there = here.or_else(gone)?;
        Some(Member {
            node: there.node.as_ref()?.as_ref().to_owned(),
            pod: Some(there.reference(pod.container.as_deref())),
        })
    }

    /// Distinct names of what the slices of a namespace are of.
    fn services<'a>(&'a self, namespace: &str) -> BTreeSet<&'a str> {
        let slices = self.namespaces.get(namespace).map(|n| n.slices.values());
        let slices = slices.into_iter().flatten();
        slices.map(|(_, slice)| slice.service.as_ref()).collect()
    }

    /// Names of the pods behind a service; `None` where there is no such service.
    fn behind(&self, namespace: &str, service: &str) -> Option<HashSet<&str>> {
        let slices = &self.namespaces.get(namespace)?.slices;
        let mut of_it = slices
            .values()
            .filter(|(_, slice)| *slice.service == *service)
            .peekable();
        of_it.peek()?;
        Some(
            of_it
                .flat_map(|(_, slice)| slice.pods.iter().map(AsRef::as_ref))
                .collect(),
        )
    }
}
