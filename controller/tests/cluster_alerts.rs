//! Alerts in a cluster: each scope's pods, on their nodes' agents; nobody waits for the API server.

mod support;

use std::sync::Arc;

use remora_controller::{
    cluster::index::{Change, PodFacts, SliceFacts},
    dispatch::Dispatch,
    ingest::{Delivery, Handled, Ingest},
    outcome::{Outcome, RefusalCode},
};
use remora_proto::v1::{self, target::Target};
use remora_rules::Rules;
use serde_json::{Value, json};
use support::{alert, bed::Bed, nodes::Temper};
use tokio::sync::watch;

fn rules(parameters: &str) -> watch::Receiver<Arc<Rules>> {
    let text = format!(
        "- rule: any\n  actions:\n    - action: capture\n      actionner: remora:capture\n      \
         parameters: {{duration: 30s, {parameters}}}\n"
    );
    watch::channel(Arc::new(Rules::parse([("any", text.as_str())]).unwrap())).1
}

/// An alert of pod `cart-2` on node `w2`, of its connection to `remote`.
fn of_cart_2(remote: &str) -> Value {
    let mut alert = alert(remote);
    alert["hostname"] = json!("w2");
    let fields = &mut alert["output_fields"];
    fields["k8s.pod.name"] = json!("cart-2");
    fields["k8s.pod.uid"] = json!("uid-cart-2");
    fields["fd.cip"] = json!("10.244.1.7");
    alert
}

async fn handled(bed: &Bed, parameters: &str, alert: &Value) -> Handled {
    let (dispatch, _roster) = bed.dispatch();
    let ingest = Ingest::new(rules(parameters), Dispatch::Cluster(dispatch));
    let delivery = Delivery {
        alert: serde_json::to_vec(alert).unwrap(),
        requester: "Falcosidekick".into(),
        traceparent: String::new(),
        arrived: jiff::Timestamp::now(),
        event_id: None,
        action: None,
    };
    ingest.handle(delivery).await
}

/// What each node was asked to capture, in one word each.
fn asked(bed: &Bed) -> Vec<Vec<String>> {
    let target = |start: &v1::StartRequest| {
        let spec = start.spec.as_ref().unwrap();
        match spec.target.as_ref().unwrap().target.as_ref().unwrap() {
            Target::Pod(pod) => pod.name.clone(),
            Target::ContainerId(id) => id.clone(),
            Target::CgroupPath(path) => path.clone(),
            other => format!("{other:?}"),
        }
    };
    let starts = bed
        .nodes
        .iter()
        .map(|node| node.state.starts.lock().unwrap().clone());
    starts
        .map(|starts| starts.iter().map(target).collect())
        .collect()
}

#[tokio::test]
async fn each_scope_has_its_pods_on_their_nodes() {
    for (parameters, expected) in [
        ("scope: container", [vec![], vec!["ee97d9c4186f"], vec![]]),
        ("scope: pod", [vec![], vec!["cart-2"], vec![]]),
        (
            "scope: deployment",
            [vec!["cart-1"], vec!["cart-2"], vec!["cart-3"]],
        ),
        ("scope: service", [vec![], vec!["cart-2"], vec!["cart-3"]]),
        ("scope: node", [vec![], vec!["/"], vec![]]),
    ] {
        let bed = Bed::new();
        bed.view.write(|index, _| {
            index.slice(Change::Applied(SliceFacts {
                namespace: "shop".into(),
                name: "cart-x".into(),
                service: "cart".into(),
                pods: vec!["cart-2".into(), "cart-3".into()],
            }));
        });
        let handled = handled(&bed, parameters, &of_cart_2("192.0.2.1")).await;
        let Outcome::Accepted(id) = handled.outcome else {
            panic!("{parameters}: {:?}", handled.outcome);
        };
        assert_eq!(asked(&bed), expected, "{parameters}");
        for node in &bed.nodes {
            for start in node.state.starts.lock().unwrap().iter() {
                let spec = start.spec.as_ref().unwrap();
                assert_eq!(spec.part.as_ref().unwrap().capture, id.to_string());
                assert_eq!(spec.filter, "host 192.0.2.1 and tcp port 4444");
                assert_eq!(
                    spec.trigger.as_ref().unwrap().rule,
                    "Outbound Connection to C2 Servers"
                );
            }
        }
    }
}

