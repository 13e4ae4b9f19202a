//! The watches that tell [`View`]: of each kind of object only what is kept is read.
//!
//! ```text
//! list, in pages ─▶ watch, at most 30 s each, by bookmarks ─▶ …
//!    ▲                 │ 410, cut, refused: again after 0.2 s, 0.4 s, … 5 s
//!    └─────────────────┘ what was known stays known meanwhile
//! ```

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::Debug,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, future};
use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        core::v1::{Node, Pod},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, Config, Resource, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::watcher::{self, Event},
};
use remora_proto::client::AgentAddress;
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    View,
    index::{Change, Life, PodFacts, PodNetwork, ReplicaSetFacts, SliceFacts},
};
use crate::{access::Reviews, fleet::roster::Roster};

/// How long a watch may last, in seconds: one that says nothing any more is noticed soon after.
const WATCH_SECONDS: u32 = 30;
/// Nothing at all for so long means that the connection is dead: a watch would have ended.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
/// How long a connection may take: where packets go nowhere, the next try comes soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Objects of a page of a list: one page is in memory at a time.
const PAGE: u32 = 500;
/// Pauses after failures.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// By what the agents' pods are known.
const AGENT_LABEL: &str = "app.kubernetes.io/name=remora-agent";
/// Owner of an EndpointSlice.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Where the agents are.
#[derive(Clone, Debug)]
pub struct AgentPods {
    /// Of their DaemonSet. In another namespace anybody might run what calls itself an agent.
    pub namespace: String,
    pub port: u16,
}

/// The way to the API server.
#[derive(Clone)]
pub struct ApiServer(Client);

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ApiServer").finish_non_exhaustive()
    }
}

impl From<Client> for ApiServer {
    fn from(client: Client) -> Self {
        Self(client)
    }
}

impl ApiServer {
    /// What it is asked of callers.
    #[must_use]
    pub fn reviews(&self, audience: Option<String>) -> Reviews {
        Reviews::new(self.0.clone(), audience)
    }

    /// The way itself.
    pub(crate) fn client(&self) -> Client {
        self.0.clone()
    }

    /// By KUBECONFIG or `~/.kube/config`, or the pod's service account. Calls nobody.
    ///
    /// # Errors
    /// There is none of these, or what it says cannot be used.
    pub async fn infer() -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut config = Config::infer().await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // A connection on which nothing comes is a dead one.
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        Ok(Self(Client::try_from(config)?))
    }

    /// This controller's own.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.default_namespace()
    }
}

/// Follows the cluster for ever.
///
/// With `agents` their pods are found and told to `roster`; else somebody else tells it.
pub async fn follow(
    ApiServer(client): ApiServer,
    view: Arc<View>,
    agents: Option<AgentPods>,
    roster: watch::Sender<Arc<Roster>>,
) {
    let listed = Listed::new(view.clone());
    let pods = follow_kind(
        "pods",
        watcher::watcher(Api::<TrimmedPod>::all(client.clone()), config("")),
        |change| {
            listed.end(0, &change);
            view.write(|index, now| index.pod(change, now));
        },
        |pod| Some(pod_facts(pod)),
    );
    let sets = follow_kind(
        "replicasets.apps",
        watcher::watcher(
            Api::<PartialObjectMeta<ReplicaSet>>::all(client.clone()),
            config(""),
        ),
        |change| {
            listed.end(1, &change);
            view.write(|index, _| index.replica_set(change));
        },
        |set| Some(set_facts(&set)),
    );
    let slices = follow_kind(
        "endpointslices.discovery.k8s.io",
        watcher::watcher(
            Api::<EndpointSlice>::all(client.clone()),
            config(SERVICE_LABEL),
        ),
        |change| {
            listed.end(2, &change);
            view.write(|index, _| index.slice(change));
        },
        slice_facts,
    );
    let nodes = follow_kind(
        "nodes",
        watcher::watcher(
            Api::<PartialObjectMeta<Node>>::all(client.clone()),
            config(""),
        ),
        |change| {
            listed.end(3, &change);
            view.write(|index, _| index.node(change));
        },
        |node| Some(node.name_any()),
    );
    let agents = async {
        match agents {
            Some(agents) => follow_agents(client.clone(), agents, &roster).await,
            None => future::pending().await,
        }
    };
    tokio::join!(pods, sets, slices, nodes, agents);
}

/// Which kinds were listed once.
struct Listed {
    view: Arc<View>,
    kinds: Mutex<[bool; 4]>,
}

