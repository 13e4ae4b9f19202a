//! Rights, asked of an API server that answers by a table.

mod api_server;
mod guarded;

use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;
use remora_proto::tls::Peer;
use serde_json::json;
use tonic::{Code, Request, Status};

use self::api_server::{ApiServer, Mood};
use super::{
    rights::{Answer, judge, rights},
    *,
};

fn token(text: &str) -> Caller {
    Caller {
        credentials: Credentials::Token(Token::new(text).unwrap()),
        address: None,
    }
}

fn nobody() -> Caller {
    Caller {
        credentials: Credentials::None,
        address: None,
    }
}

fn certificate(name: &str) -> Caller {
    Caller {
        credentials: Credentials::Certificate(name.parse().unwrap()),
        address: None,
    }
}

fn of(namespaces: &[&str]) -> Scope {
    Scope::Namespaces(namespaces.iter().map(|name| (*name).to_owned()).collect())
}

async fn ask(
    access: &ClusterAccess,
    caller: &Caller,
    action: Action,
    scope: &Scope,
) -> Result<(), Denied> {
    let who = access.identify(caller).await?;
    access.allow(&who, action, scope).await
}

async fn word(
    access: &ClusterAccess,
    caller: &Caller,
    action: Action,
    scope: &Scope,
) -> &'static str {
    match ask(access, caller, action, scope).await {
        Ok(()) => "allowed",
        Err(denied) => denied.word(),
    }
}

/// Users: jane may all in shop, and has a group that may read in bank. Eve may start in shop, and not read. Ops may
/// all in the whole cluster. The service account reads alone.
async fn cluster() -> (ApiServer, ClusterAccess) {
    let server = ApiServer::start().await;
    server.user("t-jane", "jane", &["system:authenticated", "auditors"]);
    server.user("t-eve", "eve", &["system:authenticated"]);
    server.user("t-ops", "ops", &[]);
    server.user("t-reader", "system:serviceaccount:soc:reader", &[]);
    server.table().tokens.extend([
        (
            "t-nameless".to_owned(),
            json!({"authenticated": true, "user": {"username": ""}}),
        ),
        ("t-userless".to_owned(), json!({"authenticated": true})),
        ("t-unsaid".to_owned(), json!({"user": {"username": "ops"}})),
        (
            "t-false".to_owned(),
            json!({"authenticated": false, "user": {"username": "ops"}}),
        ),
    ]);
    let all = |place: &str| {
        [
            "create captures",
            "update captures",
            "get captures",
            "list captures",
            "watch captures",
        ]
        .into_iter()
        .chain(["get captures/data"])
        .map(|right| format!("{right} {place}"))
        .collect::<Vec<_>>()
    };
    for (who, rights) in [("jane", all("shop")), ("ops", all("*"))] {
        let rights: Vec<_> = rights.iter().map(String::as_str).collect();
        server.grant(who, &rights);
    }
    server.grant("auditors", &["get captures/data bank"]);
    server.grant(
        "eve",
        &[
            "create captures shop",
            "get captures shop",
            "list captures shop",
        ],
    );
    server.grant(
        "system:serviceaccount:soc:reader",
        &["get captures/data shop"],
    );
    server.grant(
        "remora:tls:spiffe://cluster.local/ns/soc/sa/talon",
        &["create captures shop"],
    );
    server.grant(
        "spiffe://cluster.local/ns/soc/sa/talon",
        &["create captures bank"],
    );
    let access = ClusterAccess::new(server.reviews(None));
    (server, access)
}

