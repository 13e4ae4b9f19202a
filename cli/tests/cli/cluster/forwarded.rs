//! The way through the API server: port-forward, TLS, the user's token, several replicas.

use std::{fs, path::PathBuf, process::Command};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use remora_proto::reason::{self, Reason};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Identity};

use super::{
    api::{Api, Knowledge},
    capture::kubectl,
    controller::{Controller, Script, Step, cluster_capture, part},
};
use crate::{
    agent::{ID, head, packet_blocks},
    capture::target_file,
    program::{Ended, Running},
};

/// A certificate authority and the controller's certificate by it.
struct Certificates {
    authority: String,
    identity: Identity,
}

impl Certificates {
    fn of(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let own_key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let own = own.signed_by(&own_key, &issuer).unwrap();
        Self {
            authority: authority.pem(),
            identity: Identity::from_pem(own.pem(), own_key.serialize_pem()),
        }
    }

    fn usual() -> Self {
        Self::of("remora-controller")
    }
}

/// An API server with these pods, and a kubeconfig for it.
struct Cluster {
    api: Api,
    dir: TempDir,
}

impl Cluster {
    fn of(certificates: &Certificates, pods: &[(&str, Option<&Controller>)]) -> Self {
        Self::knowing(Knowledge {
            pods: pods
                .iter()
                .map(|(name, controller)| ((*name).to_owned(), controller.map(Controller::socket)))
                .collect(),
            authority: Some(certificates.authority.clone()),
            ..Knowledge::default()
        })
    }

    fn knowing(knowledge: Knowledge) -> Self {
        let api = Api::run(knowledge);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config"), api.kubeconfig()).unwrap();
        Self { api, dir }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = kubectl(words);
        command.env("KUBECONFIG", self.dir.path().join("config"));
        command
    }

    fn run(&self, words: &[&str]) -> Ended {
        Running::spawn(self.command(words)).end()
    }
}

fn script(packets: u64) -> Script {
    let state = cluster_capture(vec![part("cart-a", "worker-1", packets)]);
    Script {
        state: state.clone(),
        ..Script::new(vec![
            Step::Blocks(head()),
            Step::Blocks(packet_blocks(packets, 64)),
            Step::Finish(Box::new(state)),
        ])
    }
}