impl Listed {
    fn new(view: Arc<View>) -> Self {
        Self {
            view,
            kinds: Mutex::default(),
        }
    }

    fn end<T>(&self, kind: usize, change: &Change<T>) {
        if !matches!(change, Change::ListEnd) {
            return;
        }
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds[kind] = true;
        if kinds.iter().all(|listed| *listed) {
            self.view.set_synced();
        }
    }
}

/// Agents' pods by their uid: node, the second in which it was made, address.
type Agents = BTreeMap<String, (String, Option<i64>, AgentAddress)>;

async fn follow_agents(client: Client, agents: AgentPods, roster: &watch::Sender<Arc<Roster>>) {
    let AgentPods { namespace, port } = agents;
    let api = Api::<TrimmedPod>::namespaced(client, &namespace);
    let mut there = Agents::new();
    let mut listed = Agents::new();
    let publish = |there: &Agents| {
        let mut by_age: Vec<_> = there.values().cloned().collect();
        // While one is replaced by another, the younger is the node's.
        by_age.sort_by_key(|(_, made, _)| *made);
        let agents = by_age
            .into_iter()
            .map(|(node, _, address)| (node.into(), address));
        let new: Roster = agents.collect();
        roster.send_if_modified(|roster| {
            let is_new = **roster != new;
            if is_new {
                *roster = Arc::new(new);
            }
            is_new
        });
    };
    follow_kind(
        "pods of the agents",
        watcher::watcher(api, config(AGENT_LABEL)),
        |change| match change {
            Change::ListStart => listed.clear(),
            Change::Listed((uid, agent)) => {
                if let Some(agent) = agent {
                    listed.insert(uid, agent);
                }
            }
            Change::ListEnd => {
                there = std::mem::take(&mut listed);
                publish(&there);
            }
            Change::Applied((uid, Some(agent))) => {
                there.insert(uid, agent);
                publish(&there);
            }
            Change::Applied((uid, None)) | Change::Deleted((uid, _)) => {
                there.remove(&uid);
                publish(&there);
            }
        },
        |pod| {
            let uid = pod.metadata.uid.clone()?;
            Some((uid, agent(pod, port)))
        },
    )
    .await;
}

/// Where the agent in a pod is called, if it runs.
fn agent(pod: TrimmedPod, port: u16) -> Option<(String, Option<i64>, AgentAddress)> {
    let made = pod
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|time| time.0.as_second());
    let is_leaving = pod.metadata.deletion_timestamp.is_some();
    let facts = pod_facts(pod);
    let address = SocketAddr::new(*facts.addresses.first()?, port);
    if facts.life == Life::Over || is_leaving {
        return None;
    }
    match format!("https://{address}").parse() {
        Ok(address) => Some((facts.node?, made, address)),
        Err(error) => {
            tracing::error!(%error, %address, "this controller cannot call agents over the network");
            None
        }
    }
}

pub(crate) fn config(labels: &str) -> watcher::Config {
    let config = watcher::Config::default()
        .timeout(WATCH_SECONDS)
        .page_size(PAGE);
    match labels {
        "" => config,
        labels => config.labels(labels),
    }
}

/// Hands on what a watch tells, for ever.
pub(crate) async fn follow_kind<K: Debug, T>(
    what: &'static str,
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    mut tell: impl FnMut(Change<T>),
    facts: impl Fn(K) -> Option<T>,
) {
    let mut events = std::pin::pin!(events);
    let mut pause = PAUSE_MIN;
    loop {
        let event = match events.next().await {
            Some(Ok(event)) => event,
            Some(Err(error)) => {
                // What was known stays known: who asks meanwhile has the last word that came.
                tracing::warn!(what, %error, "the watch failed; is the API server there, and may this \
                    controller list and watch them?");
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(PAUSE_MAX);
                continue;
            }
            // A watch begins again by itself.
            None => return,
        };
        pause = PAUSE_MIN;
        let change = match event {
            Event::Init => Some(Change::ListStart),
            Event::InitApply(object) => facts(object).map(Change::Listed),
            Event::InitDone => {
                tracing::debug!(what, "listed");
                Some(Change::ListEnd)
            }
            Event::Apply(object) => facts(object).map(Change::Applied),
            Event::Delete(object) => facts(object).map(Change::Deleted),
        };
        if let Some(change) = change {
            tell(change);
        }
    }
}

