//! Known answers: what the AWS SDK for Go signed in the real Talon, and AWS's own example.

use axum::http::{HeaderName, HeaderValue};

use super::*;

const KEY: &str = "AKIDREMORATEST";
const SECRET: &str = "remora/dummy+secret/for/golden/fixtures00";

struct Recorded {
    name: String,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Recorded {
    fn parse(name: String, bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.lines();
        let mut first = lines.next().unwrap().split(' ');
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        Self {
            name,
            method: first.next().unwrap().parse().unwrap(),
            uri: first.next().unwrap().parse().unwrap(),
            headers,
            body: bytes[end + 4..].to_vec(),
        }
    }

    /// All requests of the real Talon to the Lambda and STS routes.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for folder in [
            "talon-lambda",
            "talon-lambda-v0.3.0",
            "sidekick-talon-lambda",
        ] {
            let path = format!("{}/../tests/fixtures/{folder}", env!("CARGO_MANIFEST_DIR"));
            for entry in std::fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                if path
                    .extension()
                    .is_some_and(|extension| extension == "http")
                {
                    let name = path.display().to_string();
                    all.push(Self::parse(name, &std::fs::read(&path).unwrap()));
                }
            }
        }
        all
    }

    fn head(&self) -> Head<'_> {
        Head {
            method: &self.method,
            uri: &self.uri,
            headers: &self.headers,
        }
    }

    fn service(&self) -> &'static str {
        match self.body.starts_with(b"Action=") {
            true => "sts",
            false => "lambda",
        }
    }

    fn signed_at(&self) -> Timestamp {
        scope::time(self.headers["x-amz-date"].to_str().unwrap()).unwrap()
    }

    fn terms(&self) -> Terms<'_> {
        Terms {
            access_key: KEY,
            service: self.service(),
            now: self.signed_at(),
            skew: Duration::from_secs(300),
        }
    }

    fn verdict(&self) -> Result<Proof, Denied> {
        Claim::read(self.head(), self.terms())?.prove(&self.body, SECRET)
    }
}

#[test]
fn each_request_that_the_real_talon_signed_is_proved() {
    let all = Recorded::all();
    assert_eq!(all.len(), 42);
    let mut signatures = std::collections::HashSet::new();
    for recorded in &all {
        let proof = recorded
            .verdict()
            .unwrap_or_else(|error| panic!("{}: {error}", recorded.name));
        assert!(signatures.insert(proof.signature), "{}", recorded.name);
    }
}

#[test]
fn a_request_with_anything_changed_is_not_proved() {
    let set = |recorded: &mut Recorded, name: &'static str, value: &str| {
        recorded.headers.insert(name, value.parse().unwrap());
    };
    for at in 0..Recorded::all().len() {
        let fresh = || Recorded::all().swap_remove(at);
        let changed = |change: &dyn Fn(&mut Recorded)| {
            let mut recorded = fresh();
            change(&mut recorded);
            recorded.verdict().map(|_| recorded.name)
        };
        let mismatch = Err(Denied::Mismatch);
        assert_eq!(changed(&|r| r.body.push(b' ')), mismatch);
        assert_eq!(changed(&|r| r.method = Method::PUT), mismatch);
        assert_eq!(changed(&|r| r.uri = "/other".parse().unwrap()), mismatch);
        assert_eq!(changed(&|r| set(r, "host", "127.0.0.1:1")), mismatch);
        assert_eq!(changed(&|r| set(r, "amz-sdk-invocation-id", "0")), mismatch);
        assert_eq!(changed(&|r| drop(r.headers.remove("host"))), {
            Err(Denied::Incomplete("a signed header is missing"))
        });
        // What was not there when it was signed must not be used.
        let unsigned = changed(&|r| set(r, "x-amz-target", "other"));
        assert!(
            matches!(unsigned, Err(Denied::Incomplete(_))),
            "{unsigned:?}"
        );
        let recorded = fresh();
        let claim = Claim::read(recorded.head(), recorded.terms()).unwrap();
        assert_eq!(
            claim.prove(&recorded.body, "another secret"),
            Err(Denied::Mismatch)
        );
    }
}

#[test]
fn the_clock_the_key_the_service_and_the_day_must_be_ours() {
    let recorded = &Recorded::all()[0];
    let terms = recorded.terms();
    let read = |terms: Terms<'_>| Claim::read(recorded.head(), terms).map(|_| ());
    for (seconds, is_taken) in [(-301, false), (-300, true), (300, true), (301, false)] {
        let now = terms.now + jiff::SignedDuration::from_secs(seconds);
        let found = read(Terms { now, ..terms });
        let skewed = matches!(found, Err(Denied::Skewed { .. }));
        assert_eq!((found.is_ok(), skewed), (is_taken, !is_taken), "{seconds}");
    }
    let other = Terms {
        access_key: "AKIDOTHER",
        ..terms
    };
    assert_eq!(read(other), Err(Denied::UnknownKey));
    let other = Terms {
        service: "s3",
        ..terms
    };
    assert!(matches!(read(other), Err(Denied::Scope { .. })));

    // A key of yesterday, with the time of today.
    let mut headers = recorded.headers.clone();
    headers.insert(DATE, "20261125T000000Z".parse().unwrap());
    let head = Head {
        headers: &headers,
        ..recorded.head()
    };
    let now = scope::time("20261125T000000Z").unwrap();
    let found = Claim::read(head, Terms { now, ..terms }).map(|_| ());
    assert!(matches!(found, Err(Denied::Scope { .. })), "{found:?}");
}

