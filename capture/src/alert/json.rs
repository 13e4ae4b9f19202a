//! From a request's bytes to an [`Alert`].

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{ALERT_BYTES_MAX, ALERT_DEPTH_MAX, Alert, AlertError, SHOWN_MAX};
use crate::text;

/// Texts that say a value is absent: Falco's, and what a Go template makes of a missing field.
const ABSENT: [&str; 3] = ["", "<NA>", "<no value>"];

/// A value of `output_fields`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldValue {
    Null,
    Bool(bool),
    /// The digits as they came.
    Number(String),
    Text(String),
    /// A list or an object, as it came.
    Json(String),
}

impl FieldValue {
    /// `None` where there is no value, or none that has a text.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Null | Self::Json(_) => None,
            Self::Bool(true) => Some("true"),
            Self::Bool(false) => Some("false"),
            Self::Number(text) => Some(text),
            Self::Text(text) => Some(text.as_str()).filter(|text| !ABSENT.contains(text)),
        }
    }

    fn of(raw: &RawValue) -> Self {
        let json = raw.get();
        match json.as_bytes().first() {
            Some(b'n') => Self::Null,
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'-' | b'0'..=b'9') => Self::Number(json.to_owned()),
            // A string with half a surrogate pair is JSON, but no text.
            Some(b'"') => {
                serde_json::from_str(json).map_or(Self::Json(json.to_owned()), Self::Text)
            }
            _ => Self::Json(json.to_owned()),
        }
    }
}

pub(super) fn parse(bytes: &[u8]) -> Result<Alert, AlertError> {
    if bytes.len() > ALERT_BYTES_MAX {
        return Err(AlertError::TooLarge(bytes.len()));
    }
    match bytes.trim_ascii_start().first() {
        None => return Err(AlertError::Empty),
        Some(b'{') => {}
        Some(b'[' | b'"' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9') => {
            return Err(AlertError::NotAnObject);
        }
        Some(_) => return Err(AlertError::NotJson("it does not begin with `{`".to_owned())),
    }
    if depth(bytes) > ALERT_DEPTH_MAX {
        return Err(AlertError::TooDeep);
    }
    let Members(members) = serde_json::from_slice(bytes)
        .map_err(|error| AlertError::NotJson(text::escape(&error.to_string()).to_string()))?;

    let mut rule = None;
    let mut priority = None;
    let mut time = None;
    let mut source = None;
    let mut hostname = None;
    let mut uuid = None;
    let mut trace_id = None;
    let mut output = None;
    let mut tags = Vec::new();
    let mut fields = BTreeMap::new();
    for (key, value) in members {
        match key.to_ascii_lowercase().as_str() {
            "rule" => rule = string("rule", value)?,
            "priority" => {
                priority = string("priority", value)?
                    .map(|text| text.parse())
                    .transpose()?;
            }
            "time" => {
                let parse = |text: String| {
                    text.parse().map_err(|_not_a_time: jiff::Error| {
                        AlertError::Time(text::excerpt(&text, SHOWN_MAX).to_string())
                    })
                };
                time = string("time", value)?.map(parse).transpose()?;
            }
            "source" => source = string("source", value)?,
            "hostname" => hostname = string("hostname", value)?,
            "uuid" => uuid = string("uuid", value)?,
            "trace_id" => trace_id = string("trace_id", value)?,
            "output" => output = string("output", value)?,
            "tags" => {
                let list: Option<Vec<String>> = typed("tags", "a list of strings", value)?;
                tags = list.unwrap_or_default();
            }
            "output_fields" => {
                let object: Option<Members<'_>> = typed("output_fields", "an object", value)?;
                fields = object
                    .map(|Members(members)| members)
                    .into_iter()
                    .flatten()
                    .map(|(key, value)| (key.into_owned(), FieldValue::of(value)))
                    .collect();
            }
            _ => {}
        }
    }
    Ok(Alert {
        rule: rule.ok_or(AlertError::MissingRule)?,
        priority,
        time,
        source: source
            .filter(|source| source != "syscalls")
            .unwrap_or("syscall".to_owned()),
        hostname,
        uuid,
        trace_id,
        output: output.unwrap_or_default(),
        tags,
        fields,
    })
}

/// A string that says something.
fn string(field: &'static str, value: &RawValue) -> Result<Option<String>, AlertError> {
    let text: Option<String> = typed(field, "a string", value)?;
    Ok(text.filter(|text| !ABSENT.contains(&text.as_str())))
}

fn typed<'a, T: Deserialize<'a>>(
    field: &'static str,
    expected: &'static str,
    value: &'a RawValue,
) -> Result<Option<T>, AlertError> {
    serde_json::from_str(value.get()).map_err(|_other| AlertError::WrongType { field, expected })
}

/// Deepest nesting, without parsing: brackets outside of strings. A closing bracket too many is
/// left to the parser.
fn depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// An object's members in their order, values unparsed.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
