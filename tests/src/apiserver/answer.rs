//! One request, answered as an API server does.

use std::{convert::Infallible, future::pending, io, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER},
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{
    Shared,
    body::{Answer, Part},
    objects::{Fault, Kind, Selector},
};

/// A watch without `timeoutSeconds`.
const WATCH: Duration = Duration::from_secs(1800);

/// What is asked.
#[derive(Debug, Default)]
struct Query {
    watch: bool,
    version: u64,
    seconds: Option<u64>,
    limit: Option<usize>,
    /// How many objects were in the pages before.
    skip: usize,
    selector: Selector,
    metadata_only: bool,
}

pub(super) async fn answer(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let uri = request.uri();
    let Some(kind) = Kind::of_path(uri.path()) else {
        return Ok(status(
            StatusCode::NOT_FOUND,
            "NotFound",
            "there is no such path",
        ));
    };
    let accept = request.headers().get(ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok());
    let query = Query {
        metadata_only: accept.is_some_and(|accept| accept.contains("as=PartialObjectMetadata")),
        ..Query::of_text(uri.query().unwrap_or_default())
    };
    let fault = {
        let mut objects = shared.objects();
        let verb = if query.watch { "watch" } else { "list" };
        objects.requests.push(format!("{verb} {}", kind.plural()));
        objects.meet(|fault| fault.kind() == kind && (query.watch || !fault.is_for_watches()))
    };
    Ok(match fault {
        Some(Fault::TooMany(_, seconds)) => {
            let mut answer = status(
                StatusCode::TOO_MANY_REQUESTS,
                "TooManyRequests",
                "leave me alone",
            );
            answer.headers_mut().insert(RETRY_AFTER, seconds.into());
            answer
        }
        Some(Fault::Broken(_)) => {
            let body = Answer::Whole(Some(Bytes::from_static(b"<html>no</html>")));
            response(StatusCode::INTERNAL_SERVER_ERROR, body)
        }
        Some(Fault::TooOldStatus(_)) => too_old(),
        fault if query.watch => {
            let (sender, parts) = mpsc::channel(64);
            let shared = Arc::clone(shared);
            tokio::spawn(async move { watch(&shared, kind, query, fault, &sender).await });
            response(StatusCode::OK, Answer::Live(parts))
        }
        _ => list(shared, kind, &query),
    })
}

impl Query {
    fn of_text(text: &str) -> Self {
        let mut query = Self::default();
        for (name, value) in text.split('&').filter_map(|pair| pair.split_once('=')) {
            let value = decoded(value);
            match name {
                "watch" => query.watch = matches!(value.as_str(), "true" | "1"),
                "resourceVersion" => query.version = value.parse().unwrap_or(0),
                "timeoutSeconds" => query.seconds = value.parse().ok(),
                "limit" => query.limit = value.parse().ok(),
                "continue" => query.skip = value.parse().unwrap_or(0),
                "fieldSelector" => {
                    query.selector = Selector::of_text(&value).unwrap_or_default();
                }
                _ => {}
            }
        }
        query
    }
}

/// `%3D` is `=`.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let decoded = match byte {
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let digits = std::str::from_utf8(&digits).unwrap_or_default();
                u8::from_str_radix(digits, 16).unwrap_or(b'?')
            }
            b'+' => b' ',
            byte => byte,
        };
        bytes.push(decoded);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn list(shared: &Shared, kind: Kind, query: &Query) -> Response<Answer> {
    let objects = shared.objects();
    let all = objects.list(kind, &query.selector);
    let limit = query.limit.unwrap_or(usize::MAX);
    let page: Vec<_> = all
        .iter()
        .skip(query.skip)
        .take(limit)
        .map(|object| shown(object, query.metadata_only))
        .collect();
    let seen = query.skip + page.len();
    let next = (seen < all.len()).then(|| seen.to_string());
    let (list, version) = match query.metadata_only {
        true => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1"),
        false => (format!("{}List", kind.name()), "v1"),
    };
    json_response(
        StatusCode::OK,
        &json!({
            "kind": list, "apiVersion": version,
            "metadata": {
                "resourceVersion": objects.version().to_string(),
                "continue": next.unwrap_or_default(),
            },
            "items": page,
        }),
    )
}

fn shown(object: &Value, metadata_only: bool) -> Value {
    match metadata_only {
        false => object.clone(),
        true => json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        }),
    }
}

/// Until its time is over, the client is gone, or a fault.
async fn watch(
    shared: &Shared,
    kind: Kind,
    query: Query,
    fault: Option<Fault>,
    sender: &mpsc::Sender<Part>,
) {
    let seconds = query.seconds.map(Duration::from_secs);
    let end = Instant::now() + seconds.unwrap_or(WATCH);
    let mut changes = shared.version.subscribe();
    let mut version = query.version;
    let mut fault = fault;
    loop {
        changes.mark_unchanged();
        let (events, now) = {
            let mut objects = shared.objects();
            fault = fault.or_else(|| {
                objects.meet(|fault| fault.kind() == kind && fault.is_for_open_watches())
            });
            let events = objects.since(version, kind, &query.selector);
            (events, objects.version())
        };
        match fault {
            Some(Fault::Stall(_)) => pending().await,
            Some(Fault::End(_)) => return,
            Some(Fault::Close(_)) => {
                let half = Bytes::from_static(b"{\"type\":\"ADDED\",\"obj");
                let _gone = sender.send(Ok(half)).await;
                // Breaks the connection without the last chunk.
                let _gone = sender.send(Err(io::ErrorKind::BrokenPipe.into())).await;
                return;
            }
            _ => {}
        }
        let Some(events) = events.filter(|_| fault.is_none()) else {
            let gone = json!({
                "type": "ERROR",
                "object": status_object(StatusCode::GONE, "Expired", "too old resource version"),
            });
            let _gone = sender.send(Ok(line(&gone))).await;
            return;
        };
        for event in events {
            let object = shown(&event.object, query.metadata_only);
            let told = json!({"type": event.what, "object": object});
            if sender.send(Ok(line(&told))).await.is_err() {
                return;
            }
        }
        version = now;
        match timeout_at(end, changes.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_over) => {
                let bookmark = json!({
                    "type": "BOOKMARK",
                    "object": {
                        "kind": kind.name(), "apiVersion": "v1",
                        "metadata": {"resourceVersion": version.to_string()},
                    },
                });
                let _gone = sender.send(Ok(line(&bookmark))).await;
                return;
            }
        }
    }
}

fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

fn too_old() -> Response<Answer> {
    status(StatusCode::GONE, "Expired", "too old resource version")
}

fn status(code: StatusCode, reason: &str, message: &str) -> Response<Answer> {
    json_response(code, &status_object(code, reason, message))
}

fn status_object(code: StatusCode, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    })
}

fn json_response(code: StatusCode, value: &Value) -> Response<Answer> {
    response(code, Answer::Whole(Some(value.to_string().into())))
}

fn response(code: StatusCode, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_kube_writes_it() {
        let query = Query::of_text(
            "&limit=500&fieldSelector=spec.nodeName%3Dnode-a&watch=true&timeoutSeconds=30&resourceVersion=7",
        );
        assert!(query.watch);
        assert_eq!(
            (query.version, query.seconds, query.limit),
            (7, Some(30), Some(500))
        );
        assert_eq!(
            query.selector.0,
            Some(("/spec/nodeName".to_owned(), "node-a".to_owned()))
        );
    }
}
