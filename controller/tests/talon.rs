//! Falco Talon's two ways in: what the real one sent, and what nobody may send.

#[path = "../../tests/src/certificates.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "other crates' tests use the rest"
)]
mod certificates;
#[path = "../../tests/src/sigv4.rs"]
#[allow(unreachable_pub, reason = "other crates' tests use it too")]
mod sigv4;
mod support;

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use certificates::{Ca, Wanted};
use hyper_util::rt::{TokioExecutor, TokioIo};

use remora_controller::args::RunArgs;
use remora_proto::reason::Reason;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use sigv4::{Signer, Unsigned};
use support::{ANY, Answer, Behaviour, FakeAgent, PATIENCE, TestController, alert, request};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::Code;

const KEY: &str = "AKIDREMORATEST";
const SECRET: &str = "remora/dummy+secret/for/golden/fixtures00";
const INVOKE: &str = "/talon/lambda/2015-03-31/functions/remora-capture/invocations";

fn with_keys(dir: &Path, args: &mut RunArgs) {
    let (access_key, secret_key) = (dir.join("access-key"), dir.join("secret-key"));
    fs::write(&access_key, KEY).unwrap();
    fs::write(&secret_key, format!("{SECRET}\n")).unwrap();
    args.talon.talon_access_key_file = Some(access_key);
    args.talon.talon_secret_key_file = Some(secret_key);
}

/// Takes requests that were signed when they were recorded.
fn with_keys_of_any_time(dir: &Path, args: &mut RunArgs) {
    with_keys(dir, args);
    args.talon.talon_clock_skew = Duration::from_secs(100 * 366 * 24 * 3600).as_secs();
}

async fn started(set: impl FnOnce(&Path, &mut RunArgs)) -> (TestController, FakeAgent) {
    let controller = TestController::start_with(ANY, set).await;
    let agent = FakeAgent::listen(controller.socket(), Behaviour::Arm);
    (controller, agent)
}

/// What was recorded, in its order: name without number and extension, and bytes.
fn recorded(folder: &str) -> Vec<(String, Vec<u8>)> {
    let path = format!("{}/../tests/fixtures/{folder}", env!("CARGO_MANIFEST_DIR"));
    let mut all: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "http")
        })
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name.replace(".request.http", ""), fs::read(&path).unwrap())
        })
        .collect();
    all.sort();
    all
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    let prefix = format!("{name}: ");
    let line = answer
        .head
        .lines()
        .find_map(|line| line.strip_prefix(&*prefix));
    line.unwrap_or_else(|| panic!("no {name}: {answer:?}"))
}

