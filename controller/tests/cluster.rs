//! Captures over several nodes: started, found again, joined, merged; with agents that fail.

mod support;

use std::time::Duration;

use remora_capture::pcapng::read_packets;
use remora_controller::{cluster::index::Change, fleet::Fleet};
use remora_proto::{
    client::AgentAddress,
    reason::{Reason, reason_of},
    v1,
};
use support::{
    Behaviour, FakeAgent, PATIENCE,
    bed::{Bed, request},
    nodes::{TRUE_NS, Temper},
};
use tonic::Code;

#[tokio::test]
async fn each_member_is_captured_on_its_node_and_any_controller_finds_the_whole() {
    let bed = Bed::new();
    let [one, other] = [bed.controller("one").await, bed.controller("other").await];
    let capture = one.started("deploy/cart").await;
    assert_eq!(capture.parts.len(), 3);
    assert_eq!(bed.captured(), [["cart-1"], ["cart-2"], ["cart-3"]]);
    for node in &bed.nodes {
        let starts = node.state.starts.lock().unwrap();
        let spec = starts[0].spec.as_ref().unwrap();
        assert_eq!(spec.part.as_ref().unwrap().capture, capture.id);
        assert!(spec.trigger.as_ref().unwrap().requester.starts_with("uid="));
    }
    let found = other.get(&capture.id).await.unwrap();
    assert_eq!(
        (found.phase(), found.parts.len()),
        (v1::Phase::Capturing, 3)
    );
    assert_eq!(found.selector, capture.selector);
    let list = v1::ClusterListRequest::default();
    let list = other.client.clone().list(list).await.unwrap().into_inner();
    assert_eq!((list.captures.len(), list.missing.len()), (1, 0));
    let stopped = other.stop(&capture.id).await;
    assert_eq!(stopped.phase(), v1::Phase::Finished);
    assert_eq!(stopped.counts.unwrap().written, 15);
    assert_eq!(bed.captured(), [[""; 0]; 3]);
}

#[tokio::test]
async fn agents_that_fail_are_parts_that_are_missing() {
    let bed = Bed::new();
    let controller = bed.controller("one").await;
    bed.nodes[1].temper(Temper::Silent);
    let began = std::time::Instant::now();
    let capture = controller.started("deploy/cart").await;
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(bed.captured(), [vec!["cart-1"], vec![], vec!["cart-3"]]);
    let missing: Vec<_> = capture
        .parts
        .iter()
        .filter(|part| !part.error.is_empty())
        .collect();
    assert_eq!(missing.len(), 1);
    assert_eq!(
        (
            missing[0].node.as_str(),
            missing[0].pod.as_ref().unwrap().name.as_str()
        ),
        ("w2", "cart-2")
    );
    assert!(
        missing[0].error.contains("did not answer in time"),
        "{}",
        missing[0].error
    );
    assert!(
        capture.message.contains("1 of 3 parts"),
        "{}",
        capture.message
    );
    // Who asks is told that something may be missing.
    let found = controller.get(&capture.id).await.unwrap();
    assert!(
        found.message.contains("node w2 did not tell its part"),
        "{}",
        found.message
    );
    // When it is back it has its part.
    bed.nodes[1].temper(Temper::Well);
    bed.until("the part that was missing", |bed| {
        bed.captured()[1] == ["cart-2"]
    })
    .await;
}

/// The parts that are missing, as (node, why).
fn missing(capture: &v1::ClusterCapture) -> Vec<(&str, &str)> {
    let parts = capture.parts.iter().filter(|part| !part.error.is_empty());
    parts
        .map(|part| (part.node.as_str(), part.error.as_str()))
        .collect()
}

#[tokio::test]
async fn an_agent_that_answers_too_late_has_its_part_once() {
    let bed = Bed::new();
    let controller = bed.controller("one").await;
    bed.nodes[1].temper(Temper::Late);
    let capture = controller.started("deploy/cart").await;
    let [(node, why)] = missing(&capture)[..] else {
        panic!("{capture:?}");
    };
    assert!(
        node == "w2" && why.contains("did not answer in time"),
        "{why}"
    );
    bed.nodes[1].temper(Temper::Well);
    // It is asked again, by the same key.
    let asked = |bed: &Bed| bed.nodes[1].state.starts.lock().unwrap().len();
    bed.until("another question", |bed| asked(bed) > 1).await;
    assert_eq!(bed.captured(), [["cart-1"], ["cart-2"], ["cart-3"]]);
    let found = controller.get(&capture.id).await.unwrap();
    assert_eq!((found.parts.len(), missing(&found).len()), (3, 0));
}