#[tokio::test]
async fn who_may_do_what_where() {
    let (_server, access) = cluster().await;
    let talon = "spiffe://cluster.local/ns/soc/sa/talon";
    use Action::{List, Read, Show, Start, Status, Stop, Watch};
    let table = [
        (token("t-jane"), Start, of(&["shop"]), "allowed"),
        (token("t-jane"), Read, of(&["shop"]), "allowed"),
        (token("t-jane"), Stop, of(&["shop"]), "allowed"),
        (token("t-jane"), Watch, of(&["shop"]), "allowed"),
        // Another namespace; by a group; both of two.
        (token("t-jane"), Start, of(&["bank"]), "not_allowed"),
        (token("t-jane"), Read, of(&["bank"]), "allowed"),
        (token("t-jane"), Show, of(&["bank"]), "not_allowed"),
        (token("t-jane"), Read, of(&["bank", "shop"]), "allowed"),
        (token("t-jane"), Start, of(&["bank", "shop"]), "not_allowed"),
        (
            token("t-jane"),
            Read,
            of(&["bank", "shop", "vault"]),
            "not_allowed",
        ),
        // To start is not to read, nor to stop.
        (token("t-eve"), Start, of(&["shop"]), "allowed"),
        (token("t-eve"), Show, of(&["shop"]), "allowed"),
        (token("t-eve"), List, of(&["shop"]), "allowed"),
        (token("t-eve"), Read, of(&["shop"]), "not_allowed"),
        (token("t-eve"), Stop, of(&["shop"]), "not_allowed"),
        (token("t-eve"), Watch, of(&["shop"]), "not_allowed"),
        // To read is not to start.
        (token("t-reader"), Read, of(&["shop"]), "allowed"),
        (token("t-reader"), Start, of(&["shop"]), "not_allowed"),
        // Nodes and the cluster's state are nobody's namespace.
        (token("t-jane"), Start, Scope::Cluster, "not_allowed"),
        (token("t-jane"), Read, Scope::Cluster, "not_allowed"),
        (token("t-jane"), Status, of(&["shop"]), "not_allowed"),
        (token("t-ops"), Start, Scope::Cluster, "allowed"),
        (token("t-ops"), Read, Scope::Cluster, "allowed"),
        (token("t-ops"), Status, Scope::Cluster, "allowed"),
        (
            token("t-ops"),
            Start,
            of(&["shop", "bank", "vault"]),
            "allowed",
        ),
        // Nowhere, and everywhere by an empty name.
        (token("t-ops"), Start, of(&[]), "nowhere"),
        (token("t-ops"), Start, of(&["", "shop"]), "nowhere"),
        (token("t-eve"), Start, of(&[""]), "nowhere"),
        // Nobody.
        (nobody(), Start, of(&["shop"]), "no_credentials"),
        (nobody(), Status, Scope::Cluster, "no_credentials"),
        (token("t-expired"), Start, of(&["shop"]), "bad_token"),
        (token("t-nameless"), Start, of(&["shop"]), "bad_token"),
        (token("t-userless"), Start, of(&["shop"]), "bad_token"),
        (token("t-unsaid"), Start, of(&["shop"]), "bad_token"),
        (token("t-false"), Start, of(&["shop"]), "bad_token"),
        // A certificate's name is a user of its own, and no other user's.
        (certificate(talon), Start, of(&["shop"]), "allowed"),
        (certificate(talon), Read, of(&["shop"]), "not_allowed"),
        (certificate(talon), Start, of(&["bank"]), "not_allowed"),
        (certificate("ops"), Start, of(&["shop"]), "not_allowed"),
    ];
    for (caller, action, scope, expected) in table {
        let found = word(&access, &caller, action, &scope).await;
        assert_eq!(found, expected, "{caller:?} {action:?} {scope:?}");
    }
    let many: BTreeSet<_> = (0..=NAMESPACES_MAX).map(|n| format!("ns-{n}")).collect();
    let many = Scope::Namespaces(many);
    assert_eq!(
        word(&access, &token("t-ops"), Start, &many).await,
        "too_many_namespaces"
    );
}

