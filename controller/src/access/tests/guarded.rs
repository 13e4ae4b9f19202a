//! What the guard lets through is in the log, and so is what it refuses.

use std::{fs, sync::Arc};

use remora_capture::audit::{Decision, Entry, Line, Verifier};

use super::*;
use crate::{
    audit::{Audit, Rotation},
    metrics::Metrics,
};

struct Guarded {
    _server: ApiServer,
    dir: tempfile::TempDir,
    guard: Guard,
    metrics: Arc<Metrics>,
}

impl Guarded {
    async fn new() -> Self {
        let (server, access) = cluster().await;
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(&dir.path().join("audit.log"), Rotation::default()).unwrap();
        let metrics = Arc::new(Metrics::new());
        Self {
            _server: server,
            guard: Guard::new(access, audit, metrics.clone()),
            dir,
            metrics,
        }
    }

    fn log(&self) -> Vec<Entry> {
        let bytes = fs::read(self.dir.path().join("audit.log")).unwrap();
        Verifier::default().file(&bytes[..]).unwrap().unwrap();
        let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_slice::<Line>(line).unwrap().entry)
            .collect()
    }
}

#[tokio::test]
async fn each_decision_and_the_end_of_a_read_is_a_line_with_who_what_and_where() {
    let guarded = Guarded::new().await;
    let guard = &guarded.guard;
    let about = About {
        target: "deploy/cart",
        filter: "tcp port 443",
        capture: "01JD0000000000000000000000",
    };
    let caller = Caller {
        address: Some("192.0.2.9:1234".parse().unwrap()),
        ..token("t-jane")
    };
    let jane = guard.identify(caller).await.unwrap();
    let shop = of(&["shop"]);
    guard
        .allow(&jane, Action::Read, &shop, about)
        .await
        .unwrap();
    guard.read(&jane, about, 4711, "").await;
    let refused = guard
        .allow(&jane, Action::Start, &of(&["bank"]), about)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let nobody = guard.identify(token("t-expired")).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);

    let log = guarded.log();
    let told: Vec<_> = log
        .iter()
        .map(|entry| (entry.who.as_str(), entry.action.as_str(), entry.decision))
        .collect();
    assert_eq!(
        told,
        [
            ("jane", "read", Decision::Allowed),
            ("jane", "read", Decision::Done),
            ("jane", "start", Decision::Refused),
            ("unknown token", "call", Decision::Refused),
        ]
    );
    assert_eq!(log[0].namespaces, ["shop"]);
    assert_eq!(log[0].address, "192.0.2.9:1234");
    assert_eq!(
        (&*log[0].target, &*log[0].filter),
        (about.target, about.filter)
    );
    assert_eq!(
        (log[1].bytes, &*log[1].capture),
        (Some(4711), about.capture)
    );
    assert!(
        log[2].reason.starts_with("not_allowed: "),
        "{}",
        log[2].reason
    );
    assert!(
        log[3].reason.starts_with("bad_token: "),
        "{}",
        log[3].reason
    );
    let text = guarded.metrics.text();
    for line in [
        "remora_controller_access_total{action=\"read\",result=\"allowed\"} 1\n",
        "remora_controller_access_total{action=\"start\",result=\"not_allowed\"} 1\n",
        "remora_controller_access_total{action=\"call\",result=\"bad_token\"} 1\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    // Nothing that opens doors is in the log.
    let bytes = fs::read_to_string(guarded.dir.path().join("audit.log")).unwrap();
    assert!(!bytes.contains("t-jane") && !bytes.contains("t-expired"));
}

/// The fault is forced: the log's file is a directory by the time it is to be rotated.
#[tokio::test]
async fn what_cannot_be_logged_is_refused_with_the_reason() {
    let (_server, access) = cluster().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let rotation = Rotation { bytes: 1, files: 1 };
    let audit = Audit::open(&path, rotation).unwrap();
    let guard = Guard::new(access, audit, Arc::new(Metrics::new()));
    let jane = guard.identify(token("t-jane")).await.unwrap();
    let shop = of(&["shop"]);
    let about = About::default();
    guard
        .allow(&jane, Action::Start, &shop, about)
        .await
        .unwrap();
    fs::create_dir_all(dir.path().join("audit.log.1/in the way")).unwrap();
    let refused = guard
        .allow(&jane, Action::Start, &shop, about)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("audit log"), "{refused}");
    fs::remove_dir_all(dir.path().join("audit.log.1")).unwrap();
    guard
        .allow(&jane, Action::Start, &shop, about)
        .await
        .unwrap();
}
