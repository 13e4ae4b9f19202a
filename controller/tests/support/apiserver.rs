//! A small API server: lists and watches of whatever is put into it, and the faults that a real one
//! will not produce when asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

/// What it does instead of answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// Every request fails with this status.
    Failing(u16),
    /// Watches are taken and nothing more is told in them.
    Silent,
}

#[derive(Debug)]
struct World {
    version: u64,
    /// By plural, then by namespace and name.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    /// What happened: version, plural, kind of event, object.
    log: Vec<(u64, String, &'static str, Value)>,
    /// Watches from before this version are told that it is gone.
    oldest: u64,
    mood: Mood,
    lists: usize,
    watches: usize,
}

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    /// Raised with each change; watches of an earlier connection epoch end.
    changed: watch::Sender<(u64, u32)>,
}

#[derive(Debug)]
pub(crate) struct ApiServer {
    shared: Arc<Shared>,
    pub(crate) url: String,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared {
            world: Mutex::new(World {
                version: 1,
                objects: BTreeMap::new(),
                log: Vec::new(),
                oldest: 0,
                mood: Mood::Well,
                lists: 0,
                watches: 0,
            }),
            changed: watch::Sender::new((1, 0)),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            shared,
            url,
            serving,
        }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let mut config = kube::Config::new(self.url.parse().unwrap());
        config.default_namespace = "remora".into();
        kube::Client::try_from(config).unwrap()
    }

    /// Puts an object there, or another in its place.
    pub(crate) fn apply(&self, plural: &str, mut object: Value) {
        let mut world = self.shared.world.lock().unwrap();
        world.version += 1;
        object["metadata"]["resourceVersion"] = json!(world.version.to_string());
        let of_kind = world.objects.entry(plural.to_owned()).or_default();
        let before = of_kind.insert(key(&object), object.clone());
        let event = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        let version = world.version;
        world.log.push((version, plural.to_owned(), event, object));
        drop(world);
        self.tell();
    }

    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut world = self.shared.world.lock().unwrap();
        world.version += 1;
        let of_kind = world.objects.entry(plural.to_owned()).or_default();
        let object = of_kind.remove(&format!("{namespace}/{name}")).unwrap();
        let version = world.version;
        world
            .log
            .push((version, plural.to_owned(), "DELETED", object));
        drop(world);
        self.tell();
    }

    pub(crate) fn mood(&self, mood: Mood) {
        self.shared.world.lock().unwrap().mood = mood;
    }

    /// Forgets what happened, and ends all watches: who watches on is told 410.
    pub(crate) fn compact(&self) {
        let mut world = self.shared.world.lock().unwrap();
        world.version += 1;
        world.oldest = world.version;
        world.log.clear();
        drop(world);
        self.cut();
    }

    /// Ends all watches.
    pub(crate) fn cut(&self) {
        self.shared.changed.send_modify(|(_, epoch)| *epoch += 1);
    }

    /// Lists and watches that were asked for.
    pub(crate) fn requests(&self) -> (usize, usize) {
        let world = self.shared.world.lock().unwrap();
        (world.lists, world.watches)
    }

    fn tell(&self) {
        self.shared
            .changed
            .send_modify(|(version, _)| *version += 1);
    }
}

fn key(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri) -> Response {
    let query: BTreeMap<_, _> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), decoded(value)))
        .collect();
    let parts: Vec<_> = uri.path().trim_matches('/').split('/').collect();
    let plural = parts.last().copied().unwrap_or_default().to_owned();
    let namespace = match parts[..] {
        [.., "namespaces", namespace, _] => Some(namespace.to_owned()),
        _ => None,
    };
    let wanted = Wanted {
        plural,
        namespace,
        labels: query.get("labelSelector").cloned(),
    };
    let mut world = shared.world.lock().unwrap();
    if let Mood::Failing(code) = world.mood {
        return StatusCode::from_u16(code).unwrap().into_response();
    }
    if query.get("watch").map(String::as_str) != Some("true") {
        world.lists += 1;
        let objects = world.objects.get(&wanted.plural);
        let items: Vec<_> = objects
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter(|object| wanted.takes(&wanted.plural, object))
            .cloned()
            .collect();
        let list = json!({
            "kind": "List",
            "apiVersion": "v1",
            "metadata": {"resourceVersion": world.version.to_string()},
            "items": items,
        });
        return axum::Json(list).into_response();
    }
    world.watches += 1;
    drop(world);
    let since = query
        .get("resourceVersion")
        .and_then(|v| v.parse().ok())
        .unwrap_or(0);
    let seconds = query
        .get("timeoutSeconds")
        .and_then(|v| v.parse().ok())
        .unwrap_or(300);
    let changed = shared.changed.subscribe();
    let (_, epoch) = *changed.borrow();
    let watching = Watching {
        epoch,
        until: tokio::time::Instant::now() + Duration::from_secs(seconds),
        shared,
        wanted,
        since,
        changed,
        ended: false,
    };
    let lines = futures_util::stream::unfold(watching, |mut watching| async move {
        let lines = watching.next().await?;
        Some((Ok::<_, std::io::Error>(lines), watching))
    });
    Body::from_stream(lines).into_response()
}

/// A value of a query.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).unwrap();
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
                rest = after;
            }
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).unwrap()
}

struct Wanted {
    plural: String,
    namespace: Option<String>,
    labels: Option<String>,
}

impl Wanted {
    fn takes(&self, plural: &str, object: &Value) -> bool {
        let metadata = &object["metadata"];
        let has = |label: &str| match label.split_once('=') {
            Some((key, value)) => metadata["labels"][key] == value,
            None => !metadata["labels"][label].is_null(),
        };
        plural == self.plural
            && self
                .namespace
                .as_ref()
                .is_none_or(|namespace| metadata["namespace"] == **namespace)
            && self
                .labels
                .as_ref()
                .is_none_or(|labels| labels.split(',').all(has))
    }
}

struct Watching {
    shared: Arc<Shared>,
    wanted: Wanted,
    since: u64,
    changed: watch::Receiver<(u64, u32)>,
    epoch: u32,
    until: tokio::time::Instant,
    ended: bool,
}

impl Watching {
    /// The next lines; `None`: the watch ends.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.ended || self.changed.borrow_and_update().1 != self.epoch {
                return None;
            }
            {
                let world = self.shared.world.lock().unwrap();
                if self.since < world.oldest {
                    self.ended = true;
                    let status = json!({"type": "ERROR", "object": {
                        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
                        "reason": "Expired", "message": "too old resource version", "metadata": {},
                    }});
                    return Some(format!("{status}\n").into());
                }
                if world.mood == Mood::Well {
                    let lines: String = world
                        .log
                        .iter()
                        .filter(|(version, plural, _, object)| {
                            *version > self.since && self.wanted.takes(plural, object)
                        })
                        .map(|(_, _, event, object)| {
                            format!("{}\n", json!({"type": event, "object": object}))
                        })
                        .collect();
                    self.since = world.version;
                    if !lines.is_empty() {
                        return Some(lines.into());
                    }
                }
            }
            tokio::select! {
                _ = self.changed.changed() => {}
                () = tokio::time::sleep_until(self.until) => self.ended = true,
            }
        }
    }
}