#[tokio::test]
async fn the_other_end_is_captured_with_this_ends_address() {
    let bed = Bed::new();
    let database = PodFacts {
        namespace: "bank".into(),
        name: "db-0".into(),
        uid: "uid-db-0".into(),
        node: Some("w3".into()),
        addresses: vec!["10.244.9.9".parse().unwrap()],
        ..PodFacts::default()
    };
    bed.view
        .write(|index, now| index.pod(Change::Applied(database), now));
    let handled_it = handled(&bed, "both_ends: true", &of_cart_2("10.244.9.9")).await;
    assert!(
        matches!(handled_it.outcome, Outcome::Accepted(_)),
        "{:?}",
        handled_it.outcome
    );
    assert_eq!(asked(&bed), [vec![], vec!["ee97d9c4186f"], vec!["db-0"]]);
    let starts = bed.nodes[2].state.starts.lock().unwrap().clone();
    let filter = &starts[0].spec.as_ref().unwrap().filter;
    assert!(
        filter.contains("host 10.244.9.9") && filter.contains("host 10.244.1.7"),
        "{filter}"
    );
    // An end outside of the cluster has nobody to capture it.
    let bed = Bed::new();
    let outside = handled(&bed, "both_ends: true", &of_cart_2("192.0.2.1")).await;
    assert!(
        matches!(outside.outcome, Outcome::Accepted(_)),
        "{:?}",
        outside.outcome
    );
    assert_eq!(asked(&bed), [vec![], vec!["ee97d9c4186f"], vec![]]);
}

#[tokio::test]
async fn without_a_hostname_the_pod_tells_the_node() {
    let bed = Bed::new();
    let mut alert = of_cart_2("192.0.2.1");
    alert["hostname"] = json!("falco-x7k2p");
    let found = handled(&bed, "scope: container", &alert).await;
    assert!(
        matches!(found.outcome, Outcome::Accepted(_)),
        "{:?}",
        found.outcome
    );
    assert_eq!(asked(&bed)[1].len(), 1);
    for key in ["k8s.pod.name", "k8s.ns.name"] {
        alert["output_fields"].as_object_mut().unwrap().remove(key);
    }
    let nobody = handled(&bed, "scope: container", &alert).await;
    let Outcome::Refused(refusal) = nobody.outcome else {
        panic!("{:?}", nobody.outcome);
    };
    assert_eq!(refusal.code, RefusalCode::AgentAway);
    assert!(refusal.reason.contains("falco-x7k2p"), "{}", refusal.reason);
}

#[tokio::test]
async fn the_same_alert_through_two_controllers_is_one_capture() {
    let bed = Bed::new();
    let alert = of_cart_2("192.0.2.1");
    let first = handled(&bed, "scope: deployment", &alert).await.outcome;
    let second = handled(&bed, "scope: deployment", &alert).await.outcome;
    let Outcome::Accepted(id) = first else {
        panic!("{first:?}");
    };
    assert_eq!(second, Outcome::Existing(id));
    assert_eq!(bed.captured().concat().len(), 3);
}

#[tokio::test]
async fn what_cannot_be_found_is_refused_with_its_reason() {
    let bed = Bed::new();
    let refused = |handled: Handled| match handled.outcome {
        Outcome::Refused(refusal) => (refusal.code, refusal.reason),
        other => panic!("{other:?}"),
    };
    let (code, reason) = refused(handled(&bed, "scope: service", &of_cart_2("192.0.2.1")).await);
    assert_eq!(code, RefusalCode::NoTarget);
    assert_eq!(reason, "pod shop/cart-2 is behind no service");
    let mut nameless = of_cart_2("192.0.2.1");
    nameless["output_fields"]
        .as_object_mut()
        .unwrap()
        .remove("k8s.pod.name");
    let (code, reason) = refused(handled(&bed, "scope: deployment", &nameless).await);
    assert_eq!(code, RefusalCode::NoTarget);
    assert!(reason.contains("append_output"), "{reason}");
    for node in &bed.nodes {
        node.temper(Temper::Silent);
    }
    let (code, _) = refused(handled(&bed, "scope: deployment", &of_cart_2("192.0.2.1")).await);
    assert_eq!(code, RefusalCode::AgentTimeout);
    assert_eq!(bed.captured(), [[""; 0]; 3]);
}