#[test]
fn a_capture_comes_through_the_api_server_with_the_users_token() {
    let (_dir, path, file) = target_file();
    let certificates = Certificates::usual();
    let controller = Controller::run_tls(script(700), certificates.identity.clone());
    let cluster = Cluster::of(&certificates, &[("remora-controller-a", Some(&controller))]);
    let ended = cluster.run(&["capture", "deploy/cart", "-w", &file]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(
        fs::read(path).unwrap(),
        [head(), packet_blocks(700, 64)].concat()
    );
    let calls = controller.calls();
    assert_eq!(
        calls.started[0].selector.clone().unwrap().namespace,
        "shop",
        "the context's"
    );
    let bearer = Some("Bearer secret-token".to_owned());
    assert!(
        calls.shown.iter().all(|shown| *shown == bearer),
        "{:?}",
        calls.shown
    );
    let seen = cluster.api.seen();
    let forward = "GET /api/v1/namespaces/remora/pods/remora-controller-a/portforward?\
                   &ports=2805 Bearer secret-token";
    assert!(seen.iter().any(|line| line == forward), "{seen:?}");
}

#[test]
fn a_token_of_the_flags_stands_for_that_of_the_file() {
    let certificates = Certificates::usual();
    let controller = Controller::run_tls(script(1), certificates.identity.clone());
    let cluster = Cluster::of(&certificates, &[("remora-controller-a", Some(&controller))]);
    let ended = cluster.run(&["list", "--token", "other"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(controller.calls().shown, [Some("Bearer other".to_owned())]);
}

#[test]
fn a_replica_that_takes_no_connection_is_passed_over() {
    let certificates = Certificates::usual();
    let controller = Controller::run_tls(script(1), certificates.identity.clone());
    let pods = [
        ("remora-controller-a", None),
        ("remora-controller-b", Some(&controller)),
    ];
    let cluster = Cluster::of(&certificates, &pods);
    let ended = cluster.run(&["list"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.out().contains("deploy/cart"), "{}", ended.out());
}

#[test]
fn a_replica_that_dies_at_the_start_leaves_the_start_to_another_with_the_same_key() {
    let (_dir, path, file) = target_file();
    let certificates = Certificates::usual();
    let dying = Script {
        start_dies: true,
        ..script(1)
    };
    let first = Controller::run_tls(dying, certificates.identity.clone());
    let second = Controller::run_tls(script(4), certificates.identity.clone());
    let pods = [
        ("remora-controller-a", Some(&first)),
        ("remora-controller-b", Some(&second)),
    ];
    let cluster = Cluster::of(&certificates, &pods);
    let ended = cluster.run(&["capture", "deploy/cart", "-w", &file]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(
        fs::read(path).unwrap(),
        [head(), packet_blocks(4, 64)].concat()
    );
    let (first, second) = (first.calls().started, second.calls().started);
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_eq!(first[0].idempotency_key, second[0].idempotency_key);
}

#[test]
fn a_replica_that_dies_in_a_stored_capture_leaves_the_stream_to_another() {
    let (_dir, path, file) = target_file();
    let certificates = Certificates::usual();
    let state = cluster_capture(vec![part("cart-a", "worker-1", 9)]);
    let dying = Script {
        state,
        ..Script::new(vec![
            Step::Blocks([head(), packet_blocks(3, 64)].concat()),
            Step::Die,
        ])
    };
    let first = Controller::run_tls(dying, certificates.identity.clone());
    let second = Controller::run_tls(script(9), certificates.identity.clone());
    let pods = [
        ("remora-controller-a", Some(&first)),
        ("remora-controller-b", Some(&second)),
    ];
    let cluster = Cluster::of(&certificates, &pods);
    let ended = cluster.run(&["capture", "deploy/cart", "--store", "-w", &file]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(
        fs::read(path).unwrap(),
        [head(), packet_blocks(9, 64)].concat()
    );
    assert_eq!(second.calls().streamed, [ID]);
    assert!(second.calls().started.is_empty(), "it runs already");
}

/// Kubernetes takes all pods of a node for unready that it has not heard of for a while.
#[test]
fn a_replica_that_is_taken_for_unready_is_asked_if_no_other_answers() {
    let (_dir, path, file) = target_file();
    let certificates = Certificates::usual();
    let lost = Controller::run_tls(script(4), certificates.identity.clone());
    let knowing = |ready: Option<PathBuf>| {
        Cluster::knowing(Knowledge {
            pods: [
                ("remora-controller-a".to_owned(), Some(lost.socket())),
                ("remora-controller-b".to_owned(), ready),
            ]
            .into(),
            unready: vec!["remora-controller-a"],
            authority: Some(certificates.authority.clone()),
            forbidden: None,
        })
    };
    let ready = Controller::run_tls(script(4), certificates.identity.clone());
    let ended = knowing(Some(ready.socket())).run(&["capture", "deploy/cart", "-w", &file]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(
        (lost.calls().started.len(), ready.calls().started.len()),
        (0, 1)
    );
    // The one that is ready refuses connections.
    let ended = knowing(None).run(&["capture", "deploy/cart", "-w", &file]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(lost.calls().started.len(), 1);
    assert_eq!(
        fs::read(path).unwrap(),
        [head(), packet_blocks(4, 64)].concat()
    );
}

#[test]
fn a_certificate_of_somebody_else_is_refused() {
    let other = Certificates::usual();
    let wrong_name = Certificates::of("remora-agent");
    for (served, trusted) in [
        (other.identity.clone(), Certificates::usual().authority),
        (wrong_name.identity.clone(), wrong_name.authority.clone()),
    ] {
        let controller = Controller::run_tls(script(1), served);
        let cluster = Cluster::knowing(Knowledge {
            pods: [("remora-controller-a".to_owned(), Some(controller.socket()))].into(),
            authority: Some(trusted),
            ..Knowledge::default()
        });
        let ended = cluster.run(&["list"]);
        assert_eq!(ended.code, Some(1));
        assert!(
            ended
                .stderr
                .contains("no connection to the controller remora-controller-a")
                && ended.stderr.to_lowercase().contains("certificate"),
            "{}",
            ended.stderr
        );
        assert!(
            controller.calls().shown.is_empty(),
            "nobody was shown the token"
        );
    }
}

#[test]
fn what_is_missing_on_the_way_is_told_with_what_to_do() {
    let none = Knowledge::default();
    let certificates = Certificates::usual();
    let no_pods = Knowledge {
        authority: Some(certificates.authority.clone()),
        ..Knowledge::default()
    };
    let refusing = Knowledge {
        pods: [("remora-controller-a".to_owned(), None)].into(),
        ..no_pods.clone()
    };
    let unready = Knowledge {
        unready: vec!["remora-controller-a"],
        ..refusing.clone()
    };
    let forbidden = Knowledge {
        forbidden: Some("pods"),
        ..no_pods.clone()
    };
    for (knowledge, parts) in [
        (none, ["no ConfigMap remora-ca", "--remora-namespace"]),
        (
            no_pods,
            [
                "no controller of Remora is ready",
                "kubectl get pods -n remora",
            ],
        ),
        (
            refusing,
            ["remora-controller-a", "failed to connect to localhost:2805"],
        ),
        (
            unready,
            [
                "no controller of Remora is ready",
                "failed to connect to localhost:2805",
            ],
        ),
        (
            forbidden,
            [
                "User \"alice\" cannot list pods",
                "kubectl create rolebinding remora-access-alice -n remora --role=remora-access \
                 --user=alice",
            ],
        ),
    ] {
        let ended = Cluster::knowing(knowledge).run(&["list"]);
        assert_eq!(ended.code, Some(1));
        for part in parts {
            assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
        }
    }
}

#[test]
fn a_right_that_is_missing_in_the_namespace_names_the_user() {
    let certificates = Certificates::usual();
    let refusal = reason::status(
        Code::PermissionDenied,
        Reason::PermissionDenied,
        "alice may not create captures.remora.dev in namespace shop",
    );
    let script = Script {
        start_refusal: Some(refusal),
        ..script(1)
    };
    let controller = Controller::run_tls(script, certificates.identity.clone());
    let cluster = Cluster::of(&certificates, &[("remora-controller-a", Some(&controller))]);
    let ended = cluster.run(&["capture", "deploy/cart", "-w", "-"]);
    assert_eq!(ended.code, Some(1));
    let command = "kubectl create rolebinding remora-capturer-alice -n shop \
                   --clusterrole=remora-capturer --user=alice\n";
    assert!(ended.stderr.ends_with(command), "{}", ended.stderr);
}

#[test]
fn a_user_with_a_certificate_alone_is_told_to_use_a_token() {
    let certificates = Certificates::usual();
    let controller = Controller::run_tls(script(1), certificates.identity.clone());
    let cluster = Cluster::of(&certificates, &[("remora-controller-a", Some(&controller))]);
    let kubeconfig = cluster.api.kubeconfig();
    let own = kubeconfig.replace(
        "token: secret-token",
        "client-certificate: c.pem, client-key: k.pem",
    );
    fs::write(cluster.dir.path().join("config"), own).unwrap();
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec![])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    fs::write(cluster.dir.path().join("c.pem"), own.pem()).unwrap();
    fs::write(cluster.dir.path().join("k.pem"), key.serialize_pem()).unwrap();
    let ended = cluster.run(&["list"]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.stderr.contains("kubectl create token"),
        "{}",
        ended.stderr
    );
    // A token beside it is enough.
    let ended = cluster.run(&["list", "--token", "t"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn doctor_names_user_version_and_missing_rights() {
    let certificates = Certificates::usual();
    let controller = Controller::run_tls(script(1), certificates.identity.clone());
    let cluster = Cluster::of(&certificates, &[("remora-controller-a", Some(&controller))]);
    let ended = cluster.run(&["doctor"]);
    assert_eq!(ended.code, Some(1));
    for part in [
        "ok    kubeconfig: context x, server http://127.0.0.1:",
        "ok    API server: version v1.37.0",
        "ok    token: alice",
        "ok    connection: the controller remora-controller-a",
        "FAIL  right to start captures in shop: no; whoever may grant it",
        "kubectl create rolebinding remora-capturer-alice -n shop",
    ] {
        assert!(ended.out().contains(part), "{part}: {}", ended.out());
    }
}

#[test]
fn names_are_completed_from_the_cluster() {
    let certificates = Certificates::usual();
    let cluster = Cluster::of(&certificates, &[]);
    let ended = cluster.run(&["__complete", "--", "capture", "pod/c"]);
    assert_eq!(ended.out(), "pod/cart-a\n:4\n");
}

#[test]
fn an_unknown_controllers_word_is_no_reason_to_try_another() {
    let certificates = Certificates::usual();
    let refused = Script {
        start_refusal: Some(Status::failed_precondition("not now")),
        ..script(1)
    };
    let first = Controller::run_tls(refused.clone(), certificates.identity.clone());
    let second = Controller::run_tls(refused, certificates.identity.clone());
    let pods = [
        ("remora-controller-a", Some(&first)),
        ("remora-controller-b", Some(&second)),
    ];
    let cluster = Cluster::of(&certificates, &pods);
    let ended = cluster.run(&["capture", "deploy/cart", "-w", "-"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("not now"), "{}", ended.stderr);
    assert_eq!(
        first.calls().started.len() + second.calls().started.len(),
        1
    );
}
