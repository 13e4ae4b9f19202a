//! A request's head and body, to whether somebody who has the key pair signed it.
//!
//! The input is a request as on the wire, HTTP/1.1, its body after the empty line.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use jiff::Timestamp;
use remora_controller::sigv4::{Claim, Denied, Head, Terms};

/// Of the recorded requests of the real Talon, with which a corpus begins.
const ACCESS_KEY: &str = "AKIDREMORATEST";
const SECRET_KEY: &str = "remora/dummy+secret/for/golden/fixtures00";

/// # Panics
/// A request is proved that was changed, or by another key; or an answer breaks its bounds.
pub fn check(bytes: &[u8]) {
    let Some((head, body)) = split(bytes) else {
        return;
    };
    let Some((method, uri, headers)) = parse(head) else {
        return;
    };
    let head = Head {
        method: &method,
        uri: &uri,
        headers: &headers,
    };
    for service in ["lambda", "sts"] {
        let terms = Terms {
            access_key: ACCESS_KEY,
            service,
            now: Timestamp::UNIX_EPOCH,
            skew: Duration::MAX,
        };
        let claim = match Claim::read(head, terms) {
            Ok(claim) => claim,
            Err(denied) => {
                confirm(&denied);
                continue;
            }
        };
        // Nobody's clock is so far off.
        let late = Terms {
            skew: Duration::ZERO,
            now: Timestamp::MAX,
            ..terms
        };
        assert!(matches!(
            Claim::read(head, late),
            Err(Denied::Skewed { .. })
        ));
        match claim.prove(body, SECRET_KEY) {
            Ok(proof) => {
                let hex: String = proof.signature.iter().map(|b| format!("{b:02x}")).collect();
                let said = headers["authorization"].to_str().expect("it was read");
                assert!(said.contains(&hex), "{said}");
                assert_eq!(claim.prove(body, "another"), Err(Denied::Mismatch));
                let longer = [body, b"x"].concat();
                assert_eq!(claim.prove(&longer, SECRET_KEY), Err(Denied::Mismatch));
            }
            Err(denied) => confirm(&denied),
        }
    }
}

fn confirm(denied: &Denied) {
    let text = denied.to_string();
    assert!(text.len() < 1024, "{} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 4..]))
}

fn parse(head: &str) -> Option<(Method, Uri, HeaderMap)> {
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, uri) = (first.next()?.parse().ok()?, first.next()?.parse().ok()?);
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).ok()?,
            HeaderValue::from_str(value.trim()).ok()?,
        );
    }
    Some((method, uri, headers))
}
