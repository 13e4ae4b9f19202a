//! A capture that another engine's rule asks for: Falco Talon's, by the parameters of its action.
//!
//! That engine has decided; what is left is ours: the parameters' meaning, checked as a rule file's
//! are. What is given wrongly is refused. What is not known is told and left out, unless it looks
//! like a typing error: a capture without its `snaplen` has more than was wanted.

use serde_json::{Map, Value};

use crate::{
    Action, Continue, Match, Mode, Plan, Rule,
    document::{self, PARAMETERS, nearest},
    error::Problem,
    parameters,
};

/// A rule that is not in our files.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    rule: Rule,
    /// Parameters that were left out, as they are called.
    pub unknown: Vec<String>,
}

impl Asked {
    /// Reads the parameters; none at all is a capture with all defaults.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn read(
        rule: &str,
        action: &str,
        parameters: &Map<String, Value>,
    ) -> Result<Self, Problem> {
        let (mut known, mut unknown) = (Map::new(), Vec::new());
        for (key, value) in parameters {
            if PARAMETERS.contains(&key.as_str()) {
                known.insert(key.clone(), in_words(key, value));
            } else if let Some(near) = nearest(key, &PARAMETERS) {
                return Err(Problem::UnknownKey {
                    key: key.clone(),
                    known: Some(near),
                });
            } else {
                unknown.push(key.clone());
            }
        }
        // JSON is YAML, so that a value means here what it means in a file.
        let text = Value::Object(known).to_string();
        let block = document::parameters(&text).map_err(|fault| fault.problem)?;
        let capture = parameters::compile(0, &block).map_err(|fault| fault.problem)?;
        let action = Action {
            name: action.to_owned(),
            capture,
            after: Continue::Next,
        };
        let rule = Rule {
            name: rule.to_owned(),
            matches: Match::default(),
            actions: vec![action],
            after: Continue::Next,
            mode: Mode::Live,
        };
        Ok(Self { rule, unknown })
    }

    /// Its one capture.
    #[must_use]
    pub fn plan(&self) -> Plan<'_> {
        Plan {
            rule: &self.rule,
            action: &self.rule.actions[0],
        }
    }
}

/// Seconds as Talon's YAML has them, `1.5` and `"30"`, with their unit.
fn in_words(key: &str, value: &Value) -> Value {
    let is_time = matches!(key, "duration" | "look_back");
    let number = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return value.clone(),
    };
    let is_plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if is_time && is_plain && !number.is_empty() {
        return format!("{number}s").into();
    }
    value.clone()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::{RuleFilter, Scope};

    fn read(parameters: &Value) -> Result<Asked, String> {
        let parameters = parameters.as_object().unwrap();
        Asked::read("C2 traffic", "capture", parameters).map_err(|problem| problem.to_string())
    }

    #[test]
    fn no_parameters_are_all_defaults() {
        let asked = read(&json!({})).unwrap();
        let plan = asked.plan();
        assert_eq!(plan.rule.name, "C2 traffic");
        assert_eq!(
            plan.action.capture.limits.duration,
            Some(Duration::from_secs(30))
        );
        assert!(asked.unknown.is_empty());
    }

    #[test]
    fn parameters_mean_what_they_mean_in_a_file() {
        let asked = read(&json!({
            "scope": "pod", "look_back": 1.5, "duration": "45", "snaplen": 96, "max_bytes": "1MiB",
            "dns": "true", "labels": {"team": "shop", "on \"call\"": 7},
            "filter": "host ${remote.ip} and\n${remote.proto?} port ${remote.port}",
            "max_packets": null,
        }));
        let asked = asked.unwrap();
        let capture = &asked.plan().action.capture;
        assert_eq!(capture.scope, Scope::Pod);
        assert_eq!(capture.look_back, Duration::from_millis(1500));
        assert_eq!(capture.limits.duration, Some(Duration::from_secs(45)));
        assert_eq!(capture.labels["on \"call\""], "7");
        assert!(matches!(capture.filter, RuleFilter::Template { .. }));
        assert_eq!(capture.limits.packets, None);
        assert!(asked.unknown.is_empty());
    }

    #[test]
    fn what_we_give_users_of_talon_is_right() {
        for (file, prefix) in [
            (include_str!("../../deploy/talon/rules.yaml"), "remora_"),
            (include_str!("../../deploy/talon/rules-actionner.yaml"), ""),
        ] {
            let entries: Vec<Value> = serde_saphyr::from_str(file).unwrap();
            let parameters = entries[0]["parameters"].as_object().unwrap();
            let ours = parameters.iter().filter_map(|(name, value)| {
                Some((name.strip_prefix(prefix)?.to_owned(), value.clone()))
            });
            let asked = read(&Value::Object(ours.collect())).unwrap();
            assert!(asked.unknown.is_empty(), "{:?}", asked.unknown);
            let capture = &asked.plan().action.capture;
            assert_eq!(capture.look_back, Duration::from_secs(15));
        }
    }

    #[test]
    fn each_parameter_of_a_file_is_known() {
        let all: Map<String, Value> = PARAMETERS
            .map(|key| (key.to_owned(), Value::Null))
            .into_iter()
            .collect();
        document::parameters(&Value::Object(all).to_string()).unwrap();
        let fault = document::parameters("{abcdefghijkl: 1}").unwrap_err();
        assert!(
            matches!(fault.problem, Problem::UnknownKey { .. }),
            "{fault:?}"
        );
    }

    #[test]
    fn what_is_wrong_is_refused_and_what_is_foreign_is_told() {
        for (parameters, expected) in [
            (json!({"fliter": "tcp"}), "did you mean `filter`"),
            (json!({"snap_len": 96}), "did you mean `snaplen`"),
            (
                json!({"duration": "soon"}),
                "`duration` is a length of time",
            ),
            (json!({"duration": -1}), "`duration` is a length of time"),
            (json!({"duration": [30]}), "a word or a number"),
            (
                json!({"filter": "host ${remote.pi}"}),
                "did you mean `${remote.ip}`",
            ),
            (json!({"filter": "tcp prot 80"}), "filter: "),
            (json!({"scope": "cluster"}), "is not a scope"),
            (json!({"destination": "S3"}), "is `store`"),
            (json!({"labels": {"pod": "x"}}), "is set by Remora itself"),
        ] {
            let error = read(&parameters).unwrap_err();
            assert!(error.contains(expected), "{parameters}: {error}");
        }
        let asked =
            read(&json!({"order": 2, "enabled": "yes", "list": [1], "map": {"a": {}}})).unwrap();
        assert_eq!(asked.unknown, ["enabled", "list", "map", "order"]);
        // A text is a text, whatever YAML would make of it without its quotes.
        for text in [
            "*a",
            "&a b",
            "- x",
            "{",
            "a: b\n- c",
            "\u{7f}",
            "\u{2028}",
            "😀",
        ] {
            let labels = json!({"labels": {"note": text}});
            if let Ok(asked) = read(&labels) {
                assert_eq!(asked.plan().action.capture.labels["note"], text);
            }
        }
    }
}
