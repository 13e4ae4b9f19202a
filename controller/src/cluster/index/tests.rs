use proptest::{collection::vec, prelude::*};
use remora_capture::session::{Selector, WorkloadKind};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn pod(namespace: &str, name: &str, owner: Option<(&str, &str)>, node: &str) -> PodFacts {
    PodFacts {
        namespace: namespace.into(),
        name: name.into(),
        uid: format!("uid-{namespace}-{name}"),
        node: (!node.is_empty()).then(|| node.into()),
        owner: owner.map(|(kind, name)| (kind.into(), name.into())),
        labels: vec![("app".into(), "cart".into())],
        ..PodFacts::default()
    }
}

fn set(namespace: &str, name: &str, deployment: &str) -> ReplicaSetFacts {
    ReplicaSetFacts {
        namespace: namespace.into(),
        name: name.into(),
        deployment: Some(deployment.into()),
    }
}

fn parse(text: &str) -> Selector {
    match text.strip_prefix("-l ") {
        Some(labels) => Selector::Labels {
            namespace: "shop".into(),
            labels: labels.into(),
        },
        None => Selector::parse(text, "shop").unwrap(),
    }
}

fn selected(index: &Index, text: &str) -> Result<Vec<String>, NoMembers> {
    let members = index.members(
        &parse(text),
        Duration::ZERO,
        Duration::ZERO,
        MEMBERS_DEFAULT,
    )?;
    let name = |member: Member| match member.pod {
        Some(pod) => pod.name,
        None => member.node,
    };
    Ok(members.placed.into_iter().map(name).collect())
}

fn shop() -> Index {
    let mut index = Index::default();
    for facts in [
        pod("shop", "cart-1-a", Some(("ReplicaSet", "cart-1")), "w1"),
        pod("shop", "cart-2-b", Some(("ReplicaSet", "cart-2")), "w2"),
        pod("shop", "db-0", Some(("StatefulSet", "db")), "w1"),
        pod("shop", "log-x", Some(("DaemonSet", "log")), "w2"),
        pod("shop", "once-y", Some(("Job", "once")), "w1"),
        pod("bank", "cart-1-a", Some(("ReplicaSet", "cart-1")), "w1"),
    ] {
        index.pod(Change::Applied(facts), Duration::ZERO);
    }
    for facts in [
        set("shop", "cart-1", "cart"),
        set("shop", "cart-2", "cart"),
        set("shop", "idle-1", "idle"),
        set("bank", "cart-1", "cart"),
    ] {
        index.replica_set(Change::Applied(facts));
    }
    index.slice(Change::Applied(SliceFacts {
        namespace: "shop".into(),
        name: "cart-abc".into(),
        service: "cart".into(),
        pods: vec!["cart-2-b".into(), "db-0".into()],
    }));
    for node in ["w1", "w2"] {
        index.node(Change::Applied(node.into()));
    }
    index
}

