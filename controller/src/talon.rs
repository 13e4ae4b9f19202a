//! What a Falco Talon action asks for. Pure.
//!
//! ```text
//! aws:lambda        {…the event…, "context": {"falco-talon.rule": …, "falco-talon.action": …,
//!                    "falco-talon.action.parameters": "{\"remora_duration\":\"30s\",…}"}}
//! remora:capture    {"event": {…}, "action": {"name": …, "parameters": {"duration": "30s",…}}}
//! ```
//! Talon has decided by its own rules, so ours are not asked. Of a Lambda action's parameters those
//! with `remora_` before them are ours; if Talon left them out (it does when one of them is no JSON),
//! all have their defaults.

use remora_capture::text::one_line;
use remora_rules::Asked;
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use crate::outcome::{Refusal, RefusalCode};

/// Largest body of `remora:capture`: an alert, and an action around it.
pub const BODY_MAX: usize = remora_capture::alert::ALERT_BYTES_MAX + 16 * 1024;
/// Longest idempotency key that is taken, in bytes.
pub const KEY_MAX: usize = 128;
/// Longest name kept of a rule or an action, in bytes.
const NAME_MAX: usize = 256;
/// Most parameters that are told as unknown.
const UNKNOWN_MAX: usize = 8;
/// What our parameters begin with among those of a Lambda action.
const PREFIX: &str = "remora_";
/// Where an action is not named.
const UNNAMED: &str = "Falco Talon";

/// Which of Talon's ways an action came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Talon's own `aws:lambda`.
    Lambda,
    /// The actionner `remora:capture`.
    Actionner,
}

/// Whether the capture is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Live,
    /// Only tell whether it could.
    DryRun,
}

/// An action, as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    pub way: Way,
    pub mode: Mode,
    /// Talon's rule.
    rule: String,
    name: String,
    parameters: Map<String, Value>,
    /// The same for each attempt of one call, another for each call. Empty if the sender has none.
    pub key: String,
}

/// What is read of an event.
#[derive(Deserialize)]
struct Event {
    context: Option<Context>,
}

#[derive(Default, Deserialize)]
struct Context {
    #[serde(rename = "falco-talon.rule")]
    rule: Option<String>,
    #[serde(rename = "falco-talon.action")]
    action: Option<String>,
    /// A JSON object, as text.
    #[serde(rename = "falco-talon.action.parameters")]
    parameters: Option<String>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    event: &'a RawValue,
    action: Option<BodyAction>,
}

#[derive(Deserialize)]
struct BodyAction {
    name: Option<String>,
    parameters: Option<Map<String, Value>>,
}

impl Action {
    /// The action of a Lambda call: its body is the event.
    ///
    /// # Errors
    /// The body is not Talon's.
    pub fn of_lambda(body: &[u8], key: &str, mode: Mode) -> Result<Self, Refusal> {
        let context = context(body)?;
        let parameters = match &context.parameters {
            Some(text) => serde_json::from_str::<Map<String, Value>>(text).map_err(|_other| {
                invalid("`falco-talon.action.parameters` is not a JSON object as text")
            })?,
            None => Map::new(),
        };
        let ours = parameters
            .into_iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?.to_owned(), value)));
        Ok(Self {
            way: Way::Lambda,
            mode,
            rule: named(context.rule),
            name: named(context.action),
            parameters: ours.collect(),
            key: key.to_owned(),
        })
    }

    /// The event of a `remora:capture` call, verbatim, and its action.
    ///
    /// # Errors
    /// The body is not the actionner's.
    pub fn of_actionner(body: &[u8], key: &str) -> Result<(Vec<u8>, Self), Refusal> {
        let shape = r#"the body is not {"event": {…}, "action": {"name": …, "parameters": {…}}}"#;
        let Body { event, action } =
            serde_json::from_slice(body).map_err(|_other| invalid(shape))?;
        let event = event.get().as_bytes().to_vec();
        let context = context(&event)?;
        let (name, parameters) = match action {
            Some(BodyAction { name, parameters }) => (name, parameters.unwrap_or_default()),
            None => (None, Map::new()),
        };
        let action = Self {
            way: Way::Actionner,
            mode: Mode::Live,
            rule: named(context.rule),
            name: named(name.or(context.action)),
            parameters,
            key: key.to_owned(),
        };
        Ok((event, action))
    }

    /// The capture that it asks for.
    ///
    /// # Errors
    /// A parameter is wrong.
    pub fn asked(&self) -> Result<Asked, Refusal> {
        Asked::read(&self.rule, &self.name, &self.parameters).map_err(|problem| {
            let prefix = match self.way {
                Way::Lambda => ", its parameters without `remora_`",
                Way::Actionner => "",
            };
            let name = &self.name;
            let reason = format!("Talon's action `{name}`{prefix}: {problem}");
            Refusal::new(RefusalCode::InvalidSpec, reason)
        })
    }

    /// What was left out of the parameters, for a person.
    #[must_use]
    pub fn note(asked: &Asked) -> Option<String> {
        let unknown = &asked.unknown;
        if unknown.is_empty() {
            return None;
        }
        let shown: Vec<_> = unknown
            .iter()
            .take(UNKNOWN_MAX)
            .map(|name| one_line(name, 64))
            .collect();
        let more = match unknown.len().checked_sub(UNKNOWN_MAX) {
            Some(more @ 1..) => format!(" and {more} more"),
            Some(0) | None => String::new(),
        };
        Some(format!(
            "unknown parameters left out: {}{more}",
            shown.join(", ")
        ))
    }
}