#[tokio::test]
async fn an_ill_api_server_means_no_with_the_reason() {
    for (mood, expected) in [
        (Mood::Fails(500), "answered 500"),
        // These the client tries again, until the deadline.
        (Mood::Fails(429), "the API server"),
        (Mood::Fails(503), "the API server"),
        (Mood::Fails(401), "answered 401"),
        (Mood::Fails(403), "system:auth-delegator"),
        (Mood::Garbage, "not one"),
        (Mood::Empty, "no status"),
        (Mood::Hangs, "did not answer within"),
    ] {
        let (server, access) = cluster().await;
        server.table().mood = mood;
        for caller in [token("t-ops"), certificate("ops")] {
            let asking = ask(&access, &caller, Action::Start, &Scope::Cluster);
            let denied = tokio::time::timeout(Duration::from_secs(60), asking)
                .await
                .unwrap()
                .unwrap_err();
            let Denied::NotAsked(why) = &denied else {
                panic!("{mood:?}: {denied:?}");
            };
            assert!(why.contains(expected), "{mood:?}: {why}");
            let status = Status::from(&denied);
            assert_eq!(status.code(), Code::Unavailable);
            assert!(!status.message().contains('\u{1b}'));
        }
        // Nothing of that is kept.
        server.table().mood = Mood::Well;
        assert_eq!(
            word(&access, &token("t-ops"), Action::Start, &Scope::Cluster).await,
            "allowed"
        );
    }
    let (server, access) = cluster().await;
    server.stop();
    let denied = ask(&access, &token("t-ops"), Action::Start, &Scope::Cluster)
        .await
        .unwrap_err();
    assert!(denied.to_string().contains("not reached"), "{denied}");
}

#[tokio::test]
async fn an_audience_that_is_asked_for_must_be_the_tokens() {
    let server = ApiServer::start().await;
    server.grant("jane", &["create captures shop"]);
    let status = |audiences: serde_json::Value| json!({"authenticated": true, "user": {"username": "jane"}, "audiences": audiences});
    server.table().tokens.extend([
        ("t-right".to_owned(), status(json!(["remora", "x"]))),
        ("t-other".to_owned(), status(json!(["x"]))),
        ("t-empty".to_owned(), status(json!([]))),
        ("t-unsaid".to_owned(), status(json!(null))),
    ]);
    let access = ClusterAccess::new(server.reviews(Some("remora")));
    for (text, expected) in [
        ("t-right", "allowed"),
        ("t-other", "bad_token"),
        ("t-empty", "bad_token"),
        ("t-unsaid", "bad_token"),
    ] {
        let found = word(&access, &token(text), Action::Start, &of(&["shop"])).await;
        assert_eq!(found, expected, "{text}");
    }
}

/// The clock stands still but where the test moves it.
#[tokio::test(start_paused = true)]
async fn a_right_that_is_taken_away_ends_in_ten_seconds_and_a_new_one_holds_after_one() {
    let (server, access) = cluster().await;
    let start = async |caller: &Caller| {
        let scope = of(&["shop"]);
        // The server is on the same runtime, whose clock runs ahead while it waits.
        word(&access, caller, Action::Start, &scope).await
    };
    let (jane, late) = (token("t-jane"), token("t-late"));
    tokio::time::resume();
    assert_eq!(start(&jane).await, "allowed");
    assert_eq!(start(&late).await, "bad_token");
    let asked = server.asked();
    assert_eq!(start(&jane).await, "allowed");
    assert_eq!(start(&late).await, "bad_token");
    assert_eq!(server.asked(), asked, "it was known");

    server.table().rights.retain(|(who, _)| who != "jane");
    server.user("t-late", "late", &[]);
    server.grant("late", &["create captures shop"]);
    tokio::time::pause();
    tokio::time::advance(DENY_FOR).await;
    tokio::time::resume();
    assert_eq!(start(&late).await, "allowed");
    tokio::time::pause();
    tokio::time::advance(ALLOW_FOR).await;
    tokio::time::resume();
    assert_eq!(start(&jane).await, "not_allowed");
    server.table().tokens.retain(|(token, _)| token != "t-jane");
    tokio::time::pause();
    tokio::time::advance(ALLOW_FOR).await;
    tokio::time::resume();
    assert_eq!(start(&jane).await, "bad_token");
}