/// A pod, as far as it is read.
#[derive(Clone, Debug, Default, Deserialize)]
struct TrimmedPod {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: TrimmedSpec,
    #[serde(default)]
    status: TrimmedStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TrimmedSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TrimmedStatus {
    phase: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<TrimmedAddress>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TrimmedAddress {
    ip: String,
}

impl Resource for TrimmedPod {
    type DynamicType = ();
    type Scope = <Pod as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn pod_facts(pod: TrimmedPod) -> PodFacts {
    let TrimmedPod {
        metadata,
        spec,
        status,
    } = pod;
    let addresses = status.pod_ips.unwrap_or_default();
    PodFacts {
        owner: owner(&metadata).map(|owner| (owner.kind.clone(), owner.name.clone())),
        namespace: metadata.namespace.unwrap_or_default(),
        name: metadata.name.unwrap_or_default(),
        uid: metadata.uid.unwrap_or_default(),
        node: spec.node_name.filter(|node| !node.is_empty()),
        labels: metadata.labels.unwrap_or_default().into_iter().collect(),
        addresses: addresses
            .iter()
            .filter_map(|address| address.ip.parse().ok())
            .collect(),
        network: match spec.host_network {
            Some(true) => PodNetwork::Host,
            _ => PodNetwork::Own,
        },
        life: match status.phase.as_deref() {
            Some("Succeeded" | "Failed") => Life::Over,
            _ => Life::Running,
        },
    }
}

fn set_facts(set: &PartialObjectMeta<ReplicaSet>) -> ReplicaSetFacts {
    let metadata = &set.metadata;
    let deployment = owner(metadata).filter(|owner| owner.kind == "Deployment");
    ReplicaSetFacts {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        deployment: deployment.map(|owner| owner.name.clone()),
    }
}

/// Pods alone: what else is behind a service is not in the cluster.
fn slice_facts(slice: EndpointSlice) -> Option<SliceFacts> {
    let service = slice.metadata.labels?.remove(SERVICE_LABEL)?;
    let targets = slice
        .endpoints
        .into_iter()
        .flatten()
        .filter_map(|endpoint| endpoint.target_ref);
    let pods = targets
        .filter(|target| target.kind.as_deref() == Some("Pod"))
        .filter_map(|target| target.name);
    Some(SliceFacts {
        namespace: slice.metadata.namespace?,
        name: slice.metadata.name?,
        service,
        pods: pods.collect(),
    })
}

fn owner(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    let owners = metadata.owner_references.as_ref()?;
    owners.iter().find(|owner| owner.controller == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_read_as_far_as_it_is_kept() {
        let pod: TrimmedPod = serde_json::from_value(serde_json::json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": "shop", "name": "cart-1-a", "uid": "u",
                "labels": {"app": "cart"},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Other", "name": "x", "uid": "1"},
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-1", "uid": "2", "controller": true},
                ],
            },
            "spec": {"nodeName": "w1", "hostNetwork": true, "containers": [{"name": "c"}]},
            "status": {"phase": "Succeeded", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "2001:db8::1"}]},
        }))
        .unwrap();
        let expected = PodFacts {
            namespace: "shop".into(),
            name: "cart-1-a".into(),
            uid: "u".into(),
            node: Some("w1".into()),
            owner: Some(("ReplicaSet".into(), "cart-1".into())),
            labels: vec![("app".into(), "cart".into())],
            addresses: vec!["10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            network: PodNetwork::Host,
            life: Life::Over,
        };
        assert_eq!(pod_facts(pod), expected);
        let bare: TrimmedPod = serde_json::from_str(r#"{"metadata":{"name":"a"}}"#).unwrap();
        assert_eq!(pod_facts(bare).node, None);
    }

    #[test]
    fn a_slice_is_of_the_service_that_its_label_names() {
        let slice = |labels: serde_json::Value| {
            let slice = serde_json::json!({
                "metadata": {"namespace": "shop", "name": "cart-x", "labels": labels},
                "addressType": "IPv4",
                "endpoints": [
                    {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "cart-1-a"}},
                    {"addresses": ["192.0.2.1"]},
                    {"addresses": ["10.0.0.2"], "conditions": {"ready": false}, "targetRef": {"kind": "Pod", "name": "cart-1-b"}},
                ],
            });
            slice_facts(serde_json::from_value(slice).unwrap())
        };
        let facts = slice(serde_json::json!({SERVICE_LABEL: "cart"})).unwrap();
        assert_eq!((facts.service.as_str(), facts.pods.len()), ("cart", 2));
        assert_eq!(slice(serde_json::json!({})), None);
    }
}
