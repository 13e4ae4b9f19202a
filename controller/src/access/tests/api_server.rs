//! An API server that knows users and rights by a table, and fails when it is told to.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::post,
};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use super::super::Reviews;

/// How it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mood {
    #[default]
    Well,
    /// HTTP status, as of an API server that is ill, or does not let us ask.
    Fails(u16),
    /// Answers nothing for long.
    Hangs,
    /// Answers what is no answer.
    Garbage,
    /// Answers without a status.
    Empty,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) mood: Mood,
    /// Token, and the status that its review has.
    pub(super) tokens: Vec<(String, Value)>,
    /// User or group, and what he may: "create captures shop", "get captures/data *".
    pub(super) rights: Vec<(String, String)>,
}

#[derive(Clone, Debug, Default)]
struct Shared {
    table: Arc<Mutex<Table>>,
    asked: Arc<[AtomicU64; 2]>,
    seen: Arc<Mutex<Vec<Value>>>,
}

#[derive(Debug)]
pub(super) struct ApiServer {
    address: SocketAddr,
    shared: Shared,
    serving: JoinHandle<()>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl ApiServer {
    pub(super) async fn start() -> Self {
        let shared = Shared::default();
        let router = Router::new()
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(token))
            .route(
                "/apis/authorization.k8s.io/v1/subjectaccessreviews",
                post(access),
            )
            .with_state(shared.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            shared,
            serving,
        }
    }

    /// Nobody answers any more.
    pub(super) fn stop(&self) {
        self.serving.abort();
    }

    pub(super) fn reviews(&self, audience: Option<&str>) -> Reviews {
        let url = format!("http://{}", self.address).parse().unwrap();
        let mut config = Config::new(url);
        config.connect_timeout = Some(Duration::from_secs(1));
        let client = Client::try_from(config).unwrap();
        Reviews::new(client, audience.map(str::to_owned))
    }

    pub(super) fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.shared
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A token of `user` in `groups`.
    pub(super) fn user(&self, token: &str, user: &str, groups: &[&str]) {
        let status = json!({
            "authenticated": true,
            "user": {"username": user, "uid": format!("uid-of-{user}"), "groups": groups,
                "extra": {"example.org/team": ["blue"]}},
        });
        self.table().tokens.push((token.to_owned(), status));
    }

    pub(super) fn grant(&self, who: &str, rights: &[&str]) {
        for right in rights {
            self.table()
                .rights
                .push((who.to_owned(), (*right).to_owned()));
        }
    }

    /// TokenReviews and SubjectAccessReviews so far.
    pub(super) fn asked(&self) -> (u64, u64) {
        let [tokens, rights] = &*self.shared.asked;
        (
            tokens.load(Ordering::Relaxed),
            rights.load(Ordering::Relaxed),
        )
    }

    /// The last question about a right.
    pub(super) fn last_question(&self) -> Value {
        let seen = self.shared.seen.lock().unwrap();
        seen.last().cloned().unwrap_or_default()
    }
}

async fn token(State(shared): State<Shared>, Json(review): Json<Value>) -> Response {
    shared.asked[0].fetch_add(1, Ordering::Relaxed);
    let (mood, status) = {
        let table = shared.table.lock().unwrap();
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        let known = table.tokens.iter().find(|(known, _)| known == token);
        let nobody = json!({"authenticated": false, "error": "token has expired"});
        (
            table.mood,
            known.map_or(nobody, |(_, status)| status.clone()),
        )
    };
    answer(
        mood,
        "authentication.k8s.io/v1",
        "TokenReview",
        review,
        status,
    )
    .await
}

async fn access(State(shared): State<Shared>, Json(review): Json<Value>) -> Response {
    shared.asked[1].fetch_add(1, Ordering::Relaxed);
    shared.seen.lock().unwrap().push(review["spec"].clone());
    let (mood, allowed) = {
        let table = shared.table.lock().unwrap();
        (table.mood, is_allowed(&table, &review["spec"]))
    };
    let status = json!({"allowed": allowed});
    answer(
        mood,
        "authorization.k8s.io/v1",
        "SubjectAccessReview",
        review,
        status,
    )
    .await
}

fn is_allowed(table: &Table, spec: &Value) -> bool {
    let of = &spec["resourceAttributes"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if of["group"] != "remora.dev" {
        return false;
    }
    let mut resource = text(&of["resource"]);
    if let Some(subresource) = of["subresource"].as_str() {
        resource = format!("{resource}/{subresource}");
    }
    let (verb, namespace) = (text(&of["verb"]), text(&of["namespace"]));
    let groups = spec["groups"].as_array().into_iter().flatten().map(text);
    let who: Vec<_> = groups.chain([text(&spec["user"])]).collect();
    table.rights.iter().any(|(subject, right)| {
        who.contains(subject)
            && (*right == format!("{verb} {resource} {namespace}")
                || *right == format!("{verb} {resource} *"))
    })
}

async fn answer(mood: Mood, version: &str, kind: &str, review: Value, status: Value) -> Response {
    let mut whole = json!({
        "apiVersion": version, "kind": kind, "metadata": {}, "spec": review["spec"],
    });
    match mood {
        Mood::Well => {
            whole["status"] = status;
            (StatusCode::CREATED, Json(whole)).into_response()
        }
        Mood::Empty => (StatusCode::CREATED, Json(whole)).into_response(),
        Mood::Garbage => (StatusCode::CREATED, "{\"kind\": [").into_response(),
        Mood::Hangs => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            StatusCode::OK.into_response()
        }
        Mood::Fails(code) => {
            let told = json!({
                "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
                "reason": "Failed", "message": "it does not \u{1b}[31mwork",
            });
            (StatusCode::from_u16(code).unwrap(), Json(told)).into_response()
        }
    }
}