/// What Talon adds to an event. What is no alert at all is told by who reads it whole.
fn context(event: &[u8]) -> Result<Context, Refusal> {
    let event: Event = serde_json::from_slice(event).map_err(|_other| {
        invalid("the event is not Falco Talon's: a JSON object with `context`")
    })?;
    Ok(event.context.unwrap_or_default())
}

fn named(name: Option<String>) -> String {
    let name = name.map(|name| one_line(&name, NAME_MAX));
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| UNNAMED.to_owned())
}

fn invalid(reason: &str) -> Refusal {
    Refusal::new(RefusalCode::InvalidAlert, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lambda(context: &str) -> Result<Action, Refusal> {
        let body = format!(r#"{{"rule":"r","context":{context}}}"#);
        Action::of_lambda(body.as_bytes(), "id", Mode::Live)
    }

    #[test]
    fn only_our_parameters_of_a_lambda_action_are_read() {
        let action = lambda(
            r#"{"falco-talon.rule":"C2","falco-talon.action":"go","falco-talon.action.parameters":
               "{\"aws_lambda_name\":\"remora-capture\",\"remora_duration\":5,\"duration\":9}"}"#,
        );
        let action = action.unwrap();
        assert_eq!((&*action.rule, &*action.name), ("C2", "go"));
        assert_eq!(
            Value::Object(action.parameters),
            serde_json::json!({"duration": 5})
        );
    }

    #[test]
    fn without_parameters_all_have_their_defaults() {
        for context in ["null", "{}", r#"{"falco-talon.rule":""}"#] {
            let action = lambda(context).unwrap();
            assert_eq!((&*action.rule, &*action.name), (UNNAMED, UNNAMED));
            assert!(action.asked().unwrap().unknown.is_empty());
        }
    }

    #[test]
    fn what_is_not_talons_is_refused() {
        for context in [
            "1",
            r#"{"falco-talon.rule":1}"#,
            r#"{"falco-talon.action.parameters":{}}"#,
            r#"{"falco-talon.action.parameters":"[]"}"#,
            r#"{"falco-talon.action.parameters":""}"#,
        ] {
            let refusal = lambda(context).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::InvalidAlert, "{context}");
        }
        for body in [
            "",
            "[]",
            "{}",
            r#"{"event":1}"#,
            r#"{"event":{},"action":1}"#,
        ] {
            Action::of_actionner(body.as_bytes(), "").unwrap_err();
        }
    }

    #[test]
    fn the_actionners_event_is_kept_to_the_byte() {
        let body = br#"{"event": {"rule" : "r", "n": 1795489205478446000.0, "context": {"falco-talon.rule": "C2"}}, "action": {"name": "go", "parameters": {"duration": "5s", "other": 1}}}"#;
        let (event, action) = Action::of_actionner(body, "key").unwrap();
        assert_eq!(
            event,
            br#"{"rule" : "r", "n": 1795489205478446000.0, "context": {"falco-talon.rule": "C2"}}"#
        );
        assert_eq!(
            (&*action.rule, &*action.name, &*action.key),
            ("C2", "go", "key")
        );
        let asked = action.asked().unwrap();
        let note = Action::note(&asked).unwrap();
        assert_eq!(note, "unknown parameters left out: other");
    }

    #[test]
    fn notes_and_names_are_bounded_and_on_one_line() {
        let parameters: Map<String, Value> = (0..1000)
            .map(|n| (format!("zz\u{1b}[2J{n}"), Value::Null))
            .collect();
        let asked = Asked::read("r", "a", &parameters).unwrap();
        let note = Action::note(&asked).unwrap();
        assert!(
            note.len() < 1024 && note.ends_with("and 992 more"),
            "{note}"
        );
        assert!(!note.contains('\u{1b}'), "{note}");
    }
}