#[tokio::test]
async fn the_api_server_is_told_all_that_it_knows_of_the_user() {
    let (server, access) = cluster().await;
    ask(&access, &token("t-jane"), Action::Read, &of(&["bank"]))
        .await
        .unwrap();
    assert_eq!(
        server.last_question(),
        json!({
            "user": "jane", "uid": "uid-of-jane",
            "groups": ["system:authenticated", "auditors"],
            "extra": {"example.org/team": ["blue"]},
            "resourceAttributes": {
                "group": "remora.dev", "resource": "captures", "subresource": "data",
                "verb": "get", "namespace": "bank",
            },
        })
    );
}

#[test]
fn refusals_say_what_to_do_and_quote_what_came_from_outside() {
    let right = |namespace: Option<&str>, subresource| Right {
        verb: "get",
        subresource,
        namespace: namespace.map(str::to_owned),
    };
    for (user, right, expected) in [
        (
            "jane",
            right(Some("shop"), Some("data")),
            "kubectl create role remora-get-data -n shop --verb=get --resource=captures.remora.dev/data && \
             kubectl create rolebinding remora-get-data -n shop --role=remora-get-data --user=jane",
        ),
        (
            "system:serviceaccount:soc:reader",
            right(None, None),
            "kubectl create clusterrole remora-get-captures --verb=get --resource=captures.remora.dev && \
             kubectl create clusterrolebinding remora-get-captures --clusterrole=remora-get-captures \
             --serviceaccount=soc:reader",
        ),
        (
            "o'brien $(reboot)",
            right(Some("shop"), None),
            r"--user='o'\''brien $(reboot)'",
        ),
    ] {
        let user = user.to_owned();
        let told = Denied::NotAllowed { user, right }.to_string();
        assert!(told.contains(expected), "{told}");
    }
}

#[test]
fn callers_are_known_by_one_bearer_token_or_by_their_certificate() {
    let address = "192.0.2.1:5".parse().unwrap();
    let request = |headers: &[&str], name: Option<&str>| {
        let mut request = Request::new(());
        for header in headers {
            request
                .metadata_mut()
                .append("authorization", header.parse().unwrap());
        }
        request.extensions_mut().insert(Peer {
            address,
            name: name.map(|name| name.parse().unwrap()),
        });
        Caller::of(&request)
    };
    let of = |caller: Result<Caller, Denied>| caller.map(|caller| caller.credentials);
    let jane = || Credentials::Token(Token::new("t.jane-1").unwrap());
    assert_eq!(of(request(&["Bearer t.jane-1"], None)), Ok(jane()));
    assert_eq!(of(request(&["bearer t.jane-1"], Some("talon"))), Ok(jane()));
    assert_eq!(
        of(request(&[], Some("talon"))),
        Ok(Credentials::Certificate("talon".parse().unwrap()))
    );
    assert_eq!(of(request(&[], None)), Ok(Credentials::None));
    let long = format!("Bearer {}", "a".repeat(9000));
    for headers in [
        &["Basic amFuZTp4"][..],
        &["Bearer"],
        &["Bearer "],
        &["Bearer a b"],
        &["Bearer a\"b"],
        &["Bearer a", "Bearer b"],
        &[&long],
    ] {
        assert_eq!(
            of(request(headers, Some("talon"))),
            Err(Denied::BadHeader),
            "{headers:?}"
        );
    }
    assert!(!format!("{:?}", request(&["Bearer t.jane-1"], None)).contains("jane"));
}

proptest! {
    /// Whatever the answers: allowed if and only if there are some and all are yes.
    #[test]
    fn only_all_yes_is_yes(answers in proptest::collection::vec(0u8..3, 0..6)) {
        let scope = Scope::Namespaces((0..answers.len()).map(|n| format!("ns-{n}")).collect());
        let all_yes = !answers.is_empty() && answers.iter().all(|answer| *answer == 0);
        let needed = rights(Action::Start, &scope).unwrap_or_default();
        prop_assert_eq!(needed.len(), answers.len());
        let answers = needed.into_iter().zip(&answers).map(|(right, answer)| {
            let answer = match answer {
                0 => Answer::Yes,
                1 => Answer::No,
                _ => Answer::Unknown("away".to_owned()),
            };
            (right, answer)
        });
        let judged = judge(&User::default(), answers.collect());
        prop_assert_eq!(judged.is_ok(), all_yes);
    }
}
