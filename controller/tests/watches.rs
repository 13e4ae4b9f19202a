//! What the API server tells is what is known; and what was known stays so while it is away.

mod support;

use std::{sync::Arc, time::Duration};

use remora_capture::session::Selector;
use remora_controller::{
    cluster::{
        View,
        watches::{AgentPods, follow},
    },
    fleet::roster::Roster,
};
use serde_json::{Value, json};
use support::{
    PATIENCE,
    apiserver::{ApiServer, Mood},
};
use tokio::sync::watch;

struct Bed {
    server: ApiServer,
    view: Arc<View>,
    roster: watch::Receiver<Arc<Roster>>,
    following: tokio::task::JoinHandle<()>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Bed {
    async fn new() -> Self {
        let server = ApiServer::start().await;
        for n in 0..3 {
            server.apply("pods", pod(&format!("cart-{n}"), "cart-1"));
        }
        server.apply("replicasets", set("cart-1", "cart"));
        server.apply("nodes", json!({"metadata": {"name": "w1"}}));
        server.apply("endpointslices", slice(&["cart-0", "cart-2"]));
        let view = Arc::new(View::default());
        let (told, roster) = watch::channel(Arc::new(Roster::default()));
        let agents = AgentPods {
            namespace: "remora".into(),
            port: 2804,
        };
        let following = tokio::spawn(follow(
            server.client().into(),
            view.clone(),
            Some(agents),
            told,
        ));
        let bed = Self {
            server,
            view,
            roster,
            following,
        };
        bed.until("all was listed", || bed.view.is_synced()).await;
        bed
    }

    fn selected(&self, text: &str) -> usize {
        let selector = Selector::parse(text, "shop").unwrap();
        let members = self.view.members(&selector, Duration::ZERO, 100);
        members.map_or(0, |members| members.placed.len())
    }

    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let waiting = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // Longer than the longest pause after a failure.
        tokio::time::timeout(2 * PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| panic!("not so: {what}"));
    }
}

fn pod(name: &str, set: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "shop", "name": name, "uid": format!("uid-{name}"), "labels": {"app": "cart"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": "s", "controller": true}],
        },
        "spec": {"nodeName": "w1", "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
    })
}

fn set(name: &str, deployment: &str) -> Value {
    json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": {
            "namespace": "shop", "name": name,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment, "uid": "d", "controller": true}],
        },
    })
}

fn slice(pods: &[&str]) -> Value {
    let endpoints: Vec<_> = pods
        .iter()
        .map(|name| json!({"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": name}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "shop", "name": "cart-x", "labels": {"kubernetes.io/service-name": "cart"}},
        "addressType": "IPv4",
        "endpoints": endpoints,
    })
}

#[tokio::test]
async fn what_is_listed_and_what_comes_later_is_known() {
    let bed = Bed::new().await;
    assert_eq!(
        (bed.selected("deploy/cart"), bed.selected("svc/cart")),
        (3, 2)
    );
    assert_eq!(bed.selected("node/w1"), 1);
    bed.server.apply("pods", pod("cart-9", "cart-2"));
    bed.server.apply("replicasets", set("cart-2", "cart"));
    bed.until("a pod of another set joined", || {
        bed.selected("deploy/cart") == 4
    })
    .await;
    bed.server.delete("pods", "shop", "cart-0");
    bed.until("one left", || bed.selected("deploy/cart") == 3)
        .await;
    bed.server.apply("endpointslices", slice(&["cart-9"]));
    bed.until("the service has another", || bed.selected("svc/cart") == 1)
        .await;
}

#[tokio::test]
async fn what_was_known_stays_known_while_the_server_is_away() {
    let bed = Bed::new().await;
    for mood in [Mood::Failing(503), Mood::Failing(429), Mood::Failing(403)] {
        bed.server.mood(mood);
        bed.server.cut();
        let (lists, watches) = bed.server.requests();
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert_eq!(bed.selected("deploy/cart"), 3, "{mood:?}");
        assert_eq!(bed.server.requests(), (lists, watches));
    }
    bed.server.apply("pods", pod("cart-8", "cart-1"));
    bed.server.mood(Mood::Well);
    bed.until("what came meanwhile is known", || {
        bed.selected("deploy/cart") == 4
    })
    .await;
}

#[tokio::test]
async fn a_version_that_is_gone_is_listed_again() {
    let bed = Bed::new().await;
    let (lists, _) = bed.server.requests();
    // What goes while nobody watches is told by the list alone.
    bed.server.mood(Mood::Silent);
    bed.server.delete("pods", "shop", "cart-1");
    bed.server.apply("pods", pod("cart-7", "cart-1"));
    bed.server.compact();
    bed.server.mood(Mood::Well);
    bed.until("the list is what is so", || {
        bed.selected("deploy/cart") == 3 && bed.selected("pod/cart-7") == 1
    })
    .await;
    assert!(bed.server.requests().0 > lists);
}

#[tokio::test]
async fn a_watch_that_says_nothing_any_more_is_begun_again() {
    let bed = Bed::new().await;
    bed.server.mood(Mood::Silent);
    bed.server.apply("pods", pod("cart-6", "cart-1"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bed.selected("deploy/cart"), 3);
    bed.server.mood(Mood::Well);
    // At the latest when the watch's time is over; the connection is cut here to save that time.
    bed.server.cut();
    bed.until("it is known", || bed.selected("deploy/cart") == 4)
        .await;
}

#[tokio::test]
async fn agents_outside_of_their_namespace_are_none() {
    let bed = Bed::new().await;
    let agent = |namespace: &str, node: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": namespace, "name": format!("remora-agent-{node}"), "uid": format!("agent-{namespace}-{node}"),
                "labels": {"app.kubernetes.io/name": "remora-agent"},
            },
            "spec": {"nodeName": node, "hostNetwork": true},
            "status": {"phase": "Running", "podIPs": [{"ip": "192.0.2.7"}]},
        })
    };
    bed.server.apply("pods", agent("evil", "w1"));
    bed.server.apply("pods", agent("remora", "w2"));
    if "https://192.0.2.7:2804"
        .parse::<remora_proto::client::AgentAddress>()
        .is_err()
    {
        // This version has no way to agents over the network.
        bed.until("the pods are known", || {
            bed.view.read(|index| index.pods() == 5)
        })
        .await;
        assert!(bed.roster.borrow().is_empty());
        return;
    }
    bed.until("the agent is known", || bed.roster.borrow().len() == 1)
        .await;
    let roster = bed.roster.borrow().clone();
    assert_eq!(roster.address("w1"), None);
    assert_eq!(
        roster.address("w2").unwrap().to_string(),
        "https://192.0.2.7:2804"
    );
    bed.server.delete("pods", "remora", "remora-agent-w2");
    bed.until("it left", || bed.roster.borrow().is_empty())
        .await;
}