#[tokio::test]
async fn an_agent_that_talks_nonsense_spoils_its_own_part_alone() {
    let mut bed = Bed::new();
    bed.nodes[1].babble();
    let controller = bed.controller("one").await;
    bed.nodes[0].temper(Temper::Nameless);
    let capture = controller.started("deploy/cart").await;
    let nodes: Vec<_> = missing(&capture).iter().map(|(node, _)| *node).collect();
    assert_eq!(nodes, ["w1", "w2"], "{capture:?}");
    for (node, why) in missing(&capture) {
        assert!(!why.contains('\u{1b}'), "{node}: {why:?}");
    }
    assert!(
        capture.message.contains("2 of 3 parts"),
        "{}",
        capture.message
    );
    // Its packets are there.
    bed.nodes[0].temper(Temper::Garbled);
    controller.stop(&capture.id).await;
    let (file, finished) = controller.stream(&capture.id).await;
    let packets = read_packets(&file[..]).unwrap();
    assert_eq!(packets.len(), 5, "{finished:?}");
    for packet in &packets {
        assert!(packet.data[14..].starts_with(b"cart-3:"));
    }
    assert!(finished.message.contains("w1"), "{}", finished.message);
    assert!(finished.message.contains("w2"), "{}", finished.message);
}

#[tokio::test]
async fn with_no_part_there_is_no_capture() {
    let bed = Bed::new();
    let controller = bed.controller("one").await;
    for (temper, code, reason) in [
        (
            Temper::Full,
            Code::ResourceExhausted,
            Some(Reason::SessionLimit),
        ),
        (Temper::Empty, Code::Internal, None),
    ] {
        for node in &bed.nodes {
            node.temper(temper);
        }
        let error = controller.start(request("deploy/cart")).await.unwrap_err();
        assert_eq!(
            (error.code(), reason_of(&error)),
            (code, reason),
            "{error:?}"
        );
    }
    let nobody = controller
        .get("01J0000000000000000000000A")
        .await
        .unwrap_err();
    assert_eq!(reason_of(&nobody), Some(Reason::CaptureNotFound));
}