#[test]
fn each_kind_selects_its_pods_and_no_others() {
    let index = shop();
    for (text, expected) in [
        ("pod/db-0", vec!["db-0"]),
        ("deploy/cart", vec!["cart-1-a", "cart-2-b"]),
        ("rs/cart-1", vec!["cart-1-a"]),
        ("sts/db", vec!["db-0"]),
        ("ds/log", vec!["log-x"]),
        ("job/once", vec!["once-y"]),
        ("svc/cart", vec!["cart-2-b", "db-0"]),
        (
            "-l app=cart,app!=db",
            vec!["cart-1-a", "cart-2-b", "db-0", "log-x", "once-y"],
        ),
        ("node/w2", vec!["w2"]),
    ] {
        let mut found = selected(&index, text).unwrap_or_else(|e| panic!("{text}: {e}"));
        found.sort();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn who_selects_nobody_is_told_what_is_near() {
    let index = shop();
    for (text, told) in [
        (
            "pod/crat-1-a",
            "there is no pod `crat-1-a` in namespace `shop`; there is `cart-1-a`",
        ),
        (
            "deploy/car",
            "there is no deployment `car` in namespace `shop`; there is `cart`, `idle`",
        ),
        (
            "deploy/idle",
            "deploy/idle in namespace `shop` has no pod that runs",
        ),
        (
            "svc/kart",
            "there is no service `kart` in namespace `shop`; there is `cart`",
        ),
        (
            "sts/dab",
            "there is no stateful set `dab` in namespace `shop`; there is `db`",
        ),
        (
            "-l app=kart",
            "no pod in namespace `shop` has labels app=kart; it has 5 pods",
        ),
        ("node/w3", "there is no node `w3`; there is `w1`, `w2`"),
        (
            "-l app in",
            "`app in` in the label selector is not understood",
        ),
    ] {
        let error = selected(&index, text).unwrap_err().to_string();
        assert!(error.starts_with(told), "{text}: {error}");
    }
    let elsewhere = Selector::parse("deploy/cart", "shopp").unwrap();
    let error = index.members(&elsewhere, Duration::ZERO, Duration::ZERO, 100);
    let error = error.unwrap_err().to_string();
    assert_eq!(
        error,
        "there is nothing in namespace `shopp`; -n NAME names another one"
    );
}

#[test]
fn too_many_are_refused_with_the_limit() {
    let mut index = Index::default();
    for n in 0..2000 {
        let facts = pod("shop", &format!("p{n}"), None, "w1");
        index.pod(Change::Applied(facts), Duration::ZERO);
    }
    for (most, limit) in [(100, 100), (1_000_000, MEMBERS_MAX)] {
        let error = index.members(&parse("-l app"), Duration::ZERO, Duration::ZERO, most);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("has 2000 pods"), "{error}");
        assert!(error.contains(&format!("at most {limit} are")), "{error}");
    }
}

#[test]
fn a_pod_that_left_is_found_by_name_for_a_while() {
    let mut index = shop();
    index.pod(Change::Deleted(pod("shop", "db-0", None, "")), SECOND);
    assert_eq!(selected(&index, "pod/db-0").unwrap(), ["db-0"]);
    // Of a set only for who looks back that far.
    let sts = parse("sts/db");
    let since = |since, now| index.members(&sts, since, now, 9).map(|m| m.placed.len());
    assert_eq!(since(5 * SECOND, 4 * SECOND), Ok(1));
    assert!(since(2 * SECOND, 4 * SECOND).is_err());
    // Its successor has the name now.
    let again = PodFacts {
        uid: "other".into(),
        ..pod("shop", "db-0", Some(("StatefulSet", "db")), "w2")
    };
    index.pod(Change::Applied(again), 3 * SECOND);
    let found = index
        .members(&parse("pod/db-0"), Duration::ZERO, 3 * SECOND, 9)
        .unwrap();
    assert_eq!(found.placed[0].key(), "other");
    let first = PodRef {
        uid: Some("uid-shop-db-0".into()),
        ..found.placed[0].pod.clone().unwrap()
    };
    assert_eq!(index.place(&first).unwrap().node, "w1");
    // The end of the first, told late, does not end the second.
    index.pod(Change::Deleted(pod("shop", "db-0", None, "")), 4 * SECOND);
    assert_eq!(
        index
            .place(found.placed[0].pod.as_ref().unwrap())
            .unwrap()
            .node,
        "w2"
    );
    // And then it is forgotten.
    let later = 3 * SECOND + DEPARTED_KEPT + SECOND;
    index.pod(Change::Deleted(pod("shop", "log-x", None, "")), later);
    assert_eq!(index.place(&first), None);
}

#[test]
fn pods_without_a_node_wait_and_those_that_are_over_have_nothing() {
    let mut index = Index::default();
    index.replica_set(Change::Applied(set("shop", "cart-1", "cart")));
    let owner = Some(("ReplicaSet", "cart-1"));
    index.pod(Change::Applied(pod("shop", "a", owner, "")), SECOND);
    let error = selected(&index, "deploy/cart").unwrap_err().to_string();
    assert!(
        error.ends_with("has no pod that runs (one has no node yet)"),
        "{error}"
    );
    index.pod(Change::Applied(pod("shop", "a", owner, "w1")), SECOND);
    assert_eq!(selected(&index, "deploy/cart").unwrap(), ["a"]);
    let over = PodFacts {
        life: Life::Over,
        ..pod("shop", "a", owner, "w1")
    };
    index.pod(Change::Applied(over), SECOND);
    assert!(selected(&index, "deploy/cart").is_err());
    assert_eq!(selected(&index, "pod/a").unwrap(), ["a"]);
}

#[test]
fn an_address_is_the_pods_that_has_it_now() {
    let mut index = Index::default();
    let address: IpAddr = "10.0.0.7".parse().unwrap();
    let at = |index: &Index| index.at_address(address).map(|m| m.pod.unwrap().name);
    let with = |name: &str, network| PodFacts {
        addresses: vec![address],
        network,
        ..pod("shop", name, None, "w1")
    };
    index.pod(Change::Applied(with("host", PodNetwork::Host)), SECOND);
    assert_eq!(at(&index), None);
    index.pod(Change::Applied(with("first", PodNetwork::Own)), SECOND);
    // The next has it before the end of the one before is told.
    index.pod(Change::Applied(with("second", PodNetwork::Own)), SECOND);
    index.pod(Change::Deleted(with("first", PodNetwork::Own)), SECOND);
    assert_eq!(at(&index).as_deref(), Some("second"));
    let over = PodFacts {
        life: Life::Over,
        ..with("second", PodNetwork::Own)
    };
    index.pod(Change::Applied(over), SECOND);
    assert_eq!(at(&index), None);
}

/// A small world, in which names meet often.
#[derive(Clone, Debug)]
enum Event {
    Pod {
        name: u8,
        generation: u8,
        set: u8,
        node: bool,
    },
    PodGone {
        name: u8,
        generation: u8,
    },
    Set {
        set: u8,
        deployment: Option<u8>,
    },
    SetGone {
        set: u8,
    },
    Slice {
        slice: u8,
        service: u8,
        pods: Vec<u8>,
    },
    SliceGone {
        slice: u8,
    },
    /// All kinds are listed again, and what is said here was missed.
    Relist {
        lost: Vec<u8>,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let n = 0u8..5;
    prop_oneof![
        6 => (n.clone(), 0u8..3, n.clone(), any::<bool>())
            .prop_map(|(name, generation, set, node)| Event::Pod { name, generation, set, node }),
        3 => (n.clone(), 0u8..3).prop_map(|(name, generation)| Event::PodGone { name, generation }),
        3 => (n.clone(), proptest::option::of(0u8..3)).prop_map(|(set, deployment)| Event::Set { set, deployment }),
        1 => n.clone().prop_map(|set| Event::SetGone { set }),
        3 => (n.clone(), 0u8..3, vec(n.clone(), 0..4))
            .prop_map(|(slice, service, pods)| Event::Slice { slice, service, pods }),
        1 => n.clone().prop_map(|slice| Event::SliceGone { slice }),
        1 => vec(n, 0..3).prop_map(|lost| Event::Relist { lost }),
    ]
}

/// What is so, said plainly.
#[derive(Default)]
struct World {
    pods: BTreeMap<u8, (u8, u8, bool)>,
    sets: BTreeMap<u8, u8>,
    slices: BTreeMap<u8, (u8, Vec<u8>)>,
}

fn facts(name: u8, (generation, set, node): (u8, u8, bool)) -> PodFacts {
    let owner = format!("set-{set}");
    PodFacts {
        uid: format!("uid-{name}-{generation}"),
        labels: vec![("set".into(), owner.clone()), ("a".into(), "b".into())],
        ..pod(
            "shop",
            &format!("p{name}"),
            Some(("ReplicaSet", &owner)),
            if node { "w1" } else { "" },
        )
    }
}

fn set_facts(set: u8, deployment: Option<u8>) -> ReplicaSetFacts {
    ReplicaSetFacts {
        namespace: "shop".into(),
        name: format!("set-{set}"),
        deployment: deployment.map(|d| format!("d{d}")),
    }
}

fn slice_facts(slice: u8, service: u8, pods: &[u8]) -> SliceFacts {
    SliceFacts {
        namespace: "shop".into(),
        name: format!("slice-{slice}"),
        service: format!("s{service}"),
        pods: pods.iter().map(|pod| format!("p{pod}")).collect(),
    }
}

impl World {
    fn tell(&mut self, index: &mut Index, event: &Event) {
        match event {
            Event::Pod {
                name,
                generation,
                set,
                node,
            } => {
                self.pods.insert(*name, (*generation, *set, *node));
                index.pod(Change::Applied(facts(*name, self.pods[name])), SECOND);
            }
            Event::PodGone { name, generation } => {
                if self.pods.get(name).is_some_and(|pod| pod.0 == *generation) {
                    self.pods.remove(name);
                }
                index.pod(
                    Change::Deleted(facts(*name, (*generation, 0, true))),
                    SECOND,
                );
            }
            Event::Set { set, deployment } => {
                match deployment {
                    Some(deployment) => self.sets.insert(*set, *deployment),
                    None => self.sets.remove(set),
                };
                index.replica_set(Change::Applied(set_facts(*set, *deployment)));
            }
            Event::SetGone { set } => {
                self.sets.remove(set);
                index.replica_set(Change::Deleted(set_facts(*set, None)));
            }
            Event::Slice {
                slice,
                service,
                pods,
            } => {
                self.slices.insert(*slice, (*service, pods.clone()));
                index.slice(Change::Applied(slice_facts(*slice, *service, pods)));
            }
            Event::SliceGone { slice } => {
                self.slices.remove(slice);
                index.slice(Change::Deleted(slice_facts(*slice, 0, &[])));
            }
            Event::Relist { lost } => {
                for name in lost {
                    self.pods.remove(name);
                    self.sets.remove(name);
                    self.slices.remove(name);
                }
                self.list(index);
            }
        }
    }

    fn list(&self, index: &mut Index) {
        index.pod(Change::ListStart, SECOND);
        for (name, pod) in &self.pods {
            index.pod(Change::Listed(facts(*name, *pod)), SECOND);
        }
        index.pod(Change::ListEnd, SECOND);
        index.replica_set(Change::ListStart);
        for (set, deployment) in &self.sets {
            index.replica_set(Change::Listed(set_facts(*set, Some(*deployment))));
        }
        index.replica_set(Change::ListEnd);
        index.slice(Change::ListStart);
        for (slice, (service, pods)) in &self.slices {
            index.slice(Change::Listed(slice_facts(*slice, *service, pods)));
        }
        index.slice(Change::ListEnd);
    }

    fn is_of(&self, pod: u8, selector: &str) -> bool {
        let (_, set, _) = self.pods[&pod];
        let number = || selector[selector.len() - 1..].parse::<u8>().unwrap();
        match selector.split_once('/') {
            Some(("deploy", _)) => self.sets.get(&set) == Some(&number()),
            Some(("svc", _)) => self
                .slices
                .values()
                .any(|(service, pods)| *service == number() && pods.contains(&pod)),
            Some(("rs", _)) => set == number(),
            _ => selector.ends_with(&format!("set=set-{set}")),
        }
    }
}

const SELECTORS: [&str; 6] = [
    "deploy/d0",
    "deploy/d2",
    "svc/s0",
    "svc/s1",
    "rs/set-1",
    "-l set=set-3",
];

proptest! {
    /// Whatever happened in which order, a selector selects who belongs to it now, and those join.
    #[test]
    fn members_are_those_that_belong(events in vec(event(), 0..60)) {
        let (mut index, mut world) = (Index::default(), World::default());
        for event in &events {
            world.tell(&mut index, event);
        }
        for text in SELECTORS {
            let belongs: Vec<_> = world.pods.keys().filter(|pod| world.is_of(**pod, text)).collect();
            let placed: Vec<_> = belongs.iter().filter(|pod| world.pods[pod].2).map(|pod| format!("p{pod}")).collect();
            let found = selected(&index, text);
            if placed.is_empty() {
                prop_assert!(found.is_err(), "{}: {:?}", text, found);
            } else {
                prop_assert_eq!(found.unwrap(), placed, "{}", text);
            }
            for (name, pod) in &world.pods {
                let reference = PodRef {
                    namespace: "shop".into(),
                    name: format!("p{name}"),
                    uid: Some(facts(*name, *pod).uid),
                    container: None,
                };
                prop_assert_eq!(index.joins(&reference, &parse(text)), belongs.contains(&name));
            }
        }
        // A new index that lists all once knows the same.
        let mut fresh = Index::default();
        world.list(&mut fresh);
        for text in SELECTORS {
            prop_assert_eq!(selected(&fresh, text).ok(), selected(&index, text).ok());
        }
        prop_assert_eq!(index.pods(), world.pods.len());
    }
}

#[test]
fn a_pods_owners_are_told() {
    let index = shop();
    let of = |name: &str| PodRef {
        namespace: "shop".into(),
        name: name.into(),
        uid: None,
        container: None,
    };
    assert_eq!(
        index.deployment_of(&of("cart-2-b")).as_deref(),
        Some("cart")
    );
    assert_eq!(index.deployment_of(&of("db-0")), None);
    assert_eq!(index.services_of(&of("db-0")), ["cart"]);
    assert_eq!(index.services_of(&of("log-x")), [""; 0]);
    assert!(matches!(
        parse("sts/db"),
        Selector::Workload {
            kind: WorkloadKind::StatefulSet,
            ..
        }
    ));
}
