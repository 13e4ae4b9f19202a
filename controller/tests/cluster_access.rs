//! People who call the cluster's API by TLS with their tokens: what they may, and the account of it.

#[path = "../../tests/src/certificates.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "other crates' tests use the rest"
)]
mod certificates;
mod support;

use std::{fs, sync::Arc};

use axum::{Json, Router, routing::post};
use certificates::{Ca, Wanted};
use kube::{Client, Config};
use remora_capture::audit::{Decision, Line, Verifier};
use remora_controller::{
    access::{ClusterAccess, Guard, Reviews},
    api::listen::{GrpcAddress, GrpcListener},
    args::TlsArgs,
    audit::{Audit, Rotation},
    metrics::Metrics,
};
use remora_proto::{
    client::{AgentAddress, connect_tls},
    tls::TlsIdentity,
    v1::{self, cluster_stream_response::Message},
};
use serde_json::{Value, json};
use support::bed::{Bed, request};
use tokio::net::TcpListener;
use tonic::{Code, Request};

/// Knows ann, who may all in `shop`, and eve, who may nothing.
async fn api_server() -> Client {
    let token = async |Json(mut review): Json<Value>| {
        let user = match review["spec"]["token"].as_str() {
            Some("t-ann") => "ann",
            Some("t-eve") => "eve",
            _ => "",
        };
        review["status"] = json!({"authenticated": !user.is_empty(), "user": {"username": user}});
        Json(review)
    };
    let access = async |Json(mut review): Json<Value>| {
        let spec = &review["spec"];
        let is_allowed = spec["user"] == "ann" && spec["resourceAttributes"]["namespace"] == "shop";
        review["status"] = json!({"allowed": is_allowed});
        Json(review)
    };
    let router = Router::new()
        .route("/apis/authentication.k8s.io/v1/tokenreviews", post(token))
        .route(
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            post(access),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Client::try_from(Config::new(url.parse().unwrap())).unwrap()
}

fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    request
}

#[tokio::test]
async fn only_who_has_the_right_starts_and_reads_and_all_of_it_is_in_the_log() {
    let (bed, ca, dir) = (Bed::new(), Ca::new("ca"), tempfile::tempdir().unwrap());
    let own = ca.sign(dir.path(), "own", &Wanted::server(&["127.0.0.1"]));
    let tls = TlsArgs {
        tls_cert: Some(own.cert),
        tls_key: Some(own.key),
        tls_ca: Some(ca.file(dir.path(), "ca")),
        ..TlsArgs::default()
    };
    // Loopback and a certificate: by TLS, and nobody is let in for being here.
    let address: GrpcAddress = "127.0.0.1:0".parse().unwrap();
    let listener = GrpcListener::bind(&address, &tls).await.unwrap();
    let GrpcListener::Tls(bound) = &listener else {
        panic!("{listener:?}");
    };
    let at: AgentAddress = format!("https://{}", bound.address().unwrap())
        .parse()
        .unwrap();
    let log = dir.path().join("audit.log");
    let audit = Audit::open(&log, Rotation::default()).unwrap();
    let access = ClusterAccess::new(Reviews::new(api_server().await, None));
    let guard = Guard::new(access, audit, Arc::new(Metrics::new()));
    let identity = TlsIdentity::trusting(ca.pem().as_bytes(), None).unwrap();
    let connect = async || connect_tls(&at, &identity).await.unwrap();
    let controller = bed.serving(listener, Arc::new(guard), connect).await;
    let mut client = controller.client.clone();

    let nobody = client.start(request("deploy/cart")).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated, "{nobody}");
    let stranger = client.start(by("t-bob", request("deploy/cart"))).await;
    assert_eq!(stranger.unwrap_err().code(), Code::Unauthenticated);
    let eve = client.start(by("t-eve", request("deploy/cart"))).await;
    let eve = eve.unwrap_err();
    assert_eq!(eve.code(), Code::PermissionDenied, "{eve}");
    assert!(eve.message().contains("--user=eve"), "{eve}");
    let node = client.start(by("t-ann", request("node/w1"))).await;
    assert_eq!(node.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(bed.captured(), [[""; 0]; 3]);

    let started = client.start(by("t-ann", request("deploy/cart"))).await;
    let capture = started.unwrap().into_inner().capture.unwrap();
    assert_eq!(bed.captured(), [["cart-1"], ["cart-2"], ["cart-3"]]);
    let id = capture.id;
    let of = || v1::ClusterStreamRequest { id: id.clone() };
    let eve = client.stream(by("t-eve", of())).await.unwrap_err();
    assert_eq!(eve.code(), Code::PermissionDenied);
    let stop = v1::ClusterStopRequest { id: id.clone() };
    client.stop(by("t-ann", stop)).await.unwrap();
    let mut stream = client.stream(by("t-ann", of())).await.unwrap().into_inner();
    let mut read = 0;
    while let Some(message) = stream.message().await.unwrap() {
        match message.message {
            Some(Message::Blocks(blocks)) => read += blocks.len() as u64,
            Some(Message::Finished(_)) | None => {}
        }
    }
    assert!(read > 0);

    bed.until("the end of the read in the log", |_| {
        fs::read_to_string(&log).unwrap().contains("\"bytes\"")
    })
    .await;
    let bytes = fs::read(&log).unwrap();
    Verifier::default().file(&bytes[..]).unwrap().unwrap();
    let told: Vec<_> = bytes
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice::<Line>(line).unwrap().entry)
        .map(|entry| (entry.who, entry.action, entry.decision, entry.bytes))
        .collect();
    let line =
        |who: &str, action: &str, decision| (who.to_owned(), action.to_owned(), decision, None);
    let mut done = line("ann", "read", Decision::Done);
    done.3 = Some(read);
    assert_eq!(
        told,
        [
            line("nobody", "call", Decision::Refused),
            line("unknown token", "call", Decision::Refused),
            line("eve", "start", Decision::Refused),
            line("ann", "start", Decision::Refused),
            line("ann", "start", Decision::Allowed),
            line("eve", "read", Decision::Refused),
            line("ann", "stop", Decision::Allowed),
            line("ann", "read", Decision::Allowed),
            done,
        ]
    );
}