#[tokio::test]
async fn what_selects_nobody_or_too_many_starts_nothing() {
    let bed = Bed::new();
    let controller = bed.controller("one").await;
    for n in 0..11 {
        bed.pod(&format!("many-{n}"), "w1");
    }
    for (text, code, told) in [
        (
            "deploy/kart",
            Code::NotFound,
            "there is no deployment `kart` in namespace `shop`; there is `cart`",
        ),
        (
            "deploy/cart",
            Code::InvalidArgument,
            "has 14 pods; at most 10 are",
        ),
        (
            "node/w9",
            Code::NotFound,
            "there is no node `w9`; there is `w1`, `w2`, `w3`",
        ),
    ] {
        let error = controller.start(request(text)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
        assert!(error.message().contains(told), "{}", error.message());
    }
    let spoiled = v1::ClusterStartRequest {
        selector: None,
        ..request("deploy/cart")
    };
    let error = controller.start(spoiled).await.unwrap_err();
    assert_eq!(reason_of(&error), Some(Reason::InvalidSpec));
    assert_eq!(bed.captured(), [[""; 0]; 3]);
}

#[tokio::test]
async fn pods_that_come_join_once_whoever_lets_them() {
    let bed = Bed::new();
    let [one, other] = [bed.controller("one").await, bed.controller("other").await];
    let growing = one.started("deploy/cart").await;
    bed.pod("cart-4", "w2");
    bed.until("a pod joined", |bed| {
        bed.captured()[1].contains(&"cart-4".to_owned())
    })
    .await;
    // The one that started it dies; the other has found it by then, or finds it.
    drop(one);
    bed.pod("cart-5", "w3");
    bed.until("another joined", |bed| {
        bed.captured()[2].contains(&"cart-5".to_owned())
    })
    .await;
    let found = other.get(&growing.id).await.unwrap();
    assert_eq!(found.parts.len(), 5);
    assert_eq!(
        bed.captured(),
        [
            vec!["cart-1"],
            vec!["cart-2", "cart-4"],
            vec!["cart-3", "cart-5"]
        ]
    );
    // It has the pod's beginning.
    let starts = bed.nodes[2].state.starts.lock().unwrap().clone();
    let joined = starts
        .iter()
        .find(|start| start.idempotency_key.ends_with("/uid-cart-5"));
    assert!(joined.unwrap().spec.as_ref().unwrap().look_back.is_some());
}

#[tokio::test]
async fn nobody_joins_what_is_fixed_or_stopped() {
    let bed = Bed::new();
    let controller = bed.controller("one").await;
    let fixed = v1::ClusterStartRequest {
        fixed: true,
        ..request("deploy/cart")
    };
    controller.start(fixed).await.unwrap();
    let stopped = controller.started("deploy/cart").await;
    controller.stop(&stopped.id).await;
    // A capture that pods do join shows when they would have.
    let growing = controller.started("rs/cart-rs").await;
    bed.pod("cart-4", "w2");
    bed.until("a pod joined", |bed| {
        bed.captured()[1].contains(&"cart-4".to_owned())
    })
    .await;
    let starts = bed.nodes[1].state.starts.lock().unwrap().clone();
    let joined: Vec<_> = starts
        .iter()
        .filter(|start| start.idempotency_key.ends_with("/uid-cart-4"))
        .map(|start| start.spec.clone().unwrap().part.unwrap().capture)
        .collect();
    assert_eq!(joined, [growing.id]);
}

#[tokio::test]
async fn the_same_key_is_the_same_capture_for_two_controllers() {
    let bed = Bed::new();
    let [one, other] = [bed.controller("one").await, bed.controller("other").await];
    let keyed = v1::ClusterStartRequest {
        idempotency_key: "again".into(),
        spec: Some(v1::CaptureSpec {
            trigger: Some(v1::Trigger {
                time: Some(prost_types::Timestamp {
                    seconds: 1_795_489_205,
                    nanos: 0,
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..request("deploy/cart")
    };
    let first = one.start(keyed.clone()).await.unwrap();
    let second = other.start(keyed).await.unwrap();
    assert_eq!((first.existing, second.existing), (false, true));
    assert_eq!(first.capture.unwrap().id, second.capture.unwrap().id);
    assert_eq!(bed.captured().concat().len(), 3);
}

/// Every packet once, in the order of the true time, whatever the nodes' clocks say.
fn in_true_order(file: &[u8], pods: u64, packets: u64) {
    let found = read_packets(file).unwrap();
    let mut names: Vec<_> = found
        .iter()
        .map(|p| String::from_utf8_lossy(&p.data[14..]).into_owned())
        .collect();
    let seconds: Vec<_> = names
        .iter()
        .map(|name| name.split_once(':').unwrap().1.parse::<u64>().unwrap())
        .collect();
    assert!(seconds.is_sorted(), "{names:?}");
    for (packet, second) in found.iter().zip(&seconds) {
        // Corrected by what was measured.
        let off = packet.time_ns.abs_diff(TRUE_NS + second * 1_000_000_000);
        assert!(off < 200_000_000, "{off} ns");
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len() as u64, pods * packets);
}

#[tokio::test]
async fn an_ended_capture_is_one_file_in_true_order() {
    // The third clock is 500 ms ahead, the packets a second apart.
    let bed = Bed::new();
    let controller = bed.controller("one").await;
    let capture = controller.started("deploy/cart").await;
    controller.stop(&capture.id).await;
    let (file, finished) = controller.stream(&capture.id).await;
    in_true_order(&file, 3, 5);
    assert_eq!(finished.phase(), v1::Phase::Finished);
    assert_eq!(finished.message, "");
}

#[tokio::test]
async fn a_running_capture_streams_until_its_end_with_who_joins() {
    let bed = Bed::with(|_| Duration::ZERO, 3);
    let controller = bed.controller("one").await;
    let capture = controller.started("deploy/cart").await;
    let ending = async {
        bed.pod("cart-4", "w2");
        bed.until("a pod joined", |bed| {
            bed.captured()[1].contains(&"cart-4".to_owned())
        })
        .await;
        // The stream looks for who joined once a second.
        tokio::time::sleep(Duration::from_secs(3)).await;
        controller.stop(&capture.id).await
    };
    let ((file, finished), _) = tokio::join!(controller.stream(&capture.id), ending);
    let packets = read_packets(&file[..]).unwrap();
    assert_eq!(packets.len(), 12, "{finished:?}");
    assert_eq!(finished.parts.len(), 4);
    assert_eq!(finished.phase(), v1::Phase::Finished);
    // Those of the fourth came after later ones were written, and say so.
    let late = packets
        .iter()
        .filter(|p| p.comments.iter().any(|c| c.starts_with("out of order")))
        .count();
    assert_eq!(
        finished.message.contains("out of order"),
        late > 0,
        "{}",
        finished.message
    );
}

#[tokio::test]
async fn a_part_that_cannot_be_read_is_told_and_the_rest_is_there() {
    let bed = Bed::new();
    let controller = bed.controller("one").await;
    let capture = controller.started("deploy/cart").await;
    controller.stop(&capture.id).await;
    bed.nodes[0].temper(Temper::Silent);
    let (file, finished) = controller.stream(&capture.id).await;
    let packets = read_packets(&file[..]).unwrap();
    // It tells neither its sessions nor its packets.
    assert_eq!(packets.len(), 10);
    assert!(
        finished.message.contains("node w1 did not tell its part"),
        "{}",
        finished.message
    );
}

#[tokio::test]
async fn a_watch_ends_with_the_capture() {
    let bed = Bed::new();
    let controller = bed.controller("one").await;
    let capture = controller.started("deploy/cart").await;
    let request = v1::ClusterWatchRequest {
        id: capture.id.clone(),
    };
    let mut states = controller
        .client
        .clone()
        .watch(request)
        .await
        .unwrap()
        .into_inner();
    let first = states.message().await.unwrap().unwrap().capture.unwrap();
    assert_eq!(first.phase(), v1::Phase::Capturing);
    controller.stop(&capture.id).await;
    let mut last = first;
    while let Some(state) = states.message().await.unwrap() {
        last = state.capture.unwrap();
    }
    assert_eq!(last.phase(), v1::Phase::Finished);
}

#[tokio::test]
async fn status_tells_nodes_their_agents_and_their_clocks() {
    let mut bed = Bed::new();
    bed.view
        .write(|index, _| index.node(Change::Applied("w4".into())));
    let controller = bed.controller("one").await;
    bed.nodes.remove(1);
    let status = controller
        .client
        .clone()
        .status(v1::ClusterStatusRequest {})
        .await;
    let status = status.unwrap().into_inner();
    assert!(status.synced);
    let reachable: Vec<_> = status
        .nodes
        .iter()
        .map(|n| (n.node.as_str(), n.reachable))
        .collect();
    assert_eq!(
        reachable,
        [("w1", true), ("w2", false), ("w3", true), ("w4", false)]
    );
    let offset = status.nodes[2].clock_offset.unwrap();
    let offset = offset.seconds * 1000 + i64::from(offset.nanos) / 1_000_000;
    assert!((400..600).contains(&offset), "{offset} ms");
    assert!(
        status.nodes[1].error.contains("remora-agent"),
        "{}",
        status.nodes[1].error
    );
    assert!(
        status.nodes[3].error.contains("no agent"),
        "{}",
        status.nodes[3].error
    );
}

/// The agent may have done it: it answers as then, if it is told that it was asked before.
#[tokio::test]
async fn a_deletion_and_a_release_whose_answers_were_lost_are_asked_for_again_and_say_so() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    for is_deletion in [true, false] {
        let mut agent = FakeAgent::listen(socket.clone(), Behaviour::Arm);
        let remote = Fleet::of_host(AgentAddress::Unix(socket.clone()))
            .agent("host")
            .unwrap();
        let call = async {
            if is_deletion {
                let request = v1::DeleteRequest::default();
                remote.delete(&request).await.map(drop)
            } else {
                let request = v1::ReleaseRequest::default();
                remote.release(&request).await.map(drop)
            }
        };
        let lost = async {
            agent.asked().await;
            agent.start_again();
        };
        let (answer, ()) = tokio::join!(call, lost);
        answer.unwrap();
        assert_eq!(agent.kept(), [false, true]);
    }
}
