//! A cluster of fake nodes, and controllers of it in this process.

use std::{sync::Arc, time::Duration};

use remora_capture::session::Selector;
use remora_controller::{
    api::{
        ClusterService,
        access::{Access, LocalAccess},
        listen::{GrpcAddress, GrpcListener},
    },
    args::TlsArgs,
    cluster::{
        View,
        index::{Change, PodFacts, ReplicaSetFacts},
    },
    dispatch::ClusterDispatch,
    fleet::{Fleet, connections, joining::Joining, roster::Roster},
};
use remora_proto::{
    client::{self, AgentAddress},
    v1::{self, cluster_client::ClusterClient, cluster_stream_response::Message},
};
use tokio::{sync::watch, task::JoinHandle};
use tonic::{Status, transport::Channel};

use super::{PATIENCE, nodes::FakeNode};

pub(crate) const NODES: [&str; 3] = ["w1", "w2", "w3"];

/// Fake agents, and one or more controllers that know the same cluster.
pub(crate) struct Bed {
    dir: tempfile::TempDir,
    pub(crate) nodes: Vec<FakeNode>,
    pub(crate) view: Arc<View>,
}

impl Bed {
    /// Pods `cart-1` to `cart-3` of one deployment, one on each node.
    pub(crate) fn new() -> Self {
        Self::with(|n| Duration::from_millis(250) * n, 5)
    }

    pub(crate) fn with(skew: impl Fn(u32) -> Duration, packets: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let nodes = (0..).zip(NODES);
        let nodes = nodes.map(|(n, name)| FakeNode::listen(dir.path(), name, skew(n), packets));
        let bed = Self {
            nodes: nodes.collect(),
            view: Arc::default(),
            dir,
        };
        bed.view.write(|index, _| {
            for node in NODES {
                index.node(Change::Applied(node.into()));
            }
            index.replica_set(Change::Applied(ReplicaSetFacts {
                namespace: "shop".into(),
                name: "cart-rs".into(),
                deployment: Some("cart".into()),
            }));
        });
        for (n, node) in (1..).zip(NODES) {
            bed.pod(&format!("cart-{n}"), node);
        }
        bed.view.set_synced();
        bed
    }

    pub(crate) fn pod(&self, name: &str, node: &str) {
        let facts = PodFacts {
            namespace: "shop".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            node: Some(node.into()),
            owner: Some(("ReplicaSet".into(), "cart-rs".into())),
            ..PodFacts::default()
        };
        self.view
            .write(|index, now| index.pod(Change::Applied(facts), now));
    }

    /// What alerts are started by; the sender keeps the agents known.
    pub(crate) fn dispatch(&self) -> (ClusterDispatch, watch::Sender<Arc<Roster>>) {
        let roster: Roster = self
            .nodes
            .iter()
            .zip(NODES)
            .map(|(node, name)| (name.into(), AgentAddress::Unix(node.socket.clone())))
            .collect();
        let (sender, roster) = watch::channel(Arc::new(roster));
        let fleet = Arc::new(Fleet::new(roster, connections::plain()));
        let joining = Arc::new(Joining::new(fleet.clone(), self.view.clone()));
        let dispatch = ClusterDispatch {
            view: self.view.clone(),
            fleet,
            joining,
            members_max: 10,
        };
        (dispatch, sender)
    }

    pub(crate) async fn controller(&self, name: &str) -> Controller {
        let socket = self.dir.path().join(format!("{name}.sock"));
        let address = GrpcAddress::Unix(socket.clone());
        let tls = TlsArgs::default();
        let listener = GrpcListener::bind(&address, &tls).await.unwrap();
        let channel = async || client::connect(&AgentAddress::Unix(socket)).await.unwrap();
        self.serving(listener, Arc::new(LocalAccess), channel).await
    }

    /// One that serves there, for those whom `access` lets.
    pub(crate) async fn serving(
        &self,
        listener: GrpcListener,
        access: Arc<dyn Access>,
        connect: impl AsyncFnOnce() -> Channel,
    ) -> Controller {
        let (dispatch, sender) = self.dispatch();
        let ClusterDispatch {
            view,
            fleet,
            joining,
            members_max,
        } = dispatch;
        let following = joining.clone();
        let service = ClusterService::new(view, fleet, joining, access, members_max);
        let tasks = vec![
            tokio::spawn(async move { following.run().await }),
            tokio::spawn(async move {
                listener
                    .serve(service, std::future::pending())
                    .await
                    .unwrap();
            }),
        ];
        let client = ClusterClient::new(connect().await).max_decoding_message_size(16 << 20);
        Controller {
            client,
            tasks,
            _roster: sender,
        }
    }

    pub(crate) fn captured(&self) -> Vec<Vec<String>> {
        self.nodes.iter().map(FakeNode::pods).collect()
    }

    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(2 * PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| panic!("not so: {what}: {:?}", self.captured()));
    }
}

pub(crate) struct Controller {
    pub(crate) client: ClusterClient<Channel>,
    tasks: Vec<JoinHandle<()>>,
    _roster: watch::Sender<Arc<Roster>>,
}

impl Drop for Controller {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

pub(crate) fn request(text: &str) -> v1::ClusterStartRequest {
    let selector = Selector::parse(text, "shop").unwrap();
    v1::ClusterStartRequest {
        selector: Some((&selector).into()),
        spec: Some(v1::CaptureSpec {
            filter: "tcp port 80".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Controller {
    pub(crate) async fn start(
        &self,
        request: v1::ClusterStartRequest,
    ) -> Result<v1::ClusterStartResponse, Status> {
        Ok(self.client.clone().start(request).await?.into_inner())
    }

    pub(crate) async fn started(&self, text: &str) -> v1::ClusterCapture {
        self.start(request(text)).await.unwrap().capture.unwrap()
    }

    pub(crate) async fn get(&self, id: &str) -> Result<v1::ClusterCapture, Status> {
        let request = v1::ClusterGetRequest { id: id.into() };
        Ok(self
            .client
            .clone()
            .get(request)
            .await?
            .into_inner()
            .capture
            .unwrap())
    }

    pub(crate) async fn stop(&self, id: &str) -> v1::ClusterCapture {
        let request = v1::ClusterStopRequest { id: id.into() };
        self.client
            .clone()
            .stop(request)
            .await
            .unwrap()
            .into_inner()
            .capture
            .unwrap()
    }

    /// All blocks, and the final state.
    pub(crate) async fn stream(&self, id: &str) -> (Vec<u8>, v1::ClusterCapture) {
        let request = v1::ClusterStreamRequest { id: id.into() };
        let mut messages = self
            .client
            .clone()
            .stream(request)
            .await
            .unwrap()
            .into_inner();
        let mut file = Vec::new();
        while let Some(message) = messages.message().await.unwrap() {
            match message.message.unwrap() {
                Message::Blocks(blocks) => file.extend_from_slice(&blocks),
                Message::Finished(capture) => return (file, capture),
            }
        }
        panic!("the stream ended without its final state");
    }
}