fn json_of(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

/// Talon HEAD, Talon v0.3.0, and Talon behind Falcosidekick.
#[tokio::test]
async fn each_request_of_the_real_talon_has_its_answer() {
    // Alerts that name nothing on a node, and those without the address that the rule's filter asks for.
    let refused = BTreeMap::from([
        ("04-invoke-host-null-k8s", "no_target"),
        ("05-invoke-na-strings", "no_target"),
        ("10-invoke-k8s-audit", "no_target"),
        ("08-invoke-tags-lowercase-priority", "missing_value"),
        ("09-invoke-event-generator", "missing_value"),
        ("12-invoke-no-fd-fields", "missing_value"),
        ("14-invoke-empty-source-debug", "missing_value"),
        ("07-event-generator", "missing_value"),
        ("13-empty-source-debug", "missing_value"),
    ]);
    for folder in [
        "talon-lambda",
        "talon-lambda-v0.3.0",
        "sidekick-talon-lambda",
    ] {
        let (controller, agent) = started(with_keys_of_any_time).await;
        let (mut ids, mut invocations) = (Vec::new(), 0);
        for (name, bytes) in recorded(folder) {
            let answer = controller.send(&bytes).await;
            if name.contains("-sts-") {
                assert_eq!(answer.status, 200, "{name}: {answer:?}");
                assert!(answer.body.contains("<GetCallerIdentityResult>"));
                continue;
            }
            if name.contains("get-function") {
                let expected = json!({"Configuration": {"FunctionName": "remora-capture"}});
                assert_eq!((answer.status, json_of(&answer)), (200, expected), "{name}");
                continue;
            }
            invocations += 1;
            if let Some(code) = refused.get(&*name) {
                assert_eq!(
                    (answer.status, &*answer.text("code")),
                    (422, *code),
                    "{name}"
                );
                assert_eq!(
                    header(&answer, "x-amzn-errortype"),
                    "InvalidParameterValueException"
                );
                assert_eq!(answer.text("Message"), answer.text("reason"));
                continue;
            }
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let expected = match text
                .lines()
                .find(|l| l.starts_with("X-Amz-Invocation-Type: "))
            {
                Some(line) if line.ends_with("Event") => 202,
                Some(line) if line.ends_with("DryRun") => 204,
                _ => 200,
            };
            assert_eq!(answer.status, expected, "{name}: {answer:?}");
            match expected {
                204 => assert_eq!(answer.body, ""),
                _ => ids.push((name, answer.text("capture_id"))),
            }
        }
        let law = controller.law().await;
        assert_eq!(law.received, invocations, "{folder}");
        // Three attempts of one call are one capture.
        let id = |n: &str| {
            ids.iter()
                .find(|(name, _)| name.starts_with(n))
                .map(|(_, id)| id)
        };
        let existing = if folder == "talon-lambda" {
            assert_eq!(id("23-"), id("24-"));
            assert_eq!(id("23-"), id("25-"));
            2
        } else {
            0
        };
        assert_eq!(law.existing, existing, "{folder}");
        assert_eq!(law.accepted, agent.captures() as u64);
        for (_, start) in agent.requests() {
            assert_eq!(start.spec.trigger.source, "falco-talon");
            assert_eq!(start.spec.trigger.requester, format!("access key {KEY}"));
            assert!(!start.spec.trigger.trace_id.is_empty());
        }
    }
}

/// The whole of what a Talon rule asks for, from the real Talon's first recorded action.
#[tokio::test]
async fn the_actions_parameters_are_the_captures() {
    let (controller, agent) = started(with_keys_of_any_time).await;
    let (_, bytes) = recorded("talon-lambda").swap_remove(2);
    assert_eq!(controller.send(&bytes).await.status, 202);
    let (_, start) = agent.requests().swap_remove(0);
    let filter = start.spec.filter.text();
    assert_eq!(filter, "host 198.51.100.23 and tcp port 4444");
    assert_eq!(start.spec.limits.duration, Some(Duration::from_secs(30)));
    // From its alert's own time, at most two minutes further back.
    let seconds = start.spec.look_back.as_secs();
    assert!((15..=15 + 120).contains(&seconds), "{seconds}");
    assert_eq!(start.spec.target.to_string(), "container:ee97d9c4186f");
    assert_eq!(start.spec.labels["rule"], "C2 traffic");
    let reason = &start.spec.trigger.reason;
    assert_eq!(reason, "rule `C2 traffic`, action `Remora capture`");

    // Foreign parameters are told, in the capture's own account.
    let typed = recorded("talon-lambda")
        .into_iter()
        .find(|(name, _)| name.starts_with("21-"));
    assert_eq!(controller.send(&typed.unwrap().1).await.status, 202);
    let (_, start) = agent.requests().swap_remove(1);
    let reason = &start.spec.trigger.reason;
    assert!(
        reason.contains("unknown parameters left out: date, enabled, flag,"),
        "{reason}"
    );
    assert_eq!(start.spec.limits.duration, Some(Duration::from_secs(30)));
}

#[tokio::test]
async fn what_is_not_signed_by_us_now_is_refused_counted_and_audited() {
    let (mut controller, agent) = started(|dir, args| {
        with_keys(dir, args);
        args.access.audit_log = Some(dir.join("audit.log"));
        args.access.audit_bytes = 1 << 30;
        args.access.audit_files = 1;
    })
    .await;
    let now = jiff::Timestamp::now();
    let date = |seconds: i64| {
        let time = now + jiff::SignedDuration::from_secs(seconds);
        time.strftime("%Y%m%dT%H%M%SZ").to_string()
    };
    let body = serde_json::to_vec(&alert("203.0.113.7")).unwrap();
    let (today, old, future) = (date(0), date(-400), date(400));
    let right = Signer {
        access_key: KEY,
        secret_key: SECRET,
        service: "lambda",
        date: &today,
    };
    let invocation = |signer: Signer<'_>, id: &str| signed(signer, INVOKE, Some(id), &body);
    let tampered = |from: &str, to: &str| {
        let good = String::from_utf8(invocation(right, "t")).unwrap();
        assert!(good.contains(from), "{good}");
        good.replace(from, to).into_bytes()
    };
    let word = "InvalidSignatureException";
    let incomplete = "IncompleteSignatureException";
    let unsigned = "MissingAuthenticationTokenException";
    let cases = [
        (
            invocation(
                Signer {
                    secret_key: "another secret key",
                    ..right
                },
                "a",
            ),
            word,
            "unauthenticated",
        ),
        (
            invocation(
                Signer {
                    access_key: "AKIDOTHER",
                    ..right
                },
                "b",
            ),
            "UnrecognizedClientException",
            "unauthenticated",
        ),
        (
            invocation(
                Signer {
                    service: "s3",
                    ..right
                },
                "c",
            ),
            word,
            "unauthenticated",
        ),
        (
            invocation(
                Signer {
                    date: &old,
                    ..right
                },
                "d",
            ),
            "RequestExpired",
            "clock_skew",
        ),
        (
            invocation(
                Signer {
                    date: &future,
                    ..right
                },
                "e",
            ),
            "RequestExpired",
            "clock_skew",
        ),
        (
            tampered("203.0.113.7", "203.0.113.8"),
            word,
            "unauthenticated",
        ),
        (
            tampered("amz-sdk-invocation-id: t", "amz-sdk-invocation-id: u"),
            word,
            "unauthenticated",
        ),
        (
            tampered(
                "x-amz-invocation-type: Event",
                "x-amz-invocation-type: DryRun",
            ),
            word,
            "unauthenticated",
        ),
        (
            tampered("host: test", "host: other"),
            word,
            "unauthenticated",
        ),
        (
            tampered("x-amz-date: ", "x-amz-dat: "),
            incomplete,
            "unauthenticated",
        ),
        (
            tampered("authorization: ", "authorisation: "),
            unsigned,
            "unauthenticated",
        ),
        (
            tampered("AWS4-HMAC-SHA256 ", "Bearer "),
            unsigned,
            "unauthenticated",
        ),
        (
            tampered("content-length: ", "x-amz-extra: 1\r\ncontent-length: "),
            incomplete,
            "unauthenticated",
        ),
    ];
    let count = cases.len() as u64;
    for (bytes, word, code) in cases {
        let answer = controller.send(&bytes).await;
        assert_eq!(
            (answer.status, &*answer.text("code")),
            (403, code),
            "{answer:?}"
        );
        assert_eq!(header(&answer, "x-amzn-errortype"), word, "{answer:?}");
        assert_eq!(answer.text("Message"), answer.text("reason"));
        assert!(!answer.body.contains(SECRET));
    }
    // Signed, but not an invocation.
    let nameless = signed(right, INVOKE, None, &body);
    let other = signed(
        right,
        &INVOKE.replace("remora-", "other-"),
        Some("f"),
        &body,
    );
    let empty = signed(right, INVOKE, Some("g"), b"{}");
    let large = signed(right, INVOKE, Some("h"), &vec![b' '; 70_000]);
    for (bytes, status, code) in [
        (nameless, 400, "invalid_spec"),
        (other, 404, "invalid_spec"),
        (empty, 400, "invalid_alert"),
        (large, 413, "too_large"),
    ] {
        let answer = controller.send(&bytes).await;
        assert_eq!(
            (answer.status, &*answer.text("code")),
            (status, code),
            "{answer:?}"
        );
    }
    assert_eq!(agent.captures(), 0);

    // Once it is taken, once more it is a replay; signed anew it is another attempt of the same call.
    let good = invocation(right, "call-1");
    let first = controller.send(&good).await;
    assert_eq!(first.status, 202, "{first:?}");
    let replay = controller.send(&good).await;
    assert_eq!((replay.status, &*replay.text("code")), (403, "replayed"));
    let later = date(1);
    let again = controller
        .send(&invocation(
            Signer {
                date: &later,
                ..right
            },
            "call-1",
        ))
        .await;
    assert_eq!(again.text("decision"), "existing");
    assert_eq!(again.text("capture_id"), first.text("capture_id"));
    let other = controller.send(&invocation(right, "call-2")).await;
    assert_eq!(other.text("decision"), "accepted");
    assert_ne!(other.text("capture_id"), first.text("capture_id"));

    let law = controller.law().await;
    assert_eq!((law.accepted, law.existing, law.refused), (2, 1, count + 5));
    let counted = |code: &'static str| {
        let name = format!("remora_controller_refusals_total{{code=\"{code}\"}}");
        let controller = &controller;
        async move { controller.metric(&name).await }
    };
    assert_eq!(counted("unauthenticated").await, count - 2);
    assert_eq!(counted("clock_skew").await, 2);
    assert_eq!(counted("replayed").await, 1);
    let calls = "remora_controller_talon_calls_total{call=\"invoke\",result=\"refused\"}";
    assert_eq!(controller.metric(calls).await, count + 5);
    let audit = fs::read_to_string(controller.directory().join("audit.log")).unwrap();
    let lines: Vec<Value> = audit
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let of = |decision: &str| {
        lines
            .iter()
            .filter(|line| line["decision"] == *decision)
            .count()
    };
    assert_eq!(of("refused") as u64, count + 5);
    assert_eq!((of("allowed"), of("coalesced")), (2, 1));
    let allowed = lines
        .iter()
        .find(|line| line["decision"] == "allowed")
        .unwrap();
    assert_eq!(allowed["who"], format!("access key {KEY}"));
    controller.stop();
}