#[test]
fn what_is_no_signature_is_named() {
    let recorded = &Recorded::all()[0];
    let good = recorded.headers["authorization"]
        .to_str()
        .unwrap()
        .to_owned();
    for (text, expected) in [
        ("Bearer abc".to_owned(), Denied::Unsigned),
        ("AWS4-HMAC-SHA256".to_owned(), Denied::Unsigned),
        (good.replace("SHA256", "SHA512"), Denied::Unsigned),
    ] {
        let mut headers = recorded.headers.clone();
        headers.insert(header::AUTHORIZATION, text.parse().unwrap());
        let head = Head {
            headers: &headers,
            ..recorded.head()
        };
        let found = Claim::read(head, recorded.terms()).map(|_| ());
        assert_eq!(found, Err(expected), "{text}");
    }
    for text in [
        good.replace("Signature=", "Signature=0"),
        good.replace("Signature=", "Signatur="),
        good.replace("SignedHeaders=", "SignedHeaders=zz;"),
        good.replace("host;", ""),
        good.replace("x-amz-date", "x-amz-dat"),
        good.replace("aws4_request", "aws5_request"),
        good.replace("/20261124/", "/2026112/"),
        format!("{good}, Signature={}", "0".repeat(64)),
        good.to_uppercase().replace("AWS4-HMAC-SHA256", ALGORITHM),
    ] {
        let mut headers = recorded.headers.clone();
        headers.insert(header::AUTHORIZATION, text.parse().unwrap());
        let head = Head {
            headers: &headers,
            ..recorded.head()
        };
        let found = Claim::read(head, recorded.terms()).map(|_| ());
        assert!(
            matches!(found, Err(Denied::Incomplete(_))),
            "{text}: {found:?}"
        );
    }
    for (name, values) in [("authorization", 2), ("x-amz-date", 2), ("x-amz-date", 0)] {
        let mut headers = recorded.headers.clone();
        let value = headers.remove(name).unwrap();
        for _ in 0..values {
            headers.append(name, value.clone());
        }
        let head = Head {
            headers: &headers,
            ..recorded.head()
        };
        let found = Claim::read(head, recorded.terms()).map(|_| ());
        assert!(matches!(found, Err(Denied::Incomplete(_))), "{found:?}");
    }
}

/// `get-vanilla` and `get-vanilla-query-order-key-case` of AWS's test suite for the algorithm.
#[test]
fn the_authors_own_examples_are_proved() {
    for (uri, signature) in [
        (
            "/",
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (
            "/?Param2=value2&Param1=value1",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
    ] {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, Signature={signature}"
        );
        let text = format!(
            "GET {uri} HTTP/1.1\r\nHost: example.amazonaws.com\r\nX-Amz-Date: 20150830T123600Z\r\n\
             Authorization: {authorization}\r\n\r\n"
        );
        let recorded = Recorded::parse(uri.to_owned(), text.as_bytes());
        let terms = Terms {
            access_key: "AKIDEXAMPLE",
            service: "service",
            ..recorded.terms()
        };
        let claim = Claim::read(recorded.head(), terms).unwrap();
        claim
            .prove(b"", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
            .unwrap();
    }
}

#[test]
fn by_http_2_the_host_is_the_authority() {
    for recorded in Recorded::all() {
        let mut headers = recorded.headers.clone();
        let host = headers.remove("host").unwrap();
        let uri = format!("https://{}{}", host.to_str().unwrap(), recorded.uri);
        let uri = uri.parse().unwrap();
        let head = Head {
            method: &recorded.method,
            uri: &uri,
            headers: &headers,
        };
        let claim = Claim::read(head, recorded.terms()).unwrap();
        claim.prove(&recorded.body, SECRET).unwrap();
    }
}

#[test]
fn a_time_has_one_form() {
    let time = "2026-11-24T03:00:39Z".parse().unwrap();
    assert_eq!(scope::time("20261124T030039Z"), Some(time));
    for text in [
        "",
        "20261124T030039",
        "2026-11-24T03:00:39Z",
        "20261324T030039Z",
        "20261124T250039Z",
    ] {
        assert_eq!(scope::time(text), None, "{text}");
    }
}
