//! Alerts in CloudEvents 1.0 over HTTP. Pure.
//!
//! ```text
//! structured   Content-Type: application/cloudevents+json   {"specversion": "1.0", "id": …, "data": {the alert}}
//! binary       Content-Type: application/json, ce-id: …     {the alert}
//! ```
//! An event's `source` and `id` together are the event's, so they say whether it came before, as
//! Falcosidekick's `uuid` does (which wins where both are there).
//!
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>

use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::outcome::{Refusal, RefusalCode};

/// Media type of a structured event.
pub const MEDIA_TYPE: &str = "application/cloudevents+json";
/// Most bytes around a structured event's alert.
pub const ENVELOPE_MAX: usize = 8 * 1024;
/// Longest source and id together, in bytes.
const ID_MAX: usize = 1024;

/// What was in the envelope.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// The alert, verbatim.
    pub alert: Vec<u8>,
    /// What is the event's alone; `None` of what is no CloudEvent.
    pub id: Option<String>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    specversion: String,
    id: String,
    source: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    datacontenttype: Option<String>,
}

/// Takes the alert out of its envelope; what has none stays as it is.
///
/// # Errors
/// It is a CloudEvent of another version, without its attributes, or without JSON in it.
pub fn open(headers: &HeaderMap, body: Vec<u8>) -> Result<Opened, Refusal> {
    if is_structured(headers) {
        return structured(&body);
    }
    let Some(version) = attribute(headers, "ce-specversion") else {
        return Ok(Opened {
            alert: body,
            id: None,
        });
    };
    let (id, source) = (attribute(headers, "ce-id"), attribute(headers, "ce-source"));
    Ok(Opened {
        id: Some(identity(
            version,
            source.unwrap_or_default(),
            id.unwrap_or_default(),
        )?),
        alert: body,
    })
}

/// The body is an envelope.
#[must_use]
pub fn is_structured(headers: &HeaderMap) -> bool {
    let content_type = attribute(headers, header::CONTENT_TYPE.as_str()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case(MEDIA_TYPE)
}

fn structured(body: &[u8]) -> Result<Opened, Refusal> {
    let envelope: Envelope<'_> = serde_json::from_slice(body).map_err(|_other| {
        refused("the body is not a CloudEvent: a JSON object with `specversion`, `id`, `source` and `data`")
    })?;
    let kind = envelope
        .datacontenttype
        .as_deref()
        .unwrap_or("application/json");
    let is_json = kind
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .ends_with("json");
    let data = envelope.data.filter(|data| is_json && data.get() != "null");
    let data = data.ok_or_else(|| {
        refused("the CloudEvent has no JSON in `data`; `data_base64` and other types are not taken")
    })?;
    Ok(Opened {
        alert: data.get().as_bytes().to_vec(),
        id: Some(identity(
            &envelope.specversion,
            &envelope.source,
            &envelope.id,
        )?),
    })
}

fn identity(version: &str, source: &str, id: &str) -> Result<String, Refusal> {
    if version.split('.').next() != Some("1") {
        return Err(refused("CloudEvents are taken in version 1"));
    }
    if id.is_empty() || source.is_empty() || id.len() + source.len() > ID_MAX {
        return Err(refused(
            "a CloudEvent has `id` and `source`, at most 1024 bytes together",
        ));
    }
    // With a length, so that no two pairs are the same text.
    Ok(format!("{}:{source}{id}", source.len()))
}

fn attribute<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn refused(reason: &str) -> Refusal {
    Refusal::new(RefusalCode::InvalidAlert, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = axum::http::HeaderName::from_static(name);
            (name, value.parse().unwrap())
        });
        pairs.collect()
    }

    fn structured(body: &str) -> Result<Opened, Refusal> {
        let headers = headers(&[(
            "content-type",
            "application/cloudevents+json; charset=UTF-8",
        )]);
        open(&headers, body.as_bytes().to_vec())
    }

    #[test]
    fn a_structured_events_alert_is_taken_out_to_the_byte() {
        let body = r#"{"specversion":"1.0","type":"falco.rule.output.v1","id":"1","source":"falco.org",
            "data": {"rule" : "r", "n": 1795489205478445995 }}"#;
        let opened = structured(body).unwrap();
        assert_eq!(
            opened.alert,
            br#"{"rule" : "r", "n": 1795489205478445995 }"#
        );
        assert_eq!(opened.id.as_deref(), Some("9:falco.org1"));
    }

    #[test]
    fn a_binary_events_body_is_the_alert() {
        let attributes = [
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "falco.org"),
        ];
        let opened = open(&headers(&attributes), b"{}".to_vec()).unwrap();
        assert_eq!(opened.alert, b"{}");
        assert_eq!(opened.id.as_deref(), Some("9:falco.org1"));
        for left_out in 2..4 {
            let mut some = attributes.to_vec();
            some.remove(left_out);
            open(&headers(&some), b"{}".to_vec()).unwrap_err();
        }
        let none = open(&headers(&attributes[..1]), b"{}".to_vec()).unwrap();
        assert_eq!(none.id, None);
    }

    #[test]
    fn what_is_no_event_of_version_1_with_json_is_refused() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"specversion":"0.3","id":"1","source":"s","data":{}}"#,
            r#"{"specversion":"1.0","id":"","source":"s","data":{}}"#,
            r#"{"specversion":"1.0","id":"1","source":"s"}"#,
            r#"{"specversion":"1.0","id":"1","source":"s","data":null}"#,
            r#"{"specversion":"1.0","id":"1","source":"s","data_base64":"e30="}"#,
            r#"{"specversion":"1.0","id":"1","source":"s","data":"x","datacontenttype":"text/xml"}"#,
        ] {
            let refusal = structured(body).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::InvalidAlert, "{body}");
        }
        let long = "s".repeat(1024);
        let long = format!(r#"{{"specversion":"1.0","id":"1","source":"{long}","data":{{}}}}"#);
        structured(&long).unwrap_err();
    }

    #[test]
    fn no_two_events_have_one_identity() {
        let of = |source, id| identity("1.0", source, id).unwrap();
        assert_ne!(of("a", "bc"), of("ab", "c"));
        assert_eq!(of("a", "bc"), of("a", "bc"));
    }
}