/// A request to the Lambda API.
fn signed(signer: Signer<'_>, path: &str, id: Option<&str>, body: &[u8]) -> Vec<u8> {
    let mut headers = vec![("x-amz-invocation-type", "Event")];
    headers.extend(id.map(|id| ("amz-sdk-invocation-id", id)));
    let headers = signer.sign(Unsigned {
        method: "POST",
        path,
        host: "test",
        headers: &headers,
        body,
    });
    let mut text = format!("POST {path} HTTP/1.1\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    [text.as_bytes(), b"\r\n", body].concat()
}

#[tokio::test]
async fn sts_and_get_function_are_signed_too() {
    let (controller, _agent) = started(with_keys).await;
    let recorded = recorded("talon-lambda");
    // Of another day.
    for (at, word) in [(0, "<Code>RequestExpired</Code>"), (1, "RequestExpired")] {
        let answer = controller.send(&recorded[at].1).await;
        assert_eq!(answer.status, 403);
        assert!(
            answer.body.contains(word) || answer.head.contains(word),
            "{answer:?}"
        );
    }
    let form = ["Content-Type: application/x-www-form-urlencoded"];
    let action = b"Action=GetCallerIdentity";
    let answer = controller
        .send(&request("POST", "/talon/sts", &form, action))
        .await;
    assert_eq!(answer.status, 403);
    assert!(
        answer
            .body
            .contains("<Code>MissingAuthenticationToken</Code>"),
        "{answer:?}"
    );
    let refused =
        "remora_controller_talon_calls_total{call=\"get_caller_identity\",result=\"refused\"}";
    assert_eq!(controller.metric(refused).await, 2);
    // They are no alerts.
    assert_eq!(controller.law().await.received, 0);
}

#[tokio::test]
async fn without_a_key_pair_there_are_no_such_routes() {
    let (controller, _agent) = started(|_, _| {}).await;
    for (name, bytes) in recorded("talon-lambda") {
        let answer = controller.send(&bytes).await;
        // Without a base path STS is the webhook, where a form is no alert.
        let expected = if name == "01-sts-get-caller-identity" || name == "28-sts-no-region" {
            400
        } else {
            404
        };
        assert_eq!(answer.status, expected, "{name}");
    }
}

#[tokio::test]
async fn wrong_parameters_and_limits_are_told_in_talons_words() {
    let (controller, agent) = started(with_keys).await;
    let date = jiff::Timestamp::now()
        .strftime("%Y%m%dT%H%M%SZ")
        .to_string();
    let signer = Signer {
        access_key: KEY,
        secret_key: SECRET,
        service: "lambda",
        date: &date,
    };
    let invoke = |id: &str, parameters: &str| {
        let mut alert = alert("203.0.113.7");
        alert["context"] =
            json!({"falco-talon.rule": "C2", "falco-talon.action.parameters": parameters});
        signed(
            signer,
            INVOKE,
            Some(id),
            &serde_json::to_vec(&alert).unwrap(),
        )
    };
    for (id, parameters, expected) in [
        ("a", r#"{"remora_fliter": "tcp"}"#, "did you mean `filter`"),
        (
            "b",
            r#"{"remora_duration": "soon"}"#,
            "`duration` is a length of time",
        ),
        (
            "c",
            r#"{"remora_filter": "host ${FD_SIP}"}"#,
            "`${FD_SIP}` is nothing that an alert has",
        ),
        (
            "d",
            r#"{"remora_scope": "deployment"}"#,
            "needs the cluster part",
        ),
    ] {
        let answer = controller.send(&invoke(id, parameters)).await;
        assert_eq!(answer.status, 422, "{answer:?}");
        assert!(answer.text("Message").contains(expected), "{answer:?}");
    }
    for (id, behaviour, status, word) in [
        (
            "e",
            Behaviour::Refuse(
                Code::ResourceExhausted,
                Some(Reason::SessionLimit),
                "64 run",
            ),
            429,
            "CaptureLimitException",
        ),
        (
            "f",
            Behaviour::Refuse(Code::Unavailable, None, "away"),
            503,
            "ServiceException",
        ),
    ] {
        agent.behave(behaviour);
        let answer = controller.send(&invoke(id, "{}")).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(header(&answer, "x-amzn-errortype"), word);
    }
}

/// What the actionner in a real Talon sent.
#[tokio::test]
async fn the_actionners_recorded_requests_are_captures_once() {
    let (controller, agent) = started(|dir, args| {
        let path = dir.join("secret");
        fs::write(&path, "not-a-real-dummy-token").unwrap();
        args.alerts.alerts_secret = Some(path);
    })
    .await;
    for (name, bytes) in recorded("talon-remora-capture") {
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(controller.send(text.as_bytes()).await.status, 401, "{name}");
        // The agent of one host finds pods by the process's cgroup.
        let text = text
            .replace("Authorization: Bearer dummy-token\r\n", "")
            .replace("\"scope\":\"pod\"", "\"scope\":\"container\"");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let head = head
            .lines()
            .filter(|line| !line.starts_with("Content-Length"));
        let head = head.collect::<Vec<_>>().join("\r\n");
        let whole = format!(
            "{head}\r\nAuthorization: Bearer not-a-real-dummy-token\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let first = controller.send(whole.as_bytes()).await;
        assert_eq!(first.status, 202, "{name}: {first:?}");
        let again = controller.send(whole.as_bytes()).await;
        assert_eq!(again.text("decision"), "existing", "{name}");
        assert_eq!(again.text("capture_id"), first.text("capture_id"));
    }
    let requests = agent.requests();
    let spec = &requests[0].1.spec;
    assert_eq!(spec.trigger.source, "falco-talon");
    assert_eq!(spec.trigger.requester, "falco-talon-remora-capture");
    assert_eq!(spec.trigger.trace_id, "b992f8e095f1bdc9d865f1747ff2d7bb");
    assert!(spec.trigger.alert.starts_with("{\"trace_id\":\"b992f8e0"));
    assert!(
        spec.trigger
            .reason
            .ends_with("unknown parameters left out: unknown_extra")
    );
    assert_eq!(spec.filter.text(), "host 198.51.100.23 and tcp port 4444");
}

#[tokio::test]
async fn a_trigger_of_the_actionner_is_bounded_and_whole() {
    let (controller, agent) = started(|_, _| {}).await;
    let post = |headers: &[&str], body: &[u8]| request("POST", "/v1/triggers/talon", headers, body);
    let json = "Content-Type: application/json";
    let long = format!("Idempotency-Key: {}", "k".repeat(129));
    let event = serde_json::to_string(&alert("203.0.113.7")).unwrap();
    let good = format!(r#"{{"event":{event}}}"#);
    for (headers, body, status, code) in [
        (vec![], good.as_bytes(), 415, "not_json"),
        (
            vec![json, "Origin: http://x"],
            good.as_bytes(),
            403,
            "from_browser",
        ),
        (vec![json, &long], good.as_bytes(), 422, "invalid_spec"),
        (vec![json], b"{}", 400, "invalid_alert"),
        (vec![json], event.as_bytes(), 400, "invalid_alert"),
        (vec![json], &vec![b' '; 90_000], 413, "too_large"),
    ] {
        let answer = controller.send(&post(&headers, body)).await;
        assert_eq!(
            (answer.status, &*answer.text("code")),
            (status, code),
            "{answer:?}"
        );
    }
    // Without a key the event itself says that it came before.
    let first = controller.send(&post(&[json], good.as_bytes())).await;
    assert_eq!(first.status, 202, "{first:?}");
    let again = controller.send(&post(&[json], good.as_bytes())).await;
    assert_eq!(again.text("decision"), "existing");
    assert_eq!(agent.captures(), 1);
    assert_eq!(controller.law().await.refused, 6);
}

/// What Falcosidekick's `talon` output sends is taken where Talon listens: at `/`.
#[tokio::test]
async fn falcosidekicks_talon_output_is_taken_as_its_webhook_is() {
    let (controller, agent) = started(|_, _| {}).await;
    let mut posts = 0;
    for (name, bytes) in recorded("falcosidekick-talon") {
        posts += 1;
        let answer = controller.send(&bytes).await;
        assert!([202, 422].contains(&answer.status), "{name}: {answer:?}");
    }
    let law = controller.law().await;
    assert_eq!((law.received, posts), (posts, 17));
    assert_eq!(law.accepted, agent.captures() as u64);
}

/// Go's HTTP client, so Talon's and Falcosidekick's, takes HTTP/2 wherever TLS offers it.
#[tokio::test]
async fn by_tls_http_2_is_spoken_and_a_signed_request_is_proved() {
    let (ca, dir) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let own = ca.sign(dir.path(), "own", &Wanted::server(&["remora-controller"]));
    let (controller, agent) = started(|dir, args| {
        with_keys(dir, args);
        args.alerts.alerts_tls_cert = Some(own.cert);
        args.alerts.alerts_tls_key = Some(own.key);
    })
    .await;
    let mut roots = RootCertStore::empty();
    let pem = CertificateDer::from_pem_slice(ca.pem().as_bytes());
    roots.add(pem.unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(controller.address).await.unwrap();
    let name = "remora-controller".try_into().unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    let stream = stream.await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let http2 = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = http2.await.unwrap();
    tokio::spawn(connection);

    let date = jiff::Timestamp::now()
        .strftime("%Y%m%dT%H%M%SZ")
        .to_string();
    let host = "remora-controller:2803";
    let body = serde_json::to_vec(&alert("203.0.113.7")).unwrap();
    for (secret_key, status) in [(SECRET, 202), ("another secret key", 403)] {
        let signer = Signer {
            access_key: KEY,
            secret_key,
            service: "lambda",
            date: &date,
        };
        let headers = signer.sign(Unsigned {
            method: "POST",
            path: INVOKE,
            host,
            headers: &[
                ("x-amz-invocation-type", "Event"),
                ("amz-sdk-invocation-id", "1"),
            ],
            body: &body,
        });
        let mut request = hyper::Request::post(format!("https://{host}{INVOKE}"));
        // It is the authority here.
        for (name, value) in headers.iter().filter(|(name, _)| name != "host") {
            request = request.header(name, value);
        }
        let request = request.body(axum::body::Body::from(body.clone())).unwrap();
        let answer = timeout(PATIENCE, sender.send_request(request)).await;
        assert_eq!(answer.unwrap().unwrap().status(), status);
    }
    assert_eq!(agent.captures(), 1);
}
